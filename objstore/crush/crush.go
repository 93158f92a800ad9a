// Package crush computes where data lies: every client and daemon finds the
// OSDs of a placement group alone, from the cluster map (Weil, Brandt, Miller
// and Maltzahn, "CRUSH: Controlled, Scalable, Decentralized Placement of
// Replicated Data", SC 2006). Buckets choose among their items by straw2, which
// Ceph has used since 2015: every item draws a straw whose length depends on the
// input, the item and its weight alone, and the longest wins. So a change of one
// item's weight moves data to or from that item only.
//
// All arithmetic is on integers: the same map gives the same answer on every
// machine, for ever; golden values in the tests keep it so. It is not Ceph's bit
// for bit.
package crush

import (
	"cmp"
	"math"
	"math/big"
	"math/bits"
	"slices"
)

// Device is a leaf of the tree: an OSD, where it stands, and how much of the
// data it is to have.
type Device struct {
	ID     int
	Host   string
	Rack   string  // empty: all such hosts are in one rack
	Weight float64 // relative to others; 0 takes nothing
	// Keep is the part of its share that the device takes, 0 to 1 (0: it is out): what is
	// refused goes to others (Ceph's reweight).
	Keep float64
}

// Domain is what no two replicas of a placement group may share.
type Domain string

// The failure domains, from small to large.
const (
	OSD  Domain = "osd"
	Host Domain = "host"
	Rack Domain = "rack"
)

// Valid says whether the domain is one of those known.
func (d Domain) Valid() bool { return d == OSD || d == Host || d == Rack }

func (d Domain) level() int { return slices.Index([]Domain{OSD, Host, Rack}, d) }

// node is a bucket or a device. Its draws depend on its key, which comes from
// its name, never from its place among the others.
type node struct {
	key    uint64
	weight uint64 // 16.16 fixed point
	level  int    // 0 device, 1 host, 2 rack, 3 root
	id     int    // of a device
	keep   uint64 // of a device: 16.16, 1<<16 takes everything
	items  []*node
}

// Tree is a map ready for use. It does not change.
type Tree struct{ root *node }

const one = 1 << 16

func fixed(w float64) uint64 {
	return uint64(math.Round(min(max(w, 0), 1<<24) * one))
}

// New builds the tree root/rack/host/osd. The order of the devices does not matter.
func New(devices []Device) *Tree {
	t := &Tree{root: &node{level: 3, key: hashString("root")}}
	sorted := slices.SortedFunc(slices.Values(devices), func(a, b Device) int { return cmp.Compare(a.ID, b.ID) })
	racks, hosts := map[string]*node{}, map[[2]string]*node{}
	for _, d := range sorted {
		rack := racks[d.Rack]
		if rack == nil {
			rack = &node{level: 2, key: hashString("rack " + d.Rack)}
			racks[d.Rack] = rack
			t.root.items = append(t.root.items, rack)
		}
		at := [2]string{d.Rack, d.Host}
		host := hosts[at]
		if host == nil {
			host = &node{level: 1, key: hashString("host " + d.Rack + "/" + d.Host)}
			hosts[at] = host
			rack.items = append(rack.items, host)
		}
		w := fixed(d.Weight)
		host.items = append(host.items, &node{key: mix(uint64(d.ID) + 1), weight: w, id: d.ID, keep: min(fixed(d.Keep), one)})
		host.weight += w
		rack.weight += w
		t.root.weight += w
	}
	return t
}

// maxTries bounds the draws for one replica, as Ceph's choose_total_tries does.
const maxTries = 50

// none stands for a place that nothing was found for.
const none = -1

// Select returns n devices for input x, no two in one failure domain: fewer when
// the tree has too few domains. With places set the result always has n places,
// -1 where nothing was found, and what is found for one place does not depend
// on whether others were lost, as erasure coding needs it.
func (t *Tree) Select(x uint64, n int, domain Domain, places bool) []int {
	level := max(domain.level(), 0)
	if places {
		return t.selectPlaces(x, n, level)
	}
	out := make([]int, 0, n)
	var space [16]*node
	used := space[:0]
	for rep := range n {
		dev, at := t.try(x, uint64(rep), level, used)
		for try := 1; dev == nil && try < maxTries; try++ {
			dev, at = t.try(x, uint64(rep+try), level, used)
		}
		if dev == nil {
			dev, at = t.last(x, uint64(rep), level, used)
		}
		if dev != nil {
			used, out = append(used, at), append(out, dev.id)
		}
	}
	return out
}

