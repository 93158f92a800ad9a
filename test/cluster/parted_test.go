package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// netCluster has three monitors and some OSDs, each daemon on a host of its own
// that has the daemon's name. Commands are given on the host "admin".
func netCluster(t *testing.T, osds int) *cluster {
	t.Helper()
	c := bareCluster(t)
	c.net = newNetwork(t)
	c.found(osds)
	c.addMon("mon.b")
	c.addMon("mon.c")
	return c
}

// TestParted cuts hosts off: a monitor without a majority refuses changes and says
// why, and a mail host that reaches nobody is told EIO, never that all is well.
func TestParted(t *testing.T) {
	c := netCluster(t, 3)
	c.healthy(3)
	mount, d := c.mount("mx1")
	far, fard := c.mount("mx2", "timeout=5s")
	m := c.load(mount, 2, 4)
	m.goesOn(c, "at first")
	before := filepath.Join(far, "example.org/user0/before")
	if err := writeSynced(before, "here"); err != nil {
		t.Fatal(err)
	}

	c.net.host("branch")
	c.net.part("mon.a", "branch", fard.name)
	refused := make(chan error)
	go func() {
		_, err := c.tryOn("branch", "set", "noout", "--conf", c.admin)
		refused <- err
	}()
	c.eventually("the others serve", func() bool { _, err := c.try("set", "noout", "--conf", c.admin); return err == nil })
	m.goesOn(c, "on the side of the majority")
	during := filepath.Join(far, "example.org/user0/during")
	if err := writeSynced(during, "lost"); !errors.Is(err, syscall.EIO) {
		t.Errorf("a file made while nobody could be reached: %v, want EIO", err)
	}
	if err := os.Rename(before, before+".moved"); !errors.Is(err, syscall.EIO) {
		t.Errorf("a rename while nobody could be reached: %v, want EIO", err)
	}
	if err := <-refused; err == nil || !strings.Contains(err.Error(), "quorum") {
		t.Errorf("a monitor cut off from the others is given a change: %v", err)
	}

	c.net.heal()
	c.eventually("what was cut off serves again", func() bool {
		_, err := c.tryOn("branch", "unset", "noout", "--conf", c.admin)
		return err == nil && writeSynced(filepath.Join(far, "example.org/user0/after"), "here") == nil
	})
	c.healthy(3)
	m.end()
	// EIO may mean that it was done all the same.
	user := filepath.Join(mount, "example.org/user0")
	for _, names := range [][]string{{"before", "before.moved"}, {"after"}} {
		found := 0
		for _, name := range names {
			if b, err := os.ReadFile(filepath.Join(user, name)); err == nil && string(b) == "here" {
				found++
			}
		}
		if found != 1 {
			t.Errorf("what was synced is found %d times under the names %q", found, names)
		}
	}
	for _, name := range []string{"before", "before.moved", "during", "after"} {
		os.Remove(filepath.Join(user, name))
	}
	m.verify(mount)
	c.stop(d)
	c.stop(fard)
}

// writeSynced makes or replaces a file and syncs it.
func writeSynced(name, data string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(data)
	return errors.Join(err, f.Sync(), f.Close())
}
