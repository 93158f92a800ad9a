package osd

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"pillarbox/objstore"
	"pillarbox/objstore/ec"
)

// What an OSD stores of a chunk in an erasure-coded pool is one shard with its
// header (package ec), under the chunk's id. Which one is noted with its place,
// as its index and one, so that nobody has to read it to know. An OSD has one
// shard of a chunk.

// tagFor checks what is to be stored and returns the tag of its place. Unavailable
// when the map does not have the pool, or not yet, and when another shard of the
// chunk is here, which only the one that belongs here may replace.
func (o *OSD) tagFor(id objstore.ChunkID, data []byte) (uint8, error) {
	pool := o.Map().PoolOf(id)
	switch {
	case pool == nil && o.opt.Peers != nil:
		return 0, fmt.Errorf("chunk %v of pool %d, which is not in epoch %d of the map: %w", id, id.Pool(), o.Map().Epoch, objstore.Unavailable)
	case pool == nil || pool.Coding == nil:
		return 0, nil
	}
	h, err := ec.Verify(data)
	if err != nil {
		return 0, fmt.Errorf("chunk %v: %w", id, err)
	}
	if h.K != pool.Coding.K || h.M != pool.Coding.M {
		return 0, fmt.Errorf("chunk %v: a shard of %d+%d for pool %q of %d+%d: %w", id, h.K, h.M, pool.Name, pool.Coding.K, pool.Coding.M, objstore.Invalid)
	}
	held, err := o.shardOf(id)
	if err == nil && held >= 0 && held != h.Index && !o.belongs(id, h.Index) {
		err = fmt.Errorf("shard %d of chunk %v is where shard %d is to go: %w", held, id, h.Index, objstore.Unavailable)
	}
	return tagOf(h.Index), err
}

func tagOf(shard int) uint8 { return uint8(shard + 1) }

// belongs says whether a shard of a chunk belongs on this OSD.
func (o *OSD) belongs(id objstore.ChunkID, shard int) bool {
	m := o.Map()
	pool := m.PoolOf(id)
	if pool == nil {
		return false
	}
	acting := m.Acting(pool, pool.ChunkPG(id))
	return shard < len(acting) && acting[shard] == o.opt.ID
}

// HeldShards implements Peer.
func (o *OSD) HeldShards(_ context.Context, ids []objstore.ChunkID) ([]int, error) {
	held := make([]int, len(ids))
	for i, id := range ids {
		var err error
		if held[i], err = o.shardOf(id); err != nil {
			return nil, err
		}
	}
	return held, nil
}

// shardOf says which shard of a chunk is here, -1 if none is. It is read where
// it was stored right before a crash; a damaged one is none then.
func (o *OSD) shardOf(id objstore.ChunkID) (int, error) {
	loc, err := o.table.locate(id)
	if errors.Is(err, objstore.NotFound) {
		return -1, nil
	}
	if err != nil || loc.Tag != 0 {
		return int(loc.Tag) - 1, err
	}
	b := make([]byte, min(ec.HeaderSize, int(loc.Len)))
	if err = o.chunks.Read(loc, id, 0, b); err == nil {
		var h ec.Header
		if h, err = ec.ParseHeader(b); err == nil {
			return h.Index, nil
		}
	}
	if errors.Is(err, objstore.Corrupt) {
		return -1, nil
	}
	return -1, err
}

// checkShard says whether what was read of a chunk is a good shard, where it is
// to be one. Corrupt.
func (o *OSD) checkShard(id objstore.ChunkID, data []byte) error {
	if id.Resident() {
		return nil
	}
	if pool := o.Map().PoolOf(id); pool == nil || pool.Coding == nil {
		return nil
	}
	_, err := ec.Verify(data)
	return err
}

// gatherShards fetches shards of a chunk from OSDs, in this order, until there
// are enough to make all others. Unavailable.
func (o *OSD) gatherShards(ctx context.Context, pool *objstore.Pool, id objstore.ChunkID, osds []int) ([][]byte, error) {
	payloads := make([][]byte, pool.Size)
	have := 0
	var errs []error
	for _, osd := range osds {
		b, err := o.fetchFrom(ctx, osd, id)
		var h ec.Header
		if err == nil {
			h, err = ec.Verify(b)
		}
		if err == nil && (h.K != pool.Coding.K || h.M != pool.Coding.M) {
			err = fmt.Errorf("a shard of %d+%d: %w", h.K, h.M, objstore.Corrupt)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("osd.%d: %w", osd, err))
			continue
		}
		if payloads[h.Index] == nil {
			payloads[h.Index] = b
			have++
		}
		if have == pool.Coding.K {
			return payloads, nil
		}
	}
	return nil, fmt.Errorf("%d shards of chunk %v are left, %d are needed: %w: %v", have, id, pool.Coding.K, objstore.Unavailable, errors.Join(errs...))
}

// fetchFrom fetches what an OSD, which may be this one, has of a chunk.
func (o *OSD) fetchFrom(ctx context.Context, osd int, id objstore.ChunkID) ([]byte, error) {
	if osd == o.opt.ID {
		return o.FetchChunk(ctx, id)
	}
	peer, err := o.opt.Peers.Peer(osd)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	return peer.FetchChunk(ctx, id)
}

// rebuild makes all shards of a chunk from those that OSDs have.
func (o *OSD) rebuild(ctx context.Context, pool *objstore.Pool, id objstore.ChunkID, osds []int) ([][]byte, error) {
	code, err := o.codes.Of(pool)
	if err != nil {
		return nil, err
	}
	payloads, err := o.gatherShards(ctx, pool, id, osds)
	if err != nil {
		return nil, err
	}
	if err := code.Repair(payloads); err != nil {
		return nil, fmt.Errorf("chunk %v: %w", id, err)
	}
	return payloads, nil
}

// healShard replaces a damaged shard by one made from others.
func (o *OSD) healShard(ctx context.Context, m *objstore.Map, pool *objstore.Pool, id objstore.ChunkID) ([]byte, error) {
	acting := m.Acting(pool, pool.ChunkPG(id))
	shard, err := o.shardOf(id)
	if err != nil {
		return nil, err
	}
	if shard < 0 { // it cannot be read which one it is
		shard = slices.Index(acting, o.opt.ID)
	}
	if shard < 0 || shard >= pool.Size {
		return nil, fmt.Errorf("chunk %v is damaged here, and belongs elsewhere: %w", id, objstore.Corrupt)
	}
	payloads, err := o.rebuild(ctx, pool, id, append(o.others(m, acting, true), o.others(m, acting, false)...))
	if err != nil {
		return nil, err
	}
	if err := o.putBack(id, payloads[shard], tagOf(shard)); err != nil {
		return nil, err
	}
	o.log.Warn("healed a damaged shard", "chunk", id.String(), "shard", shard)
	return payloads[shard], nil
}

// others lists the other OSDs that are up and among some, or not among them.
func (o *OSD) others(m *objstore.Map, some []int, among bool) (ids []int) {
	for _, osd := range m.OSDs {
		if osd.Up && osd.ID != o.opt.ID && slices.Contains(some, osd.ID) == among {
			ids = append(ids, osd.ID)
		}
	}
	return ids
}
