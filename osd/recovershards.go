package osd

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
	"pillarbox/objstore/ec"
)

// Recovery of erasure-coded pools brings every shard to the one OSD that the map
// has for it. Who holds a shard that another one lacks gives it; shards that
// nobody holds are made again from others, by the first OSD that has its own.
// Who has given its shard to where it belongs keeps it until all others are in
// their places, too.

// codedChunk is a chunk that this OSD holds a shard of, with what is known of
// its other shards.
type codedChunk struct {
	id     objstore.ChunkID
	pool   *objstore.Pool
	acting []int       // by shard: the OSD that it belongs on; -1: none
	mine   int         // the shard here
	held   map[int]int // of the OSDs that have answered, and this one: the shard, -1 if none
}

// in says whether a shard is where it belongs; known, whether that can be told.
func (c *codedChunk) in(shard int) (in, known bool) {
	if c.acting[shard] < 0 {
		return false, false
	}
	held, known := c.held[c.acting[shard]]
	return known && held == shard, known
}

// complete says that all shards are where they belong.
func (c *codedChunk) complete() bool {
	for shard := range c.acting {
		if in, _ := c.in(shard); !in {
			return false
		}
	}
	return true
}

// leader is the OSD that makes what nobody holds: that of the first shard that is
// where it belongs; else the first one that holds any.
func (c *codedChunk) leader() int {
	leader := -1
	for shard, osd := range c.acting {
		if in, _ := c.in(shard); in {
			return osd
		}
		if held, known := c.held[osd]; known && held >= 0 && leader < 0 {
			leader = osd
		}
	}
	return leader
}

// anywhere says whether somebody is known to hold a shard.
func (c *codedChunk) anywhere(shard int) bool {
	for _, held := range c.held {
		if held == shard {
			return true
		}
	}
	return false
}

// free says whether the OSD of a shard can be given it: it holds none, or one
// that is where it belongs besides, which is gone then.
func (c *codedChunk) free(shard int) bool {
	held, known := c.held[c.acting[shard]]
	if !known || held < 0 {
		return known
	}
	in, _ := c.in(held)
	return in
}

// locked says whether the OSD of a shard holds one that cannot go to its place
// before another, and so on, until the first one. Anyone of them can be replaced
// while there are enough to make it again.
func (c *codedChunk) locked(shard int) bool {
	left := map[int]bool{shard: true}
	for osd, held := range c.held {
		if osd != c.acting[shard] && held >= 0 {
			left[held] = true
		}
	}
	if len(left) < c.pool.Coding.K {
		return false
	}
	next := shard
	for range c.acting {
		held, known := c.held[c.acting[next]]
		if !known || held < 0 || c.free(next) {
			return false
		}
		if next = held; next == shard {
			return true
		}
	}
	return false
}

// stray says whether an OSD that no shard belongs on is known to hold one.
func (c *codedChunk) stray(shard int) bool {
	for osd, held := range c.held {
		if held == shard && !slices.Contains(c.acting, osd) {
			return true
		}
	}
	return false
}

// shardJob is what this OSD has to do for a chunk.
type shardJob struct {
	*codedChunk
	give bool  // its own shard to where that belongs
	make []int // shards that nobody holds
}

func (j *shardJob) size() int64 {
	n := int64(len(j.make))
	if j.give {
		n++
	}
	return n
}

// recoverShards is recoverSome for chunks of erasure-coded pools.
func (o *OSD) recoverShards(ctx context.Context, m *objstore.Map, ids []objstore.ChunkID) (whole bool, err error) {
	if len(ids) == 0 {
		return true, nil
	}
	list, whole, err := o.askShards(ctx, m, ids)
	if err != nil {
		return false, err
	}
	var spare []objstore.ChunkID
	var jobs []*shardJob
	for _, c := range list {
		j, done := o.shardJob(c)
		switch {
		case done && !slices.Contains(c.acting, o.opt.ID):
			spare = append(spare, c.id)
		case j != nil:
			jobs = append(jobs, j)
		}
		whole = whole && (done || j != nil)
	}
	if len(spare) > 0 && !m.HasFlag(objstore.FlagNoRebalance) {
		if err := o.table.drop(spare); err != nil {
			return false, err
		}
	}
	if len(jobs) == 0 {
		return whole, nil
	}
	others := o.askStrays(ctx, m, jobs)
	some, err := o.doShardJobs(ctx, m, jobs)
	return whole && !others && !some, err // the next pass sees what came of them
}

