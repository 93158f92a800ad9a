package objstore

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"

	"pillarbox/objstore/crush"
)

// MapFormat is the newest format of the cluster map, and so of the store, that
// this code reads. A map has the oldest one that can say what it says
// (NeededFormat), so that programs which know no newer one go on reading it.
const (
	FirstMapFormat = 1
	PoolsMapFormat = 2 // several data pools, and rules
	OutsideFormat  = 3 // data pools outside
	CodedFormat    = 4 // erasure-coded data pools, of which OSDs know what they hold
	RatiosFormat   = 5 // ratios of full disks
	BackfillFormat = 6 // a ratio of those too full for recovery
	MapFormat      = BackfillFormat
)

// PoolKind says what a pool holds.
type PoolKind string

// The kinds of pool.
const (
	MetaPool PoolKind = "meta" // replicas of volumes; always on OSDs
	DataPool PoolKind = "data" // chunks of file bodies
)

// MonInfo is what the map says of one monitor.
type MonInfo struct {
	Name string `json:"name"`
	Addr string `json:"addr,omitempty"` // host:port of its service; empty: in this process
}

// OSDInfo is what the map says of one OSD: where it stands, which makes up the
// CRUSH tree, and how it does.
type OSDInfo struct {
	ID       int      `json:"id"`
	UUID     string   `json:"uuid,omitempty"` // of its directory, so that an empty disk is not taken for the old one
	Addr     string   `json:"addr,omitempty"` // host:port; empty: in this process, called directly
	Host     string   `json:"host,omitempty"`
	Rack     string   `json:"rack,omitempty"`
	Weight   float64  `json:"weight"`             // its share of the data; by convention its size in TiB
	Reweight float64  `json:"reweight,omitempty"` // part of that share to use, above 0 to 1; 0 means 1
	Up       bool     `json:"up"`                 // it answers
	In       bool     `json:"in"`                 // data is placed on it
	Full     Fullness `json:"full,omitempty"`
	AutoOut  bool     `json:"auto_out,omitempty"` // it was taken out for being down long, and comes in again with its return
	DownAt   int64    `json:"down_at,omitempty"`  // since when it is down, in seconds since 1970
}

// Coding says how a pool keeps its chunks safe.
type Coding struct {
	K int `json:"k"` // data shards
	M int `json:"m"` // coding shards; as many may be lost
}

// Upmap is an exception from CRUSH for one placement group, made by the
// monitors to even out what chance left uneven: each pair replaces an OSD by another.
type Upmap struct {
	PG    uint32   `json:"pg"`
	Pairs [][2]int `json:"pairs"`
}

// Pool is a set of placement rules.
type Pool struct {
	ID            int      `json:"id"`
	Name          string   `json:"name"`
	Kind          PoolKind `json:"kind"`
	Size          int      `json:"size"`                     // replicas wanted, or shards
	MinSize       int      `json:"min_size"`                 // replicas a write must reach
	PGs           int      `json:"pgs"`                      // placement groups; fixed for life in a meta pool
	ChunkSize     int      `json:"chunk_size,omitempty"`     // bytes; of a data pool
	FailureDomain string   `json:"failure_domain,omitempty"` // osd, host or rack: no two replicas share one; empty: host
	Coding        *Coding  `json:"coding,omitempty"`         // nil: replicated
	Upmaps        []Upmap  `json:"upmaps,omitempty"`
	Outside       *Outside `json:"outside,omitempty"` // of a data pool: where else than on OSDs its chunks lie
}

// Outside is a store of others that a data pool lies in: clients, who have the
// credentials, talk to it, and OSDs do not.
type Outside struct {
	Type     string            `json:"type"`     // see package pool
	Settings map[string]string `json:"settings"` // where it is; no secrets
}

// PoolRule chooses the data pool for what is written from now on below a
// directory of the root volume, or in an account by its top directory. The
// nearest rule above a file counts.
type PoolRule struct {
	Dir  Ino    `json:"dir"`
	Pool int    `json:"pool"`
	Path string `json:"path"` // of the directory when the rule was made; for people
}

// Flags of the whole cluster, as admins know them.
const (
	FlagNoOut       = "noout"   // down OSDs stay in
	FlagNoDown      = "nodown"  // reports of failures are not believed
	FlagNoScrub     = "noscrub" // no scheduled scrub
	FlagNoRecover   = "norecover"
	FlagNoRebalance = "norebalance"
)

