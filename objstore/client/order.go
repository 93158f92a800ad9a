package client

import (
	"maps"
	"slices"

	"pillarbox/objstore"
)

// knownAttr are attributes and which change left them so: 0 when they are the
// answer to a question, which may have seen later changes than were heard of.
type knownAttr struct {
	objstore.Attr
	index uint64
}

// order is which changes last touched what a volume's cache has forgotten since, by
// their indices: what an earlier one left must not be kept then. It remembers so
// many names and inodes; of all others, that no later change than floor touched them.
type order struct {
	floor uint64
	last  map[nameKey]uint64 // without a name: the inode itself
}

const (
	orderMax  = 128
	orderCost = 12_000 // bytes of memory, with names as long as those of messages
)

// all notes that a change may have touched anything.
func (o *order) all(index uint64) {
	o.floor = max(o.floor, index)
	maps.DeleteFunc(o.last, func(_ nameKey, i uint64) bool { return i <= o.floor })
}

// before says whether nothing later than a change is known to have touched something.
func (o *order) before(k nameKey, index uint64) bool { return max(o.floor, o.last[k]) < index }

// note notes that a change touched something.
func (c *cache) note(vc *cachedVolume, k nameKey, index uint64) {
	o := &vc.order
	if !o.before(k, index) {
		return
	}
	if o.last == nil {
		o.last = map[nameKey]uint64{}
		c.grow(vc, orderCost)
	}
	if o.last[k] = index; len(o.last) < orderMax {
		return
	}
	o.all(slices.Max(slices.Collect(maps.Values(o.last))))
}

func (c *cache) forgetAttr(vc *cachedVolume, ino objstore.Ino, index uint64) {
	delete(vc.attrs, ino)
	c.note(vc, nameKey{dir: ino}, index)
}

// take is touched for a change of which is known what it left of some inodes: what is
// known of these stays, or becomes that, whichever is of the later change. With
// insert, what was not known is, too, unless a later change has touched it: no answer
// that was kept may be of a later one. Under mu.
func (c *cache) take(vc *cachedVolume, events []objstore.Event, left []objstore.Attr, index uint64, insert bool) {
	var kept, more []knownAttr
	for _, a := range left {
		k, known := vc.attrs[a.Ino]
		switch {
		case index == 0:
		case known && k.index >= index:
			kept = append(kept, k)
		case known && k.index > 0:
			kept = append(kept, knownAttr{a, index})
		case insert && vc.order.before(nameKey{dir: a.Ino}, index):
			more = append(more, knownAttr{a, index})
		}
	}
	c.touched(vc, events, index, false)
	for _, k := range kept {
		vc.attrs[k.Ino] = k
	}
	for _, k := range more {
		c.setAttr(vc, k.Attr, k.index)
	}
}

// place takes in a change of the client's own, begun with q, that others were made
// beside: what it left is kept unless a later one is known to have touched it. Under mu.
func (c *cache) place(q question, ch objstore.Change, r objstore.Result) {
	vc, insert := q.of, q.gen > q.of.answered
	type named struct {
		key nameKey
		ino objstore.Ino // 0: the name is gone
	}
	var names []named
	switch ch := ch.(type) {
	case objstore.Create:
		names = []named{{nameKey{ch.Parent, ch.Name}, r.Attr.Ino}}
	case objstore.Link:
		names = []named{{nameKey{ch.Parent, ch.Name}, ch.Ino}}
	case objstore.Remove:
		names = []named{{nameKey{ch.Parent, ch.Name}, 0}}
	case objstore.Rename:
		if follows(ch, r) {
			names = []named{{nameKey{ch.OldParent, ch.OldName}, 0}, {nameKey{ch.NewParent, ch.NewName}, r.Attr.Ino}}
		}
	}
	names = slices.DeleteFunc(names, func(n named) bool { return !insert || n.key.name == "" || !vc.order.before(n.key, r.Index) })
	c.take(vc, objstore.EventsOf(ch, r), objstore.AttrsOf(r), r.Index, insert)
	for _, n := range names {
		if n.ino == 0 {
			c.setAbsent(vc, n.key.dir, n.key.name)
		} else {
			c.setName(vc, n.key.dir, objstore.DirEntry{Name: n.key.name, Ino: n.ino, Type: r.Attr.Mode & objstore.ModeType})
		}
	}
}
