package cachefs

import (
	"context"
	"errors"
	"testing"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
)

// lockLog notes what is committed when a lock changes.
type lockLog struct {
	commits func() int
	ops     []locks.Op
	at      []int
}

func (l *lockLog) Lock(_ context.Context, r locks.Request) (locks.Answer, error) {
	l.ops, l.at = append(l.ops, r.Op), append(l.at, l.commits())
	return locks.Answer{Granted: true}, nil
}
func (l *lockLog) Locked(objstore.Ino) bool   { return true }
func (l *lockLog) LostLock(objstore.Ino) bool { return false }

// TestCommitsBeforeUnlock: what was written under a lock is committed before the
// lock goes or becomes one to read, also while a signal ends the call, and that it
// cannot be keeps no lock alive.
func TestCommitsBeforeUnlock(t *testing.T) {
	b := newFS(t, Options{})
	l := &lockLog{commits: func() int { return b.store.Count("Apply") }}
	b.fs.shared.locks = l
	ino, h := b.create("f")
	defer h.Release()
	signalled, cancel := context.WithCancel(b.ctx)
	cancel()
	for _, r := range []locks.Request{{Op: locks.Unlock}, {Op: locks.Wait}, {Op: locks.Try}} {
		b.write(h, []byte("x"), 0)
		before := b.store.Count("Apply")
		if _, err := h.Lock(signalled, r); err != nil {
			t.Fatal(err)
		}
		if n := l.at[len(l.at)-1] - before; n != 1 {
			t.Errorf("operation %d: %d commits before the lock changed", r.Op, n)
		}
	}
	b.write(h, []byte("x"), 0)
	b.store.FailWith(func(op string, _ any) error {
		if op == "Apply" {
			return objstore.NoSpace
		}
		return nil
	})
	if _, err := h.Lock(b.ctx, locks.Request{Op: locks.Try}); !errors.Is(err, objstore.NoSpace) || len(l.ops) != 3 {
		t.Errorf("a lock to read what is not committed: %v, %v", err, l.ops)
	}
	other := b.open(ino)
	defer other.Release()
	if _, err := h.Lock(b.ctx, locks.Request{Op: locks.Unlock}); !errors.Is(err, objstore.NoSpace) {
		t.Errorf("what could not be committed: %v", err)
	}
	if l.ops[len(l.ops)-1] != locks.Unlock || len(l.ops) != 4 {
		t.Errorf("the lock stays: %v", l.ops)
	}
	b.store.FailWith(nil)
	// Others may have changed the file since: what was written must not come any more.
	before := b.store.Count("Apply")
	if err := h.Fsync(b.ctx); err != nil || b.store.Count("Apply") != before {
		t.Errorf("committed after the lock was let go; %v", err)
	}
	for i := range 2 { // who may have written it is told once
		if err := other.Fsync(b.ctx); errors.Is(err, objstore.NoSpace) != (i == 0) {
			t.Errorf("fsync %d: %v", i, err)
		}
	}
}

// slowKernel drops pages when it may.
type slowKernel struct{ may chan struct{} }

func (k *slowKernel) Drop(objstore.Ino)       { <-k.may }
func (k *slowKernel) Happened(objstore.Event) {}

func (k *slowKernel) Stale(objstore.Event) (until time.Time) { return until }

// TestNoLockOverVoidPages: nobody is granted a lock, or told that the kernel's pages
// are good, before the kernel has dropped those that are not.
func TestNoLockOverVoidPages(t *testing.T) {
	b := newFS(t, Options{})
	b.fs.shared.locks = &lockLog{commits: func() int { return 0 }}
	k := &slowKernel{make(chan struct{})}
	b.fs.SetKernel(k)
	ino, h := b.create("f")
	defer h.Release()
	everything := func(objstore.VolumeID) bool { return true }
	b.fs.Void(everything, false)
	again, err := b.fs.Open(b.ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Release()
	if again.Unchanged() {
		t.Error("pages that are void are good")
	}
	b.fs.Void(everything, false) // another time: both must end
	locked := make(chan error)
	go func() {
		_, err := again.Lock(b.ctx, locks.Request{Op: locks.Wait, Lock: locks.Lock{Write: true}})
		locked <- err
	}()
	k.may <- struct{}{}
	select {
	case <-locked:
		t.Error("a lock over pages that are void")
	case k.may <- struct{}{}:
	}
	if err := <-locked; err != nil {
		t.Error(err)
	}
	b.fs.shared.awaitDrop(ino)
	good, err := b.fs.Open(b.ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	defer good.Release()
	if !good.Unchanged() {
		t.Error("pages that are good are void")
	}
}

// TestFenced: who had data or locks when the lease was over is told at every
// call; the data never come back, and the file is good for who opens it anew.
func TestFenced(t *testing.T) {
	b := newFS(t, Options{})
	ino, h := b.create("f")
	defer h.Release()
	b.write(h, []byte("one"), 0)
	if err := h.Fsync(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.write(h, []byte("two, and longer"), 0)
	b.fs.Void(func(objstore.VolumeID) bool { return true }, true)
	buf := make([]byte, 100)
	for what, call := range map[string]func() error{
		"fsync": func() error { return h.Fsync(b.ctx) },
		"close": func() error { return h.Flush(b.ctx) },
		"read":  func() error { _, err := h.Read(b.ctx, buf, 0); return err },
		"write": func() error { _, err := h.Write(b.ctx, []byte("x"), 0, WriteOptions{}); return err },
		"lock": func() error {
			b.fs.shared.locks = &lockLog{commits: func() int { return 0 }}
			_, err := h.Lock(b.ctx, locks.Request{Op: locks.Try})
			return err
		},
	} {
		for range 2 {
			if err := call(); !errors.Is(err, objstore.Fenced) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	again, err := b.fs.Open(b.ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Release()
	if n, err := again.Read(b.ctx, buf, 0); err != nil || string(buf[:n]) != "one" {
		t.Errorf("opened anew: %q, %v", buf[:n], err)
	}
	// A commit that was under way is given up.
	b.write(again, []byte("three"), 0)
	b.store.FailWith(func(op string, _ any) error {
		if op == "Apply" {
			return objstore.Fenced
		}
		return nil
	})
	if err := again.Fsync(b.ctx); !errors.Is(err, objstore.Fenced) {
		t.Errorf("fsync: %v", err)
	}
	b.store.FailWith(nil)
	if err := again.Fsync(b.ctx); !errors.Is(err, objstore.Fenced) {
		t.Errorf("fsync after that: %v", err)
	}
	if a, err := b.fs.GetAttr(b.ctx, ino); err != nil || a.Size != 3 {
		t.Errorf("size %d, %v", a.Size, err)
	}
}
