package cachefs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"pillarbox/objstore"
)

// file is an inode in use. Lock order: commitMu, then mu. users and orphan
// belong to the table's shard.
type file struct {
	fs  *FS
	ino objstore.Ino

	users  int
	orphan bool // no name left: dirty data goes with the last handle, and the inode too

	mem     atomic.Int64  // bytes charged to the budget
	pending atomic.Bool   // there are dirty ranges
	xattr   atomic.Uint32 // 1: the inode may have a security.capability
	fences  atomic.Uint64 // how often locks or data of it were lost; see Handle.fenced. Changes under mu
	changes atomic.Uint64 // how often it may have been changed elsewhere

	// commitMu is held while the file's committed state changes, store calls
	// included. The layouts are what the metadata holds, by layoutSpan.
	commitMu sync.Mutex
	layouts  map[uint64]layout
	laidOut  uint64 // of changes: the layouts' state

	mu       sync.Mutex // never held across store calls
	loaded   bool       // csize and size are known
	csize    uint64     // committed size
	size     uint64     // with what is dirty
	mtime    int64      // of the last write that is not committed
	dirty    segList    // newest
	flushing segList    // being committed; below dirty
	losses   uint64     // how often what was dirty was given up with a lock
	lossErr  error      // why it last was
	asyncErr error      // of an upload, for the next call that can return it
	fresh    uint64     // of changes: csize and size are known as of then
	seen     int64      // mtime of the committed state
	gen      uint64     // of the committed state; caches of another gen are void
	win      window     // committed extents
	body     []byte     // the whole committed body of a small file
}

// Handle is an open file. Its methods may be called from any goroutine.
type Handle struct {
	f    *file
	keep bool
	born uint64 // f.fences when it was opened
	told uint64 // of f.losses; under f.mu
}

// Open opens a regular file. Stale if it is gone.
func (fs *FS) Open(ctx context.Context, ino objstore.Ino) (*Handle, error) {
	return fs.open(ctx, ino, nil)
}

func (fs *FS) open(ctx context.Context, ino objstore.Ino, a *objstore.Attr) (*Handle, error) {
	f, err := fs.acquire(ino)
	if err != nil {
		return nil, err
	}
	keep, err := f.load(ctx, a)
	if err != nil {
		fs.release(f)
		return nil, err
	}
	keep = keep && fs.shared.dropped(ino) || a != nil
	f.mu.Lock()
	defer f.mu.Unlock()
	return &Handle{f, keep, f.fences.Load(), f.losses}, nil
}

// Unchanged says that what the kernel has of the file since it was last open is
// still good.
func (h *Handle) Unchanged() bool { return h.keep || h.f.fs.shared.kernel == nil }

// Ino is the inode the handle has open.
func (h *Handle) Ino() objstore.Ino { return h.f.ino }

// Release ends the handle, which must not be used again. A flush came before,
// so that errors could be told; what a mapping wrote since is committed here.
func (h *Handle) Release() { h.f.fs.release(h.f) }

// Flush commits what is dirty in the file with promise Ordered, as close(2)
// needs it. The data of a file without a name is not worth it.
func (h *Handle) Flush(ctx context.Context) error {
	if err := errors.Join(h.fenced(), h.lost()); err != nil {
		return err
	}
	if !h.f.isDirty() || h.f.isOrphan() {
		return h.f.takeErr()
	}
	return errors.Join(h.f.flush(ctx, h.f.fs.promise()), h.fenced()) // it may be on asking that the lease turns out to be over
}

// Fsync returns when the file's bytes and all its volume's earlier changes are
// on stable storage.
func (h *Handle) Fsync(ctx context.Context) error {
	f := h.f
	if err := errors.Join(h.fenced(), h.lost()); err != nil {
		return err
	}
	f.commitMu.Lock()
	did, err := f.flushLocked(ctx, objstore.Committed)
	f.commitMu.Unlock()
	if err == nil && !did {
		err = f.fs.store.Sync(ctx, f.ino.Volume())
	}
	return errors.Join(err, h.fenced())
}

