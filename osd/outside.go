package osd

import (
	"context"
	"slices"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// Chunks in outside pools are removed by clients: they have the credentials. The
// notes of what was freed stay until one says that it did, with FreeChunks; so a
// crash on either side costs a second removal of what is gone.

func (o *OSD) isOutside(id objstore.ChunkID) bool { return o.Map().OutsideOf(id) != nil }

// freedHere lists some freed chunks of a volume that OSDs have, and notes
// whether there are others.
func (o *OSD) freedHere(v volume.View, vol objstore.VolumeID) ([]objstore.ChunkID, error) {
	if !o.Map().HasOutside() {
		return volume.FreedChunks(v, vol, 1000)
	}
	ids, err := volume.FreedChunks(v, vol, -1)
	if err != nil {
		return nil, err
	}
	here := slices.DeleteFunc(slices.Clone(ids), o.isOutside)
	if len(here) < len(ids) {
		o.noteAway(vol)
	}
	return here[:min(len(here), 1000)], nil
}

func (o *OSD) noteAway(vol objstore.VolumeID) {
	o.reap.mu.Lock()
	defer o.reap.mu.Unlock()
	if o.reap.away == nil {
		o.reap.away = make(map[objstore.VolumeID]struct{})
	}
	o.reap.away[vol] = struct{}{}
}

// lookAway finds what the last run left to be removed from outside pools. In a
// cluster whoever leads a group anew looks.
func (o *OSD) lookAway() {
	if o.opt.Peers != nil || !o.Map().HasOutside() {
		return
	}
	for pg := range o.groups {
		vols, err := view(o, uint32(pg), volume.Volumes)
		if err != nil {
			o.log.Error("look for chunks to remove from outside pools", "group", pg, "err", err)
			continue
		}
		for _, vol := range vols {
			o.noteAway(vol)
		}
	}
}

// takeAway lists the volumes of a group that may have something to remove from
// outside pools; they are noted no longer.
func (o *OSD) takeAway(pg uint32) (vols []objstore.VolumeID) {
	o.reap.mu.Lock()
	defer o.reap.mu.Unlock()
	for vol := range o.reap.away {
		if o.opt.Map.Group(vol) == pg {
			vols = append(vols, vol)
			delete(o.reap.away, vol)
		}
	}
	return vols
}

// Freed lists up to max chunks of a group's volumes that are to be removed from
// outside pools, by whoever asks: nothing names them any more, for good.
func (o *OSD) Freed(ctx context.Context, pg uint32, max int) (out []objstore.ChunkID, err error) {
	g, err := o.group(pg)
	if err != nil {
		return nil, err
	}
	g.mu.RLock()
	err = g.canLead() // to have nothing noted means nothing where another leads
	g.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	for _, vol := range o.takeAway(pg) {
		if len(out) >= max || err != nil {
			o.noteAway(vol)
			continue
		}
		var ids []objstore.ChunkID
		ids, err = read(ctx, o, pg, vol, func(v volume.View) ([]objstore.ChunkID, error) { return volume.FreedChunks(v, vol, -1) })
		ids = slices.DeleteFunc(ids, func(id objstore.ChunkID) bool { return !o.isOutside(id) })
		if len(ids) > 0 || err != nil {
			o.noteAway(vol) // until they are said to be gone
		}
		out = append(out, ids[:min(len(ids), max-len(out))]...)
	}
	if err != nil || len(out) == 0 {
		return nil, err
	}
	return out, o.Sync(ctx, pg)
}
