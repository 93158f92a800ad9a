package volume

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sort"
	"testing"

	"pillarbox/objstore"
)

// model is a volume in plain maps, written from the manual pages.
type model struct {
	nodes map[objstore.Ino]*mnode
	seq   int
	now   int64
}

type mnode struct {
	a      objstore.Attr
	names  map[string]*mname
	xattrs map[string]string
	target string
}

type mname struct {
	ino objstore.Ino
	seq int
}

func newModel(root objstore.Attr) *model {
	return &model{nodes: map[objstore.Ino]*mnode{root.Ino: {a: root, names: map[string]*mname{}}}}
}

func (m *model) tick(t *int64) { *t = max(m.now, *t+1) }

func (m *model) touchDir(n *mnode) { m.tick(&n.a.Mtime); m.tick(&n.a.Ctime) }

func (m *model) parent(ino objstore.Ino, adding bool) (*mnode, error) {
	n := m.nodes[ino]
	switch {
	case n == nil:
		return nil, objstore.Stale
	case n.names == nil:
		return nil, objstore.NotDir
	case adding && n.a.Nlink == 0:
		return nil, objstore.NotFound
	}
	return n, nil
}

func (m *model) put(d *mnode, name string, ino objstore.Ino, old *mname) {
	m.seq++
	e := &mname{ino, m.seq}
	if old != nil {
		e.seq = old.seq
	}
	d.names[name] = e
}

func (m *model) create(c objstore.Create, got objstore.Ino) error {
	p, err := m.parent(c.Parent, true)
	if err != nil {
		return err
	}
	if c.Name != "" && p.names[c.Name] != nil {
		return objstore.Exist
	}
	if m.nodes[got] != nil {
		return fmt.Errorf("inode %v used twice", got)
	}
	n := &mnode{target: c.Target, xattrs: map[string]string{}}
	n.a = objstore.Attr{Ino: got, Mode: c.Mode, Uid: c.Uid, Gid: c.Gid, Nlink: 1, Size: uint64(len(c.Target)), Atime: m.now, Mtime: m.now, Ctime: m.now}
	isDir := n.a.IsDir()
	if p.a.Mode&objstore.ModeSetgid != 0 {
		n.a.Gid = p.a.Gid
		if isDir {
			n.a.Mode |= objstore.ModeSetgid
		}
	}
	m.nodes[got] = n
	if c.Name == "" {
		n.a.Nlink = 0
		return nil
	}
	if isDir {
		n.names, n.a.Nlink, n.a.Parent = map[string]*mname{}, 2, c.Parent
		p.a.Nlink++
	}
	m.put(p, c.Name, got, nil)
	m.touchDir(p)
	return nil
}

func (m *model) link(c objstore.Link) error {
	p, err := m.parent(c.Parent, true)
	n := m.nodes[c.Ino]
	switch {
	case err != nil:
		return err
	case c.Over == 0 && p.names[c.Name] != nil:
		return objstore.Exist
	case c.Over != 0 && p.names[c.Name] == nil:
		return objstore.NotFound
	case c.Over != 0 && p.names[c.Name].ino != c.Over:
		return objstore.Exist
	case c.Over != 0 && m.nodes[c.Over].names != nil:
		return objstore.IsDir
	case c.Over != 0 && c.Over == c.Ino:
		return objstore.Invalid
	case n == nil:
		return objstore.Stale
	case n.names != nil:
		return objstore.NotPermitted
	}
	old := p.names[c.Name]
	if c.Over != 0 {
		m.unlink(p, c.Name)
	}
	n.a.Nlink++
	m.tick(&n.a.Ctime)
	m.put(p, c.Name, c.Ino, old)
	m.touchDir(p)
	return nil
}

func (m *model) unlink(p *mnode, name string) {
	n := m.nodes[p.names[name].ino]
	if n.names != nil {
		n.a.Nlink = 0
		p.a.Nlink--
	} else {
		n.a.Nlink--
	}
	m.tick(&n.a.Ctime)
	delete(p.names, name)
}

