package volume

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pillarbox/objstore"
)

// store applies changes to a MapView and keeps the log of what they did.
type store struct {
	t   testing.TB
	v   MapView
	log []byte
	cut []int // where the log's entries end
	now int64
}

const startTime = 1_000_000

func newStore(t testing.TB, vols ...objstore.VolumeID) *store {
	s := &store{t: t, now: startTime}
	for _, vol := range append([]objstore.VolumeID{0}, vols...) {
		s.must(objstore.InitVolume{Vol: vol, Parent: 1, Mode: 0o755, Uid: 10, Gid: 20})
	}
	return s
}

func (s *store) apply(c objstore.Change) (objstore.Result, error) {
	s.t.Helper()
	d, res, err := Apply(&s.v, c, s.now)
	if err != nil {
		if d != nil || !reflect.DeepEqual(res, objstore.Result{}) {
			s.t.Fatalf("%+v: failed with %v, yet returned something", c, err)
		}
		return res, err
	}
	keys := map[string]bool{}
	for _, w := range d {
		if keys[string(w.Key)] {
			s.t.Fatalf("%+v writes key %x twice", c, w.Key)
		}
		keys[string(w.Key)] = true
	}
	s.log = d.AppendTo(s.log)
	s.cut = append(s.cut, len(s.log))
	s.v.Apply(d)
	return res, nil
}

func (s *store) must(c objstore.Change) objstore.Result {
	s.t.Helper()
	res, err := s.apply(c)
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	return res
}

func (s *store) fails(c objstore.Change, want error) {
	s.t.Helper()
	if _, err := s.apply(c); !errors.Is(err, want) {
		s.t.Fatalf("%+v: got %v, want %v", c, err, want)
	}
}

func (s *store) file(dir objstore.Ino, name string) objstore.Ino {
	s.t.Helper()
	return s.must(objstore.Create{Parent: dir, Name: name, Mode: objstore.ModeRegular | 0o600}).Attr.Ino
}

func (s *store) dir(dir objstore.Ino, name string) objstore.Ino {
	s.t.Helper()
	return s.must(objstore.Create{Parent: dir, Name: name, Mode: objstore.ModeDir | 0o700}).Attr.Ino
}

func (s *store) attr(ino objstore.Ino) objstore.Attr {
	s.t.Helper()
	a, err := GetAttr(&s.v, ino)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *store) names(dir objstore.Ino) string {
	s.t.Helper()
	list, err := ReadDir(&s.v, dir, 0, 1<<30, true)
	if err != nil {
		s.t.Fatal(err)
	}
	out := ""
	for _, e := range list {
		out += e.Name + " "
	}
	return out
}

