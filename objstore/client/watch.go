package client

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
)

// Watchable is an OSD that tells of changes: every one but the embedded store's,
// whose changes all come from one client.
type Watchable interface {
	OSD
	// Watch begins a stream of pushes for a session and returns when it has ended:
	// the OSD did not answer for nearly the time of a lease, or ctx ended.
	Watch(ctx context.Context, session uint64, w Watching) error
	// Hold says under ctx's lease that the session has forgotten what it learned
	// of a placement group, of which volumes in it it must go on hearing, and which
	// locks it has there. known is false when its lease had ended before.
	Hold(ctx context.Context, pg uint32, vols []objstore.VolumeID, held []locks.Held) (known bool, err error)
	// Lock tests, sets or clears a lock under ctx's lease. One that was waited for
	// in vain is to be asked for again. Deadlock.
	Lock(ctx context.Context, pg uint32, r locks.Request) (locks.Answer, error)
	// Waits lists who waits for whose fcntl locks in the groups that the OSD leads.
	Waits(ctx context.Context) ([]locks.Waiting, error)
}

// Watching is what a stream calls, one after the other.
type Watching struct {
	Begun func(stream uint64)
	Beat  func(sent time.Time)                          // the OSD has heard what was sent then
	Push  func(p objstore.Push, ack func(objstore.Ack)) // ack may be called later
	Lost  func(pgs []uint32)                            // the OSD leads them no more
	End   context.Context                               // with its end the session ends in good order
}

// Watcher hears of what others change. Its methods must not wait for the Store.
type Watcher interface {
	// Told takes in a push; ack is to be called when nothing that was known
	// before is served any more.
	Told(p objstore.Push, ack func(objstore.Ack))
	// Void drops what is known of the volumes that in says. fenced: others may
	// have changed them since, so that what is not committed there must not be.
	Void(in func(objstore.VolumeID) bool, fenced bool)
	// Known lists those of the volumes that something was asked of.
	Known(in func(objstore.VolumeID) bool) []objstore.VolumeID
}

// SetWatcher makes the client ask under leases from now on, and pass on what it
// is told. It is called before anything is asked that must stay true.
func (c *Client) SetWatcher(w Watcher) {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	c.watch.to = w
	c.cache.on.Store(w != nil)
}

// watches are the client's streams. The mutex is a leaf.
type watches struct {
	mu      sync.Mutex
	to      Watcher
	streams map[int]*stream     // by OSD
	held    map[uint32]*holding // by placement group
	silent  map[int]bool        // OSDs with which no stream has begun since it was logged that one had ended

	pushes, lost atomic.Uint64
}

// holding is how a placement group's volumes are known.
type holding struct {
	from    *stream
	learned bool          // something is known; else it was only asked
	fences  uint64        // how often the lease was over, so that others may have changed what was known
	turn    chan struct{} // has room for who goes over to another leader
}

// holding of a group, made if need be. Under mu.
func (w *watches) holding(pg uint32) *holding {
	h := w.held[pg]
	if h == nil {
		if w.held == nil {
			w.held = map[uint32]*holding{}
		}
		h = &holding{turn: make(chan struct{}, 1)}
		w.held[pg] = h
	}
	return h
}

// stream is one with one OSD.
type stream struct {
	osd   int
	id    uint64
	begun chan struct{} // closed when id is known, or it has ended
	ended chan struct{}
	lost  map[uint32]int // under watches.mu: placement groups that it must be told anew what is known of, or another, and how often that came up
	until atomic.Int64   // what it told is good, in nanoseconds since started
}

// started is the zero of streams' times, which must not jump as the clock may.
var started = time.Now()

// leaseLeft is how long a client believes in its lease: less than the OSD does,
// which counts from when it heard of it.
const leaseLeft = objstore.LeaseTime * 8 / 10

func (s *stream) beat(sent time.Time) { s.until.Store(int64(sent.Sub(started) + leaseLeft)) }

// live says that the OSD tells of every change before others can know of it.
func (s *stream) live() bool { return !s.over() && int64(time.Since(started)) < s.until.Load() }

