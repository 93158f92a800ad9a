package volume

import (
	"errors"
	"strings"
	"testing"

	"pillarbox/objstore"
)

func TestCreate(t *testing.T) {
	s := newStore(t, 1)
	root := objstore.VolumeRoot(1)
	reg := objstore.ModeRegular | 0o644
	f := s.file(root, "f")
	for _, c := range []struct {
		c    objstore.Create
		want error
	}{
		{objstore.Create{Parent: root, Name: strings.Repeat("x", 256), Mode: reg}, objstore.NameTooLong},
		{objstore.Create{Parent: root, Name: "a/b", Mode: reg}, objstore.Invalid},
		{objstore.Create{Parent: root, Name: "..", Mode: reg}, objstore.Invalid},
		{objstore.Create{Parent: root, Name: "f", Mode: reg}, objstore.Exist},
		{objstore.Create{Parent: f, Name: "x", Mode: reg}, objstore.NotDir},
		{objstore.Create{Parent: objstore.MakeIno(1, 999), Name: "x", Mode: reg}, objstore.Stale},
		{objstore.Create{Parent: objstore.MakeIno(7, 1), Name: "x", Mode: reg}, objstore.Stale},
		{objstore.Create{Parent: root, Name: "x", Mode: 0o644}, objstore.Invalid},
		{objstore.Create{Parent: root, Mode: objstore.ModeDir}, objstore.Invalid},
		{objstore.Create{Parent: root, Name: "l", Mode: objstore.ModeSymlink}, objstore.Invalid},
		{objstore.Create{Parent: root, Name: "l", Mode: objstore.ModeSymlink, Target: strings.Repeat("t", 4096)}, objstore.NameTooLong},
	} {
		s.fails(c.c, c.want)
	}
	s.must(objstore.SetAttr{Ino: root, Set: objstore.SetMode | objstore.SetGid, Mode: 0o2755, Gid: 99})
	d := s.must(objstore.Create{Parent: root, Name: "d", Mode: objstore.ModeDir | 0o700, Gid: 5}).Attr
	if d.Gid != 99 || d.Mode != objstore.ModeDir|0o2700 || d.Nlink != 2 || d.Parent != root {
		t.Fatalf("%+v", d)
	}
	l := s.must(objstore.Create{Parent: root, Name: "l", Mode: objstore.ModeSymlink | 0o777, Target: "to/there"}).Attr
	if target, err := Readlink(&s.v, l.Ino); target != "to/there" || err != nil || l.Size != 8 || l.Gid != 99 {
		t.Fatalf("%q %v %+v", target, err, l)
	}
	if _, err := Readlink(&s.v, f); !errors.Is(err, objstore.Invalid) {
		t.Fatal(err)
	}
	s.must(objstore.Remove{Parent: root, Name: "d", Dir: true})
	s.fails(objstore.Create{Parent: d.Ino, Name: "x", Mode: reg}, objstore.NotFound)
	if _, err := Lookup(&s.v, f, "x"); !errors.Is(err, objstore.NotDir) {
		t.Fatal(err)
	}
	if _, err := Lookup(&s.v, root, "x"); !errors.Is(err, objstore.NotFound) {
		t.Fatal(err)
	}
	if _, err := ReadDir(&s.v, f, 0, 1, false); !errors.Is(err, objstore.NotDir) {
		t.Fatal(err)
	}
	s.check(1)
}

func TestTmpfile(t *testing.T) {
	s := newStore(t, 1)
	root := objstore.VolumeRoot(1)
	before := s.attr(root)
	res := s.must(objstore.Create{Parent: root, Mode: objstore.ModeRegular | 0o600})
	ino := res.Attr.Ino
	if res.Orphan != ino || res.Attr.Nlink != 0 || s.attr(root) != before {
		t.Fatalf("%+v", res)
	}
	s.check(1)
	if a := s.must(objstore.Link{Ino: ino, Parent: root, Name: "f"}).Attr; a.Nlink != 1 {
		t.Fatalf("%+v", a)
	}
	s.check(1)
	s.must(objstore.Purge{Vol: 1, Inos: []objstore.Ino{ino}})
	s.attr(ino)
	s.must(objstore.Remove{Parent: root, Name: "f"})
	if o, _ := Orphans(&s.v, 1, 10); len(o) != 1 || o[0] != ino {
		t.Fatalf("%v", o)
	}
	s.must(objstore.Purge{Vol: 1, Inos: []objstore.Ino{ino, ino, 77 | root}})
	if _, err := GetAttr(&s.v, ino); !errors.Is(err, objstore.Stale) {
		t.Fatal(err)
	}
	s.fails(objstore.Link{Ino: ino, Parent: root, Name: "f"}, objstore.Stale)
	s.fails(objstore.Link{Ino: root, Parent: root, Name: "f"}, objstore.NotPermitted)
	s.check(1)
}

