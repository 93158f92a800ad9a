//go:build crushtool

package crush

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// This compares with Ceph's crushtool: make crush-compare. docs/crush.md has
// what it printed.

const (
	inputs   = 20000
	replicas = 3
)

// tree is devices and those of them that are out.
type tree struct {
	devices []Device
	out     map[int]bool
}

func ours(_ *testing.T, c tree) [][]int {
	devices := slices.Clone(c.devices)
	for i := range devices {
		if c.out[devices[i].ID] {
			devices[i].Keep = 0
		}
	}
	t := New(devices)
	sets := make([][]int, inputs)
	for x := range sets {
		sets[x] = t.Select(mix(uint64(x)), replicas, Host, false)
	}
	return sets
}

// theirs asks crushtool, with today's tunables.
func theirs(t *testing.T, c tree) [][]int {
	t.Helper()
	dir := t.TempDir()
	text, bin := filepath.Join(dir, "map.txt"), filepath.Join(dir, "map")
	if err := os.WriteFile(text, []byte(crushMap(c.devices)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("crushtool", "-c", text, "-o", bin).CombinedOutput(); err != nil {
		t.Fatalf("crushtool (Debian's ceph-base): %v\n%s", err, out)
	}
	args := []string{"-i", bin, "--test", "--show-mappings", "--rule", "0", "--num-rep", fmt.Sprint(replicas), "--min-x", "0", "--max-x", fmt.Sprint(inputs - 1)}
	for id := range c.out {
		args = append(args, "--weight", fmt.Sprint(id), "0")
	}
	out, err := exec.Command("crushtool", args...).Output() // on one pipe with its errors it loses lines
	if err != nil {
		t.Fatalf("crushtool --test: %v\n%s", err, out)
	}
	var sets [][]int
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		_, list, ok := strings.Cut(lines.Text(), "[")
		if !ok {
			continue
		}
		var set []int
		for _, n := range strings.Split(strings.TrimSuffix(list, "]"), ",") {
			id := 0
			if _, err := fmt.Sscan(n, &id); err != nil {
				t.Fatalf("crushtool printed %q", lines.Text())
			}
			set = append(set, id)
		}
		sets = append(sets, set)
	}
	if len(sets) != inputs {
		t.Fatalf("crushtool printed %d mappings", len(sets))
	}
	return sets
}

// crushMap is the tree in crushtool's language. Hosts and racks have the same
// ids in every tree, for Ceph hashes those.
func crushMap(devices []Device) string {
	var b strings.Builder
	b.WriteString("tunable choose_local_tries 0\ntunable choose_local_fallback_tries 0\ntunable choose_total_tries 50\n" +
		"tunable chooseleaf_descend_once 1\ntunable chooseleaf_vary_r 1\ntunable chooseleaf_stable 1\n" +
		"tunable straw_calc_version 1\ntunable allowed_bucket_algs 54\n")
	hosts, racks := map[string][]Device{}, map[string][]string{}
	var hostNames, rackNames []string
	for _, d := range devices {
		fmt.Fprintf(&b, "device %d osd.%d\n", d.ID, d.ID)
		if hosts[d.Host] == nil {
			hostNames = append(hostNames, d.Host)
			if racks[d.Rack] == nil {
				rackNames = append(rackNames, d.Rack)
			}
			racks[d.Rack] = append(racks[d.Rack], d.Host)
		}
		hosts[d.Host] = append(hosts[d.Host], d)
	}
	b.WriteString("type 0 osd\ntype 1 host\ntype 3 rack\ntype 11 root\n")
	number := func(name string) int {
		n := 0
		for _, c := range name {
			n = n*37%100003 + int(c)
		}
		return n
	}
	weight := map[string]float64{}
	bucket := func(kind, name string, id int, items []string) {
		fmt.Fprintf(&b, "%s %s {\n\tid -%d\n\talg straw2\n\thash 0\n", kind, name, id)
		for _, it := range items {
			fmt.Fprintf(&b, "\titem %s weight %.5f\n", it, weight[it])
			weight[name] += weight[it]
		}
		b.WriteString("}\n")
	}
	for _, h := range hostNames {
		var items []string
		for _, d := range hosts[h] {
			it := fmt.Sprint("osd.", d.ID)
			weight[it] = d.Weight
			items = append(items, it)
		}
		bucket("host", h, 1000+number(h), items)
	}
	for _, r := range rackNames {
		bucket("rack", r, 200000+number(r), racks[r])
	}
	bucket("root", "default", 1, rackNames)
	b.WriteString("rule r {\n\tid 0\n\ttype replicated\n\tmin_size 1\n\tmax_size 10\n\tstep take default\n\tstep chooseleaf firstn 0 type host\n\tstep emit\n}\n")
	return b.String()
}

// figures of one placement.
type figures struct {
	spread, worst float64 // standard deviation and largest deviation from the weights, in per cent
	short, shared int     // inputs with too few replicas, and with two in one host
}

func measure(c tree, sets [][]int) (f figures) {
	total, count := 0.0, map[int]int{}
	host := map[int]string{}
	for _, d := range c.devices {
		if !c.out[d.ID] {
			total += d.Weight
		}
		host[d.ID] = d.Host
	}
	for _, set := range sets {
		if len(set) < replicas {
			f.short++
		}
		seen := map[string]bool{}
		for _, id := range set {
			count[id]++
			if seen[host[id]] {
				f.shared++
			}
			seen[host[id]] = true
		}
	}
	n := 0
	for _, d := range c.devices {
		if c.out[d.ID] {
			continue
		}
		dev := float64(count[d.ID])/(d.Weight/total*replicas*float64(len(sets))) - 1
		f.spread += dev * dev
		f.worst = max(f.worst, math.Abs(dev))
		n++
	}
	return figures{100 * math.Sqrt(f.spread/float64(n)), 100 * f.worst, f.short, f.shared}
}

// moved is how many replicas are somewhere new.
func moved(before, after [][]int) (n int) {
	for x := range before {
		for _, id := range after[x] {
			if !slices.Contains(before[x], id) {
				n++
			}
		}
	}
	return n
}

func TestCompare(t *testing.T) {
	if _, err := exec.LookPath("crushtool"); err != nil {
		t.Fatalf("crushtool is missing; it is in Debian's ceph-base: %v", err)
	}
	mixed := cluster(5, 4, 5)
	for i := range mixed {
		mixed[i].Weight = []float64{1, 2, 4}[i/5%3]
	}
	even := cluster(2, 4, 4)
	lopsided := append(cluster(1, 3, 1), Device{ID: 3, Host: "light", Rack: "r0", Weight: 0.05, Keep: 1})
	add := func(d []Device, host, rack string, n int, w float64) []Device {
		d = slices.Clone(d)
		for range n {
			d = append(d, Device{ID: len(d), Host: host, Rack: rack, Weight: w, Keep: 1})
		}
		return d
	}
	t.Logf("%d inputs, %d replicas, failure domain host", inputs, replicas)
	t.Log("| tree or change | | spread | worst OSD | too few | host twice | moved / ideal |")
	t.Log("|---|---|--:|--:|--:|--:|--:|")
	for _, c := range []struct {
		name          string
		before, after tree
		ideal         float64 // part of all replicas that has to move
	}{
		{"32 OSDs, 8 hosts, even", tree{devices: even}, tree{}, 0},
		{"100 OSDs, 20 hosts, weights 1, 2, 4 by host", tree{devices: mixed}, tree{}, 0},
		{"4 hosts of one OSD, one of weight 0.05", tree{devices: lopsided}, tree{}, 0},
		{"32 even, one OSD more in a host", tree{devices: even}, tree{devices: add(even, "h0.0", "r0", 1, 1)}, 1. / 33},
		{"32 even, one host of 4 more", tree{devices: even}, tree{devices: add(even, "new", "r0", 4, 1)}, 4. / 36},
		{"100 mixed, one OSD out", tree{devices: mixed}, tree{mixed, map[int]bool{7: true}}, mixed[7].Weight / 230},
		{"32 even, one OSD out", tree{devices: even}, tree{even, map[int]bool{7: true}}, 1. / 32},
	} {
		var worst [2]figures
		for i, who := range []struct {
			name  string
			place func(*testing.T, tree) [][]int
		}{{"Pillarbox", ours}, {"Ceph", theirs}} {
			before := who.place(t, c.before)
			f, ratio := measure(c.before, before), "-"
			if c.after.devices != nil {
				after := who.place(t, c.after)
				f = measure(c.after, after)
				r := float64(moved(before, after)) / (c.ideal * replicas * inputs)
				ratio = fmt.Sprintf("%.2f", r)
			}
			worst[i] = f
			t.Logf("| %s | %s | %.2f %% | %.2f %% | %d | %d | %s |", c.name, who.name, f.spread, f.worst, f.short, f.shared, ratio)
		}
		if us, they := worst[0], worst[1]; us.shared > 0 || us.short > 0 || us.spread > 1.2*they.spread+0.2 {
			t.Errorf("%s: %+v, crushtool's %+v", c.name, us, they)
		}
	}
}