func (s *store) lookup(dir objstore.Ino, name string) objstore.DirEntry {
	s.t.Helper()
	e, err := Lookup(&s.v, dir, name)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

// check fails the test if fsck finds anything.
func (s *store) check(vol objstore.VolumeID) {
	s.t.Helper()
	if p := problems(s.t, &s.v, vol); len(p) > 0 {
		s.t.Fatalf("check of volume %d: %v", vol, p)
	}
}

func problems(t testing.TB, v View, vol objstore.VolumeID) []Problem {
	t.Helper()
	var out []Problem
	if err := Check(v, vol, func(p Problem) { out = append(out, p) }); err != nil {
		t.Fatal(err)
	}
	return out
}

func dump(t testing.TB, v View) Delta {
	t.Helper()
	var d Delta
	err := v.Scan(nil, nil, func(k, val []byte) bool {
		d = append(d, Write{bytes.Clone(k), append([]byte{}, val...)})
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// replay checks that the logged deltas give the same keys.
func (s *store) replay() {
	s.t.Helper()
	var again MapView
	from := 0
	for _, to := range s.cut {
		d, err := ParseDelta(s.log[from:to])
		if err != nil {
			s.t.Fatal(err)
		}
		again.Apply(d)
		from = to
	}
	if !bytes.Equal(dump(s.t, &again).AppendTo(nil), dump(s.t, &s.v).AppendTo(nil)) {
		s.t.Fatal("replay of the log gives other keys")
	}
}

func TestDeltaEncoding(t *testing.T) {
	d := Delta{{[]byte("k"), []byte("v")}, {[]byte("gone"), nil}, {[]byte("e"), []byte{}}}
	b := d.AppendTo([]byte("x"))[1:]
	got, err := ParseDelta(b)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", d) {
		t.Fatalf("got %#v", got)
	}
	for i := range b {
		if _, err := ParseDelta(b[:i]); !errors.Is(err, objstore.Corrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func FuzzParseDelta(f *testing.F) {
	f.Add(Delta{{[]byte("k"), []byte("v")}, {[]byte("gone"), nil}}.AppendTo(nil))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDelta(b)
		if err != nil {
			return
		}
		again, err := ParseDelta(d.AppendTo(nil))
		if err != nil || len(again) != len(d) {
			t.Fatalf("%v after %v", err, d)
		}
	})
}

func FuzzInodeRecord(f *testing.F) {
	in := inode{Attr: objstore.Attr{Mode: objstore.ModeRegular | 0o600, Nlink: 1, Size: 10, Mtime: 5}, loaded: true}
	in.ext = []objstore.Extent{
		{Off: 0, Len: 3, Kind: objstore.Inline, Data: []byte("abc")},
		{Off: 4, Len: 6, Kind: objstore.Resident, Chunk: objstore.ChunkID{Version: objstore.ResidentVersion | 9}},
	}
	f.Add(in.appendTo(nil))
	in.shared = true
	in.ext[1].Chunk.Ino, in.ext[1].Chunk.Index = 9, 3
	f.Add(in.appendTo(nil))
	f.Add((&inode{Attr: objstore.Attr{Mode: objstore.ModeDir, Parent: 1}}).appendTo(nil))
	f.Add((&inode{Attr: objstore.Attr{Mode: objstore.ModeSymlink}, target: []byte("t")}).appendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var in, again inode
		if decodeInode(&in, 7, nil, b) != nil {
			return
		}
		if _, err := in.extents(); err != nil {
			return
		}
		enc := in.appendTo(nil)
		if len(enc) > in.maxLen() {
			t.Fatalf("record of %d bytes, at most %d expected", len(enc), in.maxLen())
		}
		if err := decodeInode(&again, 7, nil, enc); err != nil {
			t.Fatal(err)
		}
		if ext, err := again.extents(); err != nil || len(ext) != len(in.ext) || again.Attr != in.Attr {
			t.Fatalf("%v: %+v became %+v", err, in, again)
		}
	})
}

func TestVolumes(t *testing.T) {
	s := newStore(t)
	dom := s.dir(1, "example.org")
	res := s.must(objstore.ReserveVolume{Parent: dom, Name: "ann"})
	vol := res.Attr.Ino.Volume()
	if p, _ := Pending(&s.v); !slices.Equal(p, []objstore.VolumeID{vol}) {
		t.Fatalf("pending: %v", p)
	}
	s.must(objstore.InitVolume{Vol: vol, Parent: dom, Mode: 0o700, Uid: 5})
	keys := s.v.Len()
	s.must(objstore.InitVolume{Vol: vol, Parent: dom, Mode: 0o777, Uid: 6})
	if s.v.Len() != keys || s.attr(objstore.VolumeRoot(vol)).Uid != 5 {
		t.Fatal("a second init changed something")
	}
	s.must(objstore.AttachVolume{Vol: vol, Parent: dom, Name: "ann"})
	s.fails(objstore.AttachVolume{Vol: vol, Parent: dom, Name: "bob"}, objstore.NotFound)
	s.fails(objstore.ReserveVolume{Parent: dom, Name: "ann"}, objstore.Exist)
	root := objstore.VolumeRoot(vol)
	if e := s.lookup(dom, "ann"); e.Ino != root || e.Attr != nil || e.Type != objstore.ModeDir {
		t.Fatalf("%+v", e)
	}
	if n := s.attr(dom).Nlink; n != 3 {
		t.Fatalf("nlink %d", n)
	}
	s.must(objstore.Rename{OldParent: dom, OldName: "ann", NewParent: 1, NewName: "anna"})
	s.must(objstore.Rename{OldParent: 1, OldName: "anna", NewParent: dom, NewName: "ann"})
	s.check(0)

	was, moved := s.attr(root), s.dir(1, "example.net")
	s.must(objstore.Reparent{Vol: vol, From: moved, To: moved}) // it is not there
	if a := s.attr(root); a != was {
		t.Fatalf("%+v, want %+v", a, was)
	}
	was.Parent = moved
	if a := s.must(objstore.Reparent{Vol: vol, From: dom, To: moved}).Attr; a != was || s.attr(root) != was {
		t.Fatalf("%+v, want %+v", a, was)
	}
	s.must(objstore.Reparent{Vol: vol, From: moved, To: dom})
	s.fails(objstore.Reparent{Vol: vol, From: dom, To: root}, objstore.Invalid)
	s.fails(objstore.Reparent{From: 1, To: dom}, objstore.Invalid)
	s.fails(objstore.Reparent{Vol: vol + 1, From: dom, To: moved}, objstore.Stale)

	f := s.file(root, "f")
	s.must(objstore.Write{Ino: f, Size: 4, Extents: []objstore.Extent{pooled(f, 0, 4, 77)}, Mtime: 9})
	s.fails(objstore.Link{Ino: f, Parent: 1, Name: "x"}, objstore.CrossVolume)
	s.fails(objstore.Rename{OldParent: root, OldName: "f", NewParent: 1, NewName: "x"}, objstore.CrossVolume)
	s.fails(objstore.SealVolume{Vol: vol}, objstore.NotEmpty)
	s.fails(objstore.DropVolume{Vol: vol}, objstore.NotPermitted)
	s.must(objstore.Remove{Parent: root, Name: "f"})
	s.must(objstore.SealVolume{Vol: vol})
	s.fails(objstore.Create{Parent: root, Name: "g", Mode: objstore.ModeRegular}, objstore.NotFound)
	s.fails(objstore.Link{Ino: f, Parent: root, Name: "g"}, objstore.NotFound)
	s.must(objstore.SealVolume{Vol: vol, Undo: true})
	s.must(objstore.Link{Ino: f, Parent: root, Name: "g"})
	s.must(objstore.Remove{Parent: root, Name: "g"})
	s.must(objstore.SealVolume{Vol: vol})

	s.must(objstore.PendVolume{Vol: vol})
	s.fails(objstore.Remove{Parent: dom, Name: "ann", Dir: true}, objstore.NotEmpty)
	s.must(objstore.Remove{Parent: dom, Name: "ann", Dir: true, Sealed: root})
	if n := s.attr(dom).Nlink; n != 2 {
		t.Fatalf("nlink %d", n)
	}
	for n := 0; s.must(objstore.DropVolume{Vol: vol}).Orphan != 0; n++ {
		if n > 5 {
			t.Fatal("drop does not end")
		}
	}
	s.must(objstore.DropVolume{Vol: vol})
	s.must(objstore.PendVolume{Vol: vol, Done: true})
	freed, err := FreedChunks(&s.v, vol, 10)
	if err != nil || len(freed) != 1 {
		t.Fatalf("%v %v", freed, err)
	}
	s.must(objstore.FreeChunks{Vol: vol, Chunks: freed})
	if vols, err := Volumes(&s.v); err != nil || !slices.Equal(vols, []objstore.VolumeID{0}) {
		t.Fatalf("%v %v", vols, err)
	}
	if res := s.must(objstore.ReserveVolume{Parent: dom, Name: "ann"}); res.Attr.Ino.Volume() == vol {
		t.Fatal("volume id used again")
	}
	s.check(0)
	s.replay()
}

func TestManyVolumes(t *testing.T) {
	s := newStore(t, 3, 9, 70000, objstore.MaxVolume)
	s.file(objstore.VolumeRoot(9), "x")
	s.must(objstore.SetXattr{Ino: objstore.VolumeRoot(9), Name: "user.x"})
	if vols, _ := Volumes(&s.v); !slices.Equal(vols, []objstore.VolumeID{0, 3, 9, 70000, objstore.MaxVolume}) {
		t.Fatalf("%v", vols)
	}
	if files, bytes, err := Usage(&s.v, 9); files != 2 || bytes != 0 || err != nil {
		t.Fatalf("%d %d %v", files, bytes, err)
	}
	if _, _, err := Usage(&s.v, 10); !errors.Is(err, objstore.NotFound) {
		t.Fatal(err)
	}
}

// BenchmarkDeliver is create, link, rename and unlink of one message.
func BenchmarkDeliver(b *testing.B) {
	s := newStore(b, 1)
	root := objstore.VolumeRoot(1)
	tmp, fresh, cur := s.dir(root, "tmp"), s.dir(root, "new"), s.dir(root, "cur")
	step := func(c objstore.Change) {
		d, _, err := Apply(&s.v, c, s.now)
		if err != nil {
			b.Fatal(err)
		}
		s.v.Apply(d)
	}
	b.ReportAllocs()
	for i := range b.N {
		s.now = startTime + int64(i)*1000
		name := fmt.Sprintf("1700000000.M%dP123.mail.example.org", i)
		step(objstore.Create{Parent: tmp, Name: name, Mode: objstore.ModeRegular | 0o600})
		e, err := Lookup(&s.v, tmp, name)
		if err != nil {
			b.Fatal(err)
		}
		step(objstore.Link{Ino: e.Ino, Parent: fresh, Name: name})
		step(objstore.Remove{Parent: tmp, Name: name})
		step(objstore.Rename{OldParent: fresh, OldName: name, NewParent: cur, NewName: name})
	}
}

func BenchmarkApplyRename(b *testing.B) {
	s := newStore(b, 1)
	root := objstore.VolumeRoot(1)
	s.file(root, "1700000000.M1P123.mail.example.org:2,")
	c := objstore.Rename{OldParent: root, OldName: "1700000000.M1P123.mail.example.org:2,", NewParent: root, NewName: "1700000000.M1P123.mail.example.org:2,S"}
	b.ReportAllocs()
	for range b.N {
		if _, _, err := Apply(&s.v, c, 5); err != nil {
			b.Fatal(err)
		}
	}
}
