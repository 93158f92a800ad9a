// Package client is an objstore.Store over a cluster map and the OSDs that
// serve it. It finds each volume's placement group and its leader (router.go),
// writes and reads the chunks of data pools (poolwrite.go, poolread.go, and
// coded.go where they are erasure-coded), and carries out what spans two
// volumes, the making and removal of accounts (volumes.go).
//
// In the embedded store, whose map has one OSD without an address, every call
// is a call of that OSD and nothing else: no copies, no retries, no request
// numbers.
//
// A Client keeps no state of its own but the map, its session, what it learned
// of the OSDs, and the accounts it removed whose files are still open; every
// method may be called from any goroutine.
package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/ec"
)

// OSD is what a client asks of an object storage daemon, by placement group. In
// the embedded store it is the daemon itself.
type OSD interface {
	Lookup(ctx context.Context, pg uint32, dir objstore.Ino, name string) (objstore.DirEntry, error)
	GetAttr(ctx context.Context, pg uint32, ino objstore.Ino) (objstore.Attr, error)
	ReadDir(ctx context.Context, pg uint32, dir objstore.Ino, after uint64, max int, attrs bool) ([]objstore.DirEntry, error)
	Readlink(ctx context.Context, pg uint32, ino objstore.Ino) (string, error)
	GetXattr(ctx context.Context, pg uint32, ino objstore.Ino, name string) ([]byte, error)
	ListXattr(ctx context.Context, pg uint32, ino objstore.Ino) ([]string, error)
	Extents(ctx context.Context, pg uint32, ino objstore.Ino, off, n uint64) ([]objstore.Extent, error)
	Pending(ctx context.Context, pg uint32) ([]objstore.VolumeID, error)
	Orphans(ctx context.Context, pg uint32, vol objstore.VolumeID, max int) ([]objstore.Ino, error)
	Apply(ctx context.Context, pg uint32, r objstore.Request, c objstore.Change, p objstore.Promise) (objstore.Result, error)
	Sync(ctx context.Context, pg uint32) error
	ReadChunk(ctx context.Context, pg uint32, id objstore.ChunkID, off uint32, p []byte) error
	PutChunk(ctx context.Context, id objstore.ChunkID, data []byte) error
	Freed(ctx context.Context, pg uint32, max int) ([]objstore.ChunkID, error)
	Space(ctx context.Context) (objstore.Disk, error)
}

// Client is a Store.
type Client struct {
	opt     Options
	osds    Router
	session objstore.Session

	mapMu   sync.Mutex // held while the map is replaced; before peersMu
	now     atomic.Pointer[epoch]
	leaders sync.Map   // meta placement group (uint32) -> OSD that last was its leader (int)
	peersMu sync.Mutex // before a peer's
	peers   map[int]*peer
	seqs    sequence
	outside outsides
	chunks  atomic.Uint64 // named so far

	watch watches
	cache cache
	locks heldLocks
	reads readState
	codes ec.Codes
	late  chan struct{}
	space space

	accounts sync.RWMutex // held shared while an account is made or removed, alone to settle what was left

	mu     sync.Mutex                     // a leaf
	doomed map[objstore.VolumeID]struct{} // without a name, dropped when the last open file is purged

	life    context.Context // ends when Close begins
	end     context.CancelCauseFunc
	writing context.Context // of chunks on their way; ends later
	endPuts context.CancelCauseFunc
	runMu   sync.Mutex // a leaf
	closed  bool
	run     sync.WaitGroup
}

var _ objstore.Store = (*Client)(nil)

// New makes a client with the given session id. A store that has no root volume
// yet gets one, and what a crash left of accounts in the making or in removal
// is cleared up. Close ends the client.
func New(ctx context.Context, m *objstore.Map, session uint64, osds Router, opt Options) (*Client, error) {
	opt.setDefaults()
	c := &Client{
		opt: opt, osds: osds, session: objstore.Session{ID: session}, doomed: make(map[objstore.VolumeID]struct{}),
		peers: make(map[int]*peer), late: make(chan struct{}, lateWrites),
	}
	c.cache.max = opt.Cache
	c.life, c.end = context.WithCancelCause(context.WithoutCancel(ctx))
	c.writing, c.endPuts = context.WithCancelCause(context.WithoutCancel(ctx))
	c.SetMap(m)
	// Doing it again changes nothing.
	_, err := c.apply(ctx, objstore.InitVolume{
		Vol: objstore.RootVolume, Parent: objstore.VolumeRoot(objstore.RootVolume), Mode: objstore.ModeDir | 0o755,
	}, objstore.Committed)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the root volume: %w", err), c.Close())
	}
	if c.opt.Outside != nil {
		c.start(c.emptyOutside)
	}
	if err := c.settlePending(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("settle unfinished accounts: %w", err), c.Close())
	}
	return c, nil
}

