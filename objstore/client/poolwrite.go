package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"pillarbox/objstore"
)

// lateWrites is how many chunks may be on their way to their last replicas
// after PutChunk returned.
const lateWrites = 16

// NewChunk implements objstore.Store. The count is not used up in practice: at a
// hundred chunks per second it lasts for years.
func (c *Client) NewChunk(ctx context.Context, ino objstore.Ino, index uint32) (objstore.ChunkID, error) {
	pool, err := c.poolFor(ctx, ino)
	if err != nil {
		return objstore.ChunkID{}, fmt.Errorf("choose a pool for inode %v: %w", ino, err)
	}
	if pool, err = c.inside(ctx, pool, ino.Volume()); err != nil {
		return objstore.ChunkID{}, err
	}
	n := c.chunks.Add(1)
	if n > objstore.MaxChunkCount {
		return objstore.ChunkID{}, fmt.Errorf("session %d has used up its chunk numbers; mount again: %w", c.session.ID, objstore.NoSpace)
	}
	return objstore.ChunkID{Ino: ino, Index: index, Version: objstore.PooledVersion(pool, c.session.ID, n)}, nil
}

// poolFor is the data pool that the nearest rule above an inode chooses.
func (c *Client) poolFor(ctx context.Context, ino objstore.Ino) (int, error) {
	e := c.now.Load()
	for dir := objstore.VolumeRoot(ino.Volume()); len(e.Rules) > 0 && dir != objstore.VolumeRoot(objstore.RootVolume); {
		if r := e.Rule(dir); r != nil {
			return r.Pool, nil
		}
		a, err := c.GetAttr(ctx, dir)
		if err != nil {
			return 0, err
		}
		if a.Parent == dir { // an account that lost its name
			break
		}
		dir = a.Parent
	}
	return e.Data().ID, nil
}

// PutChunk implements objstore.Store. All OSDs of the chunk's placement group
// that are up get it at the same time; it returns when all have it, or MinSize
// of them when the others fail or are slow. Those are given what is missing in
// the background, for as long as an operation may take; later it is the OSDs'
// own affair.
//
// A full OSD is one that does not take the chunk. NoSpace is the answer only
// when the placement group cannot reach MinSize without the full ones: it will
// not get better by waiting, as it might with those that are down.
func (c *Client) PutChunk(ctx context.Context, id objstore.ChunkID, data []byte) error {
	e := c.now.Load()
	if p := e.OutsideOf(id); p != nil {
		return c.putOutside(ctx, p, id, data)
	}
	if e.only != nil {
		return e.only.PutChunk(ctx, id, data)
	}
	if id.Resident() {
		return fmt.Errorf("put chunk %v, a resident one: %w", id, objstore.Invalid)
	}
	pool := e.PoolOf(id)
	if pool == nil {
		return fmt.Errorf("put chunk %v: pool %d was removed: %w", id, id.Pool(), objstore.Unavailable)
	}
	w := &chunkWrite{
		c: c, id: id, coded: pool.Coding != nil, places: make(map[place]*placeState),
		news: make(chan placeNews), returned: make(chan struct{}),
	}
	if w.coded {
		code, err := c.codes.Of(pool)
		if err != nil {
			return err
		}
		if w.payloads, err = code.Encode(data); err != nil {
			return fmt.Errorf("put chunk %v: %w", id, err)
		}
	} else {
		// The caller's until the call returns, while late replicas need it longer.
		w.payloads = [][]byte{bytes.Clone(data)}
	}
	if err := w.do(ctx); err != nil {
		return fmt.Errorf("put chunk %v: %w", id, err)
	}
	return nil
}

// place is where one payload of a chunk belongs.
type place struct{ osd, payload int }

// placesOf lists the places of a chunk, down OSDs among them.
func placesOf(m *objstore.Map, pool *objstore.Pool, id objstore.ChunkID) []place {
	var places []place
	for i, osd := range m.Acting(pool, pool.ChunkPG(id)) {
		switch {
		case osd < 0: // a hole
		case pool.Coding != nil:
			places = append(places, place{osd, i})
		default:
			places = append(places, place{osd, 0})
		}
	}
	return places
}

// placeState is what the writer of a chunk knows of one place.
type placeState struct {
	held    bool  // durable there
	running bool  // somebody is at it
	err     error // the last failure in this epoch
	cancel  context.CancelFunc
}

// placeNews is what became of an attempt.
type placeNews struct {
	place
	err  error
	over bool // there is no further attempt
}

// chunkWrite is the writing of one chunk. One goroutine per place tries until
// it succeeds, the caller's watches them.
type chunkWrite struct {
	c        *Client
	id       objstore.ChunkID
	coded    bool
	payloads [][]byte
	places   map[place]*placeState // the caller's goroutine's
	news     chan placeNews
	returned chan struct{} // closed when nobody listens any more

	running atomic.Int32
	late    atomic.Bool // has a slot of Client.late
}

func (w *chunkWrite) do(ctx context.Context) error {
	defer close(w.returned)
	ctx, cancel := w.c.limited(ctx)
	defer cancel()
	slow := time.NewTimer(w.c.opt.Slow)
	defer slow.Stop()
	patient := true
	e := w.c.now.Load()
	for {
		if now := w.c.now.Load(); now != e {
			e = now
			for _, s := range w.places {
				s.err = nil
			}
		}
		done, err := w.advance(e, patient)
		if done {
			w.leave(err)
			return err
		}
		select {
		case n := <-w.news:
			s := w.places[n.place]
			s.running = !n.over
			s.held = s.held || n.err == nil
			if n.err == nil { // an OSD has one shard of a chunk
				w.gone(n.place)
			}
			if n.err != nil {
				s.err = n.err
			}
		case <-slow.C:
			patient = false
		case <-e.ended:
		case <-ctx.Done():
			err := gaveUp(ctx, w.failures())
			w.leave(err)
			return err
		}
	}
}

