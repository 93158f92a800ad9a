package volume

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"

	"pillarbox/objstore"
)

const (
	regionSize = 64 << 20 // file bytes whose extents share a record
	// maxMapped is the first offset no extent can cover, for a chunk's index
	// has 32 bits. Files may be longer, but only by holes.
	maxMapped = uint64(1) << 32 * objstore.ChunkSize
	blockSize = 512

	extentHeadMax = 1 + 2*binary.MaxVarintLen32 + binary.MaxVarintLen64 + binary.MaxVarintLen32 + 8 + binary.MaxVarintLen32
	extentHeadMin = 3

	// foreign is set in the kind of an extent whose chunk belongs elsewhere.
	foreign = 8
)

func regionOf(off uint64) uint32 { return uint32(off / regionSize) }

func extentsMaxLen(ext []objstore.Extent) int {
	n := binary.MaxVarintLen32 + len(ext)*extentHeadMax
	for i := range ext {
		n += len(ext[i].Data)
	}
	return n
}

// appendExtents encodes a region's extents: their number, then for each its
// kind, the gap to the one before, its length and where its bytes are. Inode
// and index of a chunk follow from the extent's place, unless it is foreign.
func appendExtents(b []byte, ino objstore.Ino, region uint32, ext []objstore.Extent) []byte {
	b = binary.AppendUvarint(b, uint64(len(ext)))
	pos := uint64(region) * regionSize
	for i := range ext {
		e := &ext[i]
		kind := byte(e.Kind)
		if isForeign(ino, e) {
			kind |= foreign
		}
		b = append(b, kind)
		b = binary.AppendUvarint(b, e.Off-pos)
		b = binary.AppendUvarint(b, uint64(e.Len))
		if e.Kind == objstore.Inline {
			b = append(b, e.Data...)
		} else {
			if kind&foreign != 0 {
				b = binary.AppendUvarint(b, e.Chunk.Ino.Local())
				b = binary.AppendUvarint(b, uint64(e.Chunk.Index))
			}
			b = binary.BigEndian.AppendUint64(b, e.Chunk.Version)
			b = binary.AppendUvarint(b, uint64(e.ChunkOff))
		}
		pos = e.End()
	}
	return b
}

// isForeign says whether an extent of a file is in a chunk that belongs to
// another, or to another place.
func isForeign(ino objstore.Ino, e *objstore.Extent) bool {
	return e.Kind >= objstore.Resident && !ownChunk(ino, e)
}

var errExtents = errors.New("bad extents")

// decodeExtents reads what appendExtents wrote; the inline bytes alias b. What
// it accepts is in order, without overlap, inside the region and the chunks.
func decodeExtents(ino objstore.Ino, region uint32, b []byte) ([]objstore.Extent, error) {
	r := reader{b: b}
	n := r.uvarint()
	if r.bad || n > uint64(len(r.b))/extentHeadMin {
		return nil, errExtents
	}
	if n == 0 && len(r.b) == 0 {
		return nil, nil
	}
	ext := make([]objstore.Extent, 0, n)
	pos := uint64(region) * regionSize
	end := pos + regionSize
	for range n {
		kind := r.byte()
		e := objstore.Extent{Kind: objstore.ExtentKind(kind &^ foreign)}
		gap := r.uvarint()
		e.Len = r.uvarint32()
		if r.bad || gap >= end-pos || e.Len == 0 {
			return nil, errExtents
		}
		e.Off = pos + gap
		if crosses(&e) {
			return nil, errExtents
		}
		switch e.Kind {
		case objstore.Inline:
			if kind&foreign != 0 {
				return nil, errExtents
			}
			e.Data = r.bytes(uint64(e.Len))
		case objstore.Resident, objstore.Pooled:
			e.Chunk = objstore.ChunkID{Ino: ino, Index: uint32(e.Off / objstore.ChunkSize)}
			if kind&foreign != 0 {
				local := r.uvarint()
				e.Chunk.Ino, e.Chunk.Index = objstore.MakeIno(ino.Volume(), local), r.uvarint32()
				if local > objstore.MaxLocal {
					return nil, errExtents
				}
			}
			e.Chunk.Version, e.ChunkOff = r.u64(), r.uvarint32()
			if isForeign(ino, &e) != (kind&foreign != 0) || e.Chunk.Resident() != (e.Kind == objstore.Resident) || uint64(e.ChunkOff)+uint64(e.Len) > objstore.ChunkSize {
				return nil, errExtents
			}
		default:
			return nil, errExtents
		}
		if r.bad {
			return nil, errExtents
		}
		pos = e.End()
		ext = append(ext, e)
	}
	if len(r.b) != 0 {
		return nil, errExtents
	}
	return ext, nil
}

func crosses(e *objstore.Extent) bool {
	return e.Off/objstore.ChunkSize != (e.End()-1)/objstore.ChunkSize
}

