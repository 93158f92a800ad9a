package client

import (
	"math"
	"slices"
	"sort"

	"pillarbox/objstore"
)

// Listings are kept as names are. A mount asks for as many names at a time as fit
// into what a program gave it, a few dozen mostly, and once more behind the end; so
// more is asked of the OSD than was asked for, and the rest answered here.

const (
	listPage = 1024 // names that are asked for, at least
	listFew  = 16   // who wants fewer names than this wants no more
	listCost = 64   // bytes of memory of a name in a listing, beside what the cache has of it

	// beforeAll is a cookie below those of all names: they share a counter with
	// inodes, which the volume's own top directory begins.
	beforeAll = 2
)

// listing is a part of a directory's names, in the order of their cookies.
type listing struct {
	after uint64 // it begins behind this cookie
	names []objstore.DirEntry
	ends  bool // there are no more
}

// asking is how many names to ask an OSD for when n are wanted.
func (c *cache) asking(from *stream, n int) int {
	if !c.on.Load() || from == nil || n < listFew {
		return n
	}
	return max(n, listPage)
}

// list answers from a listing that is kept, with the attributes if they are wanted
// and known of all.
func (c *cache) list(dir objstore.Ino, after uint64, n int, attrs bool) (list []objstore.DirEntry, ok bool) {
	if !c.on.Load() {
		return nil, false
	}
	after = max(after, beforeAll)
	c.mu.Lock()
	defer c.mu.Unlock()
	vc := c.good(dir.Volume())
	if vc == nil {
		return nil, false
	}
	l, ok := vc.lists[dir]
	if !ok || after < l.after {
		return nil, false
	}
	at := l.find(after)
	if !l.ends && len(l.names)-at < n {
		return nil, false
	}
	list = slices.Clone(l.names[at:min(at+n, len(l.names))])
	if !attrs {
		return list, true
	}
	for i := range list {
		if list[i].Ino.Volume() != dir.Volume() {
			continue
		}
		a, known := vc.attrs[list[i].Ino]
		if !known {
			return nil, false
		}
		list[i].Attr = &a.Attr
	}
	return list, true
}

// find is the place of the first name behind a cookie.
func (l *listing) find(after uint64) int {
	return sort.Search(len(l.names), func(i int) bool { return l.names[i].Cookie > after })
}

// end is the cookie up to which all names are known.
func (l *listing) end() uint64 {
	switch {
	case l.ends:
		return math.MaxUint64
	case len(l.names) == 0:
		return l.after
	}
	return l.names[len(l.names)-1].Cookie
}

// setList keeps a part of a listing, together with what is kept before it, and
// returns what is kept then. Under mu.
func (c *cache) setList(vc *cachedVolume, dir objstore.Ino, l listing) listing {
	l.after = max(l.after, beforeAll)
	was, ok := vc.lists[dir]
	if ok && was.after <= l.after && was.end() >= l.end() {
		return was // it was asked for the attributes
	}
	l.names = slices.Clone(l.names)
	for i := range l.names {
		l.names[i].Attr = nil
	}
	if vc.lists == nil {
		vc.lists = map[objstore.Ino]listing{}
	}
	if ok && was.after <= l.after && l.after <= was.end() && int64(len(was.names)+len(l.names))*(nameCost+attrCost+listCost) <= c.max/4 {
		l = listing{was.after, append(was.names[:was.find(l.after)], l.names...), l.ends}
	}
	c.dropList(vc, dir)
	c.grow(vc, listCost*len(l.names))
	vc.lists[dir] = l
	return l
}

// dropList forgets a listing. Under mu.
func (c *cache) dropList(vc *cachedVolume, dir objstore.Ino) {
	c.grow(vc, -listCost*len(vc.lists[dir].names))
	delete(vc.lists, dir)
}
