package volume

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pillarbox/objstore"
)

const damagedVol = 5

// populated is a volume with something of every kind in it.
func populated(t testing.TB) *store {
	s := newStore(t, damagedVol)
	root := objstore.VolumeRoot(damagedVol)
	a := s.dir(root, "a")
	b := s.dir(a, "b")
	s.dir(b, "empty")
	f := s.file(a, "f")
	s.must(objstore.Link{Ino: f, Parent: b, Name: "g"})
	s.must(objstore.Create{Parent: b, Name: "link", Mode: objstore.ModeSymlink | 0o777, Target: "x"})
	s.must(objstore.SetXattr{Ino: f, Name: "user.x", Value: []byte("y")})
	s.must(objstore.Write{Ino: f, Size: 200 << 20, Extents: []objstore.Extent{
		{Len: 3, Kind: objstore.Inline, Data: []byte("abc")},
		{Off: 512, Len: 4, Kind: objstore.Resident, Data: []byte("body")},
		pooled(f, 100<<20, 4096, 3), pooled(f, 180<<20, 4096, 4),
	}})
	// Chunks of one that is gone, of one that is there, and of a later region.
	copied, again := s.file(root, "copied"), s.file(root, "again")
	s.must(objstore.Share{Ino: copied, Src: f, SrcOff: 100 << 20, Len: 81 << 20, Off: 70 << 20})
	s.must(objstore.Share{Ino: copied, Src: f, Len: 600})
	s.must(objstore.Share{Ino: again, Src: copied, Len: 151 << 20, Off: 1000})
	s.must(objstore.Remove{Parent: root, Name: "copied"})
	for s.must(objstore.Purge{Vol: damagedVol, Inos: []objstore.Ino{copied}}).Orphan != 0 {
	}
	gone := s.file(root, "gone")
	s.must(objstore.Write{Ino: gone, Size: 4, Extents: []objstore.Extent{pooled(gone, 0, 4, 9)}})
	s.must(objstore.Remove{Parent: root, Name: "gone"})
	s.check(damagedVol)
	return s
}

// repair calls Repair until it has no more to do, and returns what is left.
func repair(t testing.TB, v *MapView) []Problem {
	t.Helper()
	for range 12 {
		d, _, err := Repair(v, damagedVol)
		if err != nil {
			t.Fatal(err)
		}
		if len(d) == 0 {
			return problems(t, v, damagedVol)
		}
		v.Apply(d)
	}
	t.Fatal("repair does not end")
	return nil
}

func copyOf(d Delta) *MapView {
	v := new(MapView)
	v.Apply(d)
	return v
}

func TestCheckFindsLostRecords(t *testing.T) {
	all := dump(t, &populated(t).v)
	for _, w := range all {
		typ := w.Key[4]
		if w.Key[3] != damagedVol || typ == kBody || typ == kFreed {
			continue
		}
		t.Run(fmt.Sprintf("%c%x", typ, w.Key[5:]), func(t *testing.T) {
			v := copyOf(all)
			v.Apply(Delta{{w.Key, nil}})
			found := problems(t, v, damagedVol)
			if len(found) == 0 {
				t.Fatal("not found")
			}
			if left := repair(t, v); len(left) != 0 {
				t.Fatalf("found %v, left after repair %v", found, left)
			}
		})
	}
}

func TestCheckFindsGarbage(t *testing.T) {
	all := dump(t, &populated(t).v)
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, w := range all {
		typ := w.Key[4]
		if w.Key[3] != damagedVol || typ == kBody || typ == kFreed || typ == kOrphan {
			continue
		}
		t.Run(fmt.Sprintf("%c%x", typ, w.Key[5:]), func(t *testing.T) {
			v := copyOf(all)
			v.Apply(Delta{{w.Key, []byte{9}}})
			if len(problems(t, v, damagedVol)) == 0 {
				t.Fatal("not found")
			}
			left := repair(t, v)
			if len(left) != 0 && typ != kInode && typ != kRegion && typ != kXattr {
				t.Fatalf("left after repair: %v", left)
			}
			for range 300 {
				v := copyOf(all)
				val := bytes.Clone(w.Value)
				val[rnd.IntN(len(val))] ^= 1 << rnd.IntN(8)
				v.Apply(Delta{{w.Key, val}})
				repair(t, v)
			}
		})
	}
}

