package volume

import (
	"pillarbox/objstore"
)

func (t *tx) write(c objstore.Write) (res objstore.Result, err error) {
	if err = checkWrite(c); err != nil {
		return res, err
	}
	in, err := t.live(c.Ino)
	if err != nil {
		return res, err
	}
	if in.Mode&objstore.ModeType != objstore.ModeRegular {
		return res, objstore.Invalid
	}
	in.Size = max(in.Size, c.Size)
	for i := 0; i < len(c.Extents); {
		j := i
		region := regionOf(c.Extents[i].Off)
		for j < len(c.Extents) && regionOf(c.Extents[j].Off) == region {
			// Bytes behind the end would show when the file grows.
			if e := &c.Extents[j]; e.Kind != objstore.Hole && e.End() > in.Size {
				return res, objstore.Invalid
			}
			j++
		}
		if err = t.writeRegion(in, region, c.Extents[i:j], &res.Chunks); err != nil {
			return objstore.Result{}, err
		}
		i = j
	}
	in.Mtime, in.Ctime = c.Mtime, c.Mtime
	in.dirty = true
	res.Attr = in.Attr
	return res, nil
}

// checkWrite makes the checks that need no look at the file.
func checkWrite(c objstore.Write) error {
	if c.Size > objstore.MaxFileSize {
		return objstore.TooBig
	}
	end := uint64(0)
	for i := range c.Extents {
		e := &c.Extents[i]
		if e.Off >= maxMapped {
			return objstore.TooBig
		}
		if e.Len == 0 || e.Off < end || crosses(e) || !validExtent(c.Ino, e) {
			return objstore.Invalid
		}
		end = e.End()
	}
	return nil
}

func validExtent(ino objstore.Ino, e *objstore.Extent) bool {
	switch e.Kind {
	case objstore.Hole:
		return true
	case objstore.Inline:
		return int(e.Len) == len(e.Data) && e.Len <= objstore.InlineMax
	case objstore.Resident:
		if e.Chunk.Sealed() {
			return ownChunk(ino, e) && e.Chunk.Resident() && e.ChunkOff == 0 && e.Len <= objstore.ResidentMax &&
				len(e.Data) > 0 && len(e.Data) <= objstore.ResidentMax+objstore.SealRoom
		}
		return int(e.Len) == len(e.Data) && e.Len <= objstore.ResidentMax && e.ChunkOff == 0
	case objstore.Pooled:
		return ownChunk(ino, e) && !e.Chunk.Resident() && uint64(e.ChunkOff)+uint64(e.Len) <= objstore.ChunkSize
	}
	return false
}

// ownChunk says whether the chunk's id fits the extent's place.
func ownChunk(ino objstore.Ino, e *objstore.Extent) bool {
	return e.Chunk.Ino == ino && uint64(e.Chunk.Index) == e.Off/objstore.ChunkSize
}

// writeRegion puts extents, all of one region, over what is there, and adds the
// chunks made for Resident ones to made. Invalid when the region would hold too
// many inline bytes.
func (t *tx) writeRegion(in *inode, region uint32, ext []objstore.Extent, made *[]objstore.ChunkID) error {
	put := make([]objstore.Extent, len(ext))
	for i, e := range ext {
		switch e.Kind {
		case objstore.Resident:
			if e.Chunk.Sealed() { // it is bound to its id, so it came with one
				t.put(appendChunkKey(t.grab(bodyKeyLen), kBody, e.Chunk), e.Data)
			} else {
				e.Chunk = t.newBody(in.Ino, e.Off, e.Data)
			}
			*made = append(*made, e.Chunk)
			e.Data = nil
		case objstore.Inline:
			e.Chunk, e.ChunkOff = objstore.ChunkID{}, 0
		default:
			e.Data = nil
		}
		if e.Kind == objstore.Pooled {
			// A chunk once given up may be gone from the pool already.
			val, err := t.v.Get(appendChunkKey(t.scratch[:0], kFreed, e.Chunk))
			if err != nil {
				return err
			}
			if val != nil {
				return objstore.Invalid
			}
		}
		put[i] = e
	}
	old, err := t.region(in, region)
	if err != nil {
		return err
	}
	now := overlay(old, put)
	if inlineBytes(now) > objstore.InlineMax {
		return objstore.Invalid
	}
	if region == 0 {
		t.replaceFirst(in, old, now)
	} else {
		t.replaceRegion(in, region, old, now)
	}
	return nil
}