// load makes the file's size known, from a if that is not nil. keep: the file
// was open already, or has not been written since it was.
func (f *file) load(ctx context.Context, a *objstore.Attr) (keep bool, err error) {
	f.fs.touch(f.ino.Volume())
	f.mu.Lock()
	loaded := f.loaded
	f.mu.Unlock()
	if loaded {
		return true, f.refresh(ctx)
	}
	if a == nil {
		got, err := f.fs.store.GetAttr(ctx, f.ino)
		if err != nil {
			return false, err
		}
		a = &got
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loaded {
		return true, nil
	}
	f.loaded, f.csize, f.size, f.seen = true, a.Size, a.Size, a.Mtime
	if a.HasXattr {
		f.xattr.Store(1)
	}
	return f.fs.shared.reopen(f.ino, version{a.Mtime, a.Size}), nil
}

func (f *file) isDirty() bool { return f.pending.Load() }

func (f *file) setPending(yes bool) {
	if f.pending.Swap(yes) != yes {
		f.fs.shared.setDirty(f, yes)
	}
}

func (f *file) isOrphan() bool {
	s := f.fs.table.shard(f.ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	return f.orphan
}

// takeErr returns an upload's error once.
func (f *file) takeErr() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.asyncErr
	f.asyncErr = nil
	return err
}

// overlay puts over the store's attributes what is not committed.
func (f *file) overlay(a *objstore.Attr) {
	if !f.isDirty() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.dirty)+len(f.flushing) == 0 {
		return
	}
	n := uint64(0)
	for _, l := range [...]segList{f.flushing, f.dirty} {
		for _, s := range l {
			n += uint64(s.n)
		}
	}
	if f.fresh != f.changes.Load() {
		a.Size = max(a.Size, f.dirtyEnd())
	} else {
		a.Size = f.size
	}
	a.Blocks = max(a.Blocks, min(a.Blocks+(n+511)/512, (a.Size+511)/512))
	a.Mtime = f.mtime
	a.Ctime = max(a.Ctime, f.mtime)
}

// free gives back the memory of bodies that nothing shows any more. Under mu.
func (f *file) free(dead []*body) {
	for _, b := range dead {
		// An upload under way ends by itself and settles its cost then.
		if b.state != uploading {
			f.settle(b)
		}
	}
}

// settle ends a body's charge.
func (f *file) settle(b *body) {
	f.mem.Add(-b.cost)
	f.fs.budget.release(b.cost)
	f.fs.bufs.put(b.data)
	b.cost, b.data = 0, nil
}

// drop forgets everything that is not committed.
func (f *file) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range []*segList{&f.dirty, &f.flushing} {
		f.free(l.cutOut(0, ^uint64(0)))
	}
	f.size = f.csize
	f.setPending(false)
}

