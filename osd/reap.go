package osd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/dgraph-io/badger/v4"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// reaper removes what no name leads to any more: pooled chunks a volume freed
// and, once after a crash, orphans of the dead session and chunks that it
// stored but never named.
type reaper struct {
	mu    sync.Mutex
	freed map[objstore.VolumeID]struct{}
	led   map[uint32]struct{}            // groups that this OSD leads anew, for it to look through
	away  map[objstore.VolumeID]struct{} // with freed chunks in outside pools
}

// ledNow notes that the OSD leads a group: what the leader before freed is its
// to remove now.
func (o *OSD) ledNow(g *group) {
	if o.opt.Peers == nil {
		return // the start looks through everything
	}
	o.reap.mu.Lock()
	if o.reap.led == nil {
		o.reap.led = make(map[uint32]struct{})
	}
	o.reap.led[g.id] = struct{}{}
	o.reap.mu.Unlock()
	kick(o.reapNow)
	o.lookForOrphans(g.id)
}

func (o *OSD) noteFreed(vol objstore.VolumeID) {
	o.reap.mu.Lock()
	if o.reap.freed == nil {
		o.reap.freed = make(map[objstore.VolumeID]struct{})
	}
	o.reap.freed[vol] = struct{}{}
	o.reap.mu.Unlock()
	kick(o.reapNow)
}

func (o *OSD) reapLoop(ctx context.Context, left leftovers) error {
	err := o.reapLeftovers(ctx, left)
	if err != nil && ctx.Err() != nil {
		return nil
	}
	if err != nil {
		o.log.Error("clean up after the last run", "err", err)
	}
	o.lookAway()
	close(o.settled)
	for {
		select {
		case <-o.reapNow:
		case <-ctx.Done():
			return nil
		}
		o.reap.mu.Lock()
		vols, led := o.reap.freed, o.reap.led
		o.reap.freed, o.reap.led = nil, nil
		o.reap.mu.Unlock()
		for pg := range led {
			all, err := view(o, pg, volume.Volumes)
			if err != nil {
				continue // the next leader's
			}
			for _, vol := range all {
				if err := o.reapFreed(ctx, vol); err != nil && ctx.Err() == nil && !errors.Is(err, objstore.Elsewhere) {
					o.log.Error("remove freed chunks", "volume", vol, "err", err)
				}
			}
		}
		for vol := range vols {
			if err := o.reapFreed(ctx, vol); err != nil && ctx.Err() == nil && !errors.Is(err, objstore.Elsewhere) {
				o.log.Error("remove freed chunks", "volume", vol, "err", err)
			}
		}
	}
}

// reapFreed removes a volume's freed chunks from the data pool, once the change
// that freed them is durable.
func (o *OSD) reapFreed(ctx context.Context, vol objstore.VolumeID) error {
	pg := o.opt.Map.Group(vol)
	for {
		var ids []objstore.ChunkID
		err := o.View(pg, func(v volume.View) (err error) {
			ids, err = o.freedHere(v, vol)
			return err
		})
		if err != nil || len(ids) == 0 {
			return err
		}
		if err := o.Sync(ctx, pg); err != nil {
			return err
		}
		if err := o.dropEverywhere(ctx, ids); err != nil {
			return err
		}
		if _, err := o.Apply(ctx, pg, objstore.Request{}, objstore.FreeChunks{Vol: vol, Chunks: ids}, objstore.Ordered); err != nil {
			return err
		}
	}
}

