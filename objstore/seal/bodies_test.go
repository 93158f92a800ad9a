package seal_test

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"

	"pillarbox/cachefs"
	"pillarbox/cachefs/storetest"
	"pillarbox/objstore"
	"pillarbox/objstore/seal"
)

// memory is a cache of bodies.
type memory struct{ sync.Map }

func (m *memory) Get(id objstore.ChunkID, off uint32, p []byte) bool {
	b, ok := m.Load(id)
	return ok && int(off) < len(b.([]byte)) && copy(p, b.([]byte)[off:]) == len(p)
}

func (m *memory) Put(id objstore.ChunkID, data []byte) { m.Store(id, data) }

func (m *memory) Has(id objstore.ChunkID, n uint32) bool {
	b, ok := m.Load(id)
	return ok && len(b.([]byte)) >= int(n)
}

func (m *memory) Room() {}

func (m *memory) Spare() int64 { return 1 << 40 }

func (m *memory) Remove(id objstore.ChunkID) { m.Delete(id) }

func (m *memory) all() (list []objstore.ChunkID) {
	m.Range(func(id, _ any) bool { list = append(list, id.(objstore.ChunkID)); return true })
	return list
}

func nowhere(objstore.ChunkID) bool { return false }

// TestKeptNear writes and reads with a cache of bodies: it gets those of a plain
// volume as they are, and those of an encrypted one sealed.
func TestKeptNear(t *testing.T) {
	_, sealed, _ := encrypted(t)
	for what, s := range map[string]*seal.Store{"encrypted": sealed, "plain": open(t, storetest.New(), "")} {
		near := &memory{}
		fs, err := cachefs.New(s, cachefs.Options{Bodies: s.Bodies(near, nowhere)})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{100, 5000, 100 << 10, 5 << 20} {
			ino := create(t, fs, string(rune('a'+n%26)), marked(n))
			if got, err := read(fs, ino, n); err != nil || !bytes.Equal(got, marked(n)) {
				t.Errorf("%s: %d bytes read, %v", what, len(got), err)
			}
		}
		if err := fs.Close(); err != nil {
			t.Fatal(err)
		}
		kept := near.all()
		if what == "plain" && len(kept) != 4 || what == "encrypted" && len(kept) != 5 { // 100 bytes are inline where they may be
			t.Errorf("%s: %d chunks were kept", what, len(kept))
		}
		for _, id := range kept {
			b, _ := near.Load(id)
			if plain := bytes.Contains(b.([]byte), marked(64)); plain != (what == "plain") || id.Sealed() == plain {
				t.Errorf("%s: chunk %v is kept, plain text: %v", what, id, plain)
			}
		}
	}
}

// deaf is a base that reads no chunks while it is away.
type deaf struct {
	base
	away bool
	asks int
}

func (d *deaf) ReadChunk(ctx context.Context, id objstore.ChunkID, off uint32, p []byte) error {
	if d.asks++; d.away {
		return objstore.Unavailable
	}
	return d.base.ReadChunk(ctx, id, off, p)
}

// TestReadFromNear: what another client wrote is read from below once, then from
// near; what is damaged near is read from below again.
func TestReadFromNear(t *testing.T) {
	mem, writer, path := encrypted(t)
	fs := newFS(t, writer)
	const n = 300 << 10
	ino := create(t, fs, "mail", marked(n))
	d, near := &deaf{base: base{mem, unlocked{}, sessions.Add(1)}}, &memory{}
	s, err := seal.New(d, path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.Bodies(near, nowhere)
	list, err := s.Extents(t.Context(), ino, 0, n)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	id := list[0].Chunk
	reads := func(what string, s *seal.Store) {
		t.Helper()
		for _, r := range [][2]int{{70_000, 10}, {0, n}, {1000, 200_000}} {
			p := make([]byte, r[1])
			if err := s.ReadChunk(t.Context(), id, uint32(r[0]), p); err != nil || !bytes.Equal(p, marked(n)[r[0]:r[0]+r[1]]) {
				t.Errorf("%s: %d bytes at %d: %v, or other bytes", what, r[1], r[0], err)
			}
		}
	}
	reads("cold", s)
	d.away = true
	reads("the store away", s)
	fresh, err := seal.New(d, path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	fresh.Bodies(near, nowhere)
	reads("started anew, the store away", fresh)
	d.away = false
	b, _ := near.Load(id)
	bad := bytes.Clone(b.([]byte))
	for i := range bad {
		bad[i] ^= byte(i + 1)
	}
	near.Store(id, bad)
	asked := d.asks
	reads("damaged near", s)
	if d.asks == asked {
		t.Error("damaged bytes were read")
	}
	near.Store(id, bad)
	newest, err := seal.New(d, path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	newest.Bodies(near, nowhere)
	reads("damaged near from its head on", newest)
	if b, ok := near.Load(id); !ok || bytes.Equal(b.([]byte), bad) {
		t.Error("the damaged body stays near")
	}
}

// TestLocalIsNotKept: of chunks that are on this host anyway neither what is written
// nor what is read is kept, and no more of them is read than was asked for.
func TestLocalIsNotKept(t *testing.T) {
	mem, _, path := encrypted(t)
	d, near := &deaf{base: base{mem, unlocked{}, sessions.Add(1)}}, &memory{}
	s, err := seal.New(d, path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	fs, err := cachefs.New(s, cachefs.Options{Bodies: s.Bodies(near, func(objstore.ChunkID) bool { return true })})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{5000, 1 << 20} {
		ino := create(t, fs, string(rune('a'+n%26)), marked(n))
		for range 2 {
			if got, err := read(fs, ino, n); err != nil || !bytes.Equal(got, marked(n)) {
				t.Errorf("%d bytes read, %v", len(got), err)
			}
		}
	}
	if err := fs.Close(); err != nil {
		t.Fatal(err)
	}
	if kept := near.all(); len(kept) > 0 {
		t.Errorf("%d chunks were kept", len(kept))
	}
}
