package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

// Router finds the OSDs of a cluster.
type Router interface {
	// OSD is the one with this id as the newest map has it; an error says that
	// there is none. It does not wait: an OSD that cannot be reached fails its
	// calls with objstore.Unavailable. Calls end when their context does.
	OSD(id int) (OSD, error)
}

// Embedded is a Router of a store whose only OSD is o.
func Embedded(o OSD) Router { return embedded{o} }

type embedded struct{ osd OSD }

func (e embedded) OSD(int) (OSD, error) { return e.osd, nil }

// Options are how a client behaves; the zero value is good.
type Options struct {
	Log  *slog.Logger
	Host string // where the client runs: chunks are read from OSDs of that host first

	Timeout time.Duration // for one operation with all its retries; 30 s
	Attempt time.Duration // for one call of one OSD; 5 s. A chunk has twice the time
	Slow    time.Duration // how long a chunk's last replicas are waited for when MinSize have it; 2 s
	Hedge   time.Duration // how soon, at the earliest, a second replica is asked; 10 ms

	// Cache is how many bytes of memory names, attributes and extents may take that
	// are kept under leases; 64 MiB.
	Cache int64

	// Found says what is to be changed in the volume of a new account, below
	// parent, before it has a name; nil: nothing.
	Found func(ctx context.Context, vol objstore.VolumeID, parent objstore.Ino) ([]objstore.Change, error)

	// Outside opens the store that an outside data pool lies in; nil: none can be
	// opened here. It is called once for each pool, unless it fails.
	Outside func(ctx context.Context, p *objstore.Pool) (pool.Store, error)
	// Sealed says whether a volume's bodies are sealed: only such go to outside
	// pools; nil: none.
	Sealed func(ctx context.Context, vol objstore.VolumeID) (bool, error)
	// Empty is how often what was freed in outside pools is removed there; 10 s.
	Empty time.Duration

	// Settle is how old a note of an unfinished account must be, at least,
	// before another client takes its maker for dead; 5 min.
	Settle time.Duration
}

func (o *Options) setDefaults() {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.Timeout = cmp.Or(o.Timeout, 30*time.Second)
	o.Attempt = cmp.Or(o.Attempt, 5*time.Second)
	o.Slow = cmp.Or(o.Slow, 2*time.Second)
	o.Hedge = cmp.Or(o.Hedge, 10*time.Millisecond)
	o.Empty = cmp.Or(o.Empty, 10*time.Second)
	o.Settle = cmp.Or(o.Settle, 5*time.Minute)
	o.Cache = cmp.Or(o.Cache, 64<<20)
}

// epoch is one cluster map in use.
type epoch struct {
	*objstore.Map
	only  OSD             // the embedded store's OSD; nil in a cluster
	past  []*objstore.Map // some before, newest first: what is not in its place yet may be in an earlier one
	ended chan struct{}   // closed when there is a newer one
}

// pastEpochs is how many earlier maps are kept.
const pastEpochs = 8

// up says whether an OSD is there to be asked.
func (e *epoch) up(id int) bool {
	o := e.OSD(id)
	return o != nil && o.Up
}

// SetMap makes the client go by a newer map; an older one, or another store's,
// is passed over. Calls under way notice.
func (c *Client) SetMap(m *objstore.Map) {
	c.mapMu.Lock()
	defer c.mapMu.Unlock()
	was := c.now.Load()
	if was != nil && (m.Epoch <= was.Epoch || m.FSID != was.FSID) {
		return
	}
	e := &epoch{Map: m, ended: make(chan struct{})}
	if len(m.OSDs) == 1 && m.OSDs[0].Addr == "" {
		if osd, err := c.osds.OSD(m.OSDs[0].ID); err == nil {
			e.only = osd
		}
	}
	if was != nil {
		e.past = append([]*objstore.Map{was.Map}, was.past[:min(len(was.past), pastEpochs-1)]...)
	}
	c.now.Store(e)
	if was != nil {
		close(was.ended)
	}
	var silent []*peer
	c.peersMu.Lock()
	for id, p := range c.peers {
		p.setUp(c.writing, e.up(id))
		if !e.up(id) {
			silent = append(silent, p)
		}
	}
	c.peersMu.Unlock()
	for _, p := range silent {
		c.silent(p, time.Now())
	}
}

// errMarkedDown ends calls of an OSD that the map no longer has as up.
var errMarkedDown = errors.New("marked down in the cluster map")

// bulkCalls is how many chunks may be on their way to or from one OSD at a time.
const bulkCalls = 32