func (s *stream) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// leased makes a question to the leader of a placement group one under a lease.
// learned is to be called when it was answered.
func (c *Client) leased(ctx context.Context, pg uint32, id int, osd OSD) (_ context.Context, learned func(), err error) {
	w, ok := osd.(Watchable)
	c.watch.mu.Lock()
	to := c.watch.to
	c.watch.mu.Unlock()
	if !ok || to == nil {
		return ctx, func() {}, nil
	}
	s, err := c.stream(ctx, id, w)
	if err != nil {
		return nil, nil, err
	}
	lease := objstore.Lease{Session: c.session.ID, Stream: s.id}
	for {
		// The turn comes first: were it one that begins only now, the leader could take
		// the request before what is said in that turn, and then forget it.
		lease.Turn = c.locks.turnOf(pg)
		if c.goesBy(pg, s) {
			break
		}
		if err := c.resume(objstore.WithLease(ctx, lease), pg, s, w, to); err != nil {
			return nil, nil, err
		}
	}
	return objstore.WithLease(ctx, lease), func() { c.learned(pg, s) }, nil
}

// goesBy says whether the volumes of a placement group are known under a stream.
// Those of which nothing is known are from now on.
func (c *Client) goesBy(pg uint32, s *stream) bool {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	h := c.watch.holding(pg)
	if h.from == nil {
		h.from = s // the answer may be lost, and another lead when it is asked for again
	}
	return h.from == s && s.lost[pg] == 0
}

// learned notes that something of a placement group is known under a stream.
func (c *Client) learned(pg uint32, s *stream) {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	h := c.watch.holding(pg)
	if h.learned {
		return
	}
	h.learned = true
	if h.from != s || s.over() || s.lost[pg] > 0 {
		c.resumeLater([]uint32{pg})
	}
}

// under is the stream that what a placement group's leader answers is good by;
// nil: there is none.
func (c *Client) under(pg uint32) *stream {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	h := c.watch.held[pg]
	if h == nil || h.from == nil || !h.learned || h.from.lost[pg] > 0 || !h.from.live() {
		return nil
	}
	return h.from
}

// Leased says whether what is known of a volume may be served: others cannot
// have changed it without this client knowing.
func (c *Client) Leased(v objstore.VolumeID) bool {
	e := c.now.Load()
	return e.only != nil || !c.cache.on.Load() || c.under(e.Group(v)) != nil
}

type pinKey struct{}

// Pin makes changes of a volume with the returned context ones that belong to
// the lease of now: should it end before they are made, they fail with Fenced.
func (c *Client) Pin(ctx context.Context, v objstore.VolumeID) context.Context {
	e := c.now.Load()
	if e.only != nil {
		return ctx
	}
	return context.WithValue(ctx, pinKey{}, c.fences(e.Group(v)))
}

// pinned is how often the lease was over when a change with ctx was begun.
func (c *Client) pinned(ctx context.Context, pg uint32) uint64 {
	if n, ok := ctx.Value(pinKey{}).(uint64); ok {
		return n
	}
	return c.fences(pg)
}

func (c *Client) fences(pg uint32) uint64 {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	if h := c.watch.held[pg]; h != nil {
		return h.fences
	}
	return 0
}

// resume goes over to another leader, or another stream of the same. One at a
// time does so: what a second one would say of the locks held may be out of date.
func (c *Client) resume(ctx context.Context, pg uint32, s *stream, w Watchable, to Watcher) error {
	c.watch.mu.Lock()
	h := c.watch.holding(pg)
	c.watch.mu.Unlock()
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", objstore.Unavailable, context.Cause(ctx))
	}
	defer func() { <-h.turn }()
	if c.goesBy(pg, s) {
		return nil
	}
	in := func(v objstore.VolumeID) bool { return c.now.Load().Group(v) == pg }
	c.watch.mu.Lock()
	learned, lost := h.learned, s.lost[pg]
	c.watch.mu.Unlock()
	var known bool
	for said := -1; ; {
		// The leader of before may have answered a first question about a volume while
		// this one was being told of the others.
		vols := to.Known(in)
		if len(vols) == said {
			break
		}
		c.cache.void(in)
		to.Void(in, false)
		turn, held := c.locks.say(pg, in)
		var err error
		if known, err = w.Hold(objstore.WithLease(ctx, objstore.Lease{Session: c.session.ID, Stream: s.id, Turn: turn}), pg, vols, held); err != nil {
			return err
		}
		said = len(vols)
	}
	if !known && learned {
		c.watch.lost.Add(1)
		c.opt.Log.Warn("the lease was over: what was not committed is given up", "pg", pg, "osd", s.osd)
		c.locks.lose(in)
		to.Void(in, true)
		c.locks.found(in)
	}
	defer c.cache.void(in) // of what was kept under the stream of before
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	if !known && learned {
		h.fences++ // after what was not committed is gone
	}
	if !known {
		h.learned = false
	}
	h.from = s
	if s.lost[pg] == lost { // else it lost the lead since
		delete(s.lost, pg)
	}
	return nil
}

