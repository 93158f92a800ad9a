package cluster

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	faultTime = flag.Duration("faults", 30*time.Second, "how long TestFaults goes on breaking things")
	faultSeed = flag.Uint64("seed", 0, "of TestFaults and TestHistories; 0: a random one")
)

// broken is a cluster while TestFaults breaks it.
type broken struct {
	*cluster
	r      *rand.Rand
	p      *post
	osds   []*daemon
	mons   []*daemon
	mounts []*daemon
	repair []func() // undo what is broken now
}

// TestFaults breaks things at random under load, and repairs them: nothing that
// was acknowledged may be lost, doubled or changed, and the cluster has to be
// healthy again by itself. Half of the mailboxes have their larger bodies in an
// erasure-coded pool. A seed gives the same faults again, not the same
// moments.
func TestFaults(t *testing.T) {
	seed := *faultSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	b := &broken{cluster: bareCluster(t), r: rand.New(rand.NewPCG(seed, 0))}
	b.net = newNetwork(t)
	const osds = 4
	for i := range osds {
		b.disk(fmt.Sprint("osd.", i))
	}
	b.found(osds)
	b.mons = append(b.mons, b.all[0], b.addMon("mon.b"), b.addMon("mon.c"))
	b.osds = b.all[1 : 1+osds : 1+osds]
	b.healthy(osds)
	b.run("pool", "create", "coded", "--type", "erasure", "--k", "2", "--m", "2", "--pgs", "16", "--conf", b.admin)
	b.p = newPost(t)
	var points []string
	for _, name := range []string{"mx1", "mx2"} {
		point, d := b.cluster.mount(name, "timeout=10s")
		points, b.mounts = append(points, point), append(b.mounts, d)
		b.p.work(point, name, 2, seed)
		b.run("pool", "set", "/example.org/"+name+"-0", "coded", "--conf", b.admin)
	}
	b.p.goesOn(b.cluster, "at first")
	kinds := []func() string{
		b.killOSD, b.killOSD, b.killMon, b.freezeOSD, b.freezeMon, b.partOSD, b.partMon, b.deafOSD, b.muteOSD, b.partMount, b.slowOSD, b.fillOSD,
	}
	faults := 0
	for end := time.Now().Add(*faultTime); time.Now().Before(end) && !t.Failed(); {
		for range 1 + b.r.IntN(3)/2 { // sometimes two at once
			t.Logf("%s: %s", time.Now().Format(time.TimeOnly), kinds[b.r.IntN(len(kinds))]())
			faults++
		}
		b.p.goesAbout(20+b.r.IntN(60), time.Duration(2+b.r.IntN(8))*time.Second)
		for _, repair := range b.repair {
			repair()
		}
		b.repair = nil
		b.p.goesOn(b.cluster, "after it was repaired")
	}
	b.healthy(osds)
	b.p.goesOn(b.cluster, "in the end")
	b.p.end()
	if b.poolUse()["coded"] == 0 {
		t.Error("nothing was written in shards")
	}
	t.Logf("%d faults; %s", faults, b.p)
	for _, point := range points {
		b.p.verify(point)
	}
	point, d := b.cluster.mount("mx3")
	b.p.verify(point)
	for _, d := range append(b.mounts, d) {
		b.stop(d)
	}
}

// disk gives a daemon a filesystem of its own, so that it can be filled.
func (c *cluster) disk(daemon string) {
	c.t.Helper()
	image, dir := c.path(daemon+".img"), c.path(daemon)
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		err = os.WriteFile(image, nil, 0o600)
	}
	if err == nil {
		err = os.Truncate(image, 2<<30)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	for _, words := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			c.t.Fatalf("%q: %v\n%s", words, err, out)
		}
	}
}

// later notes how to undo a fault.
func (b *broken) later(repair func()) { b.repair = append(b.repair, repair) }

func (b *broken) any(of []*daemon) *daemon { return of[b.r.IntN(len(of))] }

func (b *broken) killOSD() string { return b.killed(b.any(b.osds)) }
func (b *broken) killMon() string { return b.killed(b.any(b.mons)) }

func (b *broken) killed(d *daemon) string {
	select {
	case <-d.done:
		return d.name + " is dead already"
	default:
	}
	b.kill(d)
	b.later(func() { b.restart(d) })
	return "kill -9 " + d.name
}

func (b *broken) freezeOSD() string { return b.frozen(b.any(b.osds)) }
func (b *broken) freezeMon() string { return b.frozen(b.any(b.mons)) }

func (b *broken) frozen(d *daemon) string {
	d.cmd.Process.Signal(unix.SIGSTOP) // fails when it is dead, which is fine
	b.later(func() { d.cmd.Process.Signal(unix.SIGCONT) })
	return "stop " + d.name
}

func (b *broken) partOSD() string   { return b.parted(b.any(b.osds)) }
func (b *broken) partMon() string   { return b.parted(b.any(b.mons)) }
func (b *broken) partMount() string { return b.parted(b.any(b.mounts)) }

func (b *broken) parted(d *daemon) string {
	b.net.part(d.name)
	b.later(b.net.heal)
	return "cut off " + d.name
}

// others are the hosts but one, in an order that a seed gives again.
func (b *broken) others(d *daemon) (names []string) {
	for _, o := range slices.Concat(b.mons, b.osds, b.mounts) {
		if o != d {
			names = append(names, o.name)
		}
	}
	return names
}

func (b *broken) deafOSD() string {
	d := b.any(b.osds)
	for _, o := range b.others(d) {
		b.net.cut(o, d.name)
	}
	b.later(b.net.heal)
	return d.name + " hears nobody"
}

func (b *broken) muteOSD() string {
	d := b.any(b.osds)
	for _, o := range b.others(d) {
		b.net.cut(d.name, o)
	}
	b.later(b.net.heal)
	return "nobody hears " + d.name
}

func (b *broken) slowOSD() string {
	d := b.any(b.osds)
	b.net.slow(d.name, 2000)
	b.later(b.net.heal)
	return "a slow link of " + d.name
}

// fillOSD leaves an OSD's disk less room than the OSD keeps in reserve.
func (b *broken) fillOSD() string {
	d := b.any(b.osds)
	name := b.path(d.name) + "/filler"
	var st unix.Statfs_t
	f, err := os.Create(name)
	if err == nil {
		err = unix.Statfs(name, &st)
	}
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, max(1, int64(st.Bavail)*st.Bsize-64<<20))
	}
	if err != nil {
		b.t.Fatalf("fill the disk of %s: %v", d.name, err)
	}
	f.Close()
	// First of all: an OSD that was killed, too, needs room to start.
	b.repair = slices.Insert(b.repair, 0, func() { os.Remove(name) })
	return "a full disk of " + d.name
}
