package objstore

import (
	"slices"

	"pillarbox/objstore/crush"
)

// placement is what follows from a map by computation, kept because it costs
// something: the CRUSH tree and the upmaps of each pool.
type placement struct {
	tree   *crush.Tree
	upmaps map[int]map[uint32][][2]int
}

func (m *Map) place() *placement {
	if p := m.placed.Load(); p != nil {
		return p
	}
	p := &placement{upmaps: map[int]map[uint32][][2]int{}}
	var devices []crush.Device
	for _, o := range m.OSDs {
		keep := o.Reweight
		if keep == 0 {
			keep = 1
		}
		if !o.In { // it keeps its place in the tree, so that little else moves
			keep = 0
		}
		devices = append(devices, crush.Device{ID: o.ID, Host: o.Host, Rack: o.Rack, Weight: o.Weight, Keep: keep})
	}
	p.tree = crush.New(devices)
	for _, pool := range m.Pools {
		ups := map[uint32][][2]int{}
		for _, u := range pool.Upmaps {
			ups[u.PG] = u.Pairs
		}
		p.upmaps[pool.ID] = ups
	}
	m.placed.Store(p)
	return p
}

// Domain is the pool's failure domain.
func (p *Pool) Domain() crush.Domain {
	if p.FailureDomain == "" {
		return crush.Host
	}
	return crush.Domain(p.FailureDomain)
}

// Pieces is what the pool has Size of for each chunk, in words.
func (p *Pool) Pieces() string {
	if p.Coding != nil {
		return "shards"
	}
	return "replicas"
}

// Acting lists the OSDs that hold a placement group of a pool, the first one
// first. It follows from the map alone: which OSDs are in, not which are up.
// Shorter than the pool's size where the map has too few failure domains; in an
// erasure-coded pool always of that size, with -1 where nothing was found.
func (m *Map) Acting(pool *Pool, pg uint32) []int {
	if pool.Outside != nil {
		return nil // no OSD does
	}
	p := m.place()
	x := mix64(uint64(pool.ID)<<32 | uint64(pg))
	set := p.tree.Select(x, pool.Size, pool.Domain(), pool.Coding != nil)
	for _, pair := range p.upmaps[pool.ID][pg] {
		m.replace(pool, set, pair[0], pair[1])
	}
	return set
}

// Domains is how many failure domains of a kind data can be placed in.
func (m *Map) Domains(d crush.Domain) int {
	var found []int // an OSD of each
	for _, o := range m.OSDs {
		if o.In && o.Weight > 0 && !slices.ContainsFunc(found, func(id int) bool { return m.share(d, id, o.ID) }) {
			found = append(found, o.ID)
		}
	}
	return len(found)
}

// replace carries out one pair of an upmap, unless the map has changed so that
// it would do harm: the new OSD is out, or shares a failure domain with another.
func (m *Map) replace(pool *Pool, set []int, from, to int) {
	at := -1
	o := m.OSD(to)
	if o == nil || !o.In || o.Weight <= 0 {
		return
	}
	for i, id := range set {
		switch {
		case id == from:
			at = i
		case id == to || id >= 0 && m.share(pool.Domain(), id, to):
			return
		}
	}
	if at >= 0 {
		set[at] = to
	}
}

// share says whether two OSDs are in one failure domain.
func (m *Map) share(d crush.Domain, a, b int) bool {
	p, q := m.OSD(a), m.OSD(b)
	if p == nil || q == nil {
		return false
	}
	switch d {
	case crush.Rack:
		return p.Rack == q.Rack
	case crush.Host:
		return p.Rack == q.Rack && p.Host == q.Host
	}
	return a == b
}