// resumeLater goes over to the leaders of placement groups in the background,
// so that nobody waits for this client.
func (c *Client) resumeLater(pgs []uint32) {
	c.start(func() {
		for _, pg := range pgs {
			err := c.seekLeader(c.life, pg, true, func(context.Context, OSD) error { return nil })
			if err != nil && c.life.Err() == nil {
				c.opt.Log.Warn("find the leader of a placement group again", "pg", pg, "err", err)
			}
		}
	})
}

// stream is the one with an OSD, begun if need be.
func (c *Client) stream(ctx context.Context, id int, w Watchable) (*stream, error) {
	c.watch.mu.Lock()
	s := c.watch.streams[id]
	if s == nil {
		s = &stream{osd: id, begun: make(chan struct{}), ended: make(chan struct{}), lost: map[uint32]int{}}
		if !c.start(func() { c.follow(s, w) }) {
			c.watch.mu.Unlock()
			return nil, errClosed
		}
		if c.watch.streams == nil {
			c.watch.streams = map[int]*stream{}
		}
		c.watch.streams[id] = s
	}
	c.watch.mu.Unlock()
	select {
	case <-s.begun:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", objstore.Unavailable, context.Cause(ctx))
	}
	if s.over() {
		return nil, fmt.Errorf("osd.%d does not tell of changes: %w", id, objstore.Unavailable)
	}
	return s, nil
}

// follow runs a stream.
func (c *Client) follow(s *stream, w Watchable) {
	begun := sync.OnceFunc(func() { close(s.begun) })
	c.watch.mu.Lock()
	to := c.watch.to
	c.watch.mu.Unlock()
	s.beat(time.Now())
	err := w.Watch(c.writing, c.session.ID, Watching{
		End: c.life,
		Begun: func(id uint64) {
			c.watch.mu.Lock()
			delete(c.watch.silent, s.osd)
			c.watch.mu.Unlock()
			s.id = id
			begun()
		},
		Beat: s.beat,
		Push: func(p objstore.Push, ack func(objstore.Ack)) {
			c.watch.pushes.Add(1)
			c.cache.told(&p, s)
			to.Told(p, ack)
		},
		Lost: func(pgs []uint32) {
			c.watch.mu.Lock()
			for _, pg := range pgs {
				s.lost[pg]++
			}
			pgs = slices.DeleteFunc(slices.Clone(pgs), func(pg uint32) bool { return c.watch.holding(pg).from != s })
			c.watch.mu.Unlock()
			c.void(to, pgs) // now: it may be long until the next leader is reached
			c.resumeLater(pgs)
		},
	})
	c.watch.mu.Lock()
	close(s.ended)
	if c.watch.streams[s.osd] == s {
		delete(c.watch.streams, s.osd)
	}
	var pgs []uint32
	for pg, h := range c.watch.held {
		if h.from == s {
			pgs = append(pgs, pg)
		}
	}
	told := c.watch.silent[s.osd]
	if c.watch.silent == nil {
		c.watch.silent = map[int]bool{}
	}
	c.watch.silent[s.osd] = true
	c.watch.mu.Unlock()
	begun()
	if c.life.Err() != nil {
		return
	}
	if !told { // else every operation that is tried again would say so
		c.opt.Log.Info("the stream with an OSD has ended", "osd", s.osd, "err", err)
	}
	c.void(to, pgs)
	slices.Sort(pgs)
	c.resumeLater(pgs)
}

// void drops what is known of placement groups.
func (c *Client) void(to Watcher, pgs []uint32) {
	if len(pgs) == 0 {
		return
	}
	m := c.now.Load()
	in := func(v objstore.VolumeID) bool { return slices.Contains(pgs, m.Group(v)) }
	c.cache.void(in)
	to.Void(in, false)
}
