package cachefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"sync"
	"testing"

	"pillarbox/cachefs/storetest"
	"pillarbox/objstore"
)

var errTest = fmt.Errorf("injected: %w", objstore.NoSpace)

type bench struct {
	*testing.T
	ctx   context.Context
	store *storetest.Store
	fs    *FS
}

func newFS(t *testing.T, o Options) *bench {
	t.Helper()
	b := &bench{t, context.Background(), storetest.New(), nil}
	fs, err := New(b.store, o)
	if err != nil {
		t.Fatal(err)
	}
	b.fs = fs
	t.Cleanup(func() {
		b.store.FailWith(nil)
		if err := fs.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		b.check()
		if fs.budget.used != 0 {
			t.Errorf("%d bytes still charged after Close", fs.budget.used)
		}
	})
	return b
}

func (b *bench) check() {
	b.Helper()
	found, err := b.store.Check()
	if err != nil || len(found) > 0 {
		b.Errorf("volume check: %v %v", found, err)
	}
}

func (b *bench) create(name string) (objstore.Ino, *Handle) {
	b.Helper()
	a, h, err := b.fs.Create(b.ctx, objstore.Create{Parent: 1, Name: name, Mode: objstore.ModeRegular | 0o644})
	if err != nil {
		b.Fatalf("create %q: %v", name, err)
	}
	return a.Ino, h
}

func (b *bench) write(h *Handle, p []byte, off uint64) {
	b.Helper()
	if n, err := h.Write(b.ctx, p, off, WriteOptions{}); err != nil || n != len(p) {
		b.Fatalf("write %d at %d: %d, %v", len(p), off, n, err)
	}
}

func (b *bench) contents(h *Handle) []byte {
	b.Helper()
	a, err := b.fs.GetAttr(b.ctx, h.Ino())
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, a.Size+100)
	n, err := h.Read(b.ctx, p, 0)
	if err != nil {
		b.Fatalf("read: %v", err)
	}
	if uint64(n) != a.Size {
		b.Fatalf("read %d bytes of a file of %d", n, a.Size)
	}
	return p[:n]
}

func (b *bench) want(h *Handle, want []byte) {
	b.Helper()
	got := b.contents(h)
	if bytes.Equal(got, want) {
		return
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			b.Fatalf("contents differ at %d of %d (want %d bytes): %x, want %x", i, len(got), len(want), got[i], want[i])
		}
	}
	b.Fatalf("%d bytes, want %d", len(got), len(want))
}

func (b *bench) extents(ino objstore.Ino) []objstore.Extent {
	b.Helper()
	e, err := b.store.Extents(b.ctx, ino, 0, 1<<50)
	if err != nil {
		b.Fatal(err)
	}
	return e
}

func random(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	r.Read(p)
	return p
}

// TestModel runs random operations against a byte slice, small and large
// files, with and without failures of the store.
func TestModel(t *testing.T) {
	for _, c := range []struct {
		name    string
		max     int // file size
		piece   int // bytes of a write
		steps   int
		failing bool
	}{
		{"tiny", 600, 80, 1500, false},
		{"index", 40 << 10, 200, 3000, false},
		{"body", 300 << 10, 40 << 10, 800, false},
		{"chunks", 10 << 20, 2 << 20, 250, false},
		{"body failing", 300 << 10, 40 << 10, 800, true},
		{"index failing", 40 << 10, 200, 2000, true},
		{"chunks failing", 10 << 20, 3 << 20, 250, true},
	} {
		for seed := range int64(3) {
			t.Run(fmt.Sprintf("%s/%d", c.name, seed), func(t *testing.T) {
				t.Parallel()
				runModel(t, rand.New(rand.NewSource(seed)), c.max, c.piece, c.steps, c.failing)
			})
		}
	}
}

func runModel(t *testing.T, r *rand.Rand, size, piece, steps int, failing bool) {
	o := Options{DirtyMax: 16 << 20, DirtyPerFile: 8 << 20}
	if size < objstore.ChunkSize {
		o.Bodies = &memory{}
	}
	b := newFS(t, o)
	ino, h := b.create("f")
	var mu sync.Mutex
	fr := rand.New(rand.NewSource(r.Int63()))
	if failing {
		b.store.FailWith(func(op string, _ any) error {
			mu.Lock()
			defer mu.Unlock()
			if (op == "Apply" || op == "PutChunk") && fr.Intn(4) == 0 {
				return errTest
			}
			return nil
		})
	}
	// ok passes injected failures, which must leave everything readable.
	ok := func(what string, err error) bool {
		if err != nil && (!failing || !errors.Is(err, objstore.NoSpace)) {
			t.Fatalf("%s: %v", what, err)
		}
		return err == nil
	}
	var model []byte
	grow := func(n int) {
		if n > len(model) {
			model = append(model, make([]byte, n-len(model))...)
		}
	}
	for range steps {
		switch k := r.Intn(20); {
		case k < 9:
			off, p := r.Intn(size), random(r, 1+r.Intn(piece))
			if k < 4 {
				off = len(model) % size
			}
			n, err := h.Write(b.ctx, p, uint64(off), WriteOptions{})
			if err != nil && ok("write", err) || err == nil && n != len(p) {
				t.Fatalf("write: %d, %v", n, err)
			}
			// A write that failed may have left its bytes or not.
			if err != nil {
				grow(len(model))
				model = b.contents(h)
				continue
			}
			grow(off + len(p))
			copy(model[off:], p)
		case k < 10:
			n := r.Intn(size)
			if _, err := b.fs.SetAttr(b.ctx, objstore.SetAttr{Ino: ino, Set: objstore.SetSize, Size: uint64(n)}, false, Caller{}); ok("truncate", err) {
				grow(n)
				model = model[:n]
			}
		case k < 11:
			off, n := r.Intn(size), 1+r.Intn(piece)
			if ok("punch", h.Allocate(b.ctx, uint64(off), uint64(n), PunchHole)) {
				if off < len(model) {
					clear(model[off:min(len(model), off+n)])
				}
			}
		case k < 13:
			ok("flush", h.Flush(b.ctx))
		case k < 15:
			ok("fsync", h.Fsync(b.ctx))
		case k < 16:
			h2, err := b.fs.Open(b.ctx, ino)
			if err != nil {
				t.Fatal(err)
			}
			h.Release()
			h = h2
		case k < 17:
			b.want(h, model)
		default:
			off, n := r.Intn(size), 1+r.Intn(piece)
			p := make([]byte, n)
			got, err := h.Read(b.ctx, p, uint64(off))
			if err != nil {
				t.Fatalf("read: %v", err)
			}
			want := model[min(off, len(model)):min(off+n, len(model))]
			if !bytes.Equal(p[:got], want) {
				t.Fatalf("read %d at %d differs", n, off)
			}
		}
	}
	b.want(h, model)
	b.store.FailWith(nil)
	if err := h.Fsync(b.ctx); err != nil {
		t.Fatalf("fsync once the store works again: %v", err)
	}
	b.want(h, model)
	h.Release()
	h, err := b.fs.Open(b.ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	b.want(h, model)
	perBlock := map[uint64]int{}
	for _, e := range b.extents(ino) {
		perBlock[e.Off/objstore.ChunkSize]++
	}
	for at, n := range perBlock {
		if n > maxExtents+2 {
			t.Errorf("block %d has %d extents", at, n)
		}
	}
	h.Release()
}
