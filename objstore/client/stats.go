package client

// Kinds of what the cache keeps.
const (
	cachedNames = iota
	cachedAttrs
	cachedExtents
	cachedKinds
)

// Found counts questions that the cache could answer, and those that it could not.
type Found struct {
	Hits   uint64 `json:"hits"`
	Misses uint64 `json:"misses"`
}

func (f *Found) add(hit bool) {
	if hit {
		f.Hits++
	} else {
		f.Misses++
	}
}

// Stats are how a client of a cluster is doing. The counts began with it; those of
// the embedded store's stay 0.
type Stats struct {
	Names      Found  `json:"names"`
	Attrs      Found  `json:"attrs"`
	Extents    Found  `json:"extents"`
	Bytes      int64  `json:"bytes"` // of memory that the cache takes for all three, about, and at most
	MaxBytes   int64  `json:"max_bytes"`
	Pushes     uint64 `json:"pushes"` // changes that others made and this client was told of
	LeasesLost uint64 `json:"leases_lost"`
	Groups     int    `json:"groups"`      // placement groups of volumes
	GroupsAway int    `json:"groups_away"` // those of them that cannot be reached: operations fail without waiting
	OSDsSilent int    `json:"osds_silent"` // OSDs that do not answer this client
}

// Stats tells how the client is doing.
func (c *Client) Stats() Stats {
	s := Stats{Pushes: c.watch.pushes.Load(), LeasesLost: c.watch.lost.Load()}
	c.cache.mu.Lock()
	s.Names, s.Attrs, s.Extents = c.cache.found[cachedNames], c.cache.found[cachedAttrs], c.cache.found[cachedExtents]
	s.Bytes, s.MaxBytes = c.cache.size, c.cache.max
	c.cache.mu.Unlock()
	e := c.now.Load()
	s.Groups = e.Meta().PGs
	if e.only != nil {
		return s
	}
	for _, o := range e.OSDs {
		if !c.peer(o.ID).silentSince().IsZero() {
			s.OSDsSilent++
		}
	}
	for pg := range uint32(s.Groups) {
		if c.groupAway(e, pg) != nil {
			s.GroupsAway++
		}
	}
	return s
}
