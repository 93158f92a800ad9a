package cachefs

import (
	"slices"
	"sync"

	"pillarbox/objstore"
)

// bodyState says who may touch a body.
type bodyState uint8

const (
	growing   bodyState = iota // written in place, under file.mu
	frozen                     // immutable bytes in memory
	uploading                  // immutable; an upload reads them without file.mu
	stored                     // durable in the data pool as chunk; data is gone
)

// body is a run of file bytes that are not committed yet. Guarded by file.mu,
// but for the bytes themselves once they are no longer growing.
type body struct {
	state bodyState
	data  []byte
	chunk objstore.ChunkID // stored
	refs  int              // segs that show a part of it
	cost  int64            // bytes charged to the budget
	done  chan struct{}    // closed when an upload has ended
}

// seg shows bytes [bo, bo+n) of a body at file offset off. It never crosses a
// chunk boundary.
type seg struct {
	off uint64
	n   uint32
	bo  uint32
	b   *body
}

func (s seg) end() uint64 { return s.off + uint64(s.n) }

// bytes are the seg's bytes; only for bodies that are in memory.
func (s seg) bytes() []byte { return s.b.data[s.bo : s.bo+s.n] }

// cut is the part of s within [lo, hi).
func (s seg) cut(lo, hi uint64) seg {
	if lo > s.off {
		d := uint32(lo - s.off)
		s.off, s.bo, s.n = lo, s.bo+d, s.n-d
	}
	if hi < s.end() {
		s.n = uint32(hi - s.off)
	}
	return s
}

// segList is a layer of dirty ranges: sorted, without overlap.
type segList []seg

// find is the index of the first seg that ends behind off.
func (l segList) find(off uint64) int {
	i, _ := slices.BinarySearchFunc(l, off, func(s seg, off uint64) int {
		if s.end() <= off {
			return -1
		}
		return 1
	})
	return i
}

// overlap is the part of the list that touches [lo, hi).
func (l segList) overlap(lo, hi uint64) segList {
	i := l.find(lo)
	j := i
	for j < len(l) && l[j].off < hi {
		j++
	}
	return l[i:j]
}

// cutOut removes [lo, hi) from the list and returns the bodies that nothing
// shows any more.
func (l *segList) cutOut(lo, hi uint64) (dead []*body) {
	i := l.find(lo)
	j := i
	var keep [2]seg
	k := 0
	for ; j < len(*l) && (*l)[j].off < hi; j++ {
		s := (*l)[j]
		s.b.refs--
		if s.off < lo {
			keep[k] = s.cut(s.off, lo)
			keep[k].b.refs++
			k++
		}
		if s.end() > hi {
			keep[k] = s.cut(hi, s.end())
			keep[k].b.refs++
			k++
		}
		if s.b.refs == 0 {
			dead = append(dead, s.b)
		}
	}
	if i == j {
		return nil
	}
	*l = slices.Replace(*l, i, j, keep[:k]...)
	return dead
}

// put lays s over the list and returns the bodies that it hid entirely.
func (l *segList) put(s seg) (dead []*body) {
	if n := len(*l); n == 0 || (*l)[n-1].end() <= s.off {
		s.b.refs++
		*l = append(*l, s)
		return nil
	}
	dead = l.cutOut(s.off, s.end())
	s.b.refs++
	*l = slices.Insert(*l, l.find(s.off), s)
	return dead
}

// write copies p to offset off, which must lie within one chunk. It grows or
// overwrites a body in place where it can. added is by how much the memory
// charged for bodies grew.
func (l *segList) write(bs *buffers, off uint64, p []byte) (added int64, dead []*body) {
	end := off + uint64(len(p))
	i := l.find(off)
	if i < len(*l) && (*l)[i].off <= off && end <= (*l)[i].end() && (*l)[i].b.state == growing {
		copy((*l)[i].bytes()[off-(*l)[i].off:], p)
		return 0, nil
	}
	// The seg that ends here, or covers off and is outgrown, may be extended.
	if i == len(*l) || (*l)[i].off > off {
		i--
	}
	if i >= 0 && l.extends(i, off, end) {
		s := &(*l)[i]
		at := s.bo + uint32(off-s.off)
		grown := int64(at) + int64(len(p)) - int64(len(s.b.data))
		s.b.data = append(bs.grow(s.b.data[:at], len(p)), p...)
		s.n = uint32(end - s.off)
		s.b.cost += grown
		return grown, nil
	}
	room := len(p)
	if room >= bulkWrite {
		room = objstore.ChunkSize
	}
	b := &body{data: append(bs.get(room), p...), cost: int64(len(p))}
	dead = l.put(seg{off: off, n: uint32(len(p)), b: b})
	return int64(len(p)), dead
}

// extends says whether seg i can take [off, end) at its tail: it is growing,
// shows the tail of its body, lies in the same chunk, and nothing follows in the way.
func (l segList) extends(i int, off, end uint64) bool {
	s := l[i]
	return s.b.state == growing && s.end() >= off && s.end() < end &&
		int(s.bo+s.n) == len(s.b.data) &&
		s.off/objstore.ChunkSize == (end-1)/objstore.ChunkSize &&
		(i+1 == len(l) || l[i+1].off >= end)
}

// buffers are the memory of bodies, kept for the next ones: clearing and
// collecting a fresh buffer for every message costs more than copying it. By
// steps of four, up to a whole chunk; the smallest are not worth keeping.
type buffers struct{ pools [bufferSteps]sync.Pool }

const (
	bufferMin   = 16 << 10
	bufferSteps = 5 // 16 KiB to 4 MiB

	// bulkWrite is the size of a write behind which more is expected.
	bulkWrite = 512 << 10
)

// grow makes room for n more bytes behind b, whose memory it may take over.
func (bs *buffers) grow(b []byte, n int) []byte {
	need := len(b) + n
	if need <= cap(b) {
		return b
	}
	nb := bs.get(need)
	nb = append(nb, b...)
	bs.put(b)
	return nb
}

func (bs *buffers) get(need int) []byte {
	if need <= bufferMin/4 {
		return make([]byte, 0, max(512, need*2))
	}
	size := bufferMin
	for step := range bs.pools {
		if need <= size {
			if p, ok := bs.pools[step].Get().(*[]byte); ok {
				return (*p)[:0]
			}
			return make([]byte, 0, size)
		}
		size *= 4
	}
	return make([]byte, 0, need)
}

// put takes back a buffer that nobody looks at any more.
func (bs *buffers) put(b []byte) {
	size := bufferMin
	for step := range bs.pools {
		if cap(b) == size {
			b = b[:0]
			bs.pools[step].Put(&b)
			return
		}
		size *= 4
	}
}

// freeze ends in-place writes to all bodies of the list.
func (l segList) freeze() {
	for _, s := range l {
		if s.b.state == growing {
			s.b.state = frozen
		}
	}
}

// nextData is the first offset at or behind off that the list covers.
func (l segList) nextData(off uint64) (uint64, bool) {
	i := l.find(off)
	if i == len(l) {
		return 0, false
	}
	return max(off, l[i].off), true
}

// coverEnd is where the run that covers off ends; off if nothing covers it.
func (l segList) coverEnd(off uint64) uint64 {
	for i := l.find(off); i < len(l) && l[i].off <= off; i++ {
		off = l[i].end()
	}
	return off
}
