package client

import (
	"bytes"
	"slices"

	"pillarbox/objstore"
)

// span is the extents of a part of a file.
type span struct {
	lo, hi uint64
	list   []objstore.Extent
}

// What a file's extents may take to be kept.
const (
	keptExtents = 16
	keptInline  = 1 << 10 // bytes
)

// extents is what is known of a part of a file. Its bytes may be gone all the
// same, when a change has just freed them and the push is on its way: a read that
// fails forgets the span.
func (c *cache) extents(ino objstore.Ino, off, n uint64) (list []objstore.Extent, ok bool) {
	if !c.on.Load() {
		return nil, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { c.found[cachedExtents].add(ok) }()
	vc := c.good(ino.Volume())
	if vc == nil {
		return nil, false
	}
	s, ok := vc.spans[ino]
	if !ok || off < s.lo || off+n > s.hi {
		return nil, false
	}
	for _, e := range s.list {
		if e.End() > off && e.Off < off+n {
			list = append(list, e)
		}
	}
	return list, true
}

// gotExtents keeps the extents of a part of a file.
func (c *cache) gotExtents(q question, from *stream, ino objstore.Ino, s span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keeps(q, from) {
		c.setSpan(q.of, ino, s)
		c.bound()
	}
}

func (c *cache) setSpan(vc *cachedVolume, ino objstore.Ino, s span) {
	inline := 0
	for _, e := range s.list {
		inline += len(e.Data)
	}
	if len(s.list) > keptExtents || inline > keptInline {
		delete(vc.spans, ino)
		return
	}
	if _, ok := vc.spans[ino]; !ok {
		c.grow(vc, spanCost+extentCost*len(s.list)+inline)
	}
	vc.spans[ino] = s
}

// forgetExtents is for when the bytes of a chunk are not where they should be: no
// file is known to have it any more.
func (c *cache) forgetExtents(id objstore.ChunkID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	vc := c.vols[id.Ino.Volume()]
	if vc == nil {
		return
	}
	for ino, s := range vc.spans {
		if slices.ContainsFunc(s.list, func(e objstore.Extent) bool { return e.Chunk == id }) {
			delete(vc.spans, ino)
		}
	}
}

// wholeFile is a file's extents after a write that brought all its bytes, as that
// of a new message does.
func wholeFile(w objstore.Write, r objstore.Result) (span, bool) {
	list, ids := slices.Clone(w.Extents), r.Chunks
	end := uint64(0)
	for i := range list {
		e := &list[i]
		if e.Off != end || e.Kind == objstore.Hole {
			return span{}, false
		}
		end = e.End()
		switch e.Kind {
		case objstore.Inline:
			e.Data = bytes.Clone(e.Data)
		case objstore.Resident:
			if len(ids) == 0 {
				return span{}, false
			}
			e.Chunk, e.Data, ids = ids[0], nil, ids[1:]
		}
	}
	return span{0, ^uint64(0), list}, end == r.Attr.Size
}
