package volume

import (
	"slices"

	"pillarbox/objstore"
)

// moveChunk names another chunk in a region, and leaves everything else of the
// inode as it is.
func (t *tx) moveChunk(c objstore.MoveChunk) (res objstore.Result, err error) {
	if !canMove(c) {
		return res, objstore.Invalid
	}
	in, err := t.live(c.Ino)
	if err != nil {
		return res, err
	}
	if in.Mode&objstore.ModeType != objstore.ModeRegular {
		return res, objstore.Invalid
	}
	// A chunk once given up may be gone from the pool already.
	val, err := t.v.Get(appendChunkKey(t.scratch[:0], kFreed, c.To))
	if err != nil {
		return res, err
	}
	if val != nil {
		return res, objstore.Invalid
	}
	if c.Again && t.sharersOf(c.To).was == 0 {
		return res, objstore.Invalid // who moved there is gone, and To may be, too
	}
	region := regionOf(c.Off)
	old, err := t.region(in, region)
	if err != nil {
		return res, err
	}
	now, found := slices.Clone(old), false
	for i := range now {
		if now[i].Kind != objstore.Pooled || now[i].Chunk != c.From {
			continue
		}
		// Sharing may have brought more of the chunk here since it was looked at.
		if uint64(now[i].ChunkOff)+uint64(now[i].Len) > uint64(c.Len) {
			return res, objstore.NotFound
		}
		now[i].Chunk, found = c.To, true
	}
	if !found {
		return res, objstore.NotFound
	}
	if in.shared && t.sharersOf(c.From).was > 0 {
		if to := t.sharersOf(c.To); to.was == 0 {
			named, err := ownerNames(t.v, c.To)
			if err != nil {
				return res, err
			}
			if to.moved = true; !named {
				to.now = 0
			}
		}
	}
	if region == 0 {
		t.replaceFirst(in, old, now)
	} else {
		t.replaceRegion(in, region, old, now)
	}
	if in.shared && t.sharersOf(c.From).now > 0 {
		res.Chunks = []objstore.ChunkID{c.From}
	}
	res.Attr = in.Attr
	return res, t.err
}

// canMove makes the checks that need no look at the file.
func canMove(c objstore.MoveChunk) bool {
	from, to := c.From, c.To
	return c.Off < maxMapped && from != to && !from.Resident() && !to.Resident() && from.Sealed() == to.Sealed() &&
		from.Ino == to.Ino && from.Index == to.Index && from.Ino.Volume() == c.Ino.Volume()
}
