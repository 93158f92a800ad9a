package volume

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"pillarbox/objstore"
)

func pooled(ino objstore.Ino, off uint64, n uint32, version uint64) objstore.Extent {
	return objstore.Extent{Off: off, Len: n, Kind: objstore.Pooled,
		Chunk: objstore.ChunkID{Ino: ino, Index: uint32(off / objstore.ChunkSize), Version: version}}
}

func TestWriteRefuses(t *testing.T) {
	s := newStore(t, 1)
	f := s.file(objstore.VolumeRoot(1), "f")
	in := func(off uint64, n int) objstore.Extent {
		return objstore.Extent{Off: off, Len: uint32(n), Kind: objstore.Inline, Data: make([]byte, n)}
	}
	foreign, resident, index := pooled(f+1, 0, 4, 1), pooled(f, 0, 4, objstore.ResidentVersion), pooled(f, 0, 4, 1)
	index.Chunk.Index = 1
	for i, ext := range [][]objstore.Extent{
		{in(0, 0)}, {in(5, 5), in(0, 5)}, {in(0, 5), in(4, 5)}, {in(objstore.ChunkSize-1, 2)}, {in(0, objstore.InlineMax+1)},
		{in(0, objstore.InlineMax), in(5000, 1)}, {foreign}, {resident}, {index}, {pooled(f, 1<<30, 1, 1)}, {{Kind: 9, Len: 1}},
		{{Len: 5, Kind: objstore.Resident, Data: []byte("four")}},
		{{Len: objstore.ResidentMax + 1, Kind: objstore.Resident, Data: make([]byte, objstore.ResidentMax+1)}},
	} {
		if _, err := s.apply(objstore.Write{Ino: f, Size: 8 << 20, Extents: ext}); !errors.Is(err, objstore.Invalid) {
			t.Fatalf("case %d: %v", i, err)
		}
	}
	s.fails(objstore.Write{Ino: f, Size: objstore.MaxFileSize + 1}, objstore.TooBig)
	s.fails(objstore.Write{Ino: f, Size: maxMapped + 9, Extents: []objstore.Extent{in(maxMapped, 9)}}, objstore.TooBig)
	s.fails(objstore.Write{Ino: f + 1}, objstore.Stale)
	s.fails(objstore.SetAttr{Ino: objstore.VolumeRoot(1), Set: objstore.SetSize}, objstore.IsDir)
	s.must(objstore.SetAttr{Ino: f, Set: objstore.SetSize, Size: objstore.MaxFileSize})
	s.must(objstore.SetAttr{Ino: f, Set: objstore.SetSize, Size: 10})
	s.must(objstore.Write{Ino: f, Size: 10, Extents: []objstore.Extent{pooled(f, 0, 10, 8)}})
	s.must(objstore.SetAttr{Ino: f, Set: objstore.SetSize})
	s.fails(objstore.Write{Ino: f, Size: 10, Extents: []objstore.Extent{pooled(f, 0, 10, 8)}}, objstore.Invalid)
}

// sealed is an extent of n bytes that are stored as others.
func sealed(ino objstore.Ino, n uint32, version uint64, data string) objstore.Extent {
	id := objstore.ChunkID{Ino: ino, Version: objstore.ResidentVersion | objstore.SealedVersion | version}
	return objstore.Extent{Len: n, Kind: objstore.Resident, Chunk: id, Data: []byte(data)}
}

func TestSealedBodies(t *testing.T) {
	s := newStore(t, 1)
	f := s.file(objstore.VolumeRoot(1), "f")
	one := sealed(f, 10, 1<<60, "longer than ten bytes")
	s.must(objstore.Write{Ino: f, Size: 10, Extents: []objstore.Extent{one}})
	got, err := Extents(&s.v, f, 0, 10)
	if err != nil || len(got) != 1 || got[0].Chunk != one.Chunk || got[0].Len != 10 {
		t.Fatalf("extents %+v, %v", got, err)
	}
	if b, err := s.v.Get(BodyKey(one.Chunk)); err != nil || string(b) != string(one.Data) {
		t.Fatalf("stored %q, %v", b, err)
	}
	s.must(objstore.SetAttr{Ino: f, Set: objstore.SetSize, Size: 4}) // cuts the extent, not the body
	s.check(1)
	s.must(objstore.Write{Ino: f, Size: 10, Extents: []objstore.Extent{sealed(f, 9, 1<<60+1, "short")}})
	if b, err := s.v.Get(BodyKey(one.Chunk)); err != nil || b != nil {
		t.Fatalf("replaced body is still there: %q, %v", b, err)
	}
	s.check(1) // versions of a session are not of the volume's numbers
	foreign, pooledID, none := sealed(f+1, 9, 7, "x"), sealed(f, 9, 7, "x"), sealed(f, 9, 7, "")
	pooledID.Chunk.Version &^= objstore.ResidentVersion
	for _, e := range []objstore.Extent{foreign, pooledID, none, sealed(f, objstore.ResidentMax+1, 7, "x")} {
		s.fails(objstore.Write{Ino: f, Size: 1 << 20, Extents: []objstore.Extent{e}}, objstore.Invalid)
	}
}

