package cluster

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

// testdata/cluster-1.tar.zst is a cluster of one monitor and three OSDs, with the credentials
// of its administrator and of a mail host, as a program left it that knew cluster maps up to
// format 5: with ratios and a second, erasure-coded pool; filled, stopped, started again,
// changed and killed, so that a part is in the databases and a part in the logs. Its
// certificates hold from 2001 to 2098. It stays as it is: every later program has to open it.

// oldCluster is a cluster with the addresses that the golden one has.
func oldCluster(t *testing.T) *cluster {
	c := bareCluster(t)
	c.net = newNetwork(t)
	for _, host := range []string{"mon.a", "osd.0", "osd.1", "osd.2", "admin", "mount.mx1"} {
		c.net.host(host)
	}
	return c
}

// oldFiles are what it holds, by their paths.
func oldFiles() map[string]string {
	files := map[string]string{
		"example.org/alice/Maildir/new/empty": "", "example.org/alice/Maildir/cur/tiny:2,S": oldText(1, 10),
		"example.org/alice/Maildir/cur/small:2,RS": oldText(2, 5000), "example.org/alice/Maildir/link": oldText(2, 5000),
		"example.org/alice/Maildir/new/pooled": oldText(3, 100_000), "example.org/alice/Maildir/new/two chunks": oldText(4, 5<<20),
		"example.net/moved/late": oldText(5, 3000), "example.net/coded/pooled": oldText(6, 300_000),
	}
	for i := range 20 {
		files[fmt.Sprint("example.org/user", i, "/new/m")] = oldText(10+i, 100*i)
	}
	return files
}

func oldText(i, n int) string { return strings.Repeat(fmt.Sprintf("message %d\n", i), n/10+1)[:n] }

// sameText compares what a mount shows with what it should.
func (c *cluster) sameText(mount string, files map[string]string) {
	c.t.Helper()
	for name, want := range files {
		if b, err := os.ReadFile(filepath.Join(mount, name)); err != nil || sha256.Sum256(b) != sha256.Sum256([]byte(want)) {
			c.t.Errorf("%s: %d bytes, want %d, %v", name, len(b), len(want), err)
		}
	}
}

func (c *cluster) startAll() {
	c.t.Helper()
	c.start("mon.a", "mon", "--data", c.path("mon.a"))
	c.eventually("the monitor answers", func() bool { _, err := c.try("status", "--conf", c.admin); return err == nil })
	for i := range 3 {
		name := fmt.Sprint("osd.", i)
		c.start(name, "osd", "--data", c.path(name))
	}
	c.healthy(3)
}

func TestOldCluster(t *testing.T) {
	c := oldCluster(t)
	harness.Unpack(t, "testdata/cluster-1.tar.zst", c.dir)
	c.startAll()
	if err := os.Mkdir(c.path("mnt.mx1"), 0o755); err != nil {
		t.Fatal(err)
	}
	mount, d := c.mount("mx1")
	files := oldFiles()
	c.sameText(mount, files)
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(mount, "example.org/alice/Maildir/link"), &st); err != nil || st.Nlink != 2 || st.Mode&0o777 != 0o640 || st.Uid != 7 {
		t.Errorf("%d links, mode %o, owner %d, %v", st.Nlink, st.Mode, st.Uid, err)
	}
	color := make([]byte, 16)
	if n, err := unix.Getxattr(filepath.Join(mount, "example.org/alice/Maildir/link"), "user.color", color); err != nil || string(color[:max(n, 0)]) != "blue" {
		t.Errorf("attribute %q, %v", color[:max(n, 0)], err)
	}
	if at := c.pooled(filepath.Join(mount, "example.net/coded/pooled")); at["archive"] == 0 || at["data"] > 0 {
		t.Errorf("the body lies in %v", at)
	}
	c.write(mount, map[string]string{"example.net/coded/since": oldText(50, 200_000), "example.org/alice/since": oldText(51, 2000)}, files)
	c.stop(d)
	for _, d := range []*daemon{c.all[1], c.all[2], c.all[3], c.all[0]} {
		c.stop(d)
	}
	c.startAll()
	mount, d = c.mount("mx1")
	c.sameText(mount, files)
	c.stop(d)
}

// write writes files and adds them to those that there are.
func (c *cluster) write(mount string, more, files map[string]string) {
	c.t.Helper()
	for name, text := range more {
		path := filepath.Join(mount, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			c.t.Fatal(err)
		}
		if err := put(path, []byte(text)); err != nil {
			c.t.Fatal(err)
		}
		files[name] = text
	}
}