func TestRename(t *testing.T) {
	for _, c := range []struct {
		name     string
		from, to string // dir/name
		flags    string
		want     error
		left     string // listing of a, then b
	}{
		{"same directory", "a/f1", "a/new", "", nil, "new f2 d1 d2|g e h"},
		{"other directory", "a/f1", "b/new", "", nil, "f2 d1 d2|g e h new"},
		{"over a file", "a/f1", "b/g", "", nil, "f2 d1 d2|g e h"},
		{"over a file beside", "a/f1", "a/f2", "", nil, "f2 d1 d2|g e h"},
		{"over its own link", "a/f1", "b/h", "", nil, "f1 f2 d1 d2|g e h"},
		{"directory elsewhere", "a/d1", "b/n", "", nil, "f1 f2 d2|g e h n"},
		{"directory over empty one", "a/d1", "b/e", "", nil, "f1 f2 d2|g e h"},
		{"directory over empty one beside", "a/d1", "a/d2", "", nil, "f1 f2 d2|g e h"},
		{"directory over full one", "b/e", "a/d1", "", objstore.NotEmpty, "f1 f2 d1 d2|g e h"},
		{"directory over file", "a/d1", "b/g", "", objstore.NotDir, "f1 f2 d1 d2|g e h"},
		{"file over directory", "b/g", "a/d1", "", objstore.IsDir, "f1 f2 d1 d2|g e h"},
		{"nothing", "a/none", "a/f1", "", objstore.NotFound, "f1 f2 d1 d2|g e h"},
		{"to itself", "a/f1", "a/f1", "", nil, "f1 f2 d1 d2|g e h"},
		{"no replace", "a/f1", "b/g", "n", objstore.Exist, "f1 f2 d1 d2|g e h"},
		{"no replace, free", "a/f1", "b/n", "n", nil, "f2 d1 d2|g e h n"},
		{"exchange files", "a/f1", "b/g", "x", nil, "f1 f2 d1 d2|g e h"},
		{"exchange beside", "a/f1", "a/f2", "x", nil, "f1 f2 d1 d2|g e h"},
		{"exchange file and directory", "a/f1", "b/e", "x", nil, "f1 f2 d1 d2|g e h"},
		{"exchange full directories", "a/d1", "b/e", "x", nil, "f1 f2 d1 d2|g e h"},
		{"exchange with nothing", "a/f1", "b/n", "x", objstore.NotFound, "f1 f2 d1 d2|g e h"},
		{"both flags", "a/f1", "b/g", "nx", objstore.Invalid, "f1 f2 d1 d2|g e h"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, 1)
			root := objstore.VolumeRoot(1)
			dirs := map[string]objstore.Ino{"a": s.dir(root, "a"), "b": s.dir(root, "b")}
			a, b := dirs["a"], dirs["b"]
			f1 := s.file(a, "f1")
			s.file(a, "f2")
			s.file(s.dir(a, "d1"), "inner")
			s.dir(a, "d2")
			s.file(b, "g")
			s.dir(b, "e")
			s.must(objstore.Link{Ino: f1, Parent: b, Name: "h"})
			split := func(p string) (objstore.Ino, string) { return dirs[p[:1]], p[2:] }
			r := objstore.Rename{NoReplace: strings.Contains(c.flags, "n"), Exchange: strings.Contains(c.flags, "x")}
			r.OldParent, r.OldName = split(c.from)
			r.NewParent, r.NewName = split(c.to)
			moved, _ := Lookup(&s.v, r.OldParent, r.OldName)
			replaced, _ := Lookup(&s.v, r.NewParent, r.NewName)
			beforeA, beforeB := s.attr(a), s.attr(b)
			res, err := s.apply(r)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			left := strings.TrimSpace(s.names(a)) + "|" + strings.TrimSpace(s.names(b))
			if left != c.left {
				t.Fatalf("left %q, want %q", left, c.left)
			}
			s.check(1)
			if err != nil || c.name == "to itself" || c.name == "over its own link" {
				if s.attr(a) != beforeA || s.attr(b) != beforeB {
					t.Fatal("nothing was renamed, yet a directory changed")
				}
				return
			}
			got := s.lookup(r.NewParent, r.NewName)
			if got.Ino != moved.Ino || res.Attr != *got.Attr || res.Attr.Ctime <= moved.Attr.Ctime {
				t.Fatalf("%+v became %+v, told %+v", moved, got, res)
			}
			// A name that was there keeps its place in a listing under way; a new one
			// has that of what got it, within a directory.
			if replaced.Ino != 0 && got.Cookie != replaced.Cookie || replaced.Ino == 0 && r.OldParent == r.NewParent && got.Cookie != moved.Cookie {
				t.Fatal("cookie changed")
			}
			if r.Exchange && s.lookup(r.OldParent, r.OldName).Cookie != moved.Cookie {
				t.Fatal("the other cookie changed")
			}
			for _, d := range []objstore.Attr{beforeA, beforeB} {
				if d.Ino != r.OldParent && d.Ino != r.NewParent {
					continue
				}
				if now := s.attr(d.Ino); now.Mtime != d.Mtime+1 || now.Ctime != d.Ctime+1 {
					t.Fatalf("directory times %+v after %+v", now, d)
				}
			}
		})
	}
}