func (m *model) remove(c objstore.Remove) error {
	p, err := m.parent(c.Parent, false)
	if err != nil {
		return err
	}
	e := p.names[c.Name]
	if e == nil {
		return objstore.NotFound
	}
	n := m.nodes[e.ino]
	switch {
	case c.Dir && n.names == nil:
		return objstore.NotDir
	case !c.Dir && n.names != nil:
		return objstore.IsDir
	case c.Only != 0 && c.Only != e.ino:
		return objstore.Exist
	case len(n.names) > 0:
		return objstore.NotEmpty
	}
	m.unlink(p, c.Name)
	m.touchDir(p)
	return nil
}

func (m *model) below(top, at objstore.Ino) bool {
	for ; ; at = m.nodes[at].a.Parent {
		if at == top {
			return true
		}
		if at.IsVolumeRoot() {
			return false
		}
	}
}

func (m *model) rename(c objstore.Rename) error {
	if c.Exchange && c.NoReplace {
		return objstore.Invalid
	}
	p, err := m.parent(c.OldParent, false)
	if err != nil {
		return err
	}
	q, err := m.parent(c.NewParent, true)
	if err != nil {
		return err
	}
	e, f := p.names[c.OldName], q.names[c.NewName]
	switch {
	case e == nil:
		return objstore.NotFound
	case f != nil && c.NoReplace:
		return objstore.Exist
	case f == nil && c.Exchange:
		return objstore.NotFound
	case p != q && m.nodes[e.ino].names != nil && m.below(e.ino, c.NewParent):
		return objstore.Invalid
	case p != q && c.Exchange && m.nodes[f.ino].names != nil && m.below(f.ino, c.OldParent):
		return objstore.Invalid
	case f != nil && f.ino == e.ino:
		return nil
	}
	n := m.nodes[e.ino]
	arrive := func(x *mnode, to, from *mnode) {
		if x.names != nil {
			from.a.Nlink--
			to.a.Nlink++
			x.a.Parent = to.a.Ino
		}
		m.tick(&x.a.Ctime)
	}
	place := f // a name keeps its place in listings, whatever it leads to
	if f == nil && p == q {
		place = e
	}
	if c.Exchange {
		m.put(p, c.OldName, f.ino, e)
		arrive(m.nodes[f.ino], p, q)
	} else {
		if f != nil {
			old := m.nodes[f.ino]
			switch {
			case n.names != nil && old.names == nil:
				return objstore.NotDir
			case n.names == nil && old.names != nil:
				return objstore.IsDir
			case len(old.names) > 0:
				return objstore.NotEmpty
			}
			m.unlink(q, c.NewName)
		}
		delete(p.names, c.OldName)
	}
	m.put(q, c.NewName, e.ino, place)
	arrive(n, q, p)
	m.touchDir(p)
	if p != q {
		m.touchDir(q)
	}
	return nil
}

func (m *model) setAttr(c objstore.SetAttr) error {
	n := m.nodes[c.Ino]
	if n == nil {
		return objstore.Stale
	}
	if c.Set&objstore.SetSize != 0 {
		if n.names != nil {
			return objstore.IsDir
		}
		if n.a.Mode&objstore.ModeType != objstore.ModeRegular {
			return objstore.Invalid
		}
		n.a.Size, n.a.Mtime = c.Size, m.now
	}
	if c.Set&objstore.SetMode != 0 {
		n.a.Mode = n.a.Mode&objstore.ModeType | c.Mode
	}
	if c.Set&objstore.SetGid != 0 {
		n.a.Gid = c.Gid
	}
	if c.Set&objstore.SetMtime != 0 {
		n.a.Mtime = c.Mtime
	}
	m.tick(&n.a.Ctime)
	return nil
}

