package client

import (
	"sync"
	"sync/atomic"

	"pillarbox/objstore"
)

// What a client knows of names and attributes stays true until it is told of a
// change, or its stream with the leader ends: the leader tells of every change in
// a volume that this client asked in before the change returns (watch.go). So
// answers are kept, by volume.
//
// An answer may be older than a change that came to be known while it was on its
// way. Every change moves the volume's generation, its own client's changes when
// they begin and when they end, and only answers of questions put in the present
// generation are kept.
//
// Where hosts change the same directories all the time, no answer comes in the
// generation it was asked in. But a change tells what it made of the inodes that it
// touched, and its place among the others: what comes from a later one is kept, in
// whatever order they come (order.go).

// What is kept takes so many bytes of memory, measured, with room for maps that have
// just grown. Names and extents take their own length besides.
const (
	volumeCost = 2000 // with its first few pieces
	nameCost   = 150
	absentCost = 80
	attrCost   = 170
	spanCost   = 80
	extentCost = 96
)

type nameKey struct {
	dir  objstore.Ino
	name string
}

// cache is a client's. The zero value is ready. The mutex is a leaf.
type cache struct {
	on    atomic.Bool // the client is told of changes
	mu    sync.Mutex
	vols  map[objstore.VolumeID]*cachedVolume
	max   int64 // bytes of memory, about
	size  int64 // of all volumes
	found [cachedKinds]Found
}

type cachedVolume struct {
	gen uint64
	// answered is the generation of the last answer that was kept.
	answered uint64
	size     int64   // bytes of memory at most: what was replaced or forgotten counts still
	from     *stream // under which it is kept
	names    map[nameKey]objstore.DirEntry
	absent   map[nameKey]struct{}
	attrs    map[objstore.Ino]knownAttr
	order    order
	spans    map[objstore.Ino]span
	whole    map[objstore.Ino]struct{} // directories of which all names are known
	lists    map[objstore.Ino]listing
}

// question is a moment in a volume's history.
type question struct {
	vol objstore.VolumeID
	of  *cachedVolume
	gen uint64
}

func (c *cache) volume(v objstore.VolumeID) *cachedVolume {
	vc := c.vols[v]
	if vc == nil {
		vc = &cachedVolume{
			names: map[nameKey]objstore.DirEntry{}, absent: map[nameKey]struct{}{},
			attrs: map[objstore.Ino]knownAttr{}, spans: map[objstore.Ino]span{}, whole: map[objstore.Ino]struct{}{},
		}
		if c.vols == nil {
			c.vols = map[objstore.VolumeID]*cachedVolume{}
		}
		c.vols[v] = vc
		c.grow(vc, volumeCost)
	}
	return vc
}

// good is the volume's cache if what it has may be served. Under mu.
func (c *cache) good(v objstore.VolumeID) *cachedVolume {
	vc := c.vols[v]
	if vc == nil || vc.from == nil || !vc.from.live() {
		return nil
	}
	return vc
}

