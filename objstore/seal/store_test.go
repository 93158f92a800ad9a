package seal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync/atomic"
	"testing"

	"pillarbox/cachefs"
	"pillarbox/cachefs/storetest"
	"pillarbox/objstore"
	"pillarbox/objstore/locks"
	"pillarbox/objstore/seal"
)

var root = objstore.VolumeRoot(objstore.RootVolume)

// base is a store in memory with what it lacks of a Base; nobody asks for that.
type base struct {
	*storetest.Store
	locking
	session uint64
}

func (b base) Session() objstore.Session { return objstore.Session{ID: b.session} }

var sessions atomic.Uint64

type locking interface {
	Lock(ctx context.Context, r locks.Request) (locks.Answer, error)
	Locked(ino objstore.Ino) bool
	LostLock(ino objstore.Ino) bool
	Leased(v objstore.VolumeID) bool
	Pin(ctx context.Context, v objstore.VolumeID) context.Context
	MakeAccount(ctx context.Context, c objstore.Create, p objstore.Promise) (objstore.Result, error)
}

type unlocked struct{ locking }

func (unlocked) LostLock(objstore.Ino) bool                                   { return false }
func (unlocked) Locked(objstore.Ino) bool                                     { return false }
func (unlocked) Leased(objstore.VolumeID) bool                                { return true }
func (unlocked) Pin(ctx context.Context, _ objstore.VolumeID) context.Context { return ctx }

