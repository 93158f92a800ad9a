package cluster

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStoreAway freezes all OSDs: what has to ask them fails with EIO once the
// mount's time is over, the mount can be looked at all the while, and goes on when
// they are back.
func TestStoreAway(t *testing.T) {
	c := newCluster(t, 3)
	osds := c.all[len(c.all)-3:]
	c.healthy(3)
	point, d := c.mount("a", "timeout=3s")
	dir := filepath.Join(point, "example.org", "alice")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	before := filepath.Join(dir, "before")
	if err := writeSynced(before, "here"); err != nil {
		t.Fatal(err)
	}
	signal := func(s unix.Signal) {
		for _, o := range osds {
			if err := o.cmd.Process.Signal(s); err != nil {
				t.Error(err)
			}
		}
	}
	signal(unix.SIGSTOP)
	for range 20 {
		if err := os.Mkdir(filepath.Join(dir, "new"), 0o755); !errors.Is(err, syscall.EIO) {
			t.Errorf("a directory made while no OSD answers: %v, want EIO", err)
		}
		if err := writeSynced(filepath.Join(dir, "during"), "lost"); !errors.Is(err, syscall.EIO) {
			t.Errorf("a file made while no OSD answers: %v, want EIO", err)
		}
	}
	// The process of the mount is asked, not the mount.
	c.eventually("stats tells that groups are away", func() bool {
		var line struct {
			Away int `json:"groups_away"`
		}
		out, err := c.try("stats", "--interval", "10ms", "--count", "1", "--format", "json", point)
		return err == nil && json.Unmarshal([]byte(out), &line) == nil && line.Away > 0
	})
	if out := c.run("status", point); !strings.Contains(out, "cannot be reached") {
		t.Errorf("status of the mount:\n%s", out)
	}
	signal(unix.SIGCONT)
	c.eventually("the mount goes on", func() bool { return writeSynced(filepath.Join(dir, "after"), "here") == nil })
	if b, err := os.ReadFile(before); err != nil || string(b) != "here" {
		t.Errorf("what was synced before: %q, %v", b, err)
	}
	c.stop(d)
}

// TestPowerOfAllComesBack: everything was killed at once, and the OSDs start before
// the monitor.
func TestPowerOfAllComesBack(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	point, mount := c.mount("mx1")
	path := filepath.Join("example.org/user", "mail")
	if err := errors.Join(os.MkdirAll(filepath.Join(point, filepath.Dir(path)), 0o755), os.WriteFile(filepath.Join(point, path), []byte("kept"), 0o600)); err != nil {
		t.Fatal(err)
	}
	c.stop(mount)
	mon, osds := c.all[0], c.all[1:4]
	for _, d := range c.all[:4] {
		c.kill(d)
	}
	for _, d := range osds {
		c.restart(d)
		c.eventually(d.name+" waits for the monitor", func() bool { return strings.Contains(c.log(d), "waiting for the monitors") })
	}
	c.restart(mon)
	c.healthy(3)
	point, _ = c.mount("mx1")
	if got, err := os.ReadFile(filepath.Join(point, path)); err != nil || string(got) != "kept" {
		t.Fatalf("%q, %v", got, err)
	}
}
