package client

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pillarbox/objstore"
)

// moment is the truth of a directory after a change.
type moment struct {
	names map[string]objstore.Ino
	attrs map[objstore.Ino]objstore.Attr
}

// history is a leader's: what it made of each change, by index.
type history struct {
	t    *testing.T
	dir  objstore.Ino
	text string
	past []moment
	next uint64          // inode
	seen map[nameKey]int // how old what the client serves of a name, or of an inode, may be
}

func (h *history) now() moment { return h.past[len(h.past)-1] }

// change makes a random change, if it can be made.
func (h *history) change(r *rand.Rand) (objstore.Change, objstore.Result, bool) {
	old := h.now()
	m := moment{map[string]objstore.Ino{}, map[objstore.Ino]objstore.Attr{}}
	for k, v := range old.names {
		m.names[k] = v
	}
	for k, v := range old.attrs {
		m.attrs[k] = v
	}
	index := int64(len(h.past))
	touch := func(ino objstore.Ino, links int) objstore.Attr {
		a := m.attrs[ino]
		a.Ino, a.Mtime, a.Nlink = ino, index, uint32(int(a.Nlink)+links)
		if m.attrs[ino] = a; a.Nlink == 0 {
			delete(m.attrs, ino)
		}
		return a
	}
	name, other := fmt.Sprint("n", r.IntN(3)), fmt.Sprint("n", r.IntN(3))
	ino, there := m.names[name]
	var c objstore.Change
	var res objstore.Result
	switch what := r.IntN(5); {
	case what == 0 && !there:
		h.next++
		ino = objstore.MakeIno(h.dir.Volume(), h.next)
		m.names[name], res.Attr = ino, touch(ino, 1)
		c = objstore.Create{Parent: h.dir, Name: name}
	case what == 1 && there && m.names[other] == 0:
		m.names[other], res.Attr = ino, touch(ino, 1)
		c = objstore.Link{Ino: ino, Parent: h.dir, Name: other}
	case what == 2 && there:
		delete(m.names, name)
		if res.Attr = touch(ino, -1); res.Attr.Nlink == 0 {
			res.Orphan = ino
		}
		c = objstore.Remove{Parent: h.dir, Name: name}
	case what == 3 && there && ino != m.names[other]:
		if over := m.names[other]; over != 0 {
			res.Over = over
			if touch(over, -1).Nlink == 0 {
				res.Orphan = over
			}
		}
		delete(m.names, name)
		m.names[other], res.Attr = ino, touch(ino, 0)
		c = objstore.Rename{OldParent: h.dir, OldName: name, NewParent: h.dir, NewName: other}
	case what == 4 && there:
		res.Attr = touch(ino, 0)
		c = objstore.Write{Ino: ino}
	default:
		return nil, res, false
	}
	if objstore.DirsOf(c)[0] != 0 {
		res.Dirs[0] = touch(h.dir, 0)
	}
	res.Index = uint64(index)
	h.past = append(h.past, m)
	h.text += fmt.Sprintf("%d: %T%+v -> %+v\n", index, c, c, res)
	return c, res, true
}

// check says that something served was true no earlier than the client may know.
func (h *history) check(what nameKey, same func(moment) bool) {
	h.t.Helper()
	for i := h.seen[what]; i < len(h.past); i++ {
		if same(h.past[i]) {
			h.seen[what] = i
			return
		}
	}
	h.t.Fatalf("of %v was served what was not true since change %d of %d\n%s", what, h.seen[what], len(h.past)-1, h.text)
}

// heard notes that the client has heard of a change.
func (h *history) heard(index uint64) {
	before, after := h.past[index-1], h.past[index]
	for i := range 3 {
		if n := fmt.Sprint("n", i); before.names[n] != after.names[n] {
			h.see(nameKey{h.dir, n}, int(index))
		}
	}
	for i := uint64(1); i <= h.next; i++ {
		if ino := objstore.MakeIno(h.dir.Volume(), i); before.attrs[ino] != after.attrs[ino] {
			h.see(nameKey{dir: ino}, int(index))
		}
	}
}

