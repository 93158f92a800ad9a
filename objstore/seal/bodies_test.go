package seal_test

import (
	"bytes"
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

// TestNothingKeptNear writes and reads with a cache of bodies: it gets those of a
// plain volume, and none of an encrypted one.
func TestNothingKeptNear(t *testing.T) {
	_, sealed, _ := encrypted(t)
	for what, s := range map[string]*seal.Store{"encrypted": sealed, "plain": open(t, storetest.New(), "")} {
		near := &memory{}
		fs, err := cachefs.New(s, cachefs.Options{Bodies: s.Bodies(near)})
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
		kept := 0
		near.Range(func(any, any) bool { kept++; return true })
		if what == "plain" && kept != 4 || what == "encrypted" && kept != 0 {
			t.Errorf("%s: %d chunks were kept", what, kept)
		}
	}
}