// newBody writes a resident body, and names it.
func (t *tx) newBody(ino objstore.Ino, off uint64, data []byte) objstore.ChunkID {
	id := objstore.ChunkID{Ino: ino, Index: uint32(off / objstore.ChunkSize), Version: objstore.ResidentVersion | t.number()}
	t.put(appendChunkKey(t.grab(bodyKeyLen), kBody, id), data)
	return id
}

func (t *tx) region(in *inode, region uint32) ([]objstore.Extent, error) {
	if region == 0 {
		return in.extents()
	}
	key := appendRegionKey(t.scratch[:0], in.Ino, region)
	val, err := t.v.Get(key)
	if err != nil || val == nil {
		return nil, err
	}
	return decodeRegion(key, val)
}

// decodeRegion reads the record of a region >= 1.
func decodeRegion(key, val []byte) ([]objstore.Extent, error) {
	ino, ok := keyIno(key)
	if !ok || len(key) != inoKeyLen+4 || len(val) == 0 || val[0] != recordV1 {
		return nil, corrupt(key, "bad region record")
	}
	region := keyRegion(key)
	ext, err := decodeExtents(ino, region, val[1:])
	if err != nil || region == 0 || len(ext) == 0 {
		return nil, corrupt(key, "bad extents")
	}
	return ext, nil
}

// eachRegion calls fn for the records of regions >= 1 whose keys are behind
// after. What it hands over is good during the call only.
func (t *tx) eachRegion(ino objstore.Ino, after []byte, fn func(region uint32, key []byte, ext []objstore.Extent) bool) error {
	var bad error
	err := t.v.Scan(appendInoKey(t.scratch[:0], kRegion, ino), after, func(key, val []byte) bool {
		ext, err := decodeRegion(key, val)
		if err != nil {
			bad = err
			return false
		}
		return fn(keyRegion(key), key, ext)
	})
	if err == nil {
		err = bad
	}
	return err
}

// replaceFirst changes the extents of region 0, which the inode record holds.
func (t *tx) replaceFirst(in *inode, old, now []objstore.Extent) {
	t.account(in, 0, old, now)
	in.setExtents(now)
	in.dirty = true
}

// replaceRegion changes the extents of a later region.
func (t *tx) replaceRegion(in *inode, region uint32, old, now []objstore.Extent) {
	t.account(in, region, old, now)
	key := appendRegionKey(t.grab(inoKeyLen+4), in.Ino, region)
	if len(now) == 0 {
		t.del(key)
		return
	}
	b := append(t.grab(1+extentsMaxLen(now)), recordV1)
	t.put(key, t.giveBack(appendExtents(b, in.Ino, region, now)))
}

// account keeps the block counts of a region's extents, and gives up the chunks
// that no extent needs any more. It returns how many it let go.
func (t *tx) account(in *inode, region uint32, old, now []objstore.Extent) int {
	was, is := blocksOf(old), blocksOf(now)
	if was != is {
		// Unsigned arithmetic wraps, and back again.
		in.Blocks += is - was
		t.vol.bytes += (is - was) * blockSize
		t.volDirty = true
		in.dirty = true
	}
	n := 0
	compareChunks(old, now, func(id objstore.ChunkID) {
		n++
		if !in.shared {
			t.giveUp(id)
		} else if s := t.sharersOf(id); s.now > 0 {
			s.now--
		}
	}, func(id objstore.ChunkID) {
		if !in.shared {
			return
		}
		// One without a count, where it belongs, is named for the first time.
		if s := t.sharersOf(id); s.was > 0 || s.moved || !isNative(in.Ino, region, id) {
			s.now++
		}
	})
	return n
}