// Map is the cluster map: what everybody must agree on to find anything. The
// monitors keep it; all others read it and treat it as immutable.
type Map struct {
	FSID        string     `json:"fsid"`              // the store's identity, for life
	Epoch       uint64     `json:"epoch"`             // grows with every change of the map
	Format      int        `json:"format"`            // see MapFormat
	VolumeDepth int        `json:"volume_depth"`      // directories at this depth are volumes; for life
	Founder     string     `json:"founder,omitempty"` // the directory (OSDInfo.UUID) that the placement groups were made in
	Mons        []MonInfo  `json:"mons,omitempty"`
	OSDs        []OSDInfo  `json:"osds"`
	Pools       []Pool     `json:"pools"`
	Rules       []PoolRule `json:"rules,omitempty"`
	Flags       []string   `json:"flags,omitempty"`
	Ratios      Ratios     `json:"ratios,omitzero"`

	placed atomic.Pointer[placement]
}

// Clone is a copy that may be changed.
func (m *Map) Clone() *Map {
	c := &Map{FSID: m.FSID, Epoch: m.Epoch, Format: m.Format, VolumeDepth: m.VolumeDepth, Founder: m.Founder}
	c.Mons, c.OSDs, c.Pools, c.Flags = slices.Clone(m.Mons), slices.Clone(m.OSDs), slices.Clone(m.Pools), slices.Clone(m.Flags)
	c.Rules, c.Ratios = slices.Clone(m.Rules), m.Ratios
	for i := range c.Pools {
		p := &c.Pools[i]
		p.Upmaps = slices.Clone(p.Upmaps)
		if p.Coding != nil {
			coding := *p.Coding
			p.Coding = &coding
		}
	}
	return c
}

// MaxVolumeDepth bounds how deep below the mount point the volumes can lie.
const MaxVolumeDepth = 8

// maxSize bounds the replicas or shards of a pool.
const maxSize = 16

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
	case m.Format < m.NeededFormat():
		return fmt.Sprintf("format %d of what needs format %d", m.Format, m.NeededFormat())
	case m.FSID == "":
		return "no fsid"
	case m.Epoch == 0:
		return "no epoch"
	case m.VolumeDepth < 1 || m.VolumeDepth > MaxVolumeDepth:
		return fmt.Sprintf("volume depth %d: must be 1 to %d", m.VolumeDepth, MaxVolumeDepth)
	}
	if why := m.Ratios.fault(); why != "" {
		return why
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
	if why := m.poolFault(); why != "" {
		return why
	}
	return m.ruleFault()
}

// NeededFormat is the oldest format that can say what the map says.
func (m *Map) NeededFormat() int {
	needed, pools := FirstMapFormat, 0
	if m.Ratios != (Ratios{}) {
		needed = RatiosFormat
	}
	if m.Ratios.BackfillFull != 0 {
		needed = BackfillFormat
	}
	for _, p := range m.Pools {
		if p.Outside != nil {
			needed = max(needed, OutsideFormat)
		}
		if p.Coding != nil {
			needed = max(needed, CodedFormat)
		}
		if p.Kind == DataPool {
			pools++
		}
	}
	if pools > 1 || len(m.Rules) > 0 {
		needed = max(needed, PoolsMapFormat)
	}
	return needed
}

func (m *Map) ruleFault() string {
	dirs := map[Ino]bool{}
	for _, r := range m.Rules {
		if p := m.Pool(r.Pool); p == nil || p.Kind != DataPool {
			return fmt.Sprintf("a rule for %q names pool %d, which is no data pool", r.Path, r.Pool)
		}
		if dirs[r.Dir] || r.Dir.Volume() != RootVolume && !r.Dir.IsVolumeRoot() {
			return fmt.Sprintf("a rule for inode %v, %q: it has another one, or is below an account", r.Dir, r.Path)
		}
		dirs[r.Dir] = true
	}
	return ""
}

