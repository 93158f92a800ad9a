package cachefs

import (
	"slices"

	"pillarbox/objstore"
)

const (
	tinyFile   = 512                        // bytes up to which a whole file is one Inline extent
	smallPiece = 512                        // bytes up to which a piece may be Inline
	inlineSoft = objstore.InlineMax * 3 / 4 // Inline bytes we let a span have
	maxExtents = 32                         // extents a chunk's worth of file may have
	layoutSpan = 16 * objstore.ChunkSize    // file bytes that one layout describes
)

// spanExtent is an extent without its bytes.
type spanExtent struct {
	off  uint64
	n    uint32
	kind objstore.ExtentKind
}

func (e spanExtent) end() uint64 { return e.off + uint64(e.n) }

// layout is what the metadata holds for a span of the file, or would hold after
// a commit: enough to decide what to merge without asking the store again.
type layout []spanExtent

func layoutOf(list []objstore.Extent) layout {
	l := make(layout, 0, len(list)+4)
	for _, e := range list {
		l = append(l, spanExtent{e.Off, e.Len, e.Kind})
	}
	return l
}

// put lays an extent over the others, as a commit does.
func (l *layout) put(e spanExtent) {
	i, _ := slices.BinarySearchFunc(*l, e.off, func(s spanExtent, off uint64) int {
		if s.end() <= off {
			return -1
		}
		return 1
	})
	j, at := i, i
	var mid []spanExtent
	var rest []spanExtent
	for ; j < len(*l) && (*l)[j].off < e.end(); j++ {
		s := (*l)[j]
		if s.off < e.off {
			mid = append(mid, spanExtent{s.off, uint32(e.off - s.off), s.kind})
			at++
		}
		if s.end() > e.end() {
			rest = append(rest, spanExtent{e.end(), uint32(s.end() - e.end()), s.kind})
		}
	}
	*l = slices.Replace(*l, i, j, append(append(mid, e), rest...)...)
	l.join(at + 1)
	l.join(at)
}

// join makes Inline extent i part of the one before, as the volume does.
func (l *layout) join(i int) {
	if i <= 0 || i >= len(*l) {
		return
	}
	a, b := &(*l)[i-1], (*l)[i]
	if a.kind == objstore.Inline && b.kind == objstore.Inline && a.end() == b.off &&
		b.off%objstore.ChunkSize != 0 && a.n+b.n <= objstore.InlineMax {
		a.n += b.n
		*l = slices.Delete(*l, i, i+1)
	}
}

// inline counts the Inline bytes.
func (l layout) inline() int {
	n := 0
	for _, e := range l {
		if e.kind == objstore.Inline {
			n += int(e.n)
		}
	}
	return n
}

// block is the part of the layout in the chunk-sized block that begins at off.
func (l layout) block(off uint64) layout {
	i := 0
	for i < len(l) && l[i].off < off {
		i++
	}
	j := i
	for j < len(l) && l[j].off < off+objstore.ChunkSize {
		j++
	}
	return l[i:j]
}

// inlineRun is the range of Inline extents that touch [lo, hi), with it, within one block.
func (l layout) inlineRun(lo, hi uint64) (uint64, uint64) {
	b := l.block(lo - lo%objstore.ChunkSize)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i].kind == objstore.Inline && b[i].end() >= lo && b[i].off < lo {
			lo = b[i].off
		}
	}
	for _, e := range b {
		if e.kind == objstore.Inline && e.off <= hi && e.end() > hi {
			hi = e.end()
		}
	}
	return lo, hi
}

// fanOut neighbours of like size are merged into one, so that a byte appended is
// rewritten once for every sixfold growth of the extent it is in.
const fanOut = 6

func tier(n uint32) int {
	t := 0
	for n >= 36*fanOut {
		n /= fanOut
		t++
	}
	return t
}

// likes is a run of fanOut or more touching extents of one tier, if the block
// has one. Inline ones join by themselves.
func (l layout) likes() (lo, hi uint64, ok bool) {
	for i := 0; i < len(l); {
		j := i + 1
		for j < len(l) && l[j-1].end() == l[j].off && l[i].kind != objstore.Inline &&
			l[j].kind != objstore.Inline && tier(l[j].n) == tier(l[i].n) {
			j++
		}
		if j-i >= fanOut {
			return l[i].off, l[j-1].end(), true
		}
		i = j
	}
	return 0, 0, false
}

// cheapest is the run of neighbouring extents of a block that is shortest among
// those whose merging leaves half of maxExtents.
func (l layout) cheapest() (lo, hi uint64) {
	k := len(l) - maxExtents/2 + 1
	best := uint64(1<<64 - 1)
	for i := 0; i+k <= len(l); i++ {
		if n := l[i+k-1].end() - l[i].off; n < best {
			best, lo, hi = n, l[i].off, l[i+k-1].end()
		}
	}
	return lo, hi
}