// blocksOf is what the extents count for in Attr.Blocks.
func blocksOf(ext []objstore.Extent) uint64 {
	n := uint64(0)
	for i := range ext {
		n += (uint64(ext[i].Len) + blockSize - 1) / blockSize
	}
	return n
}

func inlineBytes(ext []objstore.Extent) int {
	n := 0
	for i := range ext {
		n += len(ext[i].Data)
	}
	return n
}

// tail is what remains of e from off on, head what is before off.
func tail(e objstore.Extent, off uint64) objstore.Extent {
	cut := uint32(off - e.Off)
	e.Off = off
	e.Len -= cut
	if e.Kind == objstore.Inline {
		e.Data = e.Data[cut:]
	} else {
		e.ChunkOff += cut
	}
	return e
}

func head(e objstore.Extent, off uint64) objstore.Extent {
	e.Len = uint32(off - e.Off)
	if e.Kind == objstore.Inline {
		e.Data = e.Data[:e.Len:e.Len]
	}
	return e
}

// overlay returns the extents of a region after put, ascending and disjoint,
// came over old. Holes in put punch.
func overlay(old, put []objstore.Extent) []objstore.Extent {
	out := make([]objstore.Extent, 0, len(old)+len(put)+1)
	i := 0
	var cur objstore.Extent
	have := false // cur is what is left of old[i-1]
	next := func() {
		have = i < len(old)
		if have {
			cur = old[i]
			i++
		}
	}
	next()
	for p := range put {
		n := put[p]
		for have && cur.End() <= n.Off {
			out = join(out, cur)
			next()
		}
		if have && cur.Off < n.Off {
			out = join(out, head(cur, n.Off))
			cur = tail(cur, n.Off)
		}
		for have && cur.End() <= n.End() {
			next()
		}
		if have && cur.Off < n.End() {
			cur = tail(cur, n.End())
		}
		if n.Kind != objstore.Hole {
			out = join(out, n)
		}
	}
	for have {
		out = join(out, cur)
		next()
	}
	return out
}

// join appends e to out, as part of the last extent where it continues that.
func join(out []objstore.Extent, e objstore.Extent) []objstore.Extent {
	if len(out) == 0 {
		return append(out, e)
	}
	last := &out[len(out)-1]
	if last.End() != e.Off || last.Kind != e.Kind || last.Off/objstore.ChunkSize != e.Off/objstore.ChunkSize {
		return append(out, e)
	}
	switch e.Kind {
	case objstore.Inline:
		if int(last.Len)+int(e.Len) > objstore.InlineMax {
			return append(out, e)
		}
		// The bytes are somebody else's: the full slice makes append copy them.
		last.Data = append(last.Data[:last.Len:last.Len], e.Data...)
		last.Len += e.Len
	default:
		if last.Chunk != e.Chunk || last.ChunkOff+last.Len != e.ChunkOff {
			return append(out, e)
		}
		last.Len += e.Len
	}
	return out
}

// truncate returns the extents of old before size.
func truncate(old []objstore.Extent, size uint64) []objstore.Extent {
	n, _ := slices.BinarySearchFunc(old, size, func(e objstore.Extent, s uint64) int {
		if e.Off < s {
			return -1
		}
		return 1
	})
	out := slices.Clone(old[:n])
	if n > 0 && out[n-1].End() > size {
		out[n-1] = head(out[n-1], size)
	}
	return out
}

// chunksOf appends every chunk that ext refers to, once and in order.
func chunksOf(buf []objstore.ChunkID, ext []objstore.Extent) []objstore.ChunkID {
	for i := range ext {
		if ext[i].Kind >= objstore.Resident {
			buf = append(buf, ext[i].Chunk)
		}
	}
	slices.SortFunc(buf, chunkOrder)
	return slices.Compact(buf)
}

func chunkOrder(a, b objstore.ChunkID) int {
	return cmp.Or(cmp.Compare(a.Ino, b.Ino), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Version, b.Version))
}

// eachChunk calls fn once for every chunk that ext refers to, in order, until fn
// returns false; it says whether it came to the end.
func eachChunk(ext []objstore.Extent, fn func(objstore.ChunkID) bool) bool {
	var buf [16]objstore.ChunkID
	for _, id := range chunksOf(buf[:0], ext) {
		if !fn(id) {
			return false
		}
	}
	return true
}

// compareChunks calls gone for every chunk that only old refers to, and come for
// every one that only now does.
func compareChunks(old, now []objstore.Extent, gone, come func(objstore.ChunkID)) {
	var buf1, buf2 [16]objstore.ChunkID
	was, is := chunksOf(buf1[:0], old), chunksOf(buf2[:0], now)
	for len(was) > 0 || len(is) > 0 {
		switch {
		case len(is) == 0 || len(was) > 0 && chunkOrder(was[0], is[0]) < 0:
			gone(was[0])
			was = was[1:]
		case len(was) == 0 || chunkOrder(was[0], is[0]) > 0:
			come(is[0])
			is = is[1:]
		default:
			was, is = was[1:], is[1:]
		}
	}
}
