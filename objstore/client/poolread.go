package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pillarbox/objstore"
)

// ReadChunk implements objstore.Store. A resident chunk is read from its
// volume's leader. A pooled one is read from one replica, and from a second one
// when that takes long; what fails is tried elsewhere, and again until the time
// is over.
func (c *Client) ReadChunk(ctx context.Context, id objstore.ChunkID, off uint32, p []byte) error {
	e := c.now.Load()
	pg := e.Group(id.Ino.Volume())
	if out := e.OutsideOf(id); out != nil {
		return c.readOutside(ctx, out, chunkRange{id, pg, off, p})
	}
	if e.only != nil {
		return e.only.ReadChunk(ctx, pg, id, off, p)
	}
	if id.Resident() {
		err := c.toLeader(ctx, pg, func(ctx context.Context, osd OSD) error { return osd.ReadChunk(ctx, pg, id, off, p) })
		if err != nil {
			c.cache.forgetExtents(id)
		}
		return err
	}
	if len(p) == 0 {
		return nil
	}
	if err := c.readPooled(ctx, chunkRange{id, pg, off, p}); err != nil {
		return fmt.Errorf("read chunk %v: %w", id, err)
	}
	return nil
}

// chunkRange is what a caller wants of a chunk, and where to.
type chunkRange struct {
	id  objstore.ChunkID
	pg  uint32 // of its volume
	off uint32
	p   []byte
}

func (c *Client) readPooled(ctx context.Context, r chunkRange) error {
	ctx, cancel := c.limited(ctx)
	defer cancel()
	var wait pause
	for {
		e := c.now.Load()
		if err := c.allAway(e); err != nil {
			return err
		}
		done, m := c.readRound(ctx, e, r)
		if done {
			return m.final
		}
		if ctx.Err() != nil || !wait.wait(ctx, e) {
			return gaveUp(ctx, m.all())
		}
	}
}

// misses is how asking for a chunk failed.
type misses struct {
	absent  []error
	corrupt []error
	failed  []error // anything else: it may do better later
	final   error   // never
}

func (m *misses) Error() string { return errors.Join(m.all()...).Error() }

func (m *misses) all() []error {
	return slices.Concat(m.corrupt, m.absent, m.failed)
}

func (m *misses) add(err error) {
	var more *misses
	if errors.As(err, &more) {
		m.absent, m.corrupt, m.failed = append(m.absent, more.absent...), append(m.corrupt, more.corrupt...), append(m.failed, more.failed...)
		m.final = cmp.Or(m.final, more.final)
		return
	}
	switch kindOf(err) {
	case objstore.NotFound, objstore.Stale:
		m.absent = append(m.absent, err)
	case objstore.Corrupt:
		m.corrupt = append(m.corrupt, err)
	default:
		if !failsOver(err) {
			m.final = err
		}
		m.failed = append(m.failed, err)
	}
}

// readRound asks everybody who may have the chunk. Done: the bytes are there,
// or misses.final says why they never will be.
func (c *Client) readRound(ctx context.Context, e *epoch, r chunkRange) (done bool, m *misses) {
	m = &misses{}
	pool := e.PoolOf(r.id)
	if pool == nil { // the map is late, or the pool is gone for good
		m.add(fmt.Errorf("pool %d is not in epoch %d of the cluster map: %w", r.id.Pool(), e.Epoch, objstore.Unavailable))
		return false, m
	}
	places := placesOf(e.Map, pool, r.id)
	down := slices.ContainsFunc(places, func(p place) bool { return !e.up(p.osd) })
	if err := c.readFrom(ctx, pool, r, c.preferred(e, r.id, places)); err == nil {
		return true, &misses{}
	} else if m.add(err); m.final != nil {
		return true, m
	}
	if len(m.absent) == 0 && len(m.corrupt) == 0 || ctx.Err() != nil {
		return false, m
	}
	// Chunks are removed when nothing refers to them, and come late to where a
	// new map has them.
	named, err := c.named(ctx, r)
	if err != nil {
		m.add(err)
		return false, m
	}
	if !named {
		m.final = fmt.Errorf("the chunk was removed: %w", objstore.Stale)
		return true, m
	}
	others, some := c.elsewhere(e, pool, r.id)
	down = down || some
	if pool.Coding != nil { // some shards may be here, some there
		others = append(c.preferred(e, r.id, places), others...)
	}
	if err := c.readFrom(ctx, pool, r, others); err == nil {
		return true, &misses{}
	} else {
		m.add(err)
	}
	if len(m.failed) == 0 && !down && c.now.Load() == e {
		m.final = fmt.Errorf("no OSD has good bytes: %w: %v", objstore.Corrupt, m)
	}
	return m.final != nil, m
}

// named says whether the chunk's file still refers to it. A pack has no file of its
// own: it counts as named, and its reader, who looks again at what fails, finds out.
func (c *Client) named(ctx context.Context, r chunkRange) (bool, error) {
	c.cache.forgetExtents(r.id)
	if _, _, pack := r.id.Pack(); pack {
		return true, nil
	}
	extents, err := c.Extents(ctx, r.id.Ino, uint64(r.id.Index)*objstore.ChunkSize, objstore.ChunkSize)
	if objstore.Gone(err) {
		return false, nil
	}
	return slices.ContainsFunc(extents, func(x objstore.Extent) bool { return x.Kind == objstore.Pooled && x.Chunk == r.id }), err
}

