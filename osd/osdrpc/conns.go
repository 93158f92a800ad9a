package osdrpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/osd"
)

// Options are what Conns need.
type Options struct {
	// Self is the OSD that the Conns belong to, and never connect to; -1: none.
	Self int
	// TLS has the certificate to show, and in RootCAs the cluster's authority.
	TLS *tls.Config
	Log *slog.Logger // nil: slog.Default()
	// OnLost, if set, is called when another OSD's process is gone: the stream of
	// raft's messages broke, and its host refuses connections. Only OSDs that
	// messages were sent to are watched that way.
	OnLost func(id int)
}

// Conns are the connections to the OSDs of the cluster map.
type Conns struct {
	opt    Options
	ctx    context.Context
	cancel context.CancelFunc

	mapMu sync.Mutex // for SetMap and Close; before life
	epoch uint64
	conns atomic.Pointer[map[int]*Conn] // never nil; what it points to is never changed

	life   sync.RWMutex // a leaf; for what starts goroutines
	closed bool
	wg     sync.WaitGroup
}

var (
	_ osd.Peers     = (*Conns)(nil)
	_ client.Router = (*Conns)(nil)
)

// NewConns makes Conns that know no OSD before SetMap. Close ends them.
func NewConns(opt Options) *Conns {
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	c := &Conns{opt: opt}
	c.conns.Store(&map[int]*Conn{})
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// SetMap goes by a newer cluster map: connections to OSDs that it does not have,
// or has elsewhere, are closed, which calls under way there notice. An older map
// is passed over.
func (c *Conns) SetMap(m *objstore.Map) error {
	c.mapMu.Lock()
	defer c.mapMu.Unlock()
	if c.ctx.Err() != nil || m.Epoch <= c.epoch {
		return nil
	}
	before, now := *c.conns.Load(), make(map[int]*Conn, len(m.OSDs))
	for _, o := range m.OSDs {
		if o.ID == c.opt.Self || o.Addr == "" {
			continue
		}
		conn := before[o.ID]
		if conn == nil || conn.addr != o.Addr {
			var err error
			if conn, err = c.dial(o.ID, o.Addr); err != nil {
				closeExcept(now, before)
				return err
			}
		}
		now[o.ID] = conn
	}
	c.epoch = m.Epoch
	c.conns.Store(&now)
	closeExcept(before, now)
	return nil
}

// closeExcept closes the connections that are not among others.
func closeExcept(conns, others map[int]*Conn) error {
	var errs []error
	for id, conn := range conns {
		if others[id] != conn {
			errs = append(errs, conn.Close())
		}
	}
	return errors.Join(errs...)
}

func (c *Conns) dial(id int, addr string) (*Conn, error) {
	s := newSender(c.ctx, c.opt.Log, func() { c.lost(id) })
	conn, err := dial(addr, id, c.opt.TLS, s.dialed)
	if err != nil {
		return nil, err
	}
	s.conn, conn.sender = conn, s
	return conn, nil
}

// spawn starts a goroutine that Close waits for.
func (c *Conns) spawn(f func()) {
	c.life.RLock()
	defer c.life.RUnlock()
	if !c.closed {
		c.wg.Go(f)
	}
}

// lost reports an OSD, without keeping gRPC waiting, which noticed.
func (c *Conns) lost(id int) {
	if c.opt.OnLost != nil {
		c.spawn(func() { c.opt.OnLost(id) })
	}
}

// OSD implements client.Router. Unavailable: the map does not have the OSD, or
// no address of it.
func (c *Conns) OSD(id int) (client.OSD, error) {
	conn, err := c.conn(id)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// Conn is the connection to an OSD. Unavailable as OSD.
func (c *Conns) Conn(id int) (*Conn, error) { return c.conn(id) }

func (c *Conns) conn(id int) (*Conn, error) {
	if conn := (*c.conns.Load())[id]; conn != nil {
		return conn, nil
	}
	return nil, fmt.Errorf("osd.%d is not in the map, or without an address: %w", id, objstore.Unavailable)
}

// Peer implements osd.Peers.
func (c *Conns) Peer(id int) (osd.Peer, error) {
	conn, err := c.conn(id)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// Send implements osd.Peers. The messages must not change any more.
func (c *Conns) Send(to int, ms []osd.RaftMessage) {
	if conn := (*c.conns.Load())[to]; conn != nil {
		conn.sender.start(c.spawn)
		conn.sender.send(ms)
	}
}

// PullGroup implements osd.Peers.
func (c *Conns) PullGroup(ctx context.Context, from int, pg uint32, take func(osd.GroupPiece) error) error {
	conn, err := c.conn(from)
	if err != nil {
		return err
	}
	return conn.PullGroup(ctx, pg, take)
}

// Retry ends the wait before the next attempt to connect to an OSD.
func (c *Conns) Retry(id int) {
	if conn := (*c.conns.Load())[id]; conn != nil {
		conn.short.ResetConnectBackoff()
		conn.bulk.ResetConnectBackoff()
	}
}

// Close ends all connections and waits for what they started, OnLost included.
func (c *Conns) Close() error {
	c.mapMu.Lock()
	defer c.mapMu.Unlock()
	c.cancel()
	c.life.Lock()
	c.closed = true
	c.life.Unlock()
	err := closeExcept(*c.conns.Swap(&map[int]*Conn{}), nil)
	c.wg.Wait()
	return err
}