// askShards asks the OSDs that shards of chunks belong on what they hold. whole
// is false when one did not answer.
func (o *OSD) askShards(ctx context.Context, m *objstore.Map, ids []objstore.ChunkID) (list []*codedChunk, whole bool, err error) {
	ask := map[int][]*codedChunk{}
	for _, id := range ids {
		mine, err := o.shardOf(id)
		if err != nil {
			return nil, false, err
		}
		pool := m.PoolOf(id)
		if mine < 0 || mine >= pool.Size {
			continue // removed meanwhile, or damaged: scrub's
		}
		c := &codedChunk{id: id, pool: pool, acting: m.Acting(pool, pool.ChunkPG(id)), mine: mine, held: map[int]int{o.opt.ID: mine}}
		list = append(list, c)
		for _, osd := range c.acting {
			if osd >= 0 && osd != o.opt.ID && m.OSD(osd).Up {
				ask[osd] = append(ask[osd], c)
			}
		}
	}
	return list, o.askHeld(ctx, m, ask), nil
}

// askHeld asks OSDs, all at once, which shards of chunks they hold. False: one
// did not answer, or lacks some and is too full to be given any, which then is as if it
// had not.
func (o *OSD) askHeld(ctx context.Context, m *objstore.Map, ask map[int][]*codedChunk) (all bool) {
	type answer struct {
		osd  int
		held []int
	}
	answers := make(chan answer, len(ask))
	for osd, list := range ask {
		go func() {
			held, err := o.heldOn(ctx, osd, list)
			if err != nil {
				o.log.Debug("recovery: ask for shards", "peer", osd, "err", err)
			}
			answers <- answer{osd, held}
		}()
	}
	all = true
	for range ask {
		a := <-answers
		all = all && a.held != nil
		for i, shard := range a.held {
			c := ask[a.osd][i]
			if shard < 0 && m.NoBackfill(a.osd) {
				o.recovery.held.Add(1)
				all = false
				continue
			}
			if shard >= len(c.acting) {
				shard = -1
			}
			c.held[a.osd] = shard
		}
	}
	return all
}

func (o *OSD) heldOn(ctx context.Context, osd int, list []*codedChunk) ([]int, error) {
	peer, err := o.opt.Peers.Peer(osd)
	if err != nil {
		return nil, err
	}
	ids := make([]objstore.ChunkID, len(list))
	for i, c := range list {
		ids[i] = c.id
	}
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	held, err := peer.HeldShards(ctx, ids)
	if err == nil && len(held) != len(ids) {
		err = fmt.Errorf("osd.%d answers for %d of %d chunks: %w", osd, len(held), len(ids), objstore.Corrupt)
	}
	return held, err
}

// shardJob is what this OSD has to do for a chunk, nil if nothing. done says that
// nobody has to do anything, as far as is known.
func (o *OSD) shardJob(c *codedChunk) (j *shardJob, done bool) {
	if c.complete() {
		return nil, true
	}
	j = &shardJob{codedChunk: c}
	leads := c.leader() == o.opt.ID
	locked, lacking := -1, false
	for shard := range c.acting {
		in, known := c.in(shard)
		lacking = lacking || known && !in
		switch {
		case in || !known:
		case c.free(shard) && shard == c.mine:
			j.give = true
		case c.free(shard) && leads && !c.anywhere(shard):
			j.make = append(j.make, shard)
		case leads && locked < 0 && c.locked(shard):
			locked = shard
		}
	}
	if j.size() == 0 && locked >= 0 {
		j.make = []int{locked}
	}
	if j.size() > 0 {
		return j, false
	}
	// Who has its own leaves the rest to the others, but for the leader, who sees
	// to the end of it.
	in, _ := c.in(c.mine)
	return nil, in && c.acting[c.mine] == o.opt.ID && !(leads && lacking)
}

