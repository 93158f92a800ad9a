// Package client is an objstore.Store over a cluster map and the OSDs that
// serve it: it finds each volume's placement group and carries out what spans
// two volumes, the making and removal of accounts (volumes.go).
//
// A Client keeps no state of its own but the map, its session, and the accounts
// it removed whose files are still open; every method may be called from any
// goroutine.
package client

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"pillarbox/objstore"
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
	Apply(ctx context.Context, pg uint32, c objstore.Change, p objstore.Promise) (objstore.Result, error)
	Sync(ctx context.Context, pg uint32) error
	ReadChunk(ctx context.Context, pg uint32, id objstore.ChunkID, off uint32, p []byte) error
	PutChunk(ctx context.Context, id objstore.ChunkID, data []byte) error
	Space() (total, free uint64, err error)
}

// Client is a Store.
type Client struct {
	m       *objstore.Map
	session objstore.Session
	osd     OSD
	log     *slog.Logger

	mu     sync.Mutex                     // a leaf
	doomed map[objstore.VolumeID]struct{} // without a name, dropped when the last open file is purged
}

var _ objstore.Store = (*Client)(nil)

// New makes a client with the given session id. A store that has no root volume
// yet gets one, and what a crash left of accounts in the making or in removal
// is cleared up.
func New(ctx context.Context, m *objstore.Map, session uint64, osd OSD, log *slog.Logger) (*Client, error) {
	if log == nil {
		log = slog.Default()
	}
	c := &Client{m: m, session: objstore.Session{ID: session}, osd: osd, log: log, doomed: make(map[objstore.VolumeID]struct{})}
	// Doing it again changes nothing.
	_, err := c.apply(ctx, objstore.InitVolume{
		Vol: objstore.RootVolume, Parent: objstore.VolumeRoot(objstore.RootVolume), Mode: objstore.ModeDir | 0o755,
	}, objstore.Committed)
	if err != nil {
		return nil, fmt.Errorf("make the root volume: %w", err)
	}
	if err := c.settlePending(ctx); err != nil {
		return nil, fmt.Errorf("settle unfinished accounts: %w", err)
	}
	return c, nil
}

func (c *Client) pg(ino objstore.Ino) uint32 { return c.m.Group(ino.Volume()) }

// apply sends a change to its volume's group as it is.
func (c *Client) apply(ctx context.Context, ch objstore.Change, p objstore.Promise) (objstore.Result, error) {
	return c.osd.Apply(ctx, c.m.Group(ch.Volume()), ch, p)
}

// Session implements objstore.Store.
func (c *Client) Session() objstore.Session { return c.session }

// Lookup implements objstore.Store.
func (c *Client) Lookup(ctx context.Context, dir objstore.Ino, name string) (objstore.Attr, error) {
	e, err := c.osd.Lookup(ctx, c.pg(dir), dir, name)
	if err != nil {
		return objstore.Attr{}, err
	}
	if e.Attr != nil {
		return *e.Attr, nil
	}
	return c.GetAttr(ctx, e.Ino)
}

// GetAttr implements objstore.Store.
func (c *Client) GetAttr(ctx context.Context, ino objstore.Ino) (objstore.Attr, error) {
	return c.osd.GetAttr(ctx, c.pg(ino), ino)
}

// ReadDir implements objstore.Store.
func (c *Client) ReadDir(ctx context.Context, dir objstore.Ino, after uint64, max int, attrs bool) ([]objstore.DirEntry, error) {
	return c.osd.ReadDir(ctx, c.pg(dir), dir, after, max, attrs)
}

// Readlink implements objstore.Store.
func (c *Client) Readlink(ctx context.Context, ino objstore.Ino) (string, error) {
	return c.osd.Readlink(ctx, c.pg(ino), ino)
}

// GetXattr implements objstore.Store.
func (c *Client) GetXattr(ctx context.Context, ino objstore.Ino, name string) ([]byte, error) {
	return c.osd.GetXattr(ctx, c.pg(ino), ino, name)
}

// ListXattr implements objstore.Store.
func (c *Client) ListXattr(ctx context.Context, ino objstore.Ino) ([]string, error) {
	return c.osd.ListXattr(ctx, c.pg(ino), ino)
}

// Extents implements objstore.Store.
func (c *Client) Extents(ctx context.Context, ino objstore.Ino, off, n uint64) ([]objstore.Extent, error) {
	return c.osd.Extents(ctx, c.pg(ino), ino, off, n)
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
			return c.renameInRoot(ctx, ch, p)
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
	return c.osd.Sync(ctx, c.m.Group(v))
}

// ReadChunk implements objstore.Store.
func (c *Client) ReadChunk(ctx context.Context, id objstore.ChunkID, off uint32, p []byte) error {
	return c.osd.ReadChunk(ctx, c.pg(id.Ino), id, off, p)
}

// PutChunk implements objstore.Store.
func (c *Client) PutChunk(ctx context.Context, id objstore.ChunkID, data []byte) error {
	return c.osd.PutChunk(ctx, id, data)
}

// StatFS implements objstore.Store. Inodes are bounded by their numbers only.
func (c *Client) StatFS(context.Context) (objstore.StatFS, error) {
	total, free, err := c.osd.Space()
	if err != nil {
		return objstore.StatFS{}, err
	}
	return objstore.StatFS{Total: total, Free: free, Avail: free, Files: objstore.MaxLocal, FilesFree: objstore.MaxLocal}, nil
}