func TestRenameLoop(t *testing.T) {
	s := newStore(t, 1)
	root := objstore.VolumeRoot(1)
	a := s.dir(root, "a")
	b := s.dir(a, "b")
	c := s.dir(b, "c")
	x := s.dir(root, "x")
	s.fails(objstore.Rename{OldParent: root, OldName: "a", NewParent: a, NewName: "n"}, objstore.Invalid)
	s.fails(objstore.Rename{OldParent: root, OldName: "a", NewParent: c, NewName: "n"}, objstore.Invalid)
	s.fails(objstore.Rename{OldParent: b, OldName: "c", NewParent: root, NewName: "a", Exchange: true}, objstore.Invalid)
	s.fails(objstore.Rename{OldParent: b, OldName: "c", NewParent: root, NewName: "a"}, objstore.NotEmpty)
	s.must(objstore.Rename{OldParent: a, OldName: "b", NewParent: x, NewName: "b"})
	if p := s.attr(b).Parent; p != x {
		t.Fatalf("parent %v", p)
	}
	s.must(objstore.Rename{OldParent: root, OldName: "a", NewParent: c, NewName: "a"})
	s.check(1)
	s.must(objstore.Remove{Parent: c, Name: "a", Dir: true})
	s.fails(objstore.Rename{OldParent: root, OldName: "x", NewParent: a, NewName: "n"}, objstore.NotFound)
	s.check(1)
}

func TestListingUnderWay(t *testing.T) {
	s := newStore(t, 1)
	root := objstore.VolumeRoot(1)
	for _, n := range []string{"a", "b", "c", "d"} {
		s.file(root, n)
	}
	first, err := ReadDir(&s.v, root, 0, 2, false)
	if err != nil || len(first) != 2 || first[0].Cookie <= 2 || first[0].Attr != nil {
		t.Fatalf("%+v %v", first, err)
	}
	s.must(objstore.Rename{OldParent: root, OldName: "a", NewParent: root, NewName: "a:2,S"})
	s.must(objstore.Rename{OldParent: root, OldName: "d", NewParent: root, NewName: "d:2,S"})
	rest, err := ReadDir(&s.v, root, first[1].Cookie, 10, true)
	if err != nil || len(rest) != 2 || rest[0].Name != "c" || rest[1].Name != "d:2,S" || rest[1].Attr == nil {
		t.Fatalf("%+v %v", rest, err)
	}
}

func TestXattr(t *testing.T) {
	s := newStore(t, 1)
	root := objstore.VolumeRoot(1)
	f := s.file(root, "f")
	s.fails(objstore.SetXattr{Ino: f, Name: "user.a", ReplaceOnly: true}, objstore.NoAttr)
	s.must(objstore.SetXattr{Ino: f, Name: "user.a", CreateOnly: true})
	s.fails(objstore.SetXattr{Ino: f, Name: "user.a", CreateOnly: true}, objstore.Exist)
	s.fails(objstore.SetXattr{Ino: f, Name: "user.b", Value: make([]byte, objstore.MaxXattr+1)}, objstore.TooBig)
	s.must(objstore.SetXattr{Ino: f, Name: "user.b", Value: []byte("val")})
	if v, err := GetXattr(&s.v, f, "user.b"); string(v) != "val" || err != nil {
		t.Fatalf("%q %v", v, err)
	}
	if l, err := ListXattr(&s.v, f); strings.Join(l, " ") != "user.a user.b" || err != nil {
		t.Fatalf("%v %v", l, err)
	}
	if a := s.must(objstore.RemoveXattr{Ino: f, Name: "user.a"}).Attr; !a.HasXattr {
		t.Fatal("mark lost")
	}
	s.check(1)
	if a := s.must(objstore.RemoveXattr{Ino: f, Name: "user.b"}).Attr; a.HasXattr {
		t.Fatal("mark left")
	}
	s.fails(objstore.RemoveXattr{Ino: f, Name: "user.b"}, objstore.NoAttr)
	if _, err := GetXattr(&s.v, f, "user.b"); !errors.Is(err, objstore.NoAttr) {
		t.Fatal(err)
	}
	s.check(1)
}