// askStrays leaves shards that an OSD holds on which they do not belong to that
// OSD, instead of making them again. True: there are such.
func (o *OSD) askStrays(ctx context.Context, m *objstore.Map, jobs []*shardJob) (some bool) {
	ask := map[int][]*codedChunk{}
	for _, j := range jobs {
		if len(j.make) == 0 {
			continue
		}
		for _, osd := range o.others(m, j.acting, false) {
			ask[osd] = append(ask[osd], j.codedChunk)
		}
	}
	o.askHeld(ctx, m, ask) // of who does not answer nothing can be hoped
	for _, j := range jobs {
		j.make = slices.DeleteFunc(j.make, func(shard int) bool {
			stray := j.stray(shard)
			some = some || stray
			return stray
		})
	}
	return some
}

// doShardJobs does them, but for chunks that were removed while an OSD was away.
// some says that there were others.
func (o *OSD) doShardJobs(ctx context.Context, m *objstore.Map, jobs []*shardJob) (some bool, err error) {
	jobs = slices.DeleteFunc(jobs, func(j *shardJob) bool { return j.size() == 0 })
	ids := make([]objstore.ChunkID, len(jobs))
	for i, j := range jobs {
		ids[i] = j.id
	}
	wanted, err := o.wantedBy(ctx, m, ids)
	if err != nil {
		return false, err
	}
	jobs = slices.DeleteFunc(jobs, func(j *shardJob) bool { return !wanted[j.id] })
	for _, j := range jobs {
		o.recovery.missing.Add(j.size())
		o.recovery.lost.Add(int64(len(j.make)))
	}
	var g errgroup.Group
	g.SetLimit(recoverPushes)
	for _, j := range jobs {
		g.Go(func() error {
			defer o.recovery.missing.Add(-j.size())
			defer o.recovery.lost.Add(-int64(len(j.make)))
			if err := o.doShardJob(ctx, m, j); err != nil && ctx.Err() == nil {
				o.log.Warn("recovery of a chunk's shards failed; it is tried again", "chunk", j.id.String(), "err", err)
			}
			return nil
		})
	}
	g.Wait()
	return len(jobs) > 0, nil
}

func (o *OSD) doShardJob(ctx context.Context, m *objstore.Map, j *shardJob) error {
	var errs []error
	if j.give {
		errs = append(errs, o.giveShard(ctx, j.codedChunk))
	}
	if len(j.make) > 0 {
		from := []int{o.opt.ID}
		for osd, held := range j.held {
			if osd != o.opt.ID && held >= 0 {
				from = append(from, osd)
			}
		}
		payloads, err := o.rebuild(ctx, j.pool, j.id, from)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, shard := range j.make {
			errs = append(errs, o.putOn(ctx, j.id, payloads[shard], j.acting[shard]))
		}
	}
	return errors.Join(errs...)
}

// giveShard copies the shard that is here to where it belongs.
func (o *OSD) giveShard(ctx context.Context, c *codedChunk) error {
	data, err := o.FetchChunk(ctx, c.id)
	if errors.Is(err, objstore.Corrupt) {
		data, err = o.heal(ctx, c.id)
	}
	if err != nil {
		return err
	}
	h, err := ec.Verify(data)
	if err == nil && h.Index != c.mine {
		err = fmt.Errorf("chunk %v: shard %d took the place of %d: %w", c.id, h.Index, c.mine, objstore.Unavailable)
	}
	if err != nil {
		return err
	}
	return o.putOn(ctx, c.id, data, c.acting[c.mine])
}