// Write copies p into the file at off, or at its end. It returns an error of
// an earlier background upload instead, once. NoSpace, TooBig.
func (h *Handle) Write(ctx context.Context, p []byte, off uint64, o WriteOptions) (int, error) {
	f := h.f
	if err := errors.Join(h.fenced(), h.lost(), f.takeErr()); err != nil {
		return 0, err
	}
	if off > maxOffset-uint64(len(p)) {
		return 0, fmt.Errorf("write inode %v at %d: %w", f.ino, off, objstore.TooBig)
	}
	if len(p) == 0 {
		return 0, nil
	}
	f.checkLease()
	if err := f.refresh(ctx); err != nil {
		return 0, err
	}
	if err := f.dropPrivileges(ctx, o); err != nil {
		return 0, err
	}
	if err := f.fs.acquireMem(ctx, int64(len(p))); err != nil {
		return 0, err
	}
	f.mu.Lock()
	if err := h.fenced(); err != nil {
		f.mu.Unlock()
		f.fs.budget.release(int64(len(p)))
		return 0, err
	}
	if o.Append {
		off = f.size
	}
	added := f.put(p, off)
	f.mu.Unlock()
	f.fs.budget.release(int64(len(p)) - added)
	for f.mem.Load() > f.fs.opt.DirtyPerFile {
		if err := f.shrink(ctx); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// maxOffset is behind the last byte that a chunk's index can name.
const maxOffset = objstore.ChunkSize << 32

// WriteOptions of one write.
type WriteOptions struct {
	Append    bool // to the end of the file, wherever that is by now
	DropSetID bool // the writer may not keep set-user-ID and set-group-ID bits
	By        Caller
}

// put lays p over the file and starts what is ready to go out. It returns by
// how many bytes the memory charged grew. Under mu.
func (f *file) put(p []byte, off uint64) (added int64) {
	end := off + uint64(len(p))
	for at := off; at < end; {
		to := min(end, at-at%objstore.ChunkSize+objstore.ChunkSize)
		n, dead := f.dirty.write(&f.fs.bufs, at, p[at-off:to-off])
		added += n
		f.mem.Add(n)
		f.free(dead)
		if to%objstore.ChunkSize == 0 {
			f.upload(to - objstore.ChunkSize)
		}
		at = to
	}
	f.size = max(f.size, end)
	f.mtime = now()
	f.setPending(true)
	return added
}

// upload sends the block at off to the data pool if it is full. Under mu.
func (f *file) upload(off uint64) {
	i := f.dirty.find(off)
	if i == len(f.dirty) {
		return
	}
	s := f.dirty[i]
	b := s.b
	if s.off != off || s.n != objstore.ChunkSize || b.state != growing || len(b.data) != objstore.ChunkSize {
		return
	}
	b.state, b.done = uploading, make(chan struct{})
	data := b.data
	f.fs.wg.Go(func() {
		id, err := f.fs.putChunk(f.fs.base, f.ino, off, data)
		f.mu.Lock()
		defer f.mu.Unlock()
		defer close(b.done)
		if err != nil {
			b.state = frozen
			f.asyncErr = err
			if b.refs == 0 {
				f.settle(b)
			}
			return
		}
		b.state, b.chunk = stored, id
		f.settle(b)
	})
}

// shrink lowers the file's memory: it waits for an upload, or flushes.
func (f *file) shrink(ctx context.Context) error {
	f.mu.Lock()
	var done chan struct{}
	for _, l := range [...]segList{f.flushing, f.dirty} {
		for _, s := range l {
			if s.b.state == uploading && done == nil {
				done = s.b.done
			}
		}
	}
	f.mu.Unlock()
	if done == nil {
		return f.flush(ctx, f.fs.promise())
	}
	<-done
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asyncErr // stays until the file's own caller has seen it
}

// dropPrivileges clears what a write must clear: file capabilities always, and
// the set-ID bits when the writer may not keep them.
func (f *file) dropPrivileges(ctx context.Context, o WriteOptions) error {
	if f.xattr.CompareAndSwap(1, 0) {
		if err := f.fs.dropCapability(ctx, f.ino); err != nil {
			f.xattr.Store(1)
			return err
		}
	}
	if !o.DropSetID {
		return nil
	}
	a, err := f.fs.store.GetAttr(ctx, f.ino)
	if err != nil {
		return err
	}
	mode := o.By.withoutSetID(&a)
	if mode == a.Mode {
		return nil
	}
	c := objstore.SetAttr{Ino: f.ino, Set: objstore.SetMode, Mode: mode & permBits}
	_, err = f.fs.store.Apply(ctx, c, f.fs.promise())
	return err
}

const (
	permBits       = 0o7777
	modeSetuid     = 0o4000
	modeGroupExec  = 0o010
	xattrFilesCaps = "security.capability"
)

// Caller is on whose behalf a file is changed. Of the groups only the first is
// known.
type Caller struct{ Uid, Gid uint32 }

// withoutSetID is the mode after a change that set-ID bits do not outlive.
// Without group execution the set-group-ID bit is no privilege, and stays if
// the caller might set it.
func (c Caller) withoutSetID(a *objstore.Attr) uint32 {
	mode := a.Mode &^ modeSetuid
	if mode&modeGroupExec != 0 || c.Uid != 0 && c.Gid != a.Gid {
		mode &^= objstore.ModeSetgid
	}
	return mode
}

func (fs *FS) dropCapability(ctx context.Context, ino objstore.Ino) error {
	_, err := fs.store.Apply(ctx, objstore.RemoveXattr{Ino: ino, Name: xattrFilesCaps}, fs.promise())
	if errors.Is(err, objstore.NoAttr) {
		return nil
	}
	return err
}
