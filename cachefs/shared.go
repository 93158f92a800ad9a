package cachefs

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"pillarbox/objstore"
)

// A store with several hosts: what others change is told by pushes, and what is
// kept here of it is void from then on. The kernel keeps the pages of files of such
// a store and, for a moment, names and attributes of directories; pushes drop them.

// Kernel is the mount that an FS serves, as far as it must hear of changes that
// did not come from it. Its methods may be called from any goroutine, but not
// from one that serves a request.
type Kernel interface {
	// Drop returns when the kernel has no page of the inode any more.
	Drop(ino objstore.Ino)
	// Stale returns when the kernel keeps no attributes any more that e changed,
	// and says until when it may still show names that e took away. It does not wait.
	Stale(e objstore.Event) (until time.Time)
	// Happened lets those know who watch a directory or file. It does not wait.
	Happened(e objstore.Event)
}

// Leaser is a Store that is served under leases.
type Leaser interface {
	// Leased says whether what is known of a volume may be served.
	Leased(v objstore.VolumeID) bool
	// Pin makes changes with the context fail with Fenced if the lease of now is
	// over before they are made.
	Pin(ctx context.Context, v objstore.VolumeID) context.Context
}

// Leased says whether what was just learned of a volume may be kept for a moment.
func (fs *FS) Leased(v objstore.VolumeID) bool {
	l := fs.shared.leases
	return l == nil || l.Leased(v)
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
	dropping map[objstore.Ino]chan struct{} // of which the kernel may still have pages that are void; closed when it has not
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
	k := fs.shared.kernel
	var drop []objstore.Ino
	var shown time.Time
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
		if k == nil {
			continue
		}
		if t := k.Stale(e); t.After(shown) {
			shown = t
		}
	}
	if wait := time.Until(shown); k == nil || len(drop) == 0 && wait <= 0 {
		ack(a)
	} else {
		// The kernel may be busy with a page, for the sake of a request.
		fs.wg.Go(func() {
			for _, ino := range drop {
				k.Drop(ino)
			}
			time.Sleep(wait)
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
	fs.dropPages(drop...)
}

// closed remembers which version of the file the kernel may have pages of.
func (f *file) closed() {
	f.mu.Lock()
	v, ok := version{f.seen, f.csize}, f.loaded && f.fresh == f.changes.Load()
	f.mu.Unlock()
	if ok && f.fs.shared.dropped(f.ino) && f.fs.shared.kernel != nil {
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

// pin is what a commit of the file is made with: see Leaser.
func (f *file) pin(ctx context.Context) context.Context {
	if l := f.fs.shared.leases; l != nil {
		return l.Pin(ctx, f.ino.Volume())
	}
	return ctx
}