// start runs fn in a goroutine that Close waits for. False: the client is closed.
func (c *Client) start(fn func()) bool {
	c.runMu.Lock()
	defer c.runMu.Unlock()
	if c.closed {
		return false
	}
	c.run.Go(fn)
	return true
}

// errClosed is the cause of the end of what a client did in the background.
var errClosed = fmt.Errorf("client closed: %w", objstore.Unavailable)

// Close gives chunks that are on their way to slow replicas a moment more and
// ends the client. Calls must have returned.
func (c *Client) Close() error {
	c.runMu.Lock()
	c.closed = true
	c.runMu.Unlock()
	c.end(errClosed)
	grace := time.AfterFunc(c.opt.Slow, func() { c.endPuts(errClosed) })
	defer grace.Stop()
	c.run.Wait()
	c.endPuts(errClosed)
	return nil
}

func (c *Client) pg(ino objstore.Ino) uint32 { return c.now.Load().Group(ino.Volume()) }

// Map is the cluster map that the client goes by, not to be changed.
func (c *Client) Map() *objstore.Map { return c.now.Load().Map }

// Forget drops what is known of names, attributes and extents in the volumes that in says.
func (c *Client) Forget(in func(objstore.VolumeID) bool) { c.cache.void(in) }

// Local says whether the bytes of a chunk are on this host: those of the embedded
// store are that lie in no pool outside.
func (c *Client) Local(id objstore.ChunkID) bool {
	e := c.now.Load()
	return e.only != nil && e.OutsideOf(id) == nil
}

// Session implements objstore.Store.
func (c *Client) Session() objstore.Session { return c.session }

func (c *Client) lookup(ctx context.Context, dir objstore.Ino, name string) (objstore.DirEntry, error) {
	if e, absent, ok := c.cache.lookup(dir, name); ok {
		if absent {
			return e, fmt.Errorf("%q in directory %v: %w", name, dir, objstore.NotFound)
		}
		return e, nil
	}
	pg := c.pg(dir)
	q := c.cache.ask(dir.Volume())
	e, err := ask(ctx, c, pg, func(ctx context.Context, osd OSD) (objstore.DirEntry, error) { return osd.Lookup(ctx, pg, dir, name) })
	if absent := errors.Is(err, objstore.NotFound); err == nil || absent {
		c.cache.looked(q, c.under(pg), dir, name, e, absent)
	}
	return e, err
}

// Lookup implements objstore.Store.
func (c *Client) Lookup(ctx context.Context, dir objstore.Ino, name string) (objstore.Attr, error) {
	e, err := c.lookup(ctx, dir, name)
	if err != nil {
		return objstore.Attr{}, err
	}
	if e.Attr != nil {
		return *e.Attr, nil
	}
	a, err := c.GetAttr(ctx, e.Ino)
	if err == nil && a.Parent != dir && e.Ino.IsVolumeRoot() {
		return c.reparent(ctx, dir, name, a), nil
	}
	return a, err
}

// GetAttr implements objstore.Store.
func (c *Client) GetAttr(ctx context.Context, ino objstore.Ino) (objstore.Attr, error) {
	if a, ok := c.cache.attr(ino); ok {
		return a, nil
	}
	pg := c.pg(ino)
	q := c.cache.ask(ino.Volume())
	a, err := ask(ctx, c, pg, func(ctx context.Context, osd OSD) (objstore.Attr, error) { return osd.GetAttr(ctx, pg, ino) })
	if err == nil {
		c.cache.gotAttr(q, c.under(pg), a)
	}
	return a, err
}