func (h *history) see(what nameKey, index int) { h.seen[what] = max(h.seen[what], index) }

// look checks all that the cache serves.
func (h *history) look(c *cache) {
	h.t.Helper()
	for i := range 3 {
		k := nameKey{h.dir, fmt.Sprint("n", i)}
		e, absent, ok := c.lookup(k.dir, k.name)
		if ok {
			h.check(k, func(m moment) bool { return absent && m.names[k.name] == 0 || !absent && m.names[k.name] == e.Ino })
		}
	}
	for i := uint64(1); i <= h.next; i++ {
		ino := objstore.MakeIno(h.dir.Volume(), i)
		if a, ok := c.attr(ino); ok {
			h.check(nameKey{dir: ino}, func(m moment) bool { return m.attrs[ino] == a })
		}
	}
}

// TestCacheOrder has changes of this client and of others, and answers to questions,
// come in any order: what the cache serves is never older than a change that was
// heard of, nor than what it served before.
func TestCacheOrder(t *testing.T) {
	const runs = 1000
	kept := 0
	for seed := range uint64(runs) {
		r := rand.New(rand.NewPCG(seed, 1))
		c, s := newCache(1 << 20)
		dir := objstore.VolumeRoot(7)
		root := objstore.Attr{Ino: dir, Nlink: 2, Mode: objstore.ModeDir}
		h := &history{t: t, dir: dir, next: 1, seen: map[nameKey]int{}, past: []moment{{map[string]objstore.Ino{}, map[objstore.Ino]objstore.Attr{dir: root}}}}
		var coming []func()
		asking := false // one question at a time: of two, the older answer may come later
		answered := func(take func()) func() { asking = true; return func() { take(); asking = false } }
		for range 60 {
			switch what := r.IntN(8); {
			case what < 2: // somebody else's
				if ch, res, ok := h.change(r); ok {
					p := objstore.Push{Volume: 7, Events: objstore.EventsOf(ch, res), Index: res.Index, Attrs: objstore.AttrsOf(res)}
					coming = append(coming, func() {
						c.told(&p, s)
						h.text += fmt.Sprintf("told %d\n", p.Index)
						h.heard(p.Index)
					})
				}
			case what < 4: // its own
				q := c.begin(7)
				if ch, res, ok := h.change(r); ok {
					coming = append(coming, func() {
						c.changed(q, s, ch, res, nil)
						h.text += fmt.Sprintf("result %d\n", res.Index)
						h.heard(res.Index)
					})
				} else {
					c.changed(q, s, objstore.Create{Parent: dir, Name: "n0"}, objstore.Result{}, objstore.Exist)
				}
			case what == 4 && !asking:
				name, q := fmt.Sprint("n", r.IntN(3)), c.ask(7)
				m := h.now()
				e := objstore.DirEntry{Ino: m.names[name]}
				if a, ok := m.attrs[e.Ino]; ok {
					e.Attr = &a
				}
				coming = append(coming, answered(func() { c.looked(q, s, dir, name, e, e.Ino == 0); h.text += fmt.Sprintf("looked %s %v\n", name, e) }))
			case what == 5 && !asking:
				q, a := c.ask(7), h.now().attrs[dir]
				coming = append(coming, answered(func() { c.gotAttr(q, s, a); h.text += fmt.Sprintf("got %v\n", a) }))
			case len(coming) > 0:
				i := r.IntN(len(coming))
				coming[i]()
				coming = slices.Delete(coming, i, i+1)
			}
			h.look(c)
		}
		if a, ok := c.attr(dir); ok && a.Mtime > 0 {
			kept++
		}
	}
	if kept < runs/10 {
		t.Errorf("the directory's attributes were known at the end of %d runs of %d", kept, runs)
	}
}
