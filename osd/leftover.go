package osd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// What clients left that died: chunks that they stored and never named, and
// inodes without a name that they had open. A chunk is left over when its owner's
// leader says that nothing names it and that its session is none of those that
// may still change something in the group (holders). That is asked twice, with
// some time between, for a change may be on its way. Orphans are asked for in the
// same way when a session has ended, and purged as a client would: who else has
// one open says so.

const (
	leftoverAfter = time.Hour   // between the two looks at a chunk
	orphanAfter   = time.Minute // between the two looks at an orphan; an operation of a client takes half of it
	leftoverRetry = time.Minute
	maxLeftovers  = 1 << 18 // that are remembered
	purgeOrphans  = 256     // in one change
)

// leftoverWatch is what was seen once. mu is a leaf.
type leftoverWatch struct {
	mu      sync.Mutex
	chunks  map[objstore.ChunkID]time.Time // when they were seen first
	groups  map[uint32]time.Time           // led here, with orphans to look at again; when
	orphans map[uint32]map[objstore.Ino]bool
	kicked  map[uint32]bool // groups to be looked at for the first time
	now     chan struct{}
}

// Leftovers implements Peer. A chunk is left over when no extent names it and
// nobody is left who could.
func (o *OSD) Leftovers(ctx context.Context, pg uint32, ids []objstore.ChunkID) ([]bool, error) {
	wanted, err := o.WantedChunks(ctx, pg, ids)
	if err != nil {
		return nil, err
	}
	g, err := o.group(pg)
	if err != nil {
		return nil, err
	}
	left := make([]bool, len(ids))
	for i, id := range ids {
		left[i] = !wanted[i] && !g.holders.has(id.Session())
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	return left, g.canLead() // the holders were a leader's all the while
}

// has says whether a session may change something in the group.
func (h *holders) has(session uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known == nil || h.known[session] != nil
}

// noteLeftovers remembers which of some chunks here are left over, for a second
// look. Scrub calls it with all there are.
func (o *OSD) noteLeftovers(ctx context.Context, ids []objstore.ChunkID) {
	ids = slices.DeleteFunc(slices.Clone(ids), objstore.ChunkID.Resident)
	left, err := o.askLeftovers(ctx, ids)
	if err != nil {
		o.log.Debug("ask whether chunks are left over", "err", err) // the next scrub does again
	}
	w, now := &o.leftovers, time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		if _, seen := w.chunks[id]; left[id] && !seen && len(w.chunks) < maxLeftovers {
			if w.chunks == nil {
				w.chunks = map[objstore.ChunkID]time.Time{}
			}
			w.chunks[id] = now
		}
	}
	kick(w.now)
}

// askLeftovers asks the owners of chunks. With an error, some are not answered for.
func (o *OSD) askLeftovers(ctx context.Context, ids []objstore.ChunkID) (map[objstore.ChunkID]bool, error) {
	m := o.Map()
	left := map[objstore.ChunkID]bool{}
	var errs []error
	for pg, ids := range byOwner(m, ids) {
		answer, err := o.askOwner(ctx, m, pg, ids, Peer.Leftovers)
		if err != nil {
			errs = append(errs, fmt.Errorf("ask placement group %d for %d chunks: %w", pg, len(ids), err))
			continue
		}
		for i, id := range ids {
			left[id] = answer[i]
		}
	}
	return left, errors.Join(errs...)
}

// dropLeftovers takes a second look at chunks that were seen long enough ago.
func (o *OSD) dropLeftovers(ctx context.Context) error {
	w := &o.leftovers
	w.mu.Lock()
	var due []objstore.ChunkID
	for id, since := range w.chunks {
		if time.Since(since) >= o.opt.LeftoverAfter && len(due) < recoverBatch {
			due = append(due, id)
		}
	}
	w.mu.Unlock()
	if len(due) == 0 {
		return nil
	}
	left, err := o.askLeftovers(ctx, due)
	var drop []objstore.ChunkID
	w.mu.Lock()
	for id, yes := range left {
		delete(w.chunks, id)
		if yes {
			drop = append(drop, id)
		}
	}
	w.mu.Unlock()
	if len(drop) > 0 {
		o.log.Info("removing chunks that a client stored and never named", "chunks", len(drop))
		err = errors.Join(err, o.table.drop(drop))
	}
	return err
}