func (c *cache) ask(v objstore.VolumeID) question {
	if !c.on.Load() {
		return question{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bound()
	vc := c.volume(v)
	return question{v, vc, vc.gen}
}

// begin moves the generation because a change of the client's own begins.
func (c *cache) begin(v objstore.VolumeID) question {
	if !c.on.Load() {
		return question{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	vc := c.volume(v)
	vc.gen++
	return question{v, vc, vc.gen}
}

// present says whether nothing changed since q, and takes note of the stream
// that the answer came by. Under mu.
func (c *cache) present(q question, from *stream) bool {
	if q.of == nil || q.of != c.vols[q.vol] || q.gen != q.of.gen || from == nil || q.of.from != nil && q.of.from != from {
		return false
	}
	q.of.from = from
	return true
}

// keeps is present of the answer to a question, which will be kept. Under mu.
func (c *cache) keeps(q question, from *stream) bool {
	if !c.present(q, from) {
		return false
	}
	q.of.answered = q.gen
	return true
}

// lookup is what is known of a name; e has attributes if it is of the same volume.
func (c *cache) lookup(dir objstore.Ino, name string) (e objstore.DirEntry, absent, ok bool) {
	if !c.on.Load() {
		return e, false, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { c.found[cachedNames].add(ok) }()
	vc := c.good(dir.Volume())
	if vc == nil {
		return e, false, false
	}
	k := nameKey{dir, name}
	if e, ok = vc.names[k]; ok {
		if a, known := vc.attrs[e.Ino]; known {
			e.Attr = &a.Attr
			return e, false, true
		}
		return e, false, e.Ino.Volume() != dir.Volume()
	}
	if _, ok = vc.absent[k]; !ok {
		_, ok = vc.whole[dir]
	}
	return e, ok, ok
}

func (c *cache) attr(ino objstore.Ino) (a objstore.Attr, ok bool) {
	if !c.on.Load() {
		return a, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if vc := c.good(ino.Volume()); vc != nil {
		var k knownAttr
		k, ok = vc.attrs[ino]
		a = k.Attr
	}
	c.found[cachedAttrs].add(ok)
	return a, ok
}

func (c *cache) setName(vc *cachedVolume, dir objstore.Ino, e objstore.DirEntry) {
	if e.Attr != nil {
		c.setAttr(vc, *e.Attr, 0)
		e.Attr = nil
	}
	k := nameKey{dir, e.Name}
	delete(vc.absent, k)
	if _, ok := vc.names[k]; !ok {
		c.grow(vc, nameCost+len(e.Name))
	}
	vc.names[k] = e
}

func (c *cache) setAbsent(vc *cachedVolume, dir objstore.Ino, name string) {
	k := nameKey{dir, name}
	delete(vc.names, k)
	if _, ok := vc.whole[dir]; ok {
		return
	}
	if _, ok := vc.absent[k]; !ok {
		c.grow(vc, absentCost+len(name))
	}
	vc.absent[k] = struct{}{}
}

// setAttr sets what the change with the index made of an inode; 0: what a question
// was answered with.
func (c *cache) setAttr(vc *cachedVolume, a objstore.Attr, index uint64) {
	if _, ok := vc.attrs[a.Ino]; !ok {
		c.grow(vc, attrCost)
	}
	vc.attrs[a.Ino] = knownAttr{a, index}
}

func (c *cache) grow(vc *cachedVolume, n int) {
	vc.size += int64(n)
	c.size += int64(n)
}

// drop forgets a volume. Under mu.
func (c *cache) drop(v objstore.VolumeID) {
	if vc := c.vols[v]; vc != nil {
		c.size -= vc.size
		delete(c.vols, v)
	}
}

// bound forgets volumes, any of them, when all have become too much. Under mu.
func (c *cache) bound() {
	if c.size <= c.max {
		return
	}
	for v := range c.vols {
		if c.drop(v); c.size <= c.max/2 {
			return
		}
	}
}

// looked keeps the answer to a lookup.
func (c *cache) looked(q question, from *stream, dir objstore.Ino, name string, e objstore.DirEntry, absent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.keeps(q, from) {
		return
	}
	if absent {
		c.setAbsent(q.of, dir, name)
	} else {
		e.Name = name
		c.setName(q.of, dir, e)
	}
	c.bound()
}

// gotAttr keeps attributes.
func (c *cache) gotAttr(q question, from *stream, a objstore.Attr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keeps(q, from) {
		c.setAttr(q.of, a, 0)
		c.bound()
	}
}

// listed keeps a part of a listing.
func (c *cache) listed(q question, from *stream, dir objstore.Ino, l listing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if int64(len(l.names))*(nameCost+attrCost+listCost) > c.max/4 || !c.keeps(q, from) {
		return
	}
	for _, e := range l.names {
		c.setName(q.of, dir, e)
	}
	if l = c.setList(q.of, dir, l); l.after <= beforeAll && l.ends {
		q.of.whole[dir] = struct{}{}
	}
	c.bound()
}

// changed takes in how a change of the client's own ended. What it touched is
// known from its result if nothing else changed meanwhile.
func (c *cache) changed(q question, from *stream, ch objstore.Change, r objstore.Result, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case q.of == nil:
		return
	case q.of != c.vols[q.vol]: // forgotten meanwhile; what came since may be older than the change
		c.drop(q.vol)
		return
	}
	// An answer that was kept since it began may be of a later change.
	known := err == nil && q.gen > q.of.answered && c.present(q, from)
	ordered := err == nil && !known && from != nil && q.of.from == from && r.Index != 0
	q.of.gen++
	if err != nil && kindOf(err) == objstore.Unavailable {
		c.drop(q.vol) // it may have been made
		return
	}
	if ordered {
		c.place(q, ch, r)
	} else {
		c.touched(q.of, objstore.EventsOf(ch, r), r.Index, known && follows(ch, r))
	}
	if err != nil { // the name is there still, and forgotten: without it they are not all
		for _, dir := range objstore.DirsOf(ch) {
			delete(q.of.whole, dir)
		}
	}
	delete(q.of.attrs, r.Orphan)
	delete(q.of.spans, r.Orphan)
	switch ch := ch.(type) {
	case objstore.Purge:
		for _, ino := range ch.Inos {
			delete(q.of.attrs, ino)
			delete(q.of.spans, ino)
		}
		return
	case objstore.InitVolume, objstore.SealVolume, objstore.DropVolume:
		c.drop(q.vol)
		return
	}
	if !known {
		return
	}
	for _, dir := range r.Dirs {
		if dir.Ino.Volume() == q.vol && dir.Ino != 0 {
			c.setAttr(q.of, dir, r.Index)
		}
	}
	switch ch := ch.(type) {
	case objstore.Create:
		if ch.Name != "" {
			c.setName(q.of, ch.Parent, objstore.DirEntry{Name: ch.Name, Ino: r.Attr.Ino, Type: r.Attr.Mode & objstore.ModeType})
		}
		if r.Attr.IsDir() {
			q.of.whole[r.Attr.Ino] = struct{}{}
		}
		c.setAttr(q.of, r.Attr, r.Index)
	case objstore.Link:
		c.setName(q.of, ch.Parent, objstore.DirEntry{Name: ch.Name, Ino: ch.Ino, Type: r.Attr.Mode & objstore.ModeType})
		c.setAttr(q.of, r.Attr, r.Index)
	case objstore.Remove:
		c.setAbsent(q.of, ch.Parent, ch.Name)
	case objstore.Rename:
		if follows(ch, r) {
			c.setAbsent(q.of, ch.OldParent, ch.OldName)
			c.setName(q.of, ch.NewParent, objstore.DirEntry{Name: ch.NewName, Ino: r.Attr.Ino, Type: r.Attr.Mode & objstore.ModeType})
			c.setAttr(q.of, r.Attr, r.Index)
		}
	case objstore.Write:
		c.setAttr(q.of, r.Attr, r.Index)
		if s, ok := wholeFile(ch, r); ok {
			c.setSpan(q.of, ch.Ino, s)
		}
	case objstore.Share, objstore.SetAttr, objstore.MoveChunk, objstore.Reparent:
		c.setAttr(q.of, r.Attr, r.Index)
	}
	c.bound()
}

// follows says whether it is clear from a change and its result which names there
// are now.
func follows(ch objstore.Change, r objstore.Result) bool {
	switch ch := ch.(type) {
	case objstore.Create, objstore.Link, objstore.Remove:
		return true
	case objstore.Rename:
		// Renaming one name of a file to another of it does nothing.
		same := ch.OldParent == ch.NewParent && ch.OldName == ch.NewName || r.Attr.Nlink > 1 && !r.Attr.IsDir()
		return !ch.Exchange && !same && r.Attr.Ino.Volume() == ch.Volume()
	}
	return false
}

// told takes in what others changed; from is the stream that told.
func (c *cache) told(p *objstore.Push, from *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	vc := c.vols[p.Volume]
	if vc == nil {
		return
	}
	vc.gen++
	if vc.from == from || vc.from == nil {
		c.take(vc, p.Events, p.Attrs, p.Index, false)
	} else {
		c.touched(vc, p.Events, 0, false)
	}
}

// touched forgets what events are about, of a change with an index (0: not known).
// With whole, the names that changed will be set, so that directories of which all
// names are known stay so. Under mu.
func (c *cache) touched(vc *cachedVolume, events []objstore.Event, index uint64, whole bool) {
	forget := func(dir objstore.Ino, name string) {
		if name == "" {
			return
		}
		c.dropList(vc, dir)
		c.forgetAttr(vc, dir, index)
		k := nameKey{dir, name}
		if index != 0 && vc.order.last[k] > index {
			return // what is known of it is of a later change
		}
		if index != 0 && vc.order.floor > index {
			delete(vc.whole, dir) // it may be: then that the name is not known says nothing
		}
		e, known := vc.names[k]
		_, absent := vc.absent[k]
		_, whole := vc.whole[dir]
		switch {
		case known:
			c.forgetAttr(vc, e.Ino, index) // a name less, or replaced
		case index == 0 && !absent && !whole:
			clear(vc.attrs) // any of them may have been replaced; where the index is told, that is, too
		}
		delete(vc.names, k)
		delete(vc.absent, k)
		c.note(vc, k, index)
	}
	for _, e := range events {
		c.forgetAttr(vc, e.Ino, index)
		switch e.Kind {
		case objstore.Modified, objstore.Touched, objstore.Purged:
			delete(vc.spans, e.Ino)
		}
		forget(e.Dir, e.Name)
		forget(e.NewDir, e.NewName)
		if !whole && (e.Kind == objstore.Created || e.Kind == objstore.Moved) {
			delete(vc.whole, e.Dir)
			delete(vc.whole, e.NewDir)
		}
		if e.Kind == objstore.Removed && e.Type == objstore.ModeDir {
			delete(vc.whole, e.Ino)
			c.dropList(vc, e.Ino)
		}
	}
}

// void forgets volumes.
func (c *cache) void(in func(objstore.VolumeID) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for v := range c.vols {
		if in(v) {
			c.drop(v)
		}
	}
}
