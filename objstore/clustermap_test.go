package objstore

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"testing"
)

func validMap() *Map {
	return &Map{
		FSID: "f", Epoch: 1, Format: FirstMapFormat, VolumeDepth: 2,
		OSDs: []OSDInfo{{ID: 0, Weight: 1, Up: true, In: true}, {ID: 1, Weight: 2}},
		Pools: []Pool{
			{ID: 0, Name: "meta", Kind: MetaPool, Size: 1, MinSize: 1, PGs: 64},
			{ID: 1, Name: "data", Kind: DataPool, Size: 3, MinSize: 2, PGs: 128, ChunkSize: ChunkSize},
		},
	}
}

func TestMapRoundTrip(t *testing.T) {
	m := validMap()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseMap(b)
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("%+v, %v; want %+v", got, err, m)
	}
	if _, err := ParseMap([]byte("{")); !errors.Is(err, Corrupt) {
		t.Errorf("half a map: %v", err)
	}
}

func TestMapValidate(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Map)
		want   error
	}{
		"valid":           {func(*Map) {}, nil},
		"newer":           {func(m *Map) { m.Format = MapFormat + 1 }, Unsupported},
		"no format":       {func(m *Map) { m.Format = 0 }, Invalid},
		"no fsid":         {func(m *Map) { m.FSID = "" }, Invalid},
		"no epoch":        {func(m *Map) { m.Epoch = 0 }, Invalid},
		"depth":           {func(m *Map) { m.VolumeDepth = MaxVolumeDepth + 1 }, Invalid},
		"osd twice":       {func(m *Map) { m.OSDs[1].ID = 0 }, Invalid},
		"weight NaN":      {func(m *Map) { m.OSDs[1].Weight = math.NaN() }, Invalid},
		"pool twice":      {func(m *Map) { m.Pools[1].Name = "meta" }, Invalid},
		"two meta pools":  {func(m *Map) { m.Pools[1].Kind, m.Pools[1].PGs = MetaPool, 1 }, Invalid},
		"no pools":        {func(m *Map) { m.Pools = nil }, Invalid},
		"kind":            {func(m *Map) { m.Pools[1].Kind = "x" }, Invalid},
		"min_size > size": {func(m *Map) { m.Pools[1].MinSize = 4 }, Invalid},
		"chunk size":      {func(m *Map) { m.Pools[1].ChunkSize = ChunkSize + 1 }, Invalid},
		"pools":           {func(m *Map) { addPool(m, 2); m.Format = PoolsMapFormat }, nil},
		"rule":            {func(m *Map) { addRule(m, PoolRule{Dir: 7, Pool: 1}); m.Format = PoolsMapFormat }, nil},
		"pools, format":   {func(m *Map) { addPool(m, 2) }, Invalid},
		"rule, format":    {func(m *Map) { addRule(m, PoolRule{Dir: 7, Pool: 1}) }, Invalid},
		"pool id":         {func(m *Map) { addPool(m, MaxDataPool+1); m.Format = PoolsMapFormat }, Invalid},
		"rule of meta":    {func(m *Map) { addRule(m, PoolRule{Dir: 7}); m.Format = PoolsMapFormat }, Invalid},
		"rule of none":    {func(m *Map) { addRule(m, PoolRule{Dir: 7, Pool: 5}); m.Format = PoolsMapFormat }, Invalid},
		"rule too deep":   {func(m *Map) { addRule(m, PoolRule{Dir: MakeIno(3, 2), Pool: 1}); m.Format = PoolsMapFormat }, Invalid},
		"rule twice": {func(m *Map) {
			addRule(m, PoolRule{Dir: 7, Pool: 1}, PoolRule{Dir: 7, Pool: 1})
			m.Format = PoolsMapFormat
		}, Invalid},
		"no groups": {func(m *Map) { m.Pools[0].PGs = 0 }, Invalid},
	} {
		m := validMap()
		c.change(m)
		if err := m.Validate(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestGroup(t *testing.T) {
	m := validMap()
	if g := m.Group(RootVolume); g != 0 {
		t.Errorf("root volume in group %d", g)
	}
	// Placement is for life: these numbers must never change.
	for v, want := range map[VolumeID]uint32{1: 1, 2: 14, 1000: 8, MaxVolume: 35} {
		if g := m.Group(v); g != want {
			t.Errorf("volume %d in group %d, want %d", v, g, want)
		}
	}
	const per = 1000
	var n [64]int
	for v := range VolumeID(64 * per) {
		n[m.Group(v+1)]++
	}
	for g, n := range n {
		if n < per*8/10 || n > per*12/10 {
			t.Errorf("group %d has %d volumes, even would be %d", g, n, per)
		}
	}
}

func addPool(m *Map, id int) {
	p := m.Pools[1]
	p.ID, p.Name = id, "more"
	m.Pools = append(m.Pools, p)
}

func addRule(m *Map, rules ...PoolRule) { m.Rules = append(m.Rules, rules...) }

func TestChunkPool(t *testing.T) {
	for _, pool := range []int{1, 2, 16, 17, MaxDataPool} {
		for _, session := range []uint64{0, 1, MaxSession} {
			for _, count := range []uint64{1, MaxChunkCount} {
				id := ChunkID{Version: PooledVersion(pool, session, count)}
				if id.Resident() || id.Sealed() {
					t.Errorf("%v is resident or sealed", id)
				}
				if id.Version |= SealedVersion; id.Pool() != pool || id.Session() != session {
					t.Errorf("pool %d, session %d, count %d: %v is of pool %d and session %d", pool, session, count, id, id.Pool(), id.Session())
				}
			}
		}
	}
	// Chunks of before there were pools are of the first one: session 5, count 9.
	if old := (ChunkID{Version: 5<<36 | 9}); old.Version != PooledVersion(1, 5, 9) || old.Pool() != 1 || old.Session() != 5 {
		t.Errorf("%v is of pool %d and session %d", old, old.Pool(), old.Session())
	}
}

func TestPoolOf(t *testing.T) {
	m := validMap()
	addPool(m, 3)
	m.Format = PoolsMapFormat
	for pool, want := range map[int]*Pool{1: &m.Pools[1], 2: nil, 3: &m.Pools[2]} {
		if got := m.PoolOf(ChunkID{Version: PooledVersion(pool, 1, 1)}); got != want {
			t.Errorf("chunk of pool %d: %+v, want %+v", pool, got, want)
		}
	}
	if m.Data() != &m.Pools[1] {
		t.Error("without a rule the first data pool is not the default")
	}
	addRule(m, PoolRule{Dir: VolumeRoot(RootVolume), Pool: 3})
	if err := m.Validate(); err != nil || m.Data() != &m.Pools[2] {
		t.Errorf("the rule of / does not choose the default: %v", err)
	}
	if c := m.Clone(); len(c.Rules) != 1 || &c.Rules[0] == &m.Rules[0] {
		t.Error("a clone shares the rules")
	}
}