func (m *model) xattr(ino objstore.Ino, name string, value *string, create, replace bool) error {
	n := m.nodes[ino]
	if n == nil {
		return objstore.Stale
	}
	_, ok := n.xattrs[name]
	switch {
	case ok && create:
		return objstore.Exist
	case !ok && (replace || value == nil):
		return objstore.NoAttr
	}
	if value == nil {
		delete(n.xattrs, name)
	} else {
		if n.xattrs == nil {
			n.xattrs = map[string]string{}
		}
		n.xattrs[name] = *value
	}
	n.a.HasXattr = len(n.xattrs) > 0
	m.tick(&n.a.Ctime)
	return nil
}

func (m *model) purge(inos []objstore.Ino) error {
	for _, ino := range inos {
		if n := m.nodes[ino]; n != nil && n.a.Nlink == 0 {
			delete(m.nodes, ino)
		}
	}
	return nil
}

// compare checks the whole state.
func (m *model) compare(t *testing.T, s *store, vol objstore.VolumeID) {
	t.Helper()
	orphans := 0
	for ino, n := range m.nodes {
		if got := s.attr(ino); got != n.a {
			t.Fatalf("inode %v is\n%+v, want\n%+v", ino, got, n.a)
		}
		if n.a.Nlink == 0 {
			orphans++
		}
		if n.target != "" {
			if got, err := Readlink(&s.v, ino); got != n.target || err != nil {
				t.Fatalf("%v: %q %v", ino, got, err)
			}
		}
		for name, want := range n.xattrs {
			if got, err := GetXattr(&s.v, ino, name); string(got) != want || err != nil {
				t.Fatalf("%v %s: %q %v", ino, name, got, err)
			}
		}
		if n.names == nil {
			continue
		}
		var names []string
		for name := range n.names {
			names = append(names, name)
		}
		sort.Slice(names, func(i, j int) bool { return n.names[names[i]].seq < n.names[names[j]].seq })
		list, err := ReadDir(&s.v, ino, 0, 1<<20, true)
		if err != nil || len(list) != len(names) {
			t.Fatalf("%v: %v, %d entries, want %d", ino, err, len(list), len(names))
		}
		for i, e := range list {
			if e.Name != names[i] || e.Ino != n.names[e.Name].ino || *e.Attr != m.nodes[e.Ino].a || e.Type != e.Attr.Mode&objstore.ModeType {
				t.Fatalf("%v: entry %d is %+v, want %q %v", ino, i, e, names[i], n.names[names[i]])
			}
		}
	}
	if files, _, err := Usage(&s.v, vol); err != nil || int(files) != len(m.nodes) {
		t.Fatalf("%d inodes, want %d: %v", files, len(m.nodes), err)
	}
	if o, err := Orphans(&s.v, vol, -1); err != nil || len(o) != orphans {
		t.Fatalf("%d orphans, want %d: %v", len(o), orphans, err)
	}
}

// source makes random changes among few enough inodes and names to collide.
type source struct {
	*rand.Rand
	inos []objstore.Ino
}

func (r *source) ino() objstore.Ino { return r.inos[r.IntN(len(r.inos))] }

func (r *source) dir(m *model) objstore.Ino {
	for range 30 {
		if ino := r.ino(); m.nodes[ino] != nil && m.nodes[ino].names != nil {
			return ino
		}
	}
	return r.ino()
}

func (r *source) name() string { return string(rune('a' + r.IntN(7))) }

