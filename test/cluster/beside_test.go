//go:build beside

package cluster

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

var (
	besideWorkers  = flag.String("beside-workers", "8", "numbers of workers, as bench --workers")
	besideMessages = flag.Int("beside-messages", 100, "messages in each worker's mailbox")
	besideRounds   = flag.Int("beside-rounds", 3, "rounds of each comparison")
)

// TestBeside measures a store of one host and a cluster of three OSDs, each in
// turns with what else there is: ext4, ext4 with synchronous directories, go-fuse's
// loopback, ceph-fuse and GlusterFS, all on one disk. It prints what
// docs/performance.md has.
func TestBeside(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	ours, _ := c.mount("mnt")
	dir := func(name string) string {
		path := c.path(name)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one := dir("one")
	c.start("up", "up", "--s3", "off", "--data", c.path("one.data"), one)
	c.mounted(one)
	ext4, dirsync := dir("ext4"), dir("dirsync")
	besideRun(t, exec.Command("chattr", "+D", dirsync))
	loopback := newLoopback(c, dir("loopback"))
	for _, pair := range [][2]string{{one, ext4}, {one, dirsync}, {one, loopback}, {ours, one}, {ours, ext4}} {
		c.beside(pair[0], pair[1])
	}
	c.beside(ours, newCephFuse(c))
	c.beside(ours, newGluster(c))
}

// mounted waits for a mount, which goes with the test.
func (c *cluster) mounted(point string) {
	c.t.Helper()
	c.t.Cleanup(func() { unix.Unmount(point, unix.MNT_DETACH) })
	c.eventually(point+" is mounted", func() bool { return exec.Command("mountpoint", "-q", point).Run() == nil })
}

// beside prints one comparison.
func (c *cluster) beside(a, b string) {
	c.t.Helper()
	out := c.run("bench", "--format", "json", "--workers", *besideWorkers, "--messages", fmt.Sprint(*besideMessages),
		"--rounds", fmt.Sprint(*besideRounds), "--vs", b, a)
	type measure struct {
		Ops float64 `json:"ops_per_second"`
		MB  float64 `json:"mb_per_second"` // of attachments
	}
	var report struct {
		Results []struct {
			Row     string  `json:"row"`
			Workers int     `json:"workers"`
			Dir     measure `json:"dir"`
			Versus  measure `json:"versus"`
			Ratio   float64 `json:"ratio"`
			Low     float64 `json:"ratio_low"`
			High    float64 `json:"ratio_high"`
		} `json:"results"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Results) == 0 {
		c.t.Fatalf("bench printed no results: %v\n%s", err, out)
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%s beside %s\n%-16s %7s %12s %12s %12s\n", filepath.Base(a), filepath.Base(b), "row", "workers", "A", "B", "A/B")
	for _, r := range report.Results {
		a, b, unit := r.Dir.Ops, r.Versus.Ops, "/s"
		if r.Dir.MB > 0 {
			a, b, unit = r.Dir.MB, r.Versus.MB, "MB/s"
		}
		fmt.Fprintf(&table, "%-16s %7d %12.1f %12.1f %-4s %7.2f  %.2f-%.2f\n", r.Row, r.Workers, a, b, unit, r.Ratio, r.Low, r.High)
	}
	c.t.Log(table.String())
}

func newLoopback(c *cluster, point string) string {
	c.t.Helper()
	bin := c.path("loopback.bin")
	besideRun(c.t, exec.Command("go", "build", "-o", bin, "./loopback"))
	if err := os.Mkdir(c.path("loopback.data"), 0o755); err != nil {
		c.t.Fatal(err)
	}
	c.program("loopback", bin, c.path("loopback.data"), point)
	c.mounted(point)
	return point
}

// program runs another's daemon until the test ends.
func (c *cluster) program(name string, words ...string) {
	c.t.Helper()
	log, err := os.Create(c.path(name + ".out"))
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		err := errors.Join(cmd.Process.Kill(), log.Close())
		cmd.Wait()
		if c.t.Failed() {
			out, _ := os.ReadFile(log.Name())
			c.t.Logf("%s: %v\n%s", name, err, out[max(0, len(out)-4096):])
		}
	})
}

func besideRun(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

const besideCephConf = `[global]
fsid = 6c1f3b52-0c55-4b7e-9a52-1f0f0a7e3c77
mon host = v2:%[2]s
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
run dir = %[1]s
log file = %[1]s/$name.log
admin socket = %[1]s/$name.$pid.asok
osd pool default size = 3
osd pool default min size = 2
osd pool default pg num = 32
osd crush chooseleaf type = 0
mon data = %[1]s/mon
mgr data = %[1]s/mgr
mds data = %[1]s/mds
osd data = %[1]s/osd.$id
osd objectstore = bluestore
bluestore block size = 21474836480
`

// newCephFuse mounts a CephFS of three OSDs.
func newCephFuse(c *cluster) string {
	c.t.Helper()
	dir := c.path("ceph")
	conf := filepath.Join(dir, "ceph.conf")
	for _, d := range []string{"", "mon", "mgr", "mds", "osd.0", "osd.1", "osd.2", "ceph-fuse"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			c.t.Fatal(err)
		}
	}
	mon := harness.FreePort(c.t)
	if err := os.WriteFile(conf, fmt.Appendf(nil, besideCephConf, dir, mon), 0o644); err != nil {
		c.t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		c.t.Helper()
		return besideRun(c.t, exec.Command(name, append([]string{"-c", conf}, args...)...))
	}
	start := func(name string, args ...string) {
		c.t.Helper()
		c.program("ceph/"+filepath.Base(name+strings.Join(args, "")), append([]string{name, "-c", conf, "-f"}, args...)...)
	}
	monmap := filepath.Join(dir, "monmap")
	besideRun(c.t, exec.Command("monmaptool", "--create", "--fsid", "6c1f3b52-0c55-4b7e-9a52-1f0f0a7e3c77", "--addv", "a", "[v2:"+mon+"]", monmap))
	run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
	start("ceph-mon", "-i", "a")
	start("ceph-mgr", "-i", "x")
	for i := range 3 {
		id := fmt.Sprintf("2f3c5a0e-64b5-4b55-8a55-6f40a9cf5a0%d", i)
		run("ceph", "osd", "new", id)
		run("ceph-osd", "-i", fmt.Sprint(i), "--mkfs", "--osd-uuid", id)
		start("ceph-osd", "-i", fmt.Sprint(i))
	}
	start("ceph-mds", "-i", "m")
	c.eventually("Ceph's OSDs are up", func() bool { return strings.Contains(run("ceph", "osd", "stat"), "3 up") })
	run("ceph", "osd", "pool", "create", "meta")
	run("ceph", "osd", "pool", "create", "data")
	run("ceph", "fs", "new", "mail", "meta", "data")
	c.eventually("Ceph's MDS is active", func() bool { return strings.Contains(run("ceph", "mds", "stat"), "up:active") })
	point := filepath.Join(dir, "ceph-fuse")
	start("ceph-fuse", point)
	c.mounted(point)
	return point
}

// newGluster mounts a GlusterFS volume of three replicas. Its bricks must not
// have a loopback address: all is in a network namespace.
func newGluster(c *cluster) string {
	c.t.Helper()
	dir, point := c.path("gluster"), c.path("glusterfs")
	for _, d := range []string{dir, filepath.Join(dir, "state"), point} {
		if err := os.Mkdir(d, 0o755); err != nil {
			c.t.Fatal(err)
		}
	}
	const addr = "10.78.0.1"
	n := newNetwork(c.t)
	host := n.hold()
	n.in(host, "ip", "link", "set", "lo", "up")
	n.in(host, "ip", "address", "add", addr+"/32", "dev", "lo")
	sock, vol := filepath.Join(dir, "sock"), filepath.Join(dir, "glusterd.vol")
	text := fmt.Sprintf("volume management\n type mgmt/glusterd\n option working-directory %s/state\n option run-directory %[1]s\n"+
		" option transport-type socket\n option transport.socket.listen-port 24007\n option glusterd-sockfile %s\nend-volume\n", dir, sock)
	if err := os.WriteFile(vol, []byte(text), 0o644); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { c.killBelow(dir) }) // the bricks' daemons, which glusterd sets free
	inside := func(words ...string) []string { return enter(host, words...).Args }
	c.program("glusterd", inside("glusterd", "-N", "-f", vol, "-l", filepath.Join(dir, "glusterd.log"), "-p", filepath.Join(dir, "glusterd.pid"))...)
	gluster := func(args ...string) *exec.Cmd {
		return enter(host, append([]string{"gluster", "--mode=script", "--glusterd-sock=" + sock}, args...)...)
	}
	c.eventually("glusterd answers", func() bool { return gluster("volume", "list").Run() == nil })
	create := []string{"volume", "create", "mail", "replica", "3"}
	for i := range 3 {
		create = append(create, fmt.Sprintf("%s:%s/brick%d", addr, dir, i))
	}
	besideRun(c.t, gluster(append(create, "force")...))
	besideRun(c.t, gluster("volume", "start", "mail"))
	c.program("glusterfs", inside("glusterfs", "-N", "--volfile-server="+addr, "--volfile-id=mail", "-l", filepath.Join(dir, "mount.log"), point)...)
	c.mounted(point)
	return point
}

// killBelow kills the processes that a directory is mentioned to.
func (c *cluster) killBelow(dir string) {
	list, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range list {
		text, _ := os.ReadFile(path)
		if words := strings.Split(string(text), "\x00"); slices.ContainsFunc(words, func(w string) bool { return strings.Contains(w, dir+"/") }) {
			var pid int
			fmt.Sscanf(path, "/proc/%d/", &pid)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}