// plain is a file as bytes, at a few places of interest only.
type plain struct {
	bytes map[uint64][]byte
	size  uint64
}

const window = 48 << 10

func TestExtentsModel(t *testing.T) {
	starts := []uint64{0, objstore.ChunkSize - window/2, regionSize - window/2, 2*regionSize - window/2, 1<<40 - window/2}
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			s := newStore(t, 1)
			f := s.file(objstore.VolumeRoot(1), "f")
			m := plain{bytes: map[uint64][]byte{}}
			for _, st := range starts {
				m.bytes[st] = make([]byte, window)
			}
			pool := map[objstore.ChunkID][]byte{}
			version := uint64(0)
			for step := range 400 {
				st := starts[rnd.IntN(len(starts))]
				if rnd.IntN(8) == 0 {
					m.resize(st + uint64(rnd.IntN(window)))
					s.must(objstore.SetAttr{Ino: f, Set: objstore.SetSize, Size: m.size})
				} else {
					ext, data := randomWrite(rnd, f, st, &version)
					size := ext[len(ext)-1].End()
					if _, err := s.apply(objstore.Write{Ino: f, Size: size, Extents: ext, Mtime: int64(step)}); err != nil {
						if !errors.Is(err, objstore.Invalid) {
							t.Fatal(err)
						}
						continue // too much inline
					}
					m.size = max(m.size, size)
					for i, e := range ext {
						copy(m.bytes[st][e.Off-st:], data[i])
						if e.Kind == objstore.Pooled {
							pool[e.Chunk] = append(make([]byte, e.ChunkOff), data[i]...)
						}
					}
				}
				m.compare(t, s, f, pool)
				if step%20 == 0 {
					s.check(1)
					checkChunks(t, s, pool)
				}
			}
			s.must(objstore.Remove{Parent: objstore.VolumeRoot(1), Name: "f"})
			for s.must(objstore.Purge{Vol: 1, Inos: []objstore.Ino{f}}).Orphan != 0 {
			}
			s.check(1)
			checkChunks(t, s, pool)
			if files, n, _ := Usage(&s.v, 1); files != 1 || n != 0 {
				t.Fatalf("%d files, %d bytes left", files, n)
			}
			s.replay()
		})
	}
}

// randomWrite makes one to three extents in the window at st, and their bytes.
func randomWrite(rnd *rand.Rand, f objstore.Ino, st uint64, version *uint64) (ext []objstore.Extent, data [][]byte) {
	off := st + uint64(rnd.IntN(window-1))
	for range 1 + rnd.IntN(3) {
		n := uint64(1 + rnd.IntN([]int{40, 700, 9000}[rnd.IntN(3)]))
		n = min(n, st+window-off, objstore.ChunkSize-off%objstore.ChunkSize)
		if n == 0 {
			break
		}
		e := objstore.Extent{Off: off, Len: uint32(n), Kind: objstore.ExtentKind(rnd.IntN(4))}
		if e.Kind == objstore.Inline && n > 900 {
			e.Kind = objstore.Resident
		}
		p := make([]byte, n)
		if e.Kind != objstore.Hole {
			for i := range p {
				p[i] = byte(1 + rnd.IntN(255))
			}
		}
		switch e.Kind {
		case objstore.Inline, objstore.Resident:
			e.Data = p
		case objstore.Pooled:
			*version++
			e = pooled(f, off, uint32(n), *version)
			e.ChunkOff = uint32(rnd.IntN(100))
		}
		ext, data = append(ext, e), append(data, p)
		off = e.End() + uint64(rnd.IntN(2)*rnd.IntN(300))
		if off >= st+window {
			break
		}
	}
	return ext, data
}

func (m *plain) resize(size uint64) {
	for st, b := range m.bytes {
		if size < st+window {
			clear(b[min(max(size, st)-st, window):])
		}
	}
	m.size = size
}

