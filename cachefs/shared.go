package cachefs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
)

// A store with several hosts: what others change is told by pushes, and what is
// kept here of it is void from then on. The kernel keeps no names and no
// attributes of such a store, only the pages of files, which pushes drop.

// Kernel is the mount that an FS serves, as far as it must hear of changes that
// did not come from it. Its methods may be called from any goroutine, but not
// from one that serves a request.
type Kernel interface {
	// Drop returns when the kernel has no page of the inode any more.
	Drop(ino objstore.Ino)
	// Happened lets those know who watch a directory or file. It does not wait.
	Happened(e objstore.Event)
}

// Locker is a Store that has file locks.
type Locker interface {
	// Lock tests, sets or clears a lock. A request that waits ends with ctx. Deadlock.
	Lock(ctx context.Context, r locks.Request) (locks.Answer, error)
	// Locked says whether this client has a lock of the inode.
	Locked(ino objstore.Ino) bool
	// LostLock says, while Void is called with fenced, whether it had one.
	LostLock(ino objstore.Ino) bool
}

// Leaser is a Store that is served under leases.
type Leaser interface {
	// Leased says whether what is known of a volume may be served.
	Leased(v objstore.VolumeID) bool
	// Pin makes changes with the context fail with Fenced if the lease of now is
	// over before they are made.
	Pin(ctx context.Context, v objstore.VolumeID) context.Context
}

// Lock tests, sets or clears a lock of an open file. What was written under a
// lock is committed before the lock is cleared or becomes one to read; that it
// cannot be keeps no lock alive. Unsupported: the kernel has the locks of a store
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
		failed = errors.Join(h.f.flush(context.WithoutCancel(ctx), h.f.fs.promise()), h.fenced()) // a signal ends a wait, nothing else
		if failed != nil && r.Op != locks.Unlock {
			return locks.Answer{}, failed
		}
	}
	a, err := l.Lock(ctx, r)
	if err == nil && failed == nil && r.Op != locks.Unlock {
		err = h.fenced()
	}
	return a, errors.Join(failed, err)
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

// SetKernel says which mount the FS serves. It is called before the first request.
func (fs *FS) SetKernel(k Kernel) { fs.shared.kernel = k }

// maxVersions is of how many files that are closed the version is remembered.
const maxVersions = 1 << 16

// shared is what an FS knows of a store that others change, too.
type shared struct {
	kernel Kernel
	locks  Locker   // nil: a store without locks
	leases Leaser   // nil: a store without leases
	vols   sync.Map // objstore.VolumeID: something was asked of it

	mu       sync.Mutex // a leaf
	versions map[objstore.Ino]version
	dirty    map[objstore.VolumeID]map[*file]struct{}
}

// setDirty notes whether a file has something to commit.
func (s *shared) setDirty(f *file, yes bool) {
	if s.kernel == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := f.ino.Volume()
	if !yes {
		if delete(s.dirty[v], f); len(s.dirty[v]) == 0 {
			delete(s.dirty, v)
		}
		return
	}
	if s.dirty == nil {
		s.dirty = map[objstore.VolumeID]map[*file]struct{}{}
	}
	if s.dirty[v] == nil {
		s.dirty[v] = map[*file]struct{}{}
	}
	s.dirty[v][f] = struct{}{}
}

// order commits what was written in a volume before a name in it changes: who
// sees the name on another host, or that a lock file is gone, must see the data,
// as on one host, though nobody closed the file or synced it.
func (fs *FS) order(ctx context.Context, v objstore.VolumeID) error {
	if fs.shared.kernel == nil {
		return nil
	}
	fs.shared.mu.Lock()
	files := slices.Collect(maps.Keys(fs.shared.dirty[v]))
	fs.shared.mu.Unlock()
	for _, f := range files {
		if f.isOrphan() {
			continue
		}
		if err := f.flush(ctx, fs.promise()); err != nil {
			return err
		}
	}
	return nil
}

// version tells whether a file was written since it was closed.
type version struct {
	mtime int64
	size  uint64
}

func (s *shared) close(ino objstore.Ino, v version) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.versions == nil || len(s.versions) >= maxVersions {
		s.versions = map[objstore.Ino]version{}
	}
	s.versions[ino] = v
}

// reopen says whether the pages of a file are still good.
func (s *shared) reopen(ino objstore.Ino, v version) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, ok := s.versions[ino]
	delete(s.versions, ino)
	return ok && before == v
}

func (fs *FS) touch(v objstore.VolumeID) {
	if _, ok := fs.shared.vols.Load(v); !ok {
		fs.shared.vols.Store(v, struct{}{})
	}
}

