package crush

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"
)

func cluster(racks, hosts, osds int) []Device {
	var out []Device
	for r := range racks {
		for h := range hosts {
			for range osds {
				out = append(out, Device{ID: len(out), Host: fmt.Sprint("h", r, ".", h), Rack: fmt.Sprint("r", r), Weight: 1, Keep: 1})
			}
		}
	}
	return out
}

func place(devices []Device, pgs, n int, d Domain) [][]int {
	t := New(devices)
	out := make([][]int, pgs)
	for pg := range pgs {
		out[pg] = t.Select(mix(uint64(pg)), n, d, false)
	}
	return out
}

func TestLogs(t *testing.T) {
	for _, u := range []int{0, 1, 100, 32767, 65534, 65535} {
		want := -math.Log(float64(u+1)/65536) * (1 << 44)
		if got := float64(negLog(uint16(u))); math.Abs(got-want) > 2+want*1e-12 {
			t.Errorf("negLog(%d) = %v, want %v", u, got, want)
		}
	}
	if !slices.IsSortedFunc(logs[:], func(a, b uint64) int { return int(b>>20) - int(a>>20) }) {
		t.Error("not falling")
	}
}

// TestGolden: what was placed once stays where it is.
func TestGolden(t *testing.T) {
	tree := New(cluster(3, 3, 2))
	for x, want := range [][]int{golden0, golden1, golden2} {
		if got := tree.Select(uint64(x), 3, Host, false); !slices.Equal(got, want) {
			t.Errorf("%d: %v, want %v", x, got, want)
		}
	}
}

func TestNoTwoInOneFailureDomain(t *testing.T) {
	devices := cluster(4, 3, 2)
	for _, d := range []Domain{OSD, Host, Rack} {
		for pg, set := range place(devices, 5000, 3, d) {
			seen := map[string]bool{}
			for _, id := range set {
				at := map[Domain]string{OSD: fmt.Sprint(id), Host: devices[id].Host, Rack: devices[id].Rack}[d]
				if seen[at] {
					t.Fatalf("%s: pg %d has %v", d, pg, set)
				}
				seen[at] = true
			}
			if len(set) != 3 {
				t.Fatalf("%s: pg %d has %v", d, pg, set)
			}
		}
	}
}

func TestTooFewDomains(t *testing.T) {
	if got := New(cluster(1, 2, 3)).Select(7, 3, Host, false); len(got) != 2 {
		t.Errorf("%v", got)
	}
	if got := New(cluster(1, 2, 3)).Select(7, 3, Host, true); len(got) != 3 || !slices.Contains(got, -1) {
		t.Errorf("%v", got)
	}
	if got := New(nil).Select(7, 3, Host, false); len(got) != 0 {
		t.Errorf("%v", got)
	}
	none := cluster(1, 3, 1)
	for i := range none {
		none[i].Weight = 0
	}
	if got := New(none).Select(7, 3, Host, false); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func TestOrderOfDevicesDoesNotMatter(t *testing.T) {
	a := cluster(3, 3, 2)
	b := slices.Clone(a)
	slices.Reverse(b)
	if !slices.EqualFunc(place(a, 500, 3, Host), place(b, 500, 3, Host), slices.Equal) {
		t.Error("differs")
	}
}

func TestWeights(t *testing.T) {
	devices := cluster(1, 10, 1)
	for i := range devices {
		devices[i].Weight = 1 + float64(i%3)
	}
	const pgs = 100000
	count, total := map[int]float64{}, 0.0
	for _, set := range place(devices, pgs, 1, Host) {
		count[set[0]]++
	}
	for _, d := range devices {
		total += d.Weight
	}
	for _, d := range devices {
		if want := d.Weight / total * pgs; math.Abs(count[d.ID]-want) > 5*math.Sqrt(want) {
			t.Errorf("osd.%d: %v, want %v", d.ID, count[d.ID], want)
		}
	}
}

func TestLittleMoves(t *testing.T) {
	for _, hosts := range []int{4, 10, 40} {
		before := cluster(1, hosts, 1)
		after := append(slices.Clone(before), Device{ID: hosts, Host: "new", Rack: "r0", Weight: 1, Keep: 1})
		const pgs = 20000
		a, b := place(before, pgs, 3, Host), place(after, pgs, 3, Host)
		moved := 0
		for pg := range a {
			for _, id := range b[pg] {
				if !slices.Contains(a[pg], id) {
					moved++
				}
			}
		}
		ratio := float64(moved) / (3 * pgs) * float64(hosts+1)
		t.Logf("%d+1 OSDs: %.3f of the least possible", hosts, ratio)
		if ratio > 1.15 {
			t.Errorf("%d+1 OSDs: moved %.3f of the least possible", hosts, ratio)
		}
	}
}

func TestKeepPassesOnWhatItRefuses(t *testing.T) {
	devices := cluster(1, 6, 2)
	devices[3].Keep = 0.5
	n, whole := 0, 0
	for _, set := range place(devices, 20000, 3, Host) {
		for _, id := range set {
			if id == 3 {
				n++
			}
			if id == 5 {
				whole++
			}
		}
		if len(set) != 3 {
			t.Fatalf("%v", set)
		}
	}
	if r := float64(n) / float64(whole); r < 0.45 || r > 0.56 {
		t.Errorf("an OSD that keeps half has %.2f of another's", r)
	}
}

// TestPlacesStay: in an erasure-coded pool the loss of one OSD leaves the shards
// of the others where they are, but for few.
func TestPlacesStay(t *testing.T) {
	devices := cluster(1, 12, 1)
	a := New(devices)
	devices[4].Weight = 0
	b := New(devices)
	other := 0
	for x := range uint64(5000) {
		p, q := a.Select(mix(x), 6, Host, true), b.Select(mix(x), 6, Host, true)
		for i := range p {
			if p[i] != 4 && p[i] != q[i] {
				other++
			}
		}
	}
	if other > 5000*6/20 {
		t.Errorf("%d shards moved without need", other)
	}
}

// TestManyGroupsAreQuick is no measurement: it is there to fail when a map takes
// seconds where it should take milliseconds.
func TestManyGroupsAreQuick(t *testing.T) {
	devices := cluster(5, 10, 2)
	New(devices)
	start := time.Now()
	place(devices, 10000, 3, Host)
	t.Logf("100 OSDs, 10,000 placement groups: %v", time.Since(start))
}

func BenchmarkMapOf100OSDs10000PGs(b *testing.B) {
	devices := cluster(5, 10, 2)
	for b.Loop() {
		place(devices, 10000, 3, Host)
	}
}

// golden values; see TestGolden
var golden0, golden1, golden2 = []int{15, 0, 5}, []int{8, 12, 6}, []int{11, 16, 7}

// TestLightDomainIsFound: three hosts for three replicas, one of them much lighter.
func TestLightDomainIsFound(t *testing.T) {
	for _, weight := range []float64{0.2, 0.01, 0.0001} {
		devices := cluster(1, 3, 1)
		devices[0].Weight = weight
		for pg, set := range place(devices, 3000, 3, Host) {
			slices.Sort(set)
			if !slices.Equal(set, []int{0, 1, 2}) {
				t.Fatalf("weight %v, group %d: %v", weight, pg, set)
			}
		}
		tree := New(devices)
		for pg := range uint64(3000) {
			set := tree.Select(mix(pg), 3, Host, true)
			slices.Sort(set)
			if !slices.Equal(set, []int{0, 1, 2}) {
				t.Fatalf("weight %v, places, group %d: %v", weight, pg, set)
			}
		}
	}
}
