package volume

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pillarbox/objstore"
)

// sparse is a file as bytes, in blocks that are not zero.
type sparse struct {
	blocks map[uint64][]byte
	size   uint64
}

const sparseBlock = 4096

func (m *sparse) write(off uint64, p []byte) {
	m.size = max(m.size, off+uint64(len(p)))
	for len(p) > 0 {
		at, in := off/sparseBlock, off%sparseBlock
		if m.blocks[at] == nil {
			m.blocks[at] = make([]byte, sparseBlock)
		}
		n := copy(m.blocks[at][in:], p)
		off, p = off+uint64(n), p[n:]
	}
}

// each calls fn for the bytes of each block in [off, off+n).
func (m *sparse) each(off, n uint64, fn func(at uint64, p []byte)) {
	for i, b := range m.blocks {
		lo, hi := max(i*sparseBlock, off), min((i+1)*sparseBlock, off+n)
		if lo < hi {
			fn(lo, b[lo-i*sparseBlock:hi-i*sparseBlock])
		}
	}
}

func (m *sparse) clear(off, n uint64) { m.each(off, n, func(_ uint64, p []byte) { clear(p) }) }

func (m *sparse) share(off uint64, src *sparse, from, n uint64) {
	m.clear(off, n)
	m.size = max(m.size, off+n)
	src.each(from, n, func(at uint64, p []byte) { m.write(at-from+off, p) })
}

func (m *sparse) resize(size uint64) {
	m.clear(size, 1<<60)
	m.size = size
}

// compare checks a file's contents, what is between the blocks included.
func (m *sparse) compare(t *testing.T, s *store, f objstore.Ino, pool map[objstore.ChunkID][]byte) {
	t.Helper()
	if a := s.attr(f); a.Size != m.size {
		t.Fatalf("%v has size %d, want %d", f, a.Size, m.size)
	}
	ext, err := Extents(&s.v, f, 0, 1<<60)
	if err != nil {
		t.Fatal(err)
	}
	got := sparse{blocks: map[uint64][]byte{}}
	for _, e := range ext {
		if crosses(&e) {
			t.Fatalf("%+v crosses", e)
		}
		src := e.Data
		switch e.Kind {
		case objstore.Resident:
			src, _ = s.v.Get(BodyKey(e.Chunk))
			src = src[e.ChunkOff:][:e.Len]
		case objstore.Pooled:
			src = pool[e.Chunk][e.ChunkOff:][:e.Len]
		}
		got.write(e.Off, src)
	}
	zero := make([]byte, sparseBlock)
	for _, pair := range [][2]*sparse{{m, &got}, {&got, m}} {
		for at, want := range pair[0].blocks {
			if b := pair[1].blocks[at]; !bytes.Equal(want, b) && (b != nil || !bytes.Equal(want, zero)) {
				t.Fatalf("%v differs in the block at %d", f, at*sparseBlock)
			}
		}
	}
}

// shareModel is a few files that share with one another, and are removed.
type shareModel struct {
	*rand.Rand
	t       *testing.T
	s       *store
	files   map[string]*sparse
	inos    map[string]objstore.Ino
	pool    map[objstore.ChunkID][]byte
	version uint64
	moved   map[objstore.ChunkID]objstore.ChunkID
}

func (m *shareModel) name() string { return string(rune('a' + m.IntN(5))) }

func (m *shareModel) file(name string) *sparse {
	if m.files[name] == nil {
		m.inos[name] = m.s.file(objstore.VolumeRoot(1), name)
		m.files[name] = &sparse{blocks: map[uint64][]byte{}}
	}
	return m.files[name]
}

// place is an offset near where chunks and regions end, or anywhere.
func (m *shareModel) place() uint64 {
	edges := []uint64{0, objstore.ChunkSize, regionSize, regionSize + objstore.ChunkSize, 2 * regionSize}
	off := edges[m.IntN(len(edges))]
	if m.IntN(4) == 0 {
		off = m.Uint64N(2 * regionSize)
	}
	return off + m.Uint64N(20<<10) - min(off, 10<<10)
}

func (m *shareModel) write(name string) {
	f := m.file(name)
	st := m.place()
	ext, data := randomWrite(m.Rand, m.inos[name], st, &m.version)
	if _, err := m.s.apply(objstore.Write{Ino: m.inos[name], Size: ext[len(ext)-1].End(), Extents: ext}); errors.Is(err, objstore.Invalid) {
		return // too much inline
	} else if err != nil {
		m.t.Fatal(err)
	}
	f.size = max(f.size, ext[len(ext)-1].End())
	for i, e := range ext {
		f.clear(e.Off, uint64(e.Len))
		f.write(e.Off, data[i])
		if e.Kind == objstore.Pooled {
			m.pool[e.Chunk] = append(make([]byte, e.ChunkOff), data[i]...)
		}
	}
}