func (m *plain) compare(t *testing.T, s *store, f objstore.Ino, pool map[objstore.ChunkID][]byte) {
	t.Helper()
	if a := s.attr(f); a.Size != m.size {
		t.Fatalf("size %d, want %d", a.Size, m.size)
	}
	for st, want := range m.bytes {
		ext, err := Extents(&s.v, f, st, window)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, window)
		for _, e := range ext {
			src := e.Data
			switch e.Kind {
			case objstore.Resident:
				src, _ = s.v.Get(BodyKey(e.Chunk))
				src = src[e.ChunkOff:][:e.Len]
			case objstore.Pooled:
				src = pool[e.Chunk][e.ChunkOff:][:e.Len]
			}
			if e.Off < st {
				t.Fatalf("extent at %d before the window at %d", e.Off, st)
			}
			copy(got[e.Off-st:], src)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("bytes at %d differ: %v", st, ext)
		}
	}
}

// checkChunks compares what is referenced with the bodies there are, and with
// the notes of freed chunks.
func checkChunks(t *testing.T, s *store, pool map[objstore.ChunkID][]byte) {
	t.Helper()
	used := map[objstore.ChunkID]bool{}
	if err := Chunks(&s.v, 1, func(id objstore.ChunkID) bool {
		if used[id] {
			t.Fatalf("%v twice", id)
		}
		used[id] = true
		return true
	}); err != nil {
		t.Fatal(err)
	}
	bodies := 0
	s.v.Scan(appendPrefix(nil, 1, kBody), nil, func(k, _ []byte) bool {
		id, ok := ParseBodyKey(k)
		if !ok || !used[id] {
			t.Fatalf("body %x is not wanted", k)
		}
		bodies++
		return true
	})
	freed, err := FreedChunks(&s.v, 1, -1)
	if err != nil {
		t.Fatal(err)
	}
	gone := map[objstore.ChunkID]bool{}
	for _, id := range freed {
		gone[id] = true
	}
	for id := range used {
		if ref, err := References(&s.v, id); !ref || err != nil {
			t.Fatalf("%v: %v %v", id, ref, err)
		}
		if id.Resident() {
			bodies--
		}
	}
	if bodies != 0 {
		t.Fatalf("%d bodies too few or many", bodies)
	}
	for id := range pool {
		if used[id] == gone[id] {
			t.Fatalf("%v: used %v, freed %v", id, used[id], gone[id])
		}
	}
}

func TestInlineAppendsJoin(t *testing.T) {
	s := newStore(t, 1)
	f := s.file(objstore.VolumeRoot(1), "f")
	var want []byte
	for len(want)+48 <= objstore.InlineMax {
		p := bytes.Repeat([]byte{byte(len(want))}, 48)
		off := uint64(len(want))
		want = append(want, p...)
		s.must(objstore.Write{Ino: f, Size: uint64(len(want)), Extents: []objstore.Extent{{Off: off, Len: 48, Kind: objstore.Inline, Data: p}}})
		clear(p)
	}
	ext, err := Extents(&s.v, f, 0, 1<<20)
	if err != nil || len(ext) != 1 || !bytes.Equal(ext[0].Data, want) {
		t.Fatalf("%v %v", ext, err)
	}
}

func TestPurgeBigFile(t *testing.T) {
	s := newStore(t, 1)
	root := objstore.VolumeRoot(1)
	f := s.file(root, "big")
	s.must(objstore.SetXattr{Ino: f, Name: "user.x", Value: []byte("y")})
	const chunks = 3000
	for i := range uint64(chunks) {
		off := i * objstore.ChunkSize
		s.must(objstore.Write{Ino: f, Size: off + objstore.ChunkSize, Extents: []objstore.Extent{pooled(f, off, objstore.ChunkSize, i+1)}})
	}
	s.check(1)
	if a := s.attr(f); a.Blocks != chunks*objstore.ChunkSize/512 {
		t.Fatalf("blocks %d", a.Blocks)
	}
	s.must(objstore.SetAttr{Ino: f, Set: objstore.SetSize, Size: 2500*objstore.ChunkSize + 5})
	s.check(1)
	s.must(objstore.Remove{Parent: root, Name: "big"})
	rounds := 1
	for s.must(objstore.Purge{Vol: 1, Inos: []objstore.Ino{f}}).Orphan == f {
		s.check(1)
		rounds++
	}
	if rounds < 3 || rounds > 4 {
		t.Fatalf("%d rounds", rounds)
	}
	if freed, _ := FreedChunks(&s.v, 1, -1); len(freed) != chunks {
		t.Fatalf("%d freed", len(freed))
	}
	s.check(1)
	if o, _ := Orphans(&s.v, 1, 1); len(o) != 0 {
		t.Fatal(o)
	}
	s.replay()
}