// peer is what a client knows of one OSD. Its mutex is a leaf.
type peer struct {
	id   int
	bulk chan struct{}

	mu      sync.Mutex
	up      context.Context // ends when the map has the OSD as down
	down    context.CancelCauseFunc
	trouble time.Time // it failed a read, so others are preferred until then
	since   time.Time // it has not answered since then; zero: it does
	probed  bool      // somebody asks until it answers
}

func (c *Client) peer(id int) *peer {
	c.peersMu.Lock()
	p := c.peers[id]
	if p != nil {
		c.peersMu.Unlock()
		return p
	}
	up := c.now.Load().up(id)
	p = &peer{id: id, bulk: make(chan struct{}, bulkCalls)}
	p.setUp(c.writing, up)
	c.peers[id] = p
	c.peersMu.Unlock()
	if !up {
		c.silent(p, time.Now())
	}
	return p
}

// setUp takes in what the map says; parent ends with the client.
func (p *peer) setUp(parent context.Context, up bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !up && p.up != nil:
		p.down(errMarkedDown)
		p.up, p.down = nil, nil
	case up && p.up == nil:
		p.up, p.down = context.WithCancelCause(parent)
	}
}

// troubleFor is how long an OSD that failed a read is not the first choice.
const troubleFor = time.Second

func (p *peer) failed() {
	p.mu.Lock()
	p.trouble = time.Now().Add(troubleFor)
	p.mu.Unlock()
}

func (p *peer) healthy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trouble.IsZero() || time.Now().After(p.trouble)
}

// call asks one OSD once, within a time limit and until the map has it as down. An OSD that is down in the map all the time may be asked, too: the
// map may be late. The error says whom it is of.
func (c *Client) call(ctx context.Context, id int, limit time.Duration, ask func(context.Context, OSD) error) error {
	p, caller := c.peer(id), ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	p.mu.Lock()
	up := p.up
	p.mu.Unlock()
	if up != nil {
		stop := context.AfterFunc(up, func() { abort(context.Cause(up)) })
		defer stop()
	}
	osd, err := c.osds.OSD(id)
	if err != nil {
		return fmt.Errorf("osd.%d: %w: %w", id, objstore.Unavailable, err) // maybe the map is too old to have it
	}
	began := time.Now()
	err = ask(ctx, osd)
	if err == nil {
		p.heard()
		return nil
	}
	switch k := kindOf(err); {
	case k != 0 && k != objstore.Unavailable:
		p.heard()
	case caller.Err() == nil || errors.Is(context.Cause(caller), errTimeout):
		c.silent(p, began)
	}
	if ctx.Err() != nil && kindOf(err) == 0 {
		err = fmt.Errorf("%w: %w", objstore.Unavailable, context.Cause(ctx))
	}
	return fmt.Errorf("osd.%d: %w", id, err)
}

// bulk is call for a chunk's bytes: as many at a time as an OSD can use.
func (c *Client) bulk(ctx context.Context, id int, ask func(context.Context, OSD) error) error {
	p := c.peer(id)
	select {
	case p.bulk <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("osd.%d: %w: %w", id, objstore.Unavailable, context.Cause(ctx))
	}
	defer func() { <-p.bulk }()
	return c.call(ctx, id, 2*c.opt.Attempt, ask)
}

// kindOf is the kind of an error, 0 if it has none.
func kindOf(err error) objstore.Kind {
	var k objstore.Kind
	errors.As(err, &k)
	return k
}

// pause is the time between two rounds of asking.
type pause struct{ next time.Duration }

const (
	minPause = 20 * time.Millisecond
	maxPause = 500 * time.Millisecond
)

// wait sleeps, longer every time, unless the map changes or ctx ends. False: it ended.
func (p *pause) wait(ctx context.Context, e *epoch) bool {
	d := min(max(2*p.next, minPause), maxPause)
	p.next = d
	t := time.NewTimer(d/2 + jitter(d/2))
	defer t.Stop()
	select {
	case <-t.C:
	case <-e.ended:
		p.next = 0
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// gaveUp is the failure of an operation whose time is over, ctx's, after the
// last round of asking failed with last.
func gaveUp(ctx context.Context, last []error) error {
	err := errors.Join(last...)
	if err == nil {
		return fmt.Errorf("%w: no OSD to ask: %w", objstore.Unavailable, context.Cause(ctx))
	}
	// As text: what the kinds of the single failures are is not for callers.
	return fmt.Errorf("%w: %w: %v", objstore.Unavailable, context.Cause(ctx), err)
}

// errTimeout is the cause of an operation's end by its time limit.
var errTimeout = errors.New("operation timed out")

func (c *Client) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.opt.Timeout, errTimeout)
}

// appendNew appends those ids that are not in the list yet.
func appendNew(list []int, ids ...int) []int {
	for _, id := range ids {
		if id >= 0 && !slices.Contains(list, id) {
			list = append(list, id)
		}
	}
	return list
}