// dropEverywhere removes chunks from the OSDs that the map places them on. What
// one that does not answer keeps is for scrub to find.
func (o *OSD) dropEverywhere(ctx context.Context, ids []objstore.ChunkID) error {
	m := o.Map()
	byOSD := map[int][]objstore.ChunkID{}
	for _, id := range ids {
		pool := m.PoolOf(id)
		if pool == nil {
			continue
		}
		for _, osd := range m.Acting(pool, pool.ChunkPG(id)) {
			byOSD[osd] = append(byOSD[osd], id)
		}
	}
	for osd, ids := range byOSD {
		if osd == o.opt.ID {
			if err := o.table.drop(ids); err != nil {
				return err
			}
			continue
		}
		if osd < 0 || o.opt.Peers == nil || !m.OSD(osd).Up {
			continue
		}
		peer, err := o.opt.Peers.Peer(osd)
		if err == nil {
			err = peer.DropChunks(ctx, ids)
		}
		if err != nil {
			o.log.Debug("freed chunks not removed", "peer", osd, "chunks", len(ids), "err", err)
		}
	}
	return nil
}

// leftovers is what a crash may have left, gathered before anybody can add to it.
type leftovers struct {
	orphans map[objstore.VolumeID][]objstore.Ino
	chunks  []objstore.ChunkID
}

// gather lists leftovers after a run that did not close properly.
func (o *OSD) gather() (leftovers, error) {
	left := leftovers{orphans: make(map[objstore.VolumeID][]objstore.Ino)}
	if !o.unclean || o.opt.Peers != nil {
		return left, nil // elsewhere the sessions go on
	}
	for pg := range o.groups {
		err := o.View(uint32(pg), func(v volume.View) error {
			vols, err := volume.Volumes(v)
			if err != nil {
				return err
			}
			for _, vol := range vols {
				inos, err := volume.Orphans(v, vol, 1<<20)
				if err != nil {
					return err
				}
				left.orphans[vol] = inos
			}
			return nil
		})
		if err != nil {
			return left, fmt.Errorf("look for orphans: %w", err)
		}
	}
	err := o.pooledChunks(func(id objstore.ChunkID) { left.chunks = append(left.chunks, id) })
	return left, err
}

// pooledChunks lists every pooled chunk the OSD has.
func (o *OSD) pooledChunks(fn func(objstore.ChunkID)) error {
	o.table.mu.RLock()
	defer o.table.mu.RUnlock()
	for id := range o.table.recent {
		fn(id)
	}
	it := o.table.base.txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyChunk}})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		id, ok := parseChunkKey(it.Item().Key())
		if !ok {
			return fmt.Errorf("chunk key %x: %w", it.Item().Key(), objstore.Corrupt)
		}
		if !id.Resident() {
			fn(id)
		}
	}
	return nil
}

func (o *OSD) reapLeftovers(ctx context.Context, left leftovers) error {
	for vol, inos := range left.orphans {
		for len(inos) > 0 {
			n := min(len(inos), 256)
			res, err := o.Apply(ctx, o.opt.Map.Group(vol), objstore.Request{}, objstore.Purge{Vol: vol, Inos: inos[:n]}, objstore.Ordered)
			if err != nil {
				return fmt.Errorf("purge orphans of volume %d: %w", vol, err)
			}
			if res.Orphan == 0 {
				inos = inos[n:]
			}
		}
		if err := o.reapFreed(ctx, vol); err != nil {
			return err
		}
	}
	return o.reapChunks(ctx, left.chunks)
}

// reapUnnamed removes chunks that were stored in this run for changes that were
// never made, such as on a full disk. Only once no client is left that could
// still name them.
func (o *OSD) reapUnnamed() error {
	o.table.mu.RLock()
	ids := slices.Collect(maps.Keys(o.table.unnamed))
	o.table.mu.RUnlock()
	return o.reapChunks(context.Background(), ids)
}

// reapChunks removes those chunks that no extent names.
func (o *OSD) reapChunks(ctx context.Context, ids []objstore.ChunkID) error {
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		var wanted bool
		err := o.View(o.opt.Map.Group(id.Ino.Volume()), func(v volume.View) (err error) {
			wanted, err = volume.References(v, id)
			return err
		})
		if errors.Is(err, objstore.Stale) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("ask for the owner of chunk %v: %w", id, err)
		}
		if !wanted {
			if err := o.table.drop([]objstore.ChunkID{id}); err != nil {
				return err
			}
		}
	}
	return nil
}