func (m *shareModel) share(name, from string) {
	f, src := m.file(name), m.file(from)
	c := objstore.Share{Ino: m.inos[name], Src: m.inos[from], Off: m.place()}
	if m.IntN(3) > 0 && src.size > 0 {
		c.SrcOff = min(m.place(), src.size-1)
	}
	c.Len = 1 + m.Uint64N([]uint64{9000, objstore.ChunkSize * 3, regionSize * 3}[m.IntN(3)])
	c.Len = min(c.Len, src.size-min(c.SrcOff, src.size))
	switch {
	case name == from || c.Len == 0:
		m.s.fails(c, objstore.Invalid)
	default:
		m.s.must(c)
		f.share(c.Off, src, c.SrcOff, c.Len)
	}
}

// move moves a chunk of a file, as one that another moved already where there is such.
func (m *shareModel) move(name string) {
	m.file(name)
	ino := m.inos[name]
	ext, err := Extents(&m.s.v, ino, 0, 1<<60)
	if err != nil {
		m.t.Fatal(err)
	}
	ext = slices.DeleteFunc(ext, func(e objstore.Extent) bool { return e.Kind != objstore.Pooled })
	if len(ext) == 0 {
		return
	}
	e := ext[m.IntN(len(ext))]
	to, again := m.moved[e.Chunk]
	freed, _ := m.s.v.Get(appendChunkKey(nil, kFreed, to)) // what is given up is not to be named again
	if !again || freed != nil || m.IntN(4) == 0 {
		m.version++
		to = e.Chunk
		to.Version = m.version
		m.pool[to] = m.pool[e.Chunk]
	}
	before := m.s.attr(ino)
	c := objstore.MoveChunk{Ino: ino, Off: e.Off, From: e.Chunk, To: to, Len: objstore.ChunkSize, Again: to == m.moved[e.Chunk]}
	if used, err := References(&m.s.v, to); err != nil || c.Again && !used {
		m.s.fails(c, objstore.Invalid) // given up, and its note ended
		return
	}
	r := m.s.must(c)
	if before != m.s.attr(ino) {
		m.t.Fatalf("%+v became %+v", before, m.s.attr(ino))
	}
	used := false
	Chunks(&m.s.v, 1, func(id objstore.ChunkID) bool { used = used || id == e.Chunk; return true })
	if used != (len(r.Chunks) == 1) {
		m.t.Fatalf("%v is named by others: %v, told %v", e.Chunk, used, r.Chunks)
	}
	delete(m.moved, e.Chunk)
	if used {
		m.moved[e.Chunk] = to
	}
}

// pack packs what lies in the first region of some files: bodies, chunks and other packs.
func (m *shareModel) pack() {
	c := objstore.Pack{Vol: 1}
	var data []byte
	files := 0
	for name := range m.files {
		if m.IntN(2) == 0 {
			continue
		}
		ext, err := Extents(&m.s.v, m.inos[name], 0, regionSize)
		if err != nil {
			m.t.Fatal(err)
		}
		was := len(c.Moves)
		for _, e := range ext {
			if e.Kind < objstore.Resident || e.Off >= regionSize || m.IntN(3) == 0 || len(data)+int(e.Len) > objstore.PackMax {
				continue
			}
			src := m.pool[e.Chunk]
			if e.Kind == objstore.Resident {
				src, _ = m.s.v.Get(BodyKey(e.Chunk))
			}
			c.Moves = append(c.Moves, objstore.PackMove{Ino: m.inos[name], From: e.Chunk, FromOff: e.ChunkOff, Len: e.Len, Off: uint32(len(data))})
			data = append(data, src[e.ChunkOff:][:e.Len]...)
		}
		if len(c.Moves) > was {
			files++
		}
	}
	if files == 0 {
		return
	}
	m.version++
	c.To = objstore.ChunkID{Ino: objstore.PackIno(1), Index: objstore.PackIndex(files, len(data)), Version: m.version}
	m.pool[c.To] = data
	before := map[string]objstore.Attr{}
	for name := range m.files {
		before[name] = m.s.attr(m.inos[name])
	}
	gone := m.IntN(4) == 0 // between the copying and the change
	if gone {
		m.remove(m.nameOf(c.Moves[0].Ino))
	}
	m.s.must(c)
	for name := range m.files {
		if m.s.attr(m.inos[name]) != before[name] {
			m.t.Fatalf("%+v became %+v", before[name], m.s.attr(m.inos[name]))
		}
	}
	uses, err := Packs(&m.s.v, 1)
	i := slices.IndexFunc(uses, func(u PackUse) bool { return u.ID == c.To })
	if want := files; err != nil || !gone && (i < 0 || uses[i].Files != want) {
		m.t.Fatalf("%d files name %v: %v, %v", want, c.To, uses, err)
	}
	m.s.fails(c, objstore.Invalid) // it was named before, or given up
}

func (m *shareModel) nameOf(ino objstore.Ino) string {
	for name, i := range m.inos {
		if i == ino {
			return name
		}
	}
	m.t.Fatalf("no file is %v", ino)
	return ""
}

func (m *shareModel) remove(name string) {
	ino := m.inos[name]
	m.s.must(objstore.Remove{Parent: objstore.VolumeRoot(1), Name: name})
	for m.s.must(objstore.Purge{Vol: 1, Inos: []objstore.Ino{ino}}).Orphan != 0 {
	}
	delete(m.files, name)
	delete(m.inos, name)
}