// Known implements client.Watcher.
func (fs *FS) Known(in func(objstore.VolumeID) bool) (vols []objstore.VolumeID) {
	fs.shared.vols.Range(func(v, _ any) bool {
		if in(v.(objstore.VolumeID)) {
			vols = append(vols, v.(objstore.VolumeID))
		}
		return true
	})
	return vols
}

// Told implements client.Watcher.
func (fs *FS) Told(p objstore.Push, ack func(objstore.Ack)) {
	a := objstore.Ack{Seq: p.Seq}
	var drop []objstore.Ino
	for _, e := range p.Events {
		switch e.Kind {
		case objstore.Modified:
			drop = append(drop, e.Ino)
			fallthrough
		case objstore.Touched:
			if f := fs.table.get(e.Ino); f != nil {
				f.changedElsewhere()
			}
		case objstore.Purged:
			if fs.table.setOrphan(e.Ino, true) {
				a.Busy = append(a.Busy, e.Ino)
			}
		}
	}
	k := fs.shared.kernel
	if k == nil || len(drop) == 0 {
		ack(a)
	} else {
		// The kernel may be busy with a page, for the sake of a request.
		fs.wg.Go(func() {
			for _, ino := range drop {
				k.Drop(ino)
			}
			ack(a)
		})
	}
	if k != nil {
		for _, e := range p.Events {
			k.Happened(e)
		}
	}
}

// Void implements client.Watcher.
func (fs *FS) Void(in func(objstore.VolumeID) bool, fenced bool) {
	var drop []objstore.Ino
	for _, f := range fs.table.all() {
		if !in(f.ino.Volume()) {
			continue
		}
		f.changedElsewhere()
		drop = append(drop, f.ino)
		if fenced {
			l := fs.shared.locks
			f.fence(l != nil && l.LostLock(f.ino))
		}
	}
	if k := fs.shared.kernel; k != nil && len(drop) > 0 {
		fs.wg.Go(func() {
			for _, ino := range drop {
				k.Drop(ino)
			}
		})
	}
}

// closed remembers which version of the file the kernel may have pages of.
func (f *file) closed() {
	f.mu.Lock()
	v, ok := version{f.seen, f.csize}, f.loaded && f.fresh == f.changes.Load()
	f.mu.Unlock()
	if ok && f.fs.shared.kernel != nil {
		f.fs.shared.close(f.ino, v)
	}
}

// changedElsewhere voids what is known of the committed state.
func (f *file) changedElsewhere() {
	f.changes.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.invalidate()
}

// checkLease voids what is known of the committed state if others may have
// changed it unheard.
func (f *file) checkLease() {
	if l := f.fs.shared.leases; l != nil && !l.Leased(f.ino.Volume()) {
		f.changedElsewhere()
	}
}

// refresh learns the committed state anew if it was changed elsewhere. It waits
// for no commit: the kernel keeps a page locked while it waits for a read or a
// write, a change elsewhere waits for the page, and a commit for that host.
func (f *file) refresh(ctx context.Context) error {
	for {
		changes := f.changes.Load()
		f.mu.Lock()
		fresh, gen := f.fresh, f.gen
		f.mu.Unlock()
		if fresh >= changes {
			return nil
		}
		a, err := f.fs.store.GetAttr(ctx, f.ino)
		if err != nil {
			return err
		}
		f.mu.Lock()
		if f.fresh < changes && f.gen == gen { // else a commit of ours came between
			f.take(&a)
			f.fresh = changes
		}
		f.mu.Unlock()
	}
}

// learn takes over the committed state after a change past the dirty ranges.
// Under commitMu.
func (f *file) learn(a *objstore.Attr) {
	f.layouts = nil
	f.mu.Lock()
	defer f.mu.Unlock()
	f.take(a)
}

// take makes a the committed state. Under mu.
func (f *file) take(a *objstore.Attr) {
	f.loaded, f.csize, f.size, f.seen = true, a.Size, max(a.Size, f.dirtyEnd()), a.Mtime
	f.invalidate()
}

// dirtyEnd is where what is not committed ends. Under mu.
func (f *file) dirtyEnd() (end uint64) {
	for _, l := range [...]segList{f.dirty, f.flushing} {
		if n := len(l); n > 0 {
			end = max(end, l[n-1].end())
		}
	}
	return end
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

// pin is what a commit of the file is made with: see Leaser.
func (f *file) pin(ctx context.Context) context.Context {
	if l := f.fs.shared.leases; l != nil {
		return l.Pin(ctx, f.ino.Volume())
	}
	return ctx
}