func (m *Map) poolFault() string {
	ids, names, metas := map[int]bool{}, map[string]bool{}, 0
	for _, p := range m.Pools {
		if p.Name == "" || names[p.Name] || ids[p.ID] {
			return fmt.Sprintf("pool %d %q has no name, or its name or id is used twice", p.ID, p.Name)
		}
		ids[p.ID], names[p.Name] = true, true
		if p.FailureDomain != "" && !crush.Domain(p.FailureDomain).Valid() {
			return fmt.Sprintf("pool %q has failure domain %q: must be osd, host or rack", p.Name, p.FailureDomain)
		}
		if c := p.Coding; c != nil && (p.Kind != DataPool || c.K < 2 || c.M < 1 || c.K+c.M != p.Size || p.MinSize < c.K) {
			return fmt.Sprintf("pool %q is coded as %d+%d, with size %d and min_size %d", p.Name, c.K, c.M, p.Size, p.MinSize)
		}
		if p.Size < 1 || p.Size > maxSize || p.MinSize < 1 || p.MinSize > p.Size {
			return fmt.Sprintf("pool %q has size %d and min_size %d", p.Name, p.Size, p.MinSize)
		}
		switch p.Kind {
		case MetaPool:
			metas++
			if p.PGs < 1 || p.PGs > maxPGs {
				return fmt.Sprintf("pool %q has %d placement groups: must be 1 to %d", p.Name, p.PGs, maxPGs)
			}
		case DataPool:
			if p.Outside != nil && (p.Outside.Type == "" || p.Coding != nil) {
				return fmt.Sprintf("pool %q is outside, of type %q", p.Name, p.Outside.Type)
			}
			if p.PGs < 1 || p.PGs > maxPGs {
				return fmt.Sprintf("pool %q has %d placement groups: must be 1 to %d", p.Name, p.PGs, maxPGs)
			}
			if p.ID < 1 || p.ID > MaxDataPool {
				return fmt.Sprintf("data pool %q has id %d: must be 1 to %d", p.Name, p.ID, MaxDataPool)
			}
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
	if m.Data() == nil {
		return "no data pool"
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

// OSD is what the map says of an OSD, nil if it does not know it.
func (m *Map) OSD(id int) *OSDInfo {
	for i := range m.OSDs {
		if m.OSDs[i].ID == id {
			return &m.OSDs[i]
		}
	}
	return nil
}

// Pool is the one with this id, nil if the map has none.
func (m *Map) Pool(id int) *Pool {
	for i := range m.Pools {
		if m.Pools[i].ID == id {
			return &m.Pools[i]
		}
	}
	return nil
}

// PoolOf is the data pool that a chunk lies in, nil if the map does not have it:
// the pool is newer than the map, or was removed.
func (m *Map) PoolOf(id ChunkID) *Pool {
	if p := m.Pool(id.Pool()); p != nil && p.Kind == DataPool {
		return p
	}
	return nil
}

// PoolNamed is the one with this name, nil if the map has none.
func (m *Map) PoolNamed(name string) *Pool {
	for i := range m.Pools {
		if m.Pools[i].Name == name {
			return &m.Pools[i]
		}
	}
	return nil
}

// OutsideOf is the outside pool that a chunk lies in, nil if it is in none.
func (m *Map) OutsideOf(id ChunkID) *Pool {
	if id.Resident() {
		return nil
	}
	if p := m.PoolOf(id); p != nil && p.Outside != nil {
		return p
	}
	return nil
}

// HasOutside says whether any pool is outside.
func (m *Map) HasOutside() bool {
	return slices.ContainsFunc(m.Pools, func(p Pool) bool { return p.Outside != nil })
}

// Rule is the rule of a directory itself, nil if it has none.
func (m *Map) Rule(dir Ino) *PoolRule {
	for i := range m.Rules {
		if m.Rules[i].Dir == dir {
			return &m.Rules[i]
		}
	}
	return nil
}

// Data is the data pool for what no rule chooses one for: that of the root
// directory's rule, else the first. The map must be valid.
func (m *Map) Data() *Pool {
	if r := m.Rule(VolumeRoot(RootVolume)); r != nil {
		return m.Pool(r.Pool)
	}
	for i := range m.Pools {
		if m.Pools[i].Kind == DataPool {
			return &m.Pools[i]
		}
	}
	return nil
}

// HasFlag says whether a flag of the whole cluster is set.
func (m *Map) HasFlag(flag string) bool { return slices.Contains(m.Flags, flag) }

// ChunkPG is the placement group of a data pool that a chunk lies in.
func (p *Pool) ChunkPG(id ChunkID) uint32 {
	h := mix64(uint64(id.Ino) ^ mix64(uint64(id.Index)<<1|1) ^ mix64(id.Version))
	return uint32(h % uint64(p.PGs))
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
