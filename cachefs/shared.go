package cachefs

import (
	"context"
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
	// LostLock says whether it had one when its lease was over, until ForgetLock.
	LostLock(ino objstore.Ino) bool
	ForgetLock(ino objstore.Ino)
}

// Lock tests, sets or clears a lock of an open file. What was written under a
// lock is committed before the lock is cleared. Unsupported: the kernel has the
// locks of a store with one host.
func (h *Handle) Lock(ctx context.Context, r locks.Request) (locks.Answer, error) {
	l := h.f.fs.shared.locks
	if l == nil {
		return locks.Answer{}, fmt.Errorf("lock inode %v: %w", h.f.ino, objstore.Unsupported)
	}
	if err := h.f.fenced(); err != nil && r.Op != locks.Unlock {
		return locks.Answer{}, err
	}
	r.Ino = h.f.ino
	if r.Op == locks.Unlock && h.f.isDirty() && !h.f.isOrphan() {
		if err := h.f.flush(ctx, h.f.fs.promise()); err != nil {
			return locks.Answer{}, err
		}
	}
	return l.Lock(ctx, r)
}

// Locked says whether any process of this host has a lock of the file.
func (h *Handle) Locked() bool { l := h.f.fs.shared.locks; return l != nil && l.Locked(h.f.ino) }

// fenced is why the file must not be used: others may have the locks that
// processes here believe to have.
func (f *file) fenced() error {
	if !f.lost.Load() {
		return nil
	}
	return fmt.Errorf("inode %v: its locks were lost when the lease was over: %w", f.ino, objstore.Fenced)
}

// SetKernel says which mount the FS serves. It is called before the first request.
func (fs *FS) SetKernel(k Kernel) { fs.shared.kernel = k }

// maxVersions is of how many files that are closed the version is remembered.
const maxVersions = 1 << 16

// shared is what an FS knows of a store that others change, too.
type shared struct {
	kernel Kernel
	locks  Locker   // nil: a store without locks
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
			if l := fs.shared.locks; l != nil && l.LostLock(f.ino) {
				f.lost.Store(true)
			}
			f.fence()
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
	v, ok := version{f.seen, f.csize}, f.loaded && !f.stale.Load()
	f.mu.Unlock()
	if ok && f.fs.shared.kernel != nil {
		f.fs.shared.close(f.ino, v)
	}
	if f.lost.Load() {
		f.fs.shared.locks.ForgetLock(f.ino)
	}
}

// changedElsewhere voids what is known of the committed state.
func (f *file) changedElsewhere() {
	f.stale.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.invalidate()
}

// refresh learns the committed state anew if it was changed elsewhere.
func (f *file) refresh(ctx context.Context) error {
	if !f.stale.Load() {
		return nil
	}
	f.commitMu.Lock()
	defer f.commitMu.Unlock()
	return f.refreshLocked(ctx)
}

func (f *file) refreshLocked(ctx context.Context) error {
	if !f.stale.CompareAndSwap(true, false) {
		return nil
	}
	a, err := f.fs.store.GetAttr(ctx, f.ino)
	if err != nil {
		f.stale.Store(true)
		return err
	}
	f.learn(&a)
	return nil
}

// learn takes over the committed state after a change past the dirty ranges.
// Under commitMu.
func (f *file) learn(a *objstore.Attr) {
	f.layouts = nil
	f.mu.Lock()
	defer f.mu.Unlock()
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
func (f *file) fence() {
	if !f.isDirty() {
		return
	}
	f.drop()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asyncErr = fmt.Errorf("inode %v: what was written was not committed before the lease was over: %w", f.ino, objstore.Fenced)
}
