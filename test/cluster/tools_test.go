package cluster

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountTools: the commands that ask the process of a cluster's mount.
func TestMountTools(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	answers := func(point string) {
		t.Helper()
		c.eventually("the admin socket answers", func() bool { _, err := c.try("status", point); return err == nil })
	}
	point, d := c.mount("a")
	answers(point)
	socks, err := filepath.Glob(c.path("client.a/mounts/*/admin.sock"))
	if err != nil || len(socks) != 1 {
		t.Fatal(socks, err)
	}
	if st, err := os.Stat(socks[0]); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the admin socket: %v, %v", st, err)
	}
	var st struct {
		Health     string `json:"health"`
		Mountpoint string `json:"mountpoint"`
		Conf       string `json:"conf"`
		Pid        int    `json:"pid"`
		OSDs       struct {
			Up int `json:"up"`
		} `json:"osds"`
	}
	if err := json.Unmarshal([]byte(c.run("status", "--format", "json", point)), &st); err != nil {
		t.Fatal(err)
	}
	if st.Health != "ok" || st.Mountpoint != point || st.Conf != c.path("client.a") || st.Pid != d.cmd.Process.Pid || st.OSDs.Up != 3 {
		t.Errorf("status: %+v", st)
	}
	c.stop(d)
	if _, err := os.Lstat(socks[0]); err == nil {
		t.Error("the admin socket is left behind")
	}
	if _, err := c.try("status", point); err == nil {
		t.Error("status of what is no mount point any more succeeds")
	}
	// A killed mount leaves its socket, which the next takes over.
	point, d = c.mount("a")
	answers(point)
	c.kill(d)
	if _, err := c.try("status", point); err == nil {
		t.Error("status of a dead mount succeeds")
	}
	if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	_, d = c.mount("a")
	answers(point)
	c.stop(d)
}