func (m *shareModel) step() {
	name := m.name()
	switch n := m.IntN(27); {
	case n >= 24:
		m.pack()
	case n >= 20:
		m.move(name)
	case n < 7:
		m.write(name)
	case n < 16:
		m.share(name, m.name())
	case n < 18:
		f := m.file(name)
		f.resize(m.place())
		m.s.must(objstore.SetAttr{Ino: m.inos[name], Set: objstore.SetSize, Size: f.size})
	case n < 19 && m.files[name] != nil:
		m.remove(name)
	default: // what was given up is removed
		freed, err := FreedChunks(&m.s.v, 1, -1)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, id := range freed {
			delete(m.pool, id)
		}
		m.s.must(objstore.FreeChunks{Vol: 1, Chunks: freed})
	}
}

func (m *shareModel) check() {
	m.t.Helper()
	for name, f := range m.files {
		f.compare(m.t, m.s, m.inos[name], m.pool)
	}
	m.s.check(1)
	used := map[objstore.ChunkID]bool{}
	if err := Chunks(&m.s.v, 1, func(id objstore.ChunkID) bool { used[id] = true; return true }); err != nil {
		m.t.Fatal(err)
	}
	freed, err := FreedChunks(&m.s.v, 1, -1)
	if err != nil {
		m.t.Fatal(err)
	}
	for id := range m.pool {
		if ref, err := References(&m.s.v, id); ref != used[id] || err != nil {
			m.t.Fatalf("%v: named %v, referenced %v, %v", id, used[id], ref, err)
		}
		if used[id] == slices.Contains(freed, id) {
			m.t.Fatalf("%v: used %v, yet freed as well, or neither", id, used[id])
		}
	}
	m.s.v.Scan(appendPrefix(nil, 1, kBody), nil, func(k, _ []byte) bool {
		if id, ok := ParseBodyKey(k); !ok || !used[id] {
			m.t.Fatalf("body %x is not wanted", k)
		}
		return true
	})
}

func TestShareModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newStore(t, 1)
			m := &shareModel{Rand: rand.New(rand.NewPCG(seed, 3)), t: t, s: s, files: map[string]*sparse{},
				inos: map[string]objstore.Ino{}, pool: map[objstore.ChunkID][]byte{}, moved: map[objstore.ChunkID]objstore.ChunkID{}}
			for i := range 300 {
				m.step()
				if i%10 == 0 {
					m.check()
				}
			}
			m.check()
			if seed%2 == 0 { // one by one, or all at once with their volume
				for name := range m.files {
					m.remove(name)
					m.check()
				}
			} else {
				for name := range m.files {
					s.must(objstore.Remove{Parent: objstore.VolumeRoot(1), Name: name})
				}
				clear(m.files)
				s.must(objstore.SealVolume{Vol: 1})
				for s.must(objstore.DropVolume{Vol: 1}).Orphan != 0 {
				}
			}
			m.check()
			n := 0
			s.v.Scan(appendPrefix(nil, 1, kShared), nil, func(_, _ []byte) bool { n++; return true })
			if n != 0 {
				t.Fatalf("%d counts of sharers left", n)
			}
			s.replay()
		})
	}
}

func TestShareRefuses(t *testing.T) {
	s := newStore(t, 1, 2)
	root := objstore.VolumeRoot(1)
	f, g, other := s.file(root, "f"), s.file(root, "g"), s.file(objstore.VolumeRoot(2), "h")
	s.must(objstore.Write{Ino: f, Size: 100, Extents: []objstore.Extent{pooled(f, 0, 100, 1)}})
	for _, c := range []struct {
		c    objstore.Share
		want error
	}{
		{objstore.Share{Ino: other, Src: f, Len: 1}, objstore.CrossVolume},
		{objstore.Share{Ino: g, Src: f, Len: 0}, objstore.Invalid},
		{objstore.Share{Ino: g, Src: f, Len: 101}, objstore.Invalid},
		{objstore.Share{Ino: g, Src: f, SrcOff: 100, Len: 1}, objstore.Invalid},
		{objstore.Share{Ino: g, Src: f, SrcOff: ^uint64(0), Len: 2}, objstore.Invalid},
		{objstore.Share{Ino: g, Src: f, Off: ^uint64(0), Len: 2}, objstore.TooBig},
		{objstore.Share{Ino: g, Src: f, Len: objstore.MaxShare + 1}, objstore.Invalid},
		{objstore.Share{Ino: f, Src: f, Off: 200, Len: 1}, objstore.Invalid},
		{objstore.Share{Ino: root, Src: f, Len: 1}, objstore.Invalid},
		{objstore.Share{Ino: g, Src: root, Len: 1}, objstore.Invalid},
		{objstore.Share{Ino: g, Src: f + 9, Len: 1}, objstore.Stale},
	} {
		s.fails(c.c, c.want)
	}
	s.check(1)
}
