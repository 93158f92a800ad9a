package osd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
	"pillarbox/osd/chunkstore"
)

// Recovery brings pooled chunks where the map wants them. Chunks never change,
// so that it is copying what is missing: every OSD goes through what it holds,
// asks the others of each chunk's placement group whether they have it, and the
// first of the group that has it gives it to those that lack it. An OSD that is
// not of the group gives its copy up once all who are have theirs. A pass starts
// when the map changes and once in a while; one that a restart cut short begins
// anew. Erasure-coded pools are seen to in recovershards.go.

const (
	recoverEvery   = 10 * time.Minute
	recoverSettle  = time.Second // changes of the map come in bursts
	recoverRetry   = 5 * time.Second
	recoverHeld    = time.Minute // until a look at what full OSDs kept from being done; a change of the map comes first
	recoverBatch   = 1000
	recoverPushes  = 2 // chunks on their way at a time: clients come first
	recoverTimeout = 20 * time.Second
)

// recovery is how far it is.
type recovery struct {
	now     chan struct{}
	missing atomic.Int64  // replicas that the pass under way found lacking and has not made yet
	lost    atomic.Int64  // of these, shards that nobody has and that are made from others
	held    atomic.Int64  // replicas and shards that the pass under way found lacking on OSDs too full for them
	copied  atomic.Int64  // replicas made in this run
	bytes   atomic.Int64  // of these
	seen    atomic.Int64  // chunks that the pass under way has been through
	checked atomic.Uint64 // epoch of the map by which all chunks were last found where they belong
}

func (o *OSD) recoverLoop(ctx context.Context) error {
	wait := time.NewTimer(recoverSettle)
	defer wait.Stop()
	for {
		select {
		case <-o.recovery.now:
			wait.Reset(recoverSettle)
			continue
		case <-wait.C:
		case <-ctx.Done():
			return nil
		}
		next := recoverEvery
		epoch := o.Map().Epoch
		whole, err := o.recoverPass(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			o.log.Warn("recovery", "err", err)
		}
		switch {
		case err == nil && !whole && o.recovery.held.Load() > 0:
			next = recoverHeld
		case err != nil || !whole:
			next = recoverRetry
		default:
			o.recovery.checked.Store(epoch)
		}
		wait.Reset(next)
	}
}

// recoverPass goes through all pooled chunks once. whole says that all are where
// they belong, as far as the OSDs that are up can tell.
func (o *OSD) recoverPass(ctx context.Context) (whole bool, err error) {
	m := o.Map()
	if m.HasFlag(objstore.FlagNoRecover) {
		return true, nil
	}
	defer o.recovery.missing.Store(0)
	o.recovery.seen.Store(0)
	o.recovery.held.Store(0)
	whole = true
	err = o.eachPooled(ctx, func(ids []objstore.ChunkID) error {
		defer o.recovery.seen.Add(int64(len(ids)))
		if o.Map().Epoch != m.Epoch { // begin anew
			m = o.Map()
			whole = false
		}
		done, err := o.recoverSome(ctx, m, ids)
		whole = whole && done
		return err
	})
	return whole, err
}

// eachPooled calls fn with the pooled chunks that the OSD holds, some at a time.
// What comes or goes meanwhile may be left out.
func (o *OSD) eachPooled(ctx context.Context, fn func([]objstore.ChunkID) error) error {
	return o.eachChunk(ctx, func(id objstore.ChunkID) bool { return !id.Resident() }, fn)
}

