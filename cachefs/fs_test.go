package cachefs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"pillarbox/cachefs/storetest"
	"pillarbox/objstore"
)

func (b *bench) eventually(what string, ok func() bool) {
	b.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			b.Fatalf("waited in vain: %s", what)
		}
	}
}

// TestFreshMail wants a new message to be one commit with one Resident extent.
func TestFreshMail(t *testing.T) {
	b := newFS(t, Options{})
	for _, c := range []struct {
		size int
		kind objstore.ExtentKind
	}{{100, objstore.Inline}, {5000, objstore.Resident}, {objstore.ResidentMax, objstore.Resident}, {objstore.ResidentMax + 1, objstore.Pooled}} {
		ino, h := b.create(fmt.Sprint("mail", c.size))
		mail := random(rand.New(rand.NewSource(1)), c.size)
		for off := 0; off < len(mail); off += 16 << 10 {
			b.write(h, mail[off:min(len(mail), off+16<<10)], uint64(off))
		}
		before := b.store.Count("Apply")
		if err := h.Fsync(b.ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.Flush(b.ctx); err != nil {
			t.Fatal(err)
		}
		h.Release()
		if n := b.store.Count("Apply") - before; n != 1 {
			t.Errorf("%d bytes took %d commits", c.size, n)
		}
		if e := b.extents(ino); len(e) != 1 || e[0].Kind != c.kind {
			t.Errorf("%d bytes: extents %v", c.size, e)
		}
	}
	if n := b.store.Count("Sync"); n != 0 {
		t.Errorf("%d extra syncs", n)
	}
}

// TestAppends writes an index log in small pieces, each synced: commits must be
// small and asks few, extents must stay few.
func TestAppends(t *testing.T) {
	b := newFS(t, Options{})
	ino, h := b.create("dovecot.index.log")
	r := rand.New(rand.NewSource(1))
	var want []byte
	carried := 0
	b.store.FailWith(func(op string, c any) error {
		if w, ok := c.(objstore.Write); ok && op == "Apply" {
			for _, e := range w.Extents {
				carried += int(e.Len)
			}
		}
		return nil
	})
	for len(want) < 1<<20 {
		p := random(r, 48+r.Intn(152))
		b.write(h, p, uint64(len(want)))
		want = append(want, p...)
		if err := h.Fsync(b.ctx); err != nil {
			t.Fatal(err)
		}
	}
	b.store.FailWith(nil)
	b.want(h, want)
	h.Release()
	n := len(b.extents(ino))
	t.Logf("%d bytes in %d extents, %d bytes carried", len(want), n, carried)
	if n > maxExtents+2 {
		t.Errorf("%d extents", n)
	}
	if carried > 6*len(want) {
		t.Errorf("%d bytes were carried for %d", carried, len(want))
	}
	if n := b.store.Count("Extents"); n > 1000 {
		t.Errorf("asked %d times for extents", n)
	}
}

// TestStreaming bounds the memory of a large attachment.
func TestStreaming(t *testing.T) {
	const limit = 16 << 20
	b := newFS(t, Options{DirtyMax: limit, DirtyPerFile: limit})
	_, h := b.create("attachment")
	r := rand.New(rand.NewSource(1))
	var want []byte
	for range 96 {
		p := random(r, 1<<20)
		b.write(h, p, uint64(len(want)))
		want = append(want, p...)
	}
	if err := h.Flush(b.ctx); err != nil {
		t.Fatal(err)
	}
	if b.fs.budget.peak > limit {
		t.Errorf("%d bytes were buffered, limit %d", b.fs.budget.peak, limit)
	}
	b.want(h, want)
	h.Release()
}

// TestManyDirtyFiles has writers of many open files share the limit.
func TestManyDirtyFiles(t *testing.T) {
	const limit = 8 << 20
	b := newFS(t, Options{DirtyMax: limit, DirtyPerFile: limit})
	p := random(rand.New(rand.NewSource(1)), 256<<10)
	var hs []*Handle
	for i := range 100 {
		_, h := b.create(fmt.Sprint(i))
		hs = append(hs, h)
	}
	done := make(chan error)
	for w := range 4 {
		go func() {
			var err error
			for i := w; i < len(hs) && err == nil; i += 4 {
				_, err = hs[i].Write(b.ctx, p, 0, WriteOptions{})
			}
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if b.fs.budget.peak > limit {
		t.Errorf("%d bytes were buffered, limit %d", b.fs.budget.peak, limit)
	}
	for _, h := range hs {
		b.want(h, p)
		h.Release()
	}
}

// TestUploadFails wants a background failure to be told, and nothing to be lost.
func TestUploadFails(t *testing.T) {
	b := newFS(t, Options{})
	_, h := b.create("f")
	var broken atomic.Bool
	broken.Store(true)
	b.store.FailWith(func(op string, _ any) error {
		if op == "PutChunk" && broken.Load() {
			return errTest
		}
		return nil
	})
	want := random(rand.New(rand.NewSource(1)), objstore.ChunkSize)
	b.write(h, want, 0)
	b.eventually("a write tells of the failed upload", func() bool {
		_, err := h.Write(b.ctx, want[:1], 0, WriteOptions{})
		return errors.Is(err, objstore.NoSpace)
	})
	if err := h.Flush(b.ctx); !errors.Is(err, objstore.NoSpace) {
		t.Errorf("flush: %v", err)
	}
	if err := h.Fsync(b.ctx); !errors.Is(err, objstore.NoSpace) {
		t.Errorf("fsync: %v", err)
	}
	b.want(h, want)
	broken.Store(false)
	if err := h.Fsync(b.ctx); err != nil {
		t.Errorf("fsync once there is room: %v", err)
	}
	b.want(h, want)
	h.Release()
}

// TestInlineRefused falls back to Resident when the volume has no room inline.
func TestInlineRefused(t *testing.T) {
	b := newFS(t, Options{})
	_, h := b.create("f")
	b.store.FailWith(func(op string, c any) error {
		if w, ok := c.(objstore.Write); ok && op == "Apply" {
			for _, e := range w.Extents {
				if e.Kind == objstore.Inline {
					return fmt.Errorf("injected: %w", objstore.Invalid)
				}
			}
		}
		return nil
	})
	b.write(h, []byte("small"), 0)
	if err := h.Fsync(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.want(h, []byte("small"))
	h.Release()
}

// TestOrphans purges an unlinked file after its last release, without
// committing what was dirty, and many at a time.
func TestOrphans(t *testing.T) {
	b := newFS(t, Options{})
	ino, h := b.create("f")
	h2, err := b.fs.Open(b.ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	b.write(h, []byte("dirty"), 0)
	remove := func(name string) {
		t.Helper()
		if err := b.fs.Remove(b.ctx, objstore.Remove{Parent: 1, Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	remove("f")
	before := b.store.Count("Apply")
	if err := h.Flush(b.ctx); err != nil {
		t.Fatal(err)
	}
	h.Release()
	b.want(h2, []byte("dirty"))
	if n := b.store.Count("Apply") - before; n != 0 {
		t.Errorf("%d commits for a file nobody can find", n)
	}
	h2.Release()
	b.eventually("the orphan is purged", func() bool {
		_, err := b.fs.GetAttr(b.ctx, ino)
		return errors.Is(err, objstore.Stale)
	})
	if _, err := b.fs.Open(b.ctx, ino); !errors.Is(err, objstore.Stale) {
		t.Errorf("open a purged inode: %v", err)
	}
	for i := range 1000 {
		_, h := b.create(fmt.Sprint(i))
		h.Release()
	}
	before = b.store.Count("Apply")
	for i := range 1000 {
		remove(fmt.Sprint(i))
	}
	b.eventually("all orphans are purged", func() bool {
		left, err := b.store.Orphans()
		return err == nil && len(left) == 0
	})
	if n := b.store.Count("Apply") - before - 1000; n > 100 {
		t.Errorf("%d purges for 1000 files", n)
	}
}

// TestCloseWithOpenOrphans: a kernel that is gone releases nothing.
func TestCloseWithOpenOrphans(t *testing.T) {
	store := storetest.New()
	fs, err := New(store, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t, t.Context(), store, fs}
	_, h := b.create("f")
	b.write(h, []byte("dirty"), 0)
	if err := fs.Remove(b.ctx, objstore.Remove{Parent: 1, Name: "f"}); err != nil {
		t.Fatal(err)
	}
	if err := fs.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := store.Orphans(); err != nil || len(left) > 0 || fs.budget.used != 0 {
		t.Errorf("left %v, %v, %d bytes charged", left, err, fs.budget.used)
	}
}

// TestPromises checks what is asked of the store for each kind of call.
func TestPromises(t *testing.T) {
	for _, dirSync := range []bool{false, true} {
		b := newFS(t, Options{DirSync: dirSync})
		ino, h := b.create("f")
		committed := func(what string, want bool, do func() error) {
			t.Helper()
			before := b.store.Count("Apply/1") + b.store.Count("Sync")
			if err := do(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if got := b.store.Count("Apply/1")+b.store.Count("Sync") > before; got != want {
				t.Errorf("%s (DirSync %v): committed %v", what, dirSync, got)
			}
		}
		b.write(h, []byte("a"), 0)
		committed("flush", dirSync, func() error { return h.Flush(b.ctx) })
		committed("clean flush", false, func() error { return h.Flush(b.ctx) })
		committed("clean fsync", true, func() error { return h.Fsync(b.ctx) })
		b.write(h, []byte("b"), 0)
		committed("fsync", true, func() error { return h.Fsync(b.ctx) })
		committed("link", true, func() error {
			_, err := b.fs.Link(b.ctx, objstore.Link{Ino: ino, Parent: 1, Name: "g"})
			return err
		})
		committed("rename", dirSync, func() error {
			return b.fs.Rename(b.ctx, objstore.Rename{OldParent: 1, OldName: "g", NewParent: 1, NewName: "h"})
		})
		committed("sync of a directory", true, func() error { return b.fs.Sync(b.ctx, 1) })
		h.Release()
	}
}

// TestConcurrent has readers, writers and attribute readers on one file; sizes
// that were acknowledged must never shrink. For the race detector, too.
func TestConcurrent(t *testing.T) {
	b := newFS(t, Options{})
	ino, h := b.create("f")
	const pieces, size = 400, 3000
	var acked atomic.Int64
	done := make(chan error)
	go func() {
		for i := range pieces {
			_, err := h.Write(b.ctx, bytes.Repeat([]byte{byte(i)}, size), 0, WriteOptions{Append: true})
			if err == nil {
				acked.Store(int64(i+1) * size)
				switch i % 3 {
				case 0:
					err = h.Fsync(b.ctx)
				case 1:
					err = h.Flush(b.ctx)
				}
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	check := func(what string, get func() (uint64, error)) {
		for acked.Load() < pieces*size {
			before := acked.Load()
			n, err := get()
			if err == nil && n < uint64(before) {
				err = fmt.Errorf("%s saw %d bytes after %d were written", what, n, before)
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}
	go check("getattr", func() (uint64, error) {
		a, err := b.fs.GetAttr(b.ctx, ino)
		return a.Size, err
	})
	go check("lookup", func() (uint64, error) {
		a, err := b.fs.Lookup(b.ctx, 1, "f")
		return a.Size, err
	})
	go check("readdir", func() (uint64, error) {
		l, err := b.fs.ReadDir(b.ctx, 1, 0, 10, true)
		if err != nil || len(l) != 1 || l[0].Attr == nil {
			return 0, fmt.Errorf("list %v: %w", l, err)
		}
		return l[0].Attr.Size, nil
	})
	go check("read", func() (uint64, error) {
		n := acked.Load()
		p := make([]byte, n)
		got, err := h.Read(b.ctx, p, 0)
		for i := 0; i < got; i += size {
			if p[i] != byte(i/size) {
				return 0, fmt.Errorf("byte %d is %d", i, p[i])
			}
		}
		return uint64(got), err
	})
	for range 5 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	h.Release()
}

// TestBodiesOfOpenFiles: how much is kept of small files while they are open is
// bounded over all of them; the rest is read all the same, and all goes with the files.
func TestBodiesOfOpenFiles(t *testing.T) {
	const size = 10_000
	b := newFS(t, Options{BodyMax: 5 * size})
	mail := random(rand.New(rand.NewSource(1)), size)
	var open []*Handle
	for i := range 20 {
		_, h := b.create(fmt.Sprint(i))
		b.write(h, mail, 0)
		if err := h.Fsync(b.ctx); err != nil {
			t.Fatal(err)
		}
		open = append(open, h)
	}
	for _, h := range open {
		p := make([]byte, 100)
		for off := 0; off < size; off += 1000 {
			if n, err := h.Read(b.ctx, p, uint64(off)); err != nil || n != len(p) || !bytes.Equal(p, mail[off:off+n]) {
				t.Fatalf("%d bytes at %d: %v, or other ones", n, off, err)
			}
		}
	}
	if n := b.fs.Stats().Bodies; n != 5*size {
		t.Errorf("%d bytes are kept of open files", n)
	}
	b.write(open[0], []byte("x"), 5)
	if err := open[0].Fsync(b.ctx); err != nil {
		t.Fatal(err)
	}
	for _, h := range open {
		h.Release()
	}
	if n := b.fs.Stats().Bodies; n != 0 {
		t.Errorf("%d bytes are kept of closed files", n)
	}
}
