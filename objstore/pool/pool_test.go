package pool

import (
	"testing"

	"pillarbox/objstore"
)

func FuzzParseName(f *testing.F) {
	f.Add(Name(objstore.ChunkID{Ino: objstore.MakeIno(3, 4), Index: 5, Version: 1<<62 | 6}))
	f.Add("00/0-0-0")
	f.Fuzz(func(t *testing.T, name string) {
		if id, ok := ParseName(name); ok && Name(id) != name {
			t.Fatalf("%q is read as %v", name, id)
		}
	})
}

func TestName(t *testing.T) {
	for _, id := range []objstore.ChunkID{{}, {Ino: ^objstore.Ino(0), Index: ^uint32(0), Version: ^uint64(0)}, {Ino: 1, Version: 1 << 62}} {
		if got, ok := ParseName(Name(id)); !ok || got != id {
			t.Errorf("%v: %q is read as %v, %v", id, Name(id), got, ok)
		}
	}
	for _, name := range []string{"", "x", Name(objstore.ChunkID{}) + "x", "zz" + Name(objstore.ChunkID{})[2:]} {
		if id, ok := ParseName(name); ok {
			t.Errorf("%q is taken for chunk %v", name, id)
		}
	}
}