// preferred lists the places that are up: OSDs of this host first, then the
// others, begun at another one for every chunk; last those that failed lately.
func (c *Client) preferred(e *epoch, id objstore.ChunkID, places []place) []place {
	up := slices.DeleteFunc(slices.Clone(places), func(p place) bool { return !e.up(p.osd) })
	if len(up) == 0 {
		return nil
	}
	first := int((id.Version ^ uint64(id.Index)) % uint64(len(up)))
	up = slices.Concat(up[first:], up[:first])
	rank := func(p place) int {
		n := 0
		if c.opt.Host == "" || e.OSD(p.osd).Host != c.opt.Host {
			n++
		}
		if !c.peer(p.osd).healthy() {
			n += 2
		}
		if c.reads.bad(id, p.osd) {
			n += 4
		}
		return n
	}
	slices.SortStableFunc(up, func(a, b place) int { return rank(a) - rank(b) })
	return up
}

// elsewhere lists the OSDs that a chunk can be on against the map: where it
// belonged in earlier epochs, then all others. Down: some of the former cannot be asked.
func (c *Client) elsewhere(e *epoch, pool *objstore.Pool, id objstore.ChunkID) (places []place, down bool) {
	var asked, ids []int
	for _, p := range placesOf(e.Map, pool, id) {
		asked = append(asked, p.osd)
	}
	for _, m := range e.past {
		if was := m.Pool(pool.ID); was != nil {
			for _, p := range placesOf(m, was, id) {
				ids = appendNew(ids, p.osd)
			}
		}
	}
	for _, osd := range ids {
		down = down || e.OSD(osd) != nil && !e.up(osd)
	}
	for _, o := range e.OSDs {
		ids = appendNew(ids, o.ID)
	}
	for _, osd := range ids {
		if e.up(osd) && !slices.Contains(asked, osd) {
			places = append(places, place{osd: osd, payload: unknownPayload})
		}
	}
	return places, down
}

// unknownPayload is that of an OSD that may have any shard of a chunk.
const unknownPayload = -1

// readFrom reads from OSDs, the best first. The error has its *misses.
func (c *Client) readFrom(ctx context.Context, pool *objstore.Pool, r chunkRange, places []place) error {
	if pool.Coding != nil {
		return c.readCoded(ctx, pool, r, places)
	}
	var tries []try
	for _, p := range places {
		tries = append(tries, try{p.osd, func(ctx context.Context) (piece, error) {
			b := c.reads.buffer(len(r.p))
			if err := c.fetch(ctx, p.osd, r, r.off, b); err != nil {
				return piece{}, err
			}
			return piece{data: b}, nil
		}})
	}
	got, err := c.gather(ctx, 1, tries)
	if err != nil {
		return err
	}
	copy(r.p, got[0].data)
	c.reads.release(got)
	return nil
}

// fetch reads bytes of what an OSD has stored as the chunk.
func (c *Client) fetch(ctx context.Context, osd int, r chunkRange, off uint32, b []byte) error {
	began := time.Now()
	err := c.bulk(ctx, osd, func(ctx context.Context, o OSD) error { return o.ReadChunk(ctx, r.pg, r.id, off, b) })
	switch {
	case err == nil:
		c.reads.took(time.Since(began))
	case ctx.Err() != nil: // another was faster
	case errors.Is(err, objstore.Corrupt) || objstore.Gone(err):
		c.reads.noteBad(r.id, osd)
	default:
		c.peer(osd).failed()
	}
	return err
}

// try is one way to get bytes.
type try struct {
	osd int // -1: several
	get func(context.Context) (piece, error)
}

// piece is what one try brought: the bytes asked for, of one shard in an
// erasure-coded pool.
type piece struct {
	shard int
	data  []byte
}

// gather makes tries until want of them have brought different pieces: so many
// at once, and one more whenever one fails or they take long. The error is a *misses.
func (c *Client) gather(ctx context.Context, want int, tries []try) ([]piece, error) {
	type result struct {
		try int
		piece
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, len(tries))
	begun, ended := 0, make([]bool, len(tries))
	begin := func() {
		if i := begun; i < len(tries) {
			begun++
			go func() {
				p, err := tries[i].get(ctx)
				results <- result{i, p, err}
			}()
		}
	}
	for range want {
		begin()
	}
	delay := c.reads.hedge(c.opt.Hedge)
	hedge := time.NewTimer(delay)
	defer hedge.Stop()
	hedged := false
	var got []piece
	var m misses
	for open := begun; open > 0; {
		select {
		case r := <-results:
			open--
			ended[r.try] = true
			switch {
			case r.err != nil:
				m.add(r.err)
			case !slices.ContainsFunc(got, func(p piece) bool { return p.shard == r.shard }):
				got = append(got, r.piece)
			}
			if len(got) == want {
				// Who was asked before and has not answered is slow.
				for i := range r.try {
					if !ended[i] && hedged && tries[i].osd >= 0 {
						c.peer(tries[i].osd).failed()
					}
				}
				return got, nil
			}
			if len(got)+open < want && begun < len(tries) {
				open++
				begin()
			}
		case <-hedge.C:
			hedged = true
			if begun < len(tries) {
				open++
				begin()
				hedge.Reset(delay)
			}
		case <-ctx.Done():
			m.failed = append(m.failed, fmt.Errorf("%w: %w", objstore.Unavailable, context.Cause(ctx)))
			return nil, &m
		}
	}
	return nil, &m
}
