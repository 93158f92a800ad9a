package objstore

import (
	"encoding/json"
	"fmt"
)

// MapFormat is the newest format of the cluster map, and so of the store, that
// this code reads.
const MapFormat = 1

// PoolKind says what a pool holds.
type PoolKind string

// The kinds of pool.
const (
	MetaPool PoolKind = "meta" // replicas of volumes; always on OSDs
	DataPool PoolKind = "data" // chunks of file bodies
)

// OSDInfo is what the map says of one OSD.
type OSDInfo struct {
	ID     int     `json:"id"`
	Host   string  `json:"host,omitempty"`
	Addr   string  `json:"addr,omitempty"` // empty: in this process, called directly
	Weight float64 `json:"weight"`         // relative share of the data
	Up     bool    `json:"up"`             // it answers
	In     bool    `json:"in"`             // data is placed on it
}

// Pool is a set of placement rules.
type Pool struct {
	ID        int      `json:"id"`
	Name      string   `json:"name"`
	Kind      PoolKind `json:"kind"`
	Size      int      `json:"size"`                 // replicas wanted
	MinSize   int      `json:"min_size"`             // replicas a write must reach
	PGs       int      `json:"pgs,omitempty"`        // placement groups; fixed for life in a meta pool
	ChunkSize int      `json:"chunk_size,omitempty"` // bytes; of a data pool
}

// Map is the cluster map: what everybody must agree on to find anything. The
// monitors keep it; all others read it and treat it as immutable.
type Map struct {
	FSID        string    `json:"fsid"`         // the store's identity, for life
	Epoch       uint64    `json:"epoch"`        // grows with every change of the map
	Format      int       `json:"format"`       // see MapFormat
	VolumeDepth int       `json:"volume_depth"` // directories at this depth are volumes; for life
	OSDs        []OSDInfo `json:"osds"`
	Pools       []Pool    `json:"pools"`
}

// MaxVolumeDepth bounds how deep below the mount point the volumes can lie.
const MaxVolumeDepth = 8

// maxPGs is how many placement groups a pool can have: a group's number has 16
// bits in the OSDs' logs.
const maxPGs = 1<<16 - 1

// ParseMap decodes a map and validates it.
func ParseMap(b []byte) (*Map, error) {
	m := &Map{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("decode cluster map: %w: %w", err, Corrupt)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return m, nil
}

// Validate says what is wrong with the map. Unsupported: a newer format.
// Invalid: everything else.
func (m *Map) Validate() error {
	if m.Format > MapFormat {
		return fmt.Errorf("cluster map has format %d, this program reads up to %d: %w", m.Format, MapFormat, Unsupported)
	}
	if why := m.fault(); why != "" {
		return fmt.Errorf("cluster map: %s: %w", why, Invalid)
	}
	return nil
}

func (m *Map) fault() string {
	switch {
	case m.Format < 1:
		return fmt.Sprintf("format %d", m.Format)
	case m.FSID == "":
		return "no fsid"
	case m.Epoch == 0:
		return "no epoch"
	case m.VolumeDepth < 1 || m.VolumeDepth > MaxVolumeDepth:
		return fmt.Sprintf("volume depth %d: must be 1 to %d", m.VolumeDepth, MaxVolumeDepth)
	}
	osds := make(map[int]bool, len(m.OSDs))
	for _, o := range m.OSDs {
		if o.ID < 0 || osds[o.ID] {
			return fmt.Sprintf("OSD id %d is negative or used twice", o.ID)
		}
		if !(o.Weight >= 0) {
			return fmt.Sprintf("osd.%d has weight %v", o.ID, o.Weight)
		}
		osds[o.ID] = true
	}
	return m.poolFault()
}

func (m *Map) poolFault() string {
	ids, names, metas := map[int]bool{}, map[string]bool{}, 0
	for _, p := range m.Pools {
		if p.Name == "" || names[p.Name] || ids[p.ID] {
			return fmt.Sprintf("pool %d %q has no name, or its name or id is used twice", p.ID, p.Name)
		}
		ids[p.ID], names[p.Name] = true, true
		if p.Size < 1 || p.MinSize < 1 || p.MinSize > p.Size {
			return fmt.Sprintf("pool %q has size %d and min_size %d", p.Name, p.Size, p.MinSize)
		}
		switch p.Kind {
		case MetaPool:
			metas++
			if p.PGs < 1 || p.PGs > maxPGs {
				return fmt.Sprintf("pool %q has %d placement groups: must be 1 to %d", p.Name, p.PGs, maxPGs)
			}
		case DataPool:
			if p.ChunkSize < 1 || p.ChunkSize > ChunkSize {
				return fmt.Sprintf("pool %q has chunks of %d bytes: must be 1 to %d", p.Name, p.ChunkSize, ChunkSize)
			}
		default:
			return fmt.Sprintf("pool %q is of unknown kind %q", p.Name, p.Kind)
		}
	}
	if metas != 1 {
		return fmt.Sprintf("%d meta pools: must be one", metas)
	}
	return ""
}

// Meta is the pool of the volumes. The map must be valid.
func (m *Map) Meta() *Pool {
	for i := range m.Pools {
		if m.Pools[i].Kind == MetaPool {
			return &m.Pools[i]
		}
	}
	return nil
}

// Group is the placement group of the meta pool that a volume lives in, by
// arithmetic alone and the same for the life of the store. The root volume's
// is 0. The map must be valid.
func (m *Map) Group(v VolumeID) uint32 {
	if v == RootVolume {
		return 0
	}
	return uint32(mix64(uint64(v)) % uint64(m.Meta().PGs))
}

// mix64 is the finalizer of splitmix64: every bit of x reaches every bit of the
// result. Placement rests on it, so it never changes.
func mix64(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