// selectPlaces gives every place its first draw before any gets its second, so
// that a draw that fails takes from others what they would have had only rarely.
func (t *Tree) selectPlaces(x uint64, n, level int) []int {
	out := slices.Repeat([]int{none}, n)
	var space [16]*node
	used := space[:0]
	for try := range maxTries {
		for rep := range n {
			if out[rep] != none {
				continue
			}
			dev, at := t.try(x, uint64(rep+try*n), level, used)
			if dev != nil {
				used, out[rep] = append(used, at), dev.id
			}
		}
	}
	for rep := range n {
		if out[rep] != none {
			continue
		}
		if dev, at := t.last(x, uint64(rep), level, used); dev != nil {
			used, out[rep] = append(used, at), dev.id
		}
	}
	return out
}

// last draws among the failure domains that are left, when the draws from the top
// kept hitting those used: a light one beside heavy ones is not found in any
// number of tries. Ceph leaves the place empty then.
func (t *Tree) last(x, r uint64, level int, used []*node) (dev, at *node) {
	left := &node{items: slices.DeleteFunc(t.root.domains(level, nil), func(d *node) bool { return slices.Contains(used, d) })}
	for len(left.items) > 0 {
		at = left.draw(x, r)
		if at == nil {
			return nil, nil
		}
		if dev = at.leaf(x, r, maxTries); dev != nil {
			return dev, at
		}
		left.items = slices.DeleteFunc(left.items, func(d *node) bool { return d == at })
	}
	return nil, nil
}

// domains appends all buckets or devices of a level below b.
func (b *node) domains(level int, list []*node) []*node {
	if b.level <= level {
		return append(list, b)
	}
	for _, it := range b.items {
		list = it.domains(level, list)
	}
	return list
}

// try draws once: a device, and its failure domain, which is none of those used.
func (t *Tree) try(x, r uint64, level int, used []*node) (dev, at *node) {
	at = t.root.descend(x, r, level)
	if at == nil || slices.Contains(used, at) {
		return nil, nil
	}
	return at.leaf(x, r, 1), at
}

// descend draws from bucket to bucket down to a level.
func (b *node) descend(x, r uint64, level int) *node {
	for b != nil && b.level > level {
		b = b.draw(x, r)
	}
	return b
}

// leaf finds a device below b that takes x; nil when the draws found none. One
// try spreads what a device refuses over the whole tree, as Ceph's
// chooseleaf_descend_once does, and not over its neighbours.
func (b *node) leaf(x, r uint64, tries int) *node {
	for try := range uint64(tries) {
		dev := b.descend(x, r<<8|try, 0)
		if dev == nil {
			return nil
		}
		if dev.keep >= one || hash3(x, dev.key, 0x6b656570)&(one-1) < dev.keep {
			return dev
		}
		if b.level == 0 {
			return nil
		}
	}
	return nil
}

// draw is straw2: each item's straw is ln(u)/weight with u uniform in (0,1].
func (b *node) draw(x, r uint64) (best *node) {
	var bestHi, bestLo uint64
	for _, it := range b.items {
		if it.weight == 0 {
			continue
		}
		// -ln(u) in 2^-44, divided by the weight: the smallest wins. The quotient
		// has 128 bits, so that no two weights round to one.
		l := negLog(uint16(hash3(x, it.key, r) >> 48))
		hi, rem := l/it.weight, l%it.weight
		lo, _ := bits.Div64(rem, 0, it.weight)
		if best == nil || hi < bestHi || hi == bestHi && lo < bestLo {
			best, bestHi, bestLo = it, hi, lo
		}
	}
	return best
}

// negLog is -ln((u+1)/2^16) in units of 2^-44.
func negLog(u uint16) uint64 { return logs[u] }

// logs is the table of negLog, computed with integers alone so that it is the
// same everywhere: ln(2^16/k) from k = 2^16 downwards as the sum of
// ln(k+1)-ln(k) = 2 atanh(1/(2k+1)).
var logs = makeLogs()

func makeLogs() *[1 << 16]uint64 {
	const bitsUsed = 100 // of fraction while summing
	table := new([1 << 16]uint64)
	sum, term, part := new(big.Int), new(big.Int), new(big.Int)
	scale := new(big.Int).Lsh(big.NewInt(2), bitsUsed)
	q := new(big.Int)
	for k := 1<<16 - 1; k >= 1; k-- {
		d := int64(2*k + 1)
		q.SetInt64(d * d)
		term.Quo(scale, part.SetInt64(d))
		for n := int64(1); term.Sign() > 0; n += 2 {
			sum.Add(sum, part.Quo(term, part.SetInt64(n)))
			term.Quo(term, q)
		}
		table[k-1] = part.Rsh(sum, bitsUsed-44).Uint64()
	}
	return table
}

// mix is the finalizer of splitmix64: every bit of x reaches every bit of the result.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func hash3(a, b, c uint64) uint64 { return mix(a ^ mix(b^mix(c))) }

// hashString is FNV-1a, mixed.
func hashString(s string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 0x100000001b3
	}
	return mix(h)
}
