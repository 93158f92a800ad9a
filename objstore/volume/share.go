package volume

import (
	"bytes"
	"encoding/binary"
	"errors"

	"pillarbox/objstore"
)

// A chunk belongs to the file and the place that its id says, and as long as only
// that names it there is nothing else to know. A chunk that others name, too, has
// a record with the number of extent records (inodes' and regions') that do, its
// own included; it goes with the last. Files that may name such a chunk are marked,
// so that all others need not look.

// sharers counts the extent records that name a chunk.
type sharers struct {
	was uint64 // as the record has it; 0: there is none, so one does at most
	now uint64
	// moved says that a chunk which others may share is being moved here: it has a
	// record from the first that names it on.
	moved bool
}

// isNative says whether a region of a file is where a chunk belongs.
func isNative(ino objstore.Ino, region uint32, id objstore.ChunkID) bool {
	return id.Ino == ino && regionOf(uint64(id.Index)*objstore.ChunkSize) == region
}

var errSharers = errors.New("bad count of a shared chunk")

func decodeSharers(val []byte) (uint64, error) {
	r := reader{b: val}
	ver, n := r.byte(), r.uvarint()
	if r.bad || ver != recordV1 || n == 0 || len(r.b) != 0 {
		return 0, errSharers
	}
	return n, nil
}

func appendSharers(b []byte, n uint64) []byte {
	return binary.AppendUvarint(append(b, recordV1), n)
}

// sharersOf returns the one count of a chunk in this change.
func (t *tx) sharersOf(id objstore.ChunkID) *sharers {
	if s := t.shares[id]; s != nil {
		return s
	}
	s := &sharers{now: 1}
	key := appendChunkKey(make([]byte, 0, bodyKeyLen), kShared, id) // a scan may be using scratch
	val, err := t.v.Get(key)
	if err == nil && val != nil {
		if s.was, err = decodeSharers(val); err != nil {
			err = corrupt(key, err.Error())
		}
		s.now = s.was
	}
	if err != nil && t.err == nil {
		t.err = err
	}
	if t.shares == nil {
		t.shares = map[objstore.ChunkID]*sharers{}
	}
	t.shares[id] = s
	return s
}

// finishShares writes the counts that changed, and gives up what nobody names.
func (t *tx) finishShares() {
	for id, s := range t.shares {
		switch {
		case s.now == 0:
			if s.was > 0 {
				t.del(appendChunkKey(t.grab(bodyKeyLen), kShared, id))
			}
			t.giveUp(id)
		case s.moved && s.now != s.was, s.now != max(s.was, 1):
			t.put(appendChunkKey(t.grab(bodyKeyLen), kShared, id), t.giveBack(appendSharers(t.grab(1+binary.MaxVarintLen64), s.now)))
		}
	}
}

// giveUp takes away a chunk that no extent names: a body at once, one of the pool
// by a note.
func (t *tx) giveUp(id objstore.ChunkID) {
	if id.Resident() {
		t.del(appendChunkKey(t.grab(bodyKeyLen), kBody, id))
	} else {
		t.put(appendChunkKey(t.grab(bodyKeyLen), kFreed, id), marker[:])
	}
}

func (t *tx) share(c objstore.Share) (res objstore.Result, err error) {
	switch {
	case c.Src.Volume() != c.Ino.Volume():
		return res, objstore.CrossVolume
	case c.Len == 0 || c.Len > objstore.MaxShare || c.Ino == c.Src:
		return res, objstore.Invalid
	case c.Off > maxMapped-c.Len:
		return res, objstore.TooBig
	}
	in, err := t.live(c.Ino)
	if err != nil {
		return res, err
	}
	src, err := t.live(c.Src)
	if err != nil {
		return res, err
	}
	if in.Mode&objstore.ModeType != objstore.ModeRegular || src.Mode&objstore.ModeType != objstore.ModeRegular ||
		c.SrcOff > src.Size || c.Len > src.Size-c.SrcOff {
		return res, objstore.Invalid
	}
	for _, f := range []*inode{in, src} {
		f.shared, f.dirty = true, true
	}
	end := c.Off + c.Len
	in.Size = max(in.Size, end)
	for lo := c.Off; lo < end; {
		hi := min(end, lo-lo%regionSize+regionSize)
		put, err := t.borrow(src, c.SrcOff+lo-c.Off, hi-lo, lo)
		if err != nil {
			return res, err
		}
		if err := t.shareRegion(in, regionOf(lo), put); err != nil {
			return res, err
		}
		lo = hi
	}
	in.Mtime, in.Ctime = c.Mtime, c.Mtime
	return objstore.Result{Attr: in.Attr}, nil
}

// borrow returns what src has in the n bytes from from on, holes included, as
// extents that lie at off, cut where chunks end there.
func (t *tx) borrow(src *inode, from, n, off uint64) (put []objstore.Extent, err error) {
	end, pos := from+n, from
	hole := func(to uint64) {
		if to > pos {
			put = append(put, objstore.Extent{Off: off + pos - from, Len: uint32(to - pos)})
		}
		pos = to
	}
	for at := from; at < min(end, maxMapped); at = at - at%regionSize + regionSize {
		ext, err := t.region(src, regionOf(at))
		if err != nil {
			return nil, err
		}
		for _, e := range ext {
			if e.End() <= from || e.Off >= end {
				continue
			}
			if e.Off < from {
				e = tail(e, from)
			}
			if e.End() > end {
				e = head(e, end)
			}
			hole(e.Off)
			pos = e.End()
			put = appendMoved(put, e, off-from)
		}
	}
	hole(end)
	return put, nil
}

// appendMoved appends e, its place changed by by, which may wrap around.
func appendMoved(put []objstore.Extent, e objstore.Extent, by uint64) []objstore.Extent {
	for {
		at := e.Off + by
		p := e
		if room := objstore.ChunkSize - at%objstore.ChunkSize; uint64(e.Len) > room {
			p = head(e, e.Off+room)
		}
		rest := e.Off + uint64(p.Len)
		p.Off = at
		put = append(put, p)
		if rest == e.End() {
			return put
		}
		e = tail(e, rest)
	}
}

// shareRegion puts borrowed extents, all of one region, over what is there.
func (t *tx) shareRegion(in *inode, region uint32, put []objstore.Extent) error {
	old, err := t.region(in, region)
	if err != nil {
		return err
	}
	now := overlay(old, put)
	if inlineBytes(now) > objstore.InlineMax {
		// More than the record may carry: they become bodies.
		for i := range put {
			if e := &put[i]; e.Kind == objstore.Inline {
				e.Kind, e.Chunk, e.ChunkOff = objstore.Resident, t.newBody(in.Ino, e.Off, bytes.Clone(e.Data)), 0
				e.Data = nil
			}
		}
		now = overlay(old, put)
	}
	if region == 0 {
		t.replaceFirst(in, old, now)
	} else {
		t.replaceRegion(in, region, old, now)
	}
	return nil
}
