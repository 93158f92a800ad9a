package cachefs

import (
	"context"
	"errors"
	"fmt"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
)

// Locker is a Store that has file locks.
type Locker interface {
	// Lock tests, sets or clears a lock. A request that waits ends with ctx. Deadlock.
	Lock(ctx context.Context, r locks.Request) (locks.Answer, error)
	// Locked says whether this client has a lock of the inode.
	Locked(ino objstore.Ino) bool
	// LostLock says, while Void is called with fenced, whether it had one.
	LostLock(ino objstore.Ino) bool
}

// Lock tests, sets or clears a lock of an open file. What was written under a
// lock is committed before the lock is cleared or becomes one to read. That it
// cannot be keeps no lock alive: it is given up, for others may change the file
// from then on. Unsupported: the kernel has the locks of a store
// with one host.
func (h *Handle) Lock(ctx context.Context, r locks.Request) (locks.Answer, error) {
	l := h.f.fs.shared.locks
	if l == nil {
		return locks.Answer{}, fmt.Errorf("lock inode %v: %w", h.f.ino, objstore.Unsupported)
	}
	if err := h.fenced(); err != nil && r.Op != locks.Unlock {
		return locks.Answer{}, err
	}
	r.Ino = h.f.ino
	var failed error
	if lets := r.Op == locks.Unlock || r.Op != locks.Test && !r.Lock.Write; lets && h.f.isDirty() && !h.f.isOrphan() {
		flush := h.f.flush
		if r.Op == locks.Unlock {
			flush = h.f.flushOrGiveUp
		}
		failed = errors.Join(flush(context.WithoutCancel(ctx), h.f.fs.promise()), h.fenced()) // a signal ends a wait, nothing else
		if failed != nil {
			h.lost() // is told of by this
		}
		if failed != nil && r.Op != locks.Unlock {
			return locks.Answer{}, failed
		}
	}
	a, err := l.Lock(ctx, r)
	if err == nil && failed == nil && r.Op != locks.Unlock {
		h.f.fs.shared.awaitDrop(h.f.ino)
		err = h.fenced()
	}
	return a, errors.Join(failed, err)
}

// flushOrGiveUp commits what is dirty now or never.
func (f *file) flushOrGiveUp(ctx context.Context, p objstore.Promise) error {
	f.commitMu.Lock()
	defer f.commitMu.Unlock()
	_, err := f.flushLocked(ctx, p)
	if err == nil || errors.Is(err, objstore.Fenced) { // then it is given up already
		return err
	}
	f.fs.log.Error("data lost: they could not be committed before a lock was let go", "inode", f.ino.String(), "err", err)
	f.drop()
	f.mu.Lock()
	f.losses++
	f.lossErr = fmt.Errorf("lost before a lock was let go: %w", err)
	f.mu.Unlock()
	f.changes.Add(1) // for the size
	f.fs.dropPages(f.ino)
	return err
}

// lost is the error that others ran into with what may have been written through
// the handle. It is told once.
func (h *Handle) lost() error {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if h.told == h.f.losses {
		return nil
	}
	h.told = h.f.losses
	return h.f.lossErr
}

// Locked says whether any process of this host has a lock of the file.
func (h *Handle) Locked() bool { l := h.f.fs.shared.locks; return l != nil && l.Locked(h.f.ino) }

// fenced is why the handle must not be used: others may have the locks, and have
// changed the data, that who opened it believes to have. Opened anew, the file is good.
func (h *Handle) fenced() error {
	if h.f.fences.Load() == h.born {
		return nil
	}
	return fmt.Errorf("inode %v: its locks, or what was written, were lost when the lease was over: %w", h.f.ino, objstore.Fenced)
}

// fence gives up what is not committed: others had the right to change the file.
// What a commit under way has, that gives up by itself (flushLocked).
func (f *file) fence(locked bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !locked && len(f.dirty)+len(f.flushing) == 0 {
		return
	}
	f.fences.Add(1)
	f.free(f.dirty.cutOut(0, ^uint64(0)))
	f.setPending(len(f.flushing) > 0)
}
