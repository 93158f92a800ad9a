package cachefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"pillarbox/objstore"
)

// FS is one mail host's view of a store. See the package comment.
type FS struct {
	store  objstore.Store
	opt    Options
	log    *slog.Logger
	base   context.Context // of background work, never cancelled
	table  table
	clock  commitClock
	budget budget
	purger purger
	upSem  chan struct{}
	bufs   buffers
	bodies atomic.Int64       // bytes of files' bodies
	fills  singleflight.Group // chunks being read whole, to be kept
	ahead  *ahead             // nil: nothing is read ahead
	wg     sync.WaitGroup     // uploads

	shared  shared
	forgets atomic.Bool // Forget will be called

	commits, commitExtents, commitBytes atomic.Uint64
}

// New starts an FS over a store. Close it to flush what it buffers.
func New(store objstore.Store, o Options) (*FS, error) {
	o = o.withDefaults()
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("cachefs options: %w", err)
	}
	fs := &FS{
		store: store,
		opt:   o,
		log:   o.Log,
		base:  context.WithoutCancel(o.Base),
		upSem: make(chan struct{}, o.Uploads),
	}
	fs.shared.locks, _ = store.(Locker)
	fs.shared.leases, _ = store.(Leaser)
	fs.table.init()
	fs.budget.init(o.DirtyMax)
	fs.purger.start(fs)
	fs.ahead = newAhead(fs)
	return fs, nil
}

// Close commits everything that is buffered, purges the orphans, makes all of
// it durable, and ends the background work. It returns what could not be
// committed. Nothing may be called on the FS or its handles afterwards.
func (fs *FS) Close() error {
	fs.ahead.close()
	var errs []error
	vols := map[objstore.VolumeID]bool{}
	for _, f := range fs.table.all() {
		vols[f.ino.Volume()] = true
		if f.isOrphan() {
			continue
		}
		if err := f.flush(fs.base, objstore.Committed); err != nil {
			errs = append(errs, fmt.Errorf("flush inode %v: %w", f.ino, err))
		}
	}
	fs.wg.Wait()
	// The kernel may have ended without releasing what it had open.
	for _, f := range fs.table.closeOrphans() {
		f.drop()
		fs.purger.add(f.ino)
	}
	fs.purger.add(fs.table.forgetAll()...)
	errs = append(errs, fs.purger.stop())
	for v := range vols {
		errs = append(errs, fs.store.Sync(fs.base, v))
	}
	return errors.Join(errs...)
}

// promise is what a change is applied with that need not be Committed.
func (fs *FS) promise() objstore.Promise {
	if fs.opt.DirSync {
		return objstore.Committed
	}
	return objstore.Ordered
}

// Sync makes every earlier change of the inode's volume durable: fsync of a directory.
func (fs *FS) Sync(ctx context.Context, ino objstore.Ino) error {
	return fs.store.Sync(ctx, ino.Volume())
}

// StatFS is the store's size and use.
func (fs *FS) StatFS(ctx context.Context) (objstore.StatFS, error) { return fs.store.StatFS(ctx) }

// Readlink returns a symlink's target.
func (fs *FS) Readlink(ctx context.Context, ino objstore.Ino) (string, error) {
	return fs.store.Readlink(ctx, ino)
}

// GetXattr returns one extended attribute. NoAttr.
func (fs *FS) GetXattr(ctx context.Context, ino objstore.Ino, name string) ([]byte, error) {
	return fs.store.GetXattr(ctx, ino, name)
}

// ListXattr returns the names of all extended attributes.
func (fs *FS) ListXattr(ctx context.Context, ino objstore.Ino) ([]string, error) {
	return fs.store.ListXattr(ctx, ino)
}

// SetXattr sets an extended attribute.
func (fs *FS) SetXattr(ctx context.Context, c objstore.SetXattr) error {
	_, err := fs.store.Apply(ctx, c, fs.promise())
	fs.noteXattr(c.Ino)
	return err
}

// RemoveXattr removes an extended attribute.
func (fs *FS) RemoveXattr(ctx context.Context, c objstore.RemoveXattr) error {
	_, err := fs.store.Apply(ctx, c, fs.promise())
	return err
}

// putChunk stores bytes of a file at off as a new chunk, a bounded number at a time.
func (fs *FS) putChunk(ctx context.Context, ino objstore.Ino, off uint64, data []byte) (objstore.ChunkID, error) {
	fs.upSem <- struct{}{}
	defer func() { <-fs.upSem }()
	id, err := fs.store.NewChunk(ctx, ino, uint32(off/objstore.ChunkSize))
	if err != nil {
		return id, fmt.Errorf("name a chunk of inode %v: %w", ino, err)
	}
	if err := fs.store.PutChunk(ctx, id, data); err != nil {
		return id, fmt.Errorf("store chunk %v: %w", id, err)
	}
	fs.keep(id, data)
	return id, nil
}

func now() int64 { return time.Now().UnixNano() }

// commitClock says whether a commit of dirty data came between two moments, so
// that an attribute read from the store can be told from one that is out of
// date. Inodes share slots; a collision costs one more read.
type commitClock struct {
	any  atomic.Uint64
	slot [clockSlots]atomic.Uint64
}

const clockSlots = 1024

func (c *commitClock) at(ino objstore.Ino) *atomic.Uint64 { return &c.slot[mix(ino)%clockSlots] }

func (c *commitClock) tick(ino objstore.Ino) {
	c.at(ino).Add(1)
	c.any.Add(1)
}

// mix spreads inode numbers, which differ in their low and their volume bits.
func mix(ino objstore.Ino) uint64 {
	h := uint64(ino) * 0x9e3779b97f4a7c15
	return h ^ h>>32
}