func TestCheckKinds(t *testing.T) {
	root := objstore.VolumeRoot(damagedVol)
	edit := func(change func(*inode), path ...string) func(*store) Delta {
		return func(s *store) Delta {
			ino := root
			for _, p := range path {
				ino = s.lookup(ino, p).Ino
			}
			f := &fixer{v: &s.v, id: damagedVol, at: map[string]int{}}
			if err := f.inode(ino, change); err != nil {
				t.Fatal(err)
			}
			return f.delta
		}
	}
	name := func(dir objstore.Ino, name string, e dirent) Delta {
		return Delta{
			{appendNameKey(nil, kDirent, dir, name), appendDirent(nil, e)},
			{appendCookieKey(nil, dir, e.cookie), appendCookieRecord(nil, e, name)},
		}
	}
	for _, c := range []struct {
		kind   string
		damage func(s *store) Delta
	}{
		{ProblemNlink, edit(func(in *inode) { in.Nlink = 7 }, "a", "f")},
		{ProblemNlink, edit(func(in *inode) { in.Nlink = 7 }, "a", "b")},
		{ProblemNlink, edit(func(in *inode) { in.Nlink = 0 }, "a", "f")},
		{ProblemParent, edit(func(in *inode) { in.Parent = root }, "a", "b")},
		{ProblemExtents, edit(func(in *inode) { in.Size = 9 }, "a", "f")},
		{ProblemExtents, edit(func(in *inode) { in.Blocks = 1 }, "a", "f")},
		{ProblemXattr, edit(func(in *inode) { in.HasXattr = true }, "a")},
		{ProblemDangling, func(*store) Delta {
			return name(root, "x", dirent{ino: objstore.MakeIno(damagedVol, 999), typ: objstore.ModeRegular, cookie: 700})
		}},
		{ProblemDangling, func(*store) Delta {
			return name(root, "x", dirent{ino: objstore.VolumeRoot(9), typ: objstore.ModeDir, cookie: 700})
		}},
		{ProblemType, func(s *store) Delta {
			e := s.lookup(root, "a")
			return name(root, "a", dirent{ino: e.Ino, typ: objstore.ModeRegular, cookie: e.Cookie})
		}},
		{ProblemDirNames, func(s *store) Delta {
			return name(root, "z", dirent{ino: s.lookup(root, "a").Ino, typ: objstore.ModeDir, cookie: 700})
		}},
		{ProblemStray, func(s *store) Delta {
			return name(objstore.MakeIno(damagedVol, 999), "z", dirent{ino: s.lookup(root, "a").Ino, typ: objstore.ModeDir, cookie: 700})
		}},
		{ProblemUnlisted, func(s *store) Delta {
			e := s.lookup(root, "a")
			f := s.lookup(e.Ino, "f")
			return name(e.Ino, "f2", dirent{ino: f.Ino, typ: f.Type, cookie: f.Cookie})
		}},
		{ProblemLoop, func(s *store) Delta {
			e := s.lookup(root, "a")
			b := s.lookup(e.Ino, "b")
			d := name(b.Ino, "a", dirent{ino: e.Ino, typ: e.Type, cookie: 700})
			return append(d, Write{Key: appendNameKey(nil, kDirent, root, "a")}, Write{Key: appendCookieKey(nil, root, e.Cookie)})
		}},
		{ProblemFreed, func(s *store) Delta {
			f := s.lookup(s.lookup(root, "a").Ino, "f")
			return Delta{{appendChunkKey(nil, kFreed, pooled(f.Ino, 100<<20, 1, 3).Chunk), marker[:]}}
		}},
		{ProblemCounter, func(s *store) Delta {
			rec := volRecord{next: 4, inodes: 2}
			return Delta{{appendPrefix(nil, damagedVol, kVolume), rec.appendTo(nil)}}
		}},
	} {
		t.Run(c.kind, func(t *testing.T) {
			s := populated(t)
			s.v.Apply(c.damage(s))
			found := fmt.Sprint(problems(t, &s.v, damagedVol))
			if !strings.Contains(found, c.kind+" ") {
				t.Fatalf("found only %v", found)
			}
			if left := repair(t, &s.v); len(left) != 0 {
				t.Fatalf("found %v, left after repair %v", found, left)
			}
		})
	}
}

// TestRepairInRounds damages more than one call mends, and loses nothing.
func TestRepairInRounds(t *testing.T) {
	s := newStore(t, damagedVol)
	root := objstore.VolumeRoot(damagedVol)
	d := s.dir(root, "d")
	const files = 12000
	for i := range files {
		s.file(d, fmt.Sprint(i))
	}
	var lost Delta
	for _, typ := range []byte{kDirent, kCookie} {
		s.v.Scan(appendInoKey(nil, typ, d), nil, func(k, _ []byte) bool {
			lost = append(lost, Write{Key: bytes.Clone(k)})
			return true
		})
	}
	s.v.Apply(lost)
	first, _, err := Repair(&s.v, damagedVol)
	if err != nil || len(first) > repairWrites+100 {
		t.Fatalf("%d writes, %v", len(first), err)
	}
	if left := repair(t, &s.v); len(left) != 0 {
		t.Fatalf("left: %v", left[:1])
	}
	if n := len(strings.Fields(s.names(root))); n != files+1 {
		t.Fatalf("%d names", n)
	}
}