// eachChunk is eachPooled for the chunks that want is true of. Resident ones that
// are not flushed yet are left out.
func (o *OSD) eachChunk(ctx context.Context, want func(objstore.ChunkID) bool, fn func([]objstore.ChunkID) error) error {
	o.files.RLock()
	defer o.files.RUnlock()
	if o.filesClosed {
		return ErrClosed
	}
	recent := map[objstore.ChunkID]bool{} // some of them are in the database, too: they were stored again
	o.table.mu.RLock()
	for id := range o.table.recent {
		recent[id] = true
	}
	for id := range o.table.writing[0] {
		recent[id] = true
	}
	o.table.mu.RUnlock()
	ids := slices.Collect(maps.Keys(recent))
	base, release := o.holdBase()
	defer release()
	it := base.txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyChunk}})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		id, ok := parseChunkKey(it.Item().Key())
		if !ok {
			return fmt.Errorf("chunk key %x: %w", it.Item().Key(), objstore.Corrupt)
		}
		if !want(id) || recent[id] {
			continue
		}
		if ids = append(ids, id); len(ids) >= recoverBatch {
			if err := errors.Join(ctx.Err(), fn(ids)); err != nil {
				return err
			}
			ids = nil
		}
	}
	for len(ids) > 0 {
		n := min(len(ids), recoverBatch)
		if err := errors.Join(ctx.Err(), fn(ids[:n])); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// holdBase is the database as of the last flush, kept readable until release.
func (o *OSD) holdBase() (base snapshot, release func()) {
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	ts := o.ts
	o.holdTS(ts, +1)
	base = snapshot{txn: o.db.NewTransactionAt(ts, false), chunks: o.chunks}
	return base, func() {
		base.txn.Discard()
		o.holdTS(ts, -1)
	}
}

// recoverSome sees to some chunks. whole says that nothing is left to do for
// them. Those of a pool that the map does not have stay as they are: the pool may
// be newer than the map.
func (o *OSD) recoverSome(ctx context.Context, m *objstore.Map, ids []objstore.ChunkID) (whole bool, err error) {
	var copies, shards []objstore.ChunkID
	for _, id := range ids {
		switch pool := m.PoolOf(id); {
		case pool == nil:
		case pool.Coding != nil:
			shards = append(shards, id)
		default:
			copies = append(copies, id)
		}
	}
	if whole, err = o.recoverCopies(ctx, m, copies); err != nil {
		return false, err
	}
	done, err := o.recoverShards(ctx, m, shards)
	return whole && done, err
}

// recoverCopies is recoverSome for chunks of replicated pools.
func (o *OSD) recoverCopies(ctx context.Context, m *objstore.Map, ids []objstore.ChunkID) (whole bool, err error) {
	self := o.opt.ID
	acting := make([][]int, len(ids))
	ask := map[int][]int{} // OSD: indexes of chunks
	for i, id := range ids {
		pool := m.PoolOf(id)
		acting[i] = m.Acting(pool, pool.ChunkPG(id))
		for _, osd := range acting[i] {
			if osd != self && m.OSD(osd).Up {
				ask[osd] = append(ask[osd], i)
			}
		}
	}
	whole = true
	has := map[int]map[int]bool{}
	for osd, list := range ask {
		answer, err := o.askHas(ctx, osd, ids, list)
		if err != nil {
			o.log.Debug("recovery: ask for chunks", "peer", osd, "err", err)
			whole = false
			continue
		}
		has[osd] = answer
	}
	type job struct {
		id objstore.ChunkID
		to []int
	}
	var jobs []job
	var spare []objstore.ChunkID
	for i, id := range ids {
		var lacking []int
		complete, giver := len(acting[i]) == m.PoolOf(id).Size, -1
		for _, osd := range acting[i] {
			held, known := osd == self, osd == self
			if answer := has[osd]; answer != nil {
				held, known = answer[i], true
			}
			complete = complete && held
			switch {
			case held && giver < 0:
				giver = osd
			case known && !held && m.NoBackfill(osd):
				o.recovery.held.Add(1)
				whole = false
			case known && !held:
				lacking = append(lacking, osd)
			}
		}
		mine := slices.Contains(acting[i], self)
		switch {
		case complete && !mine:
			spare = append(spare, id)
		case len(lacking) > 0 && (giver == self || giver < 0):
			jobs = append(jobs, job{id, lacking})
		case !mine:
			whole = false // others make the replicas; then this one can go
		}
	}
	if len(spare) > 0 && !m.HasFlag(objstore.FlagNoRebalance) {
		if err := o.table.drop(spare); err != nil {
			return false, err
		}
	}
	if len(jobs) == 0 {
		return whole, nil
	}
	// Chunks that were removed while an OSD was away must not come back.
	list := make([]objstore.ChunkID, len(jobs))
	for i, j := range jobs {
		list[i] = j.id
	}
	wanted, err := o.wantedBy(ctx, m, list)
	if err != nil {
		return false, err
	}
	for _, j := range jobs {
		if wanted[j.id] {
			o.recovery.missing.Add(int64(len(j.to)))
		}
	}
	var g errgroup.Group
	g.SetLimit(recoverPushes)
	failed := atomic.Bool{}
	for _, j := range jobs {
		if !wanted[j.id] {
			continue
		}
		g.Go(func() error {
			defer o.recovery.missing.Add(-int64(len(j.to)))
			if err := o.give(ctx, j.id, j.to); err != nil && ctx.Err() == nil {
				failed.Store(true)
				o.log.Warn("recovery of a chunk failed; it is tried again", "chunk", j.id.String(), "err", err)
			}
			return nil
		})
	}
	g.Wait()
	return whole && !failed.Load(), nil
}

// askHas asks an OSD for those of the chunks that list has the indexes of.
func (o *OSD) askHas(ctx context.Context, osd int, ids []objstore.ChunkID, list []int) (map[int]bool, error) {
	peer, err := o.opt.Peers.Peer(osd)
	if err != nil {
		return nil, err
	}
	some := make([]objstore.ChunkID, len(list))
	for i, at := range list {
		some[i] = ids[at]
	}
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	has, err := peer.HasChunks(ctx, some)
	if err != nil {
		return nil, err
	}
	if len(has) != len(some) {
		return nil, fmt.Errorf("osd.%d answers for %d of %d chunks: %w", osd, len(has), len(some), objstore.Corrupt)
	}
	answer := make(map[int]bool, len(list))
	for i, at := range list {
		answer[at] = has[i]
	}
	return answer, nil
}

// wantedBy asks the chunks' owners which of them are still named.
func (o *OSD) wantedBy(ctx context.Context, m *objstore.Map, ids []objstore.ChunkID) (map[objstore.ChunkID]bool, error) {
	wanted := make(map[objstore.ChunkID]bool, len(ids))
	for pg, ids := range byOwner(m, ids) {
		answer, err := o.askOwner(ctx, m, pg, ids, Peer.WantedChunks)
		if err != nil {
			return nil, fmt.Errorf("ask placement group %d for %d chunks: %w", pg, len(ids), err)
		}
		for i, id := range ids {
			wanted[id] = answer[i]
		}
	}
	return wanted, nil
}

// byOwner sorts chunks by the meta placement groups of their volumes.
func byOwner(m *objstore.Map, ids []objstore.ChunkID) map[uint32][]objstore.ChunkID {
	byPG := map[uint32][]objstore.ChunkID{}
	for _, id := range ids {
		pg := m.Group(id.Ino.Volume())
		byPG[pg] = append(byPG[pg], id)
	}
	return byPG
}

// ownersAnswer is a question to the leader of a meta placement group.
type ownersAnswer func(p Peer, ctx context.Context, pg uint32, ids []objstore.ChunkID) ([]bool, error)

func (o *OSD) askOwner(ctx context.Context, m *objstore.Map, pg uint32, ids []objstore.ChunkID, ask ownersAnswer) (answer []bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	err = fmt.Errorf("nobody to ask: %w", objstore.Unavailable)
	for _, osd := range m.Acting(m.Meta(), pg) {
		var peer Peer = o
		if osd != o.opt.ID {
			if peer, err = o.opt.Peers.Peer(osd); err != nil {
				continue
			}
		}
		if answer, err = ask(peer, ctx, pg, ids); err == nil && len(answer) == len(ids) {
			return answer, nil
		}
	}
	return nil, err
}

// give copies a chunk to OSDs that lack it. A copy here that turns out damaged
// is made again from another's.
func (o *OSD) give(ctx context.Context, id objstore.ChunkID, to []int) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	data, err := o.FetchChunk(ctx, id)
	if errors.Is(err, objstore.Corrupt) {
		data, err = o.heal(ctx, id)
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, osd := range to {
		errs = append(errs, o.putOn(ctx, id, data, osd))
	}
	return errors.Join(errs...)
}

// putOn gives a chunk, or a shard of one, to another OSD.
func (o *OSD) putOn(ctx context.Context, id objstore.ChunkID, data []byte, osd int) error {
	peer, err := o.opt.Peers.Peer(osd)
	if err == nil {
		err = peer.PutChunk(ctx, id, data)
	}
	if err != nil {
		return fmt.Errorf("osd.%d: %w", osd, err)
	}
	o.recovery.copied.Add(1)
	o.recovery.bytes.Add(int64(len(data)))
	return nil
}

// heal replaces a damaged copy by another OSD's.
func (o *OSD) heal(ctx context.Context, id objstore.ChunkID) ([]byte, error) {
	m := o.Map()
	err := fmt.Errorf("chunk %v is damaged here, and no other OSD has it: %w", id, objstore.Corrupt)
	pool := m.PoolOf(id)
	if pool == nil {
		return nil, err
	}
	if pool.Coding != nil {
		return o.healShard(ctx, m, pool, id)
	}
	data, osd, ok := o.goodCopy(ctx, id, m.Acting(pool, pool.ChunkPG(id)))
	if !ok {
		return nil, err
	}
	if err := o.putBack(id, data, 0); err != nil {
		return nil, err
	}
	o.log.Warn("healed a damaged chunk", "chunk", id.String(), "from", osd)
	return data, nil
}

// putBack stores good bytes in the place of damaged ones.
func (o *OSD) putBack(id objstore.ChunkID, data []byte, tag uint8) error {
	if err := o.table.drop([]objstore.ChunkID{id}); err != nil {
		return err
	}
	if err := o.storeChunk(id, data, tag); err != nil {
		return err
	}
	return o.chunks.Sync(chunkstore.Pooled)
}

// goodCopy fetches a chunk from the first of some other OSDs that has it whole.
func (o *OSD) goodCopy(ctx context.Context, id objstore.ChunkID, osds []int) (data []byte, osd int, ok bool) {
	for _, osd := range osds {
		if osd == o.opt.ID {
			continue
		}
		if data, err := o.fetchFrom(ctx, osd, id); err == nil {
			return data, osd, true
		}
	}
	return nil, 0, false
}
