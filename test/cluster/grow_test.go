package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

// TestGrowFromOneHost makes a cluster of a one-host store that has mail in it,
// adds two OSDs, and loses the first.
func TestGrowFromOneHost(t *testing.T) {
	c := bareCluster(t)
	mount, data := c.path("mail"), c.path("data")
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	up := c.start("up", "up", "--data", data, mount)
	c.eventually("the mount answers", func() bool { return mounted(mount) })
	before := c.load(mount, 2, 1)
	before.goesOn(c, "on one host")
	before.end()
	c.stop(up)
	addr, osdAddr := harness.FreePort(t), harness.FreePort(t)
	grow := []string{"init", "--from", data, "--osd-addr", osdAddr, "--data", c.path("mon.a"), "--addr", addr, "--peer-addr", harness.FreePort(t), "--conf", c.admin}
	up = c.start("up", "up", "--data", data, mount)
	c.eventually("the mount answers", func() bool { return mounted(mount) })
	if out, err := c.try(grow...); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("a store that is mounted: %s, %v", out, err)
	}
	c.stop(up)
	c.run(grow...)
	if out, err := c.try("up", "--data", data, mount); err == nil {
		t.Fatalf("a cluster's OSD can be mounted as a store: %s", out)
	}
	c.start("mon.a", "mon", "--data", c.path("mon.a"))
	c.eventually("the monitor answers", func() bool { _, err := c.try("status", "--conf", c.admin); return err == nil })
	first := c.start("osd.0", "osd", "--data", data)
	c.eventually("osd.0 is up", func() bool { st := c.status(); return len(st.OSDs) == 1 && st.OSDs[0].Up })
	point, d := c.mount("mx1")
	before.verify(point)
	after := c.load(point, 2, 2)
	after.goesOn(c, "in a cluster of one OSD")
	c.addOSD(1)
	c.addOSD(2)
	for _, pool := range []string{"meta", "data"} {
		c.run("pool", "set", pool, "size", "3", "--conf", c.admin)
		c.run("pool", "set", pool, "min_size", "2", "--conf", c.admin)
	}
	c.eventually("all groups on all OSDs", func() bool {
		st := c.status()
		for _, o := range st.OSDs {
			if o.Report == nil || o.Report.Groups != 64 {
				return false
			}
		}
		return true
	})
	c.healthy(3)
	after.goesOn(c, "on three OSDs")
	after.end()
	c.kill(first)
	for path, sum := range before.files {
		after.files[path] = sum
	}
	after.verify(point)
	c.stop(d)
}

func mounted(point string) bool {
	done := make(chan bool, 1)
	go func() {
		var a, b unix.Stat_t
		var fs unix.Statfs_t // which the kernel does not know by itself, as it does for a second the attributes of a dead mount's root
		done <- unix.Statfs(point, &fs) == nil && unix.Stat(point, &a) == nil && unix.Stat(filepath.Dir(point), &b) == nil && a.Dev != b.Dev
	}()
	select {
	case ok := <-done:
		return ok
	case <-time.After(10 * time.Second):
		return false
	}
}