// gone notes that a payload took the place of another one on its OSD.
func (w *chunkWrite) gone(by place) {
	for p, s := range w.places {
		if p.osd == by.osd && p != by {
			s.held = false
		}
	}
}

// advance starts what the map asks for and says whether the write is over.
func (w *chunkWrite) advance(e *epoch, patient bool) (done bool, err error) {
	pool := e.PoolOf(w.id)
	if pool == nil {
		return true, fmt.Errorf("pool %d was removed: %w", w.id.Pool(), objstore.Unavailable)
	}
	places := placesOf(e.Map, pool, w.id)
	var held, hoped, full int
	for _, p := range places {
		s := w.places[p]
		if s == nil {
			s = &placeState{}
			w.places[p] = s
		}
		if s.held {
			held++
			continue
		}
		if e.FullOSD(p.osd) && !s.running {
			s.err = fmt.Errorf("osd.%d is full: %w", p.osd, objstore.NoSpace)
		}
		if errors.Is(s.err, objstore.NoSpace) {
			full++
			continue
		}
		if s.err != nil && !failsOver(s.err) {
			return true, s.err
		}
		if !e.up(p.osd) {
			continue
		}
		if !s.running && !w.try(p, s) {
			return true, errClosed
		}
		if s.err == nil {
			hoped++
		}
	}
	switch {
	case held >= pool.MinSize && (hoped == 0 || !patient):
		return true, nil
	case full > 0 && len(places)-full < pool.MinSize:
		return true, errors.Join(w.failures()...)
	case held < pool.MinSize:
		if err := w.c.tooFew(pool, places); err != nil {
			return true, err
		}
	}
	return false, nil
}

// failsOver says whether after this failure of one OSD another, or the same one
// later, may do better.
func failsOver(err error) bool {
	switch kindOf(err) {
	case 0, objstore.Unavailable, objstore.Elsewhere, objstore.NoSpace, objstore.Corrupt, objstore.NotFound, objstore.Stale:
		return true
	}
	return false
}

func (w *chunkWrite) failures() []error {
	var errs []error
	for _, s := range w.places {
		if s.err != nil {
			errs = append(errs, s.err)
		}
	}
	return errs
}

// leave ends what still runs, or after success lets it go on if there is room.
func (w *chunkWrite) leave(err error) {
	w.running.Add(1) // so that the slot is not given back before it is taken
	if err == nil && w.anyRunning() {
		select {
		case w.c.late <- struct{}{}:
			w.late.Store(true)
		default:
		}
	}
	if !w.late.Load() {
		for _, s := range w.places {
			if s.running {
				s.cancel()
			}
		}
	}
	w.ended()
}

func (w *chunkWrite) anyRunning() bool {
	for _, s := range w.places {
		if s.running {
			return true
		}
	}
	return false
}

// ended notes that one of those at work is through; the last one frees the slot.
func (w *chunkWrite) ended() {
	if w.running.Add(-1) == 0 && w.late.Load() {
		<-w.c.late
	}
}

// try starts writing to a place. False: the client is closed.
func (w *chunkWrite) try(p place, s *placeState) bool {
	ctx, cancel := w.c.limited(w.c.writing)
	w.running.Add(1)
	ok := w.c.start(func() {
		defer w.ended()
		defer cancel()
		w.keepTrying(ctx, p)
	})
	if !ok {
		w.ended()
		cancel()
		return false
	}
	s.running, s.cancel = true, cancel
	return true
}

// keepTrying writes to a place until that succeeds, cannot, or is not wanted.
func (w *chunkWrite) keepTrying(ctx context.Context, p place) {
	var wait pause
	for {
		e := w.c.now.Load()
		err := w.c.bulk(ctx, p.osd, func(ctx context.Context, osd OSD) error { return osd.PutChunk(ctx, w.id, w.payloads[p.payload]) })
		over := err == nil || !failsOver(err) || errors.Is(err, objstore.NoSpace)
		w.tell(ctx, placeNews{p, err, over})
		if over {
			return
		}
		if !wait.wait(ctx, e) || !w.wanted(p) {
			w.tell(ctx, placeNews{p, err, true})
			return
		}
	}
}

func (w *chunkWrite) tell(ctx context.Context, n placeNews) {
	select {
	case w.news <- n:
	case <-w.returned:
		if n.over && n.err != nil && !errors.Is(context.Cause(ctx), context.Canceled) {
			w.c.opt.Log.Warn("chunk lacks a replica", "chunk", w.id.String(), "osd", n.osd, "err", n.err)
		}
	}
}

// wanted says whether the map wants a payload at a place, and that can be tried.
func (w *chunkWrite) wanted(p place) bool {
	e := w.c.now.Load()
	pool := e.PoolOf(w.id)
	if pool == nil || !e.up(p.osd) {
		return false
	}
	for _, q := range placesOf(e.Map, pool, w.id) {
		if p == q {
			return true
		}
	}
	return false
}