// ReadDir implements objstore.Store.
func (c *Client) ReadDir(ctx context.Context, dir objstore.Ino, after uint64, max int, attrs bool) ([]objstore.DirEntry, error) {
	if list, ok := c.cache.list(dir, after, max, attrs); ok {
		return list, nil
	}
	pg := c.pg(dir)
	q, n := c.cache.ask(dir.Volume()), c.cache.asking(c.under(pg), max)
	list, err := ask(ctx, c, pg, func(ctx context.Context, osd OSD) ([]objstore.DirEntry, error) {
		return osd.ReadDir(ctx, pg, dir, after, n, attrs)
	})
	if err == nil {
		c.cache.listed(q, c.under(pg), dir, listing{after, list, len(list) < n})
	}
	return list[:min(max, len(list))], err
}

// Readlink implements objstore.Store.
func (c *Client) Readlink(ctx context.Context, ino objstore.Ino) (string, error) {
	pg := c.pg(ino)
	return ask(ctx, c, pg, func(ctx context.Context, osd OSD) (string, error) { return osd.Readlink(ctx, pg, ino) })
}

// GetXattr implements objstore.Store.
func (c *Client) GetXattr(ctx context.Context, ino objstore.Ino, name string) ([]byte, error) {
	if a, ok := c.cache.attr(ino); ok && !a.HasXattr {
		return nil, fmt.Errorf("attribute %q of inode %v: %w", name, ino, objstore.NoAttr)
	}
	pg := c.pg(ino)
	return ask(ctx, c, pg, func(ctx context.Context, osd OSD) ([]byte, error) { return osd.GetXattr(ctx, pg, ino, name) })
}

// ListXattr implements objstore.Store.
func (c *Client) ListXattr(ctx context.Context, ino objstore.Ino) ([]string, error) {
	if a, ok := c.cache.attr(ino); ok && !a.HasXattr {
		return nil, nil
	}
	pg := c.pg(ino)
	return ask(ctx, c, pg, func(ctx context.Context, osd OSD) ([]string, error) { return osd.ListXattr(ctx, pg, ino) })
}

// Extents implements objstore.Store.
func (c *Client) Extents(ctx context.Context, ino objstore.Ino, off, n uint64) ([]objstore.Extent, error) {
	if list, ok := c.cache.extents(ino, off, n); ok {
		return list, nil
	}
	pg := c.pg(ino)
	q := c.cache.ask(ino.Volume())
	list, err := ask(ctx, c, pg, func(ctx context.Context, osd OSD) ([]objstore.Extent, error) {
		return osd.Extents(ctx, pg, ino, off, n)
	})
	if err == nil {
		c.cache.gotExtents(q, c.under(pg), ino, span{off, off + n, list})
	}
	return list, err
}

// Apply implements objstore.Store. What concerns an account's top directory
// takes several steps, in an order that a crash can only leave undone, never
// half-done (volumes.go).
func (c *Client) Apply(ctx context.Context, ch objstore.Change, p objstore.Promise) (objstore.Result, error) {
	if ch.Volume() == objstore.RootVolume {
		switch ch := ch.(type) {
		case objstore.Create:
			if ch.Mode&objstore.ModeType == objstore.ModeDir {
				return c.mkdirInRoot(ctx, ch, p)
			}
		case objstore.Remove:
			if ch.Dir {
				return c.rmdirInRoot(ctx, ch, p)
			}
		case objstore.Rename:
			res, err := c.renameInRoot(ctx, ch, p)
			if err == nil {
				c.moved(ctx, ch, res)
			}
			return res, err
		}
	}
	res, err := c.apply(ctx, ch, p)
	if purge, ok := ch.(objstore.Purge); ok && err == nil {
		err = c.dropIfDoomed(ctx, purge.Vol)
	}
	return res, err
}

// Sync implements objstore.Store.
func (c *Client) Sync(ctx context.Context, v objstore.VolumeID) error {
	e := c.now.Load()
	pg := e.Group(v)
	if e.only != nil {
		return e.only.Sync(ctx, pg)
	}
	return c.toLeader(ctx, pg, func(ctx context.Context, osd OSD) error { return osd.Sync(ctx, pg) })
}