func (r *source) change(m *model) objstore.Change {
	switch n := r.IntN(100); {
	case n < 22:
		c := objstore.Create{Parent: r.dir(m), Name: r.name(), Mode: objstore.ModeRegular | 0o600, Uid: 7, Gid: 8}
		switch r.IntN(8) {
		case 0, 1, 2:
			c.Mode = objstore.ModeDir | 0o700
		case 3:
			c.Mode, c.Target = objstore.ModeSymlink|0o777, r.name()
		case 4:
			c.Name = ""
		}
		return c
	case n < 34:
		c := objstore.Link{Ino: r.ino(), Parent: r.dir(m), Name: r.name()}
		if p := m.nodes[c.Parent]; r.IntN(2) == 0 && p != nil && p.names[c.Name] != nil {
			c.Over = p.names[c.Name].ino
		} else if r.IntN(3) == 0 {
			c.Over = r.ino()
		}
		return c
	case n < 50:
		c := objstore.Remove{Parent: r.dir(m), Name: r.name(), Dir: r.IntN(2) == 0}
		if r.IntN(4) == 0 {
			c.Only = r.ino()
		}
		return c
	case n < 78:
		c := objstore.Rename{OldParent: r.dir(m), OldName: r.name(), NewParent: r.dir(m), NewName: r.name()}
		if r.IntN(3) == 0 {
			c.NewParent = c.OldParent
		}
		c.NoReplace, c.Exchange = r.IntN(6) == 0, r.IntN(4) == 0
		return c
	case n < 86:
		return objstore.SetAttr{Ino: r.ino(), Set: objstore.AttrMask(r.Uint32()) & (objstore.SetMode | objstore.SetGid | objstore.SetSize | objstore.SetMtime),
			Mode: r.Uint32() & 0o7777, Gid: r.Uint32N(5), Size: r.Uint64N(1 << 30), Mtime: m.now + r.Int64N(50)}
	case n < 91:
		return objstore.SetXattr{Ino: r.ino(), Name: r.name(), Value: []byte(r.name()), CreateOnly: r.IntN(3) == 0}
	case n < 95:
		return objstore.RemoveXattr{Ino: r.ino(), Name: r.name()}
	}
	return objstore.Purge{Vol: m.nodes[r.inos[0]].a.Ino.Volume(), Inos: []objstore.Ino{r.ino(), r.ino(), r.ino()}}
}

func (m *model) apply(c objstore.Change, res objstore.Result) error {
	switch c := c.(type) {
	case objstore.Create:
		return m.create(c, res.Attr.Ino)
	case objstore.Link:
		return m.link(c)
	case objstore.Remove:
		return m.remove(c)
	case objstore.Rename:
		return m.rename(c)
	case objstore.SetAttr:
		return m.setAttr(c)
	case objstore.SetXattr:
		v := string(c.Value)
		return m.xattr(c.Ino, c.Name, &v, c.CreateOnly, c.ReplaceOnly)
	case objstore.RemoveXattr:
		return m.xattr(c.Ino, c.Name, nil, false, false)
	case objstore.Purge:
		return m.purge(c.Inos)
	}
	return objstore.Unsupported
}

func TestModel(t *testing.T) {
	const vol = 5
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newStore(t, vol)
			root := s.attr(objstore.VolumeRoot(vol))
			m := newModel(root)
			r := &source{Rand: rand.New(rand.NewPCG(seed, 2)), inos: []objstore.Ino{root.Ino}}
			worked := map[string]int{}
			for step := range 4000 {
				s.now += r.Int64N(3)
				m.now = s.now
				c := r.change(m)
				res, err := s.apply(c)
				want := m.apply(c, res)
				if !errors.Is(err, want) {
					t.Fatalf("step %d, %+v: got %v, want %v", step, c, err, want)
				}
				if err != nil {
					continue
				}
				worked[fmt.Sprintf("%T", c)]++
				if _, ok := c.(objstore.Create); ok {
					r.inos = append(r.inos, res.Attr.Ino)
				}
				if n := m.nodes[res.Attr.Ino]; res.Attr.Ino != 0 && res.Attr != n.a {
					t.Fatalf("step %d, %+v: told %+v, want %+v", step, c, res.Attr, n.a)
				}
				if n := m.nodes[res.Orphan]; res.Orphan != 0 && n.a.Nlink != 0 {
					t.Fatalf("step %d, %+v: %v is no orphan", step, c, res.Orphan)
				}
				if step%50 == 0 {
					m.compare(t, s, vol)
					s.check(vol)
				}
			}
			m.compare(t, s, vol)
			s.check(vol)
			s.replay()
			if len(worked) != 8 {
				t.Fatalf("changes that worked: %v", worked)
			}
		})
	}
}