// open makes another client of a store.
func open(t *testing.T, mem *storetest.Store, keyFile string) *seal.Store {
	t.Helper()
	s, err := seal.New(base{mem, unlocked{}, sessions.Add(1)}, keyFile, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// encrypted makes an encrypted store and its key file.
func encrypted(t *testing.T) (*storetest.Store, *seal.Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	if err := seal.CreateKeys(path, (*seal.MasterKeys)(nil).With(seal.NewMasterKey())); err != nil {
		t.Fatal(err)
	}
	mem := storetest.New()
	s := open(t, mem, path)
	for range 2 {
		if err := s.Encrypt(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return mem, s, path
}

func newFS(t *testing.T, s objstore.Store) *cachefs.FS {
	t.Helper()
	fs, err := cachefs.New(s, cachefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func create(t *testing.T, fs *cachefs.FS, name string, body []byte) objstore.Ino {
	t.Helper()
	a, h, err := fs.Create(t.Context(), objstore.Create{Parent: root, Name: name, Mode: objstore.ModeRegular | 0o600})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	put(t, h, body, 0)
	if err := h.Fsync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a.Ino
}

func put(t *testing.T, h *cachefs.Handle, b []byte, off uint64) {
	t.Helper()
	if n, err := h.Write(t.Context(), b, off, cachefs.WriteOptions{}); err != nil || n != len(b) {
		t.Fatalf("write %d bytes at %d: %d, %v", len(b), off, n, err)
	}
}

func read(fs *cachefs.FS, ino objstore.Ino, n int) ([]byte, error) {
	ctx := context.Background()
	h, err := fs.Open(ctx, ino)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	p := make([]byte, n)
	got, err := h.Read(ctx, p, 0)
	return p[:got], err
}

// marked is a body with a text in every line that must not show below.
const mark = "Subject: nobody may read this"

func marked(n int) []byte { return bytes.Repeat([]byte(mark+"\r\n"), n/len(mark)+1)[:n] }

func TestNothingShows(t *testing.T) {
	mem, s, path := encrypted(t)
	fs := newFS(t, s)
	sizes := []int{1, 100, 600, 5000, 64 << 10, 100 << 10, 4<<20 + 3}
	var inos []objstore.Ino
	for i, n := range sizes {
		inos = append(inos, create(t, fs, fmt.Sprint("f", i), marked(n)))
	}
	if err := fs.Close(); err != nil {
		t.Fatal(err)
	}
	if mem.Holds([]byte(mark)) || mem.Holds([]byte("nobody may")) {
		t.Fatal("the store below holds plain text")
	}
	plain, keyed := newFS(t, open(t, mem, "")), newFS(t, open(t, mem, path))
	for i, n := range sizes {
		if got, err := read(keyed, inos[i], n+10); err != nil || !bytes.Equal(got, marked(n)) {
			t.Errorf("file of %d bytes: %d read, %v", n, len(got), err)
		}
		if _, err := read(plain, inos[i], n); !errors.Is(err, objstore.NoKey) {
			t.Errorf("file of %d bytes without the key: %v", n, err)
		}
	}
	_, _, err := plain.Create(t.Context(), objstore.Create{Parent: root, Name: "g", Mode: objstore.ModeRegular | 0o600})
	if err != nil {
		t.Fatal(err) // names need no key
	}
}

// Chunks that are shared stay sealed under the id that they were made with.
func TestShared(t *testing.T) {
	mem, s, path := encrypted(t)
	fs := newFS(t, s)
	var all []byte
	to := create(t, fs, "to", nil)
	for i, n := range []int{100, 5000, 64 << 10, 4<<20 + 3, 5 << 20} {
		from := create(t, fs, fmt.Sprint("f", i), marked(n))
		if err := fs.Share(t.Context(), objstore.Share{Ino: to, Off: uint64(len(all)), Src: from, Len: uint64(n)}); err != nil {
			t.Fatal(err)
		}
		all = append(all, marked(n)...)
		if err := fs.Remove(t.Context(), objstore.Remove{Parent: root, Name: fmt.Sprint("f", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := fs.Close(); err != nil {
		t.Fatal(err)
	}
	if mem.Holds([]byte(mark)) {
		t.Fatal("the store below holds plain text")
	}
	if got, err := read(newFS(t, open(t, mem, path)), to, len(all)+10); err != nil || !bytes.Equal(got, all) {
		t.Fatalf("%d bytes read, want %d: %v", len(got), len(all), err)
	}
}

// Random writes, cuts and reads over an encrypted store, beside bytes in memory.
func TestModel(t *testing.T) {
	mem, s, path := encrypted(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	fs := newFS(t, s)
	ino := create(t, fs, "f", nil)
	var model []byte
	for round := range 25 {
		h, err := fs.Open(t.Context(), ino)
		if err != nil {
			t.Fatal(err)
		}
		for range 1 + rnd.IntN(6) {
			n := []int{20, 300, 3000, 60000, 300000, 1 << 20}[rnd.IntN(6)]
			b := marked(1 + rnd.IntN(n))
			b[rnd.IntN(len(b))] = byte(round)
			off := rnd.IntN(min(len(model), 6<<20) + 1)
			put(t, h, b, uint64(off))
			if need := off + len(b); need > len(model) {
				model = append(model, make([]byte, need-len(model))...)
			}
			copy(model[off:], b)
		}
		if rnd.IntN(3) == 0 {
			model = model[:rnd.IntN(len(model)+1)]
			if _, err := fs.SetAttr(t.Context(), objstore.SetAttr{Ino: ino, Set: objstore.SetSize, Size: uint64(len(model))}, false, cachefs.Caller{}); err != nil {
				t.Fatal(err)
			}
		}
		err = h.Fsync(t.Context())
		h.Release()
		if err != nil {
			t.Fatal(err)
		}
		if round%5 == 4 { // as another client sees it
			if err := fs.Close(); err != nil {
				t.Fatal(err)
			}
			fs = newFS(t, open(t, mem, path))
		}
		if got, err := read(fs, ino, len(model)+1); err != nil || !bytes.Equal(got, model) {
			t.Fatalf("round %d: %d bytes read of %d, %v", round, len(got), len(model), err)
		}
	}
	if err := fs.Close(); err != nil {
		t.Fatal(err)
	}
	if problems, err := mem.Check(); err != nil || len(problems) > 0 {
		t.Fatalf("check: %v, %v", problems, err)
	}
	if mem.Holds([]byte(mark)) {
		t.Fatal("the store below holds plain text")
	}
}

// A provider that exchanges chunks, or cuts them, is found out.
func TestSwapped(t *testing.T) {
	mem, s, path := encrypted(t)
	fs := newFS(t, s)
	a, b := create(t, fs, "a", marked(100<<10)), create(t, fs, "b", bytes.ToUpper(marked(100<<10)))
	if err := fs.Close(); err != nil {
		t.Fatal(err)
	}
	mem.Tamper(func(bodies map[objstore.ChunkID][]byte) {
		var ids []objstore.ChunkID
		for id := range bodies {
			ids = append(ids, id)
		}
		if len(ids) != 2 {
			t.Fatalf("%d chunks", len(ids))
		}
		bodies[ids[0]], bodies[ids[1]] = bodies[ids[1]], bodies[ids[0]]
	})
	fs = newFS(t, open(t, mem, path))
	for _, ino := range []objstore.Ino{a, b} {
		if _, err := read(fs, ino, 100<<10); !errors.Is(err, objstore.Corrupt) {
			t.Errorf("a swapped chunk: %v", err)
		}
	}
}

func TestRotateAndDestroy(t *testing.T) {
	mem, s, path := encrypted(t)
	fs := newFS(t, s)
	ino := create(t, fs, "a", marked(5000))
	value, err := s.GetXattr(t.Context(), root, seal.KeyAttr)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := seal.ReadKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.Unwrap(0, value)
	if err != nil {
		t.Fatal(err)
	}
	old := keys.Newest().ID
	keys = keys.With(seal.NewMasterKey())
	if err := seal.WriteKeys(path, keys); err != nil {
		t.Fatal(err)
	}
	set := func(value []byte) error {
		_, err := s.Apply(t.Context(), objstore.SetXattr{Ino: root, Name: seal.KeyAttr, Value: value}, objstore.Ordered)
		return err
	}
	wrapped, err := keys.Newest().Wrap(0, key)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := keys.Newest().Wrap(0, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{"another key": foreign, "nonsense": []byte("key")} {
		if err := set(bad); !errors.Is(err, objstore.NotPermitted) {
			t.Errorf("set %s: %v", name, err)
		}
	}
	if err := set(wrapped); err != nil {
		t.Fatal(err)
	}
	if err := seal.WriteKeys(path, keys.Without(old)); err != nil {
		t.Fatal(err)
	}
	other := newFS(t, open(t, mem, path))
	if got, err := read(other, ino, 5000); err != nil || !bytes.Equal(got, marked(5000)) {
		t.Fatalf("after the rotation: %v", err)
	}
	if names, err := s.ListXattr(t.Context(), root); err != nil || fmt.Sprint(names) != fmt.Sprint([]string{seal.PolicyAttr}) {
		t.Errorf("attributes listed: %v, %v", names, err)
	}
	if _, err := s.Apply(t.Context(), objstore.RemoveXattr{Ino: root, Name: seal.KeyAttr}, objstore.Ordered); !errors.Is(err, objstore.NotPermitted) {
		t.Errorf("remove the key: %v", err)
	}
	if err := set(seal.Destroyed()); err != nil {
		t.Fatal(err)
	}
	if _, err := read(fs, ino, 5000); !errors.Is(err, objstore.NoKey) {
		t.Errorf("a file whose key was destroyed: %v", err)
	}
	if err := set(wrapped); !errors.Is(err, objstore.NoKey) {
		t.Errorf("bring the key back: %v", err)
	}
}

// What another client does to a key is heard of.
func TestWatcher(t *testing.T) {
	mem, s, path := encrypted(t)
	fs := newFS(t, s)
	ino := create(t, fs, "a", marked(5000))
	w := s.Watcher(fs)
	if known := w.Known(func(objstore.VolumeID) bool { return true }); len(known) != 1 {
		t.Errorf("known volumes: %v", known)
	}
	other := open(t, mem, path)
	change := objstore.SetXattr{Ino: root, Name: seal.KeyAttr, Value: seal.Destroyed()}
	if _, err := other.Apply(t.Context(), change, objstore.Ordered); err != nil {
		t.Fatal(err)
	}
	acked := make(chan objstore.Ack, 1)
	w.Told(objstore.Push{Seq: 1, Events: objstore.EventsOf(change, objstore.Result{})}, func(a objstore.Ack) { acked <- a })
	<-acked
	if _, err := read(fs, ino, 5000); !errors.Is(err, objstore.NoKey) {
		t.Errorf("a file whose key another client destroyed: %v", err)
	}
}