// lookForOrphans has a group that is led here looked at for orphans: a session
// has ended, or this OSD leads it anew.
func (o *OSD) lookForOrphans(pg uint32) {
	if o.opt.Peers == nil {
		return // the start looks through everything
	}
	w := &o.leftovers
	w.mu.Lock()
	w.kick(pg)
	w.mu.Unlock()
	kick(w.now)
}

// kick notes that a group is to be looked at. Under mu.
func (w *leftoverWatch) kick(pg uint32) {
	if w.kicked == nil {
		w.kicked = map[uint32]bool{}
	}
	w.kicked[pg] = true
}

// leftoverLoop takes the second looks.
func (o *OSD) leftoverLoop(ctx context.Context) error {
	t := time.NewTicker(min(leftoverRetry, o.orphanAfter()))
	defer t.Stop()
	for {
		select {
		case <-o.leftovers.now:
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		if err := errors.Join(o.dropLeftovers(ctx), o.purgeOrphans(ctx)); err != nil && ctx.Err() == nil {
			o.log.Warn("remove what dead clients left; it is tried again", "err", err)
		}
	}
}

func (o *OSD) orphanAfter() time.Duration { return min(orphanAfter, o.opt.LeftoverAfter) }

// purgeOrphans takes the looks that are due.
func (o *OSD) purgeOrphans(ctx context.Context) error {
	w := &o.leftovers
	w.mu.Lock()
	first, again := w.kicked, []uint32{}
	w.kicked = nil
	for pg, when := range w.groups {
		if time.Since(when) >= 0 {
			again = append(again, pg)
		}
	}
	w.mu.Unlock()
	var errs []error
	for _, pg := range again {
		if err := o.purgeGroup(ctx, pg); err != nil {
			errs = append(errs, err)
		}
	}
	for pg := range first {
		inos, err := o.orphansOf(pg)
		if err != nil {
			continue // the next leader's
		}
		w.mu.Lock()
		// One that waits for its second look keeps what it saw.
		if _, waits := w.groups[pg]; waits {
			w.kick(pg)
		} else if len(inos) > 0 {
			if w.groups == nil {
				w.groups, w.orphans = map[uint32]time.Time{}, map[uint32]map[objstore.Ino]bool{}
			}
			w.groups[pg], w.orphans[pg] = time.Now().Add(o.orphanAfter()), inos
		}
		w.mu.Unlock()
	}
	return errors.Join(errs...)
}

// orphansOf lists a group's orphans.
func (o *OSD) orphansOf(pg uint32) (map[objstore.Ino]bool, error) {
	return view(o, pg, func(v volume.View) (map[objstore.Ino]bool, error) {
		found := map[objstore.Ino]bool{}
		vols, err := volume.Volumes(v)
		if err != nil {
			return nil, err
		}
		for _, vol := range vols {
			inos, err := volume.Orphans(v, vol, maxLeftovers)
			if err != nil {
				return nil, err
			}
			for _, ino := range inos {
				found[ino] = true
			}
		}
		return found, nil
	})
}

// purgeGroup purges the orphans of a group that were seen before and still are.
func (o *OSD) purgeGroup(ctx context.Context, pg uint32) error {
	w := &o.leftovers
	w.mu.Lock()
	before := w.orphans[pg]
	delete(w.orphans, pg)
	delete(w.groups, pg)
	w.mu.Unlock()
	now, err := o.orphansOf(pg)
	if err != nil {
		return nil // the next leader's
	}
	byVol := map[objstore.VolumeID][]objstore.Ino{}
	for ino := range now {
		if before[ino] {
			byVol[ino.Volume()] = append(byVol[ino.Volume()], ino)
		}
	}
	for _, vol := range slices.Sorted(maps.Keys(byVol)) {
		for inos := range slices.Chunk(byVol[vol], purgeOrphans) {
			for {
				res, err := o.Apply(ctx, pg, objstore.Request{}, objstore.Purge{Vol: vol, Inos: inos}, objstore.Committed)
				if err != nil {
					o.lookForOrphans(pg)
					return fmt.Errorf("purge orphans of volume %d: %w", vol, err)
				}
				if res.Orphan == 0 {
					break
				}
			}
		}
	}
	return nil
}
