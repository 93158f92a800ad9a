package cluster

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// put writes a file, and syncs it.
func put(name string, data []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// fill takes a part of a daemon's disk; what it returns gives it back.
func (c *cluster) fill(daemon string, part float64) (free func()) {
	c.t.Helper()
	name := c.path(daemon) + "/filler"
	var st unix.Statfs_t
	f, err := os.Create(name)
	if err == nil {
		defer f.Close()
		err = unix.Statfs(name, &st)
	}
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, int64(part*float64(st.Blocks)*float64(st.Bsize)))
	}
	if err != nil {
		c.t.Fatalf("fill the disk of %s: %v", daemon, err)
	}
	return func() { os.Remove(name) }
}

// TestFull: two of three OSDs are full by the ratio. What grows gets ENOSPC, what
// does not goes on, and so does all when there is room again.
func TestFull(t *testing.T) {
	c := bareCluster(t)
	for i := range 3 {
		c.disk(fmt.Sprint("osd.", i))
	}
	c.found(3)
	c.healthy(3)
	c.refused("ratios", "osd", "set-full-ratio", "0.5")
	c.run("osd", "set-nearfull-ratio", "0.6", "--conf", c.admin)
	c.run("osd", "set-full-ratio", "0.7", "--conf", c.admin)
	mount, d := c.mount("mx1")
	dir := filepath.Join(mount, "example.org/user")
	sums := c.files(dir, 4, 1)
	c.healthy(3)

	frees := []func(){c.fill("osd.0", 0.7), c.fill("osd.1", 0.7)}
	said := ""
	c.eventually("full OSDs are told of", func() bool {
		said, _ = c.try("health", "detail", "--conf", c.admin) // which fails, for not all is well
		return strings.Contains(said, "OSD_FULL: 2 OSDs") && strings.Contains(said, "pool data: 128 of 128 placement groups")
	})
	if !strings.Contains(said, "osd.1 is ") || strings.Contains(said, "osd.2 is ") {
		t.Errorf("health says\n%s", said)
	}
	large := make([]byte, 1<<20)
	rand.Read(large)
	c.eventually("attachments are refused", func() bool { return errors.Is(put(filepath.Join(mount, "example.org/large"), large), unix.ENOSPC) })
	for _, err := range []error{
		os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "a:2,S")),
		os.Chmod(filepath.Join(dir, "b"), 0o600),
		os.Remove(filepath.Join(dir, "c")),
		os.Truncate(filepath.Join(dir, "d"), 0),
	} {
		if err != nil {
			t.Errorf("on full disks: %v", err)
		}
	}
	sums[filepath.Join(dir, "a:2,S")] = sums[filepath.Join(dir, "a")]
	maps.DeleteFunc(sums, func(name string, _ [32]byte) bool {
		return name == filepath.Join(dir, "a") || name == filepath.Join(dir, "c") || name == filepath.Join(dir, "d")
	})
	c.unchanged("on full disks", sums)
	for _, free := range frees {
		free()
	}
	c.eventually("attachments are taken again", func() bool { return put(filepath.Join(mount, "example.org/large"), large) == nil })
	c.healthy(3)
	c.unchanged("after it", sums)
	c.stop(d)
}
