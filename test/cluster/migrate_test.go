package cluster

import (
	"crypto/sha256"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// migrated is what pool migrate says.
type migrated struct {
	Chunks int      `json:"chunks"`
	Errors int      `json:"errors"`
	Kept   []string `json:"kept"`
}

func (c *cluster) migrate(path, pool string, more ...string) (m migrated) {
	c.t.Helper()
	out := c.run(append([]string{"pool", "migrate", path, pool, "--format", "json", "--conf", c.admin}, more...)...)
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
	return m
}

// same fails unless files are what they were, in one pool.
func (c *cluster) same(sums map[string][32]byte, pool string) {
	c.t.Helper()
	for name, sum := range sums {
		b, err := os.ReadFile(name)
		if at := c.pooled(name); err != nil || sha256.Sum256(b) != sum || len(at) != 1 || at[pool] == 0 {
			c.t.Errorf("%s: %d bytes in %v, want them in %s; %v", name, len(b), at, pool, err)
		}
	}
}

// TestMigrate moves a domain to another pool while mail is delivered to it, is
// killed, and goes on; what stat tells stays, a file that is open included.
func TestMigrate(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	mount, d := c.mount("mx1")
	alice, bob := filepath.Join(mount, "example.org/alice"), filepath.Join(mount, "example.org/bob")
	sums := c.files(alice, 4, 1)
	apart := c.files(bob, 1, 2)
	link := filepath.Join(alice, "link")
	if err := os.Link(filepath.Join(alice, "a"), link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(link, "user.note", []byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1_000_000_000, 5)
	if err := os.Chtimes(link, old, old); err != nil {
		t.Fatal(err)
	}
	var before, after unix.Stat_t
	if err := unix.Stat(link, &before); err != nil {
		t.Fatal(err)
	}
	open, err := os.Open(link)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()

	c.run("pool", "create", "pair", "--size", "2", "--pgs", "32", "--conf", c.admin)
	c.run("pool", "set", "/example.org/bob", "data", "--conf", c.admin)
	c.refused("not found", "pool", "migrate", "/example.org", "nowhere")
	c.refused("not found", "pool", "migrate", "/nowhere", "pair")
	load := c.load(mount, 2, 3)
	first := c.start("migrate", "pool", "migrate", "/example.org", "pair", "--workers", "1", "--conf", c.admin)
	c.eventually("something was moved", func() bool {
		for name := range sums {
			if c.pooled(name)["pair"] > 0 {
				return true
			}
		}
		return false
	})
	c.kill(first)
	if m := c.migrate("/example.org", "pair"); m.Errors != 0 || len(m.Kept) != 1 || m.Kept[0] != "/example.org/bob" {
		t.Errorf("migrate: %+v", m)
	}
	load.goesOn(c, "while bodies are moved")
	load.end()
	c.same(sums, "pair")
	c.same(apart, "data")
	if err := unix.Stat(link, &after); err != nil || after != before {
		t.Errorf("stat was %+v, is %+v, %v", before, after, err)
	}
	b := make([]byte, before.Size)
	if _, err := open.ReadAt(b, 0); err != nil || sha256.Sum256(b) != sums[filepath.Join(alice, "a")] {
		t.Errorf("a file that was open: %v", err)
	}
	open.Close()
	if out := c.run("pool", "get", "/example.org", "--conf", c.admin); out != "pair (as chosen for /example.org)" {
		t.Errorf("pool get: %s", out)
	}
	if m := c.migrate("/example.org", "pair"); m.Chunks != 0 {
		t.Errorf("once more: %+v", m)
	}
	sums[link] = sums[filepath.Join(alice, "a")]
	for _, files := range []map[string][32]byte{sums, apart} {
		for name, sum := range files {
			load.files[strings.TrimPrefix(name, mount+"/")] = sum
		}
	}
	load.verify(mount)
	c.run("pool", "create", "wide", "--type", "erasure", "--k", "2", "--m", "1", "--pgs", "16", "--conf", c.admin)
	c.migrate("/example.org", "wide") // coded
	c.same(sums, "wide")
	c.migrate("/example.org", "data") // and back
	c.same(sums, "data")
	c.stop(d)
}

// TestMigrateOutside: an encrypted account goes to a bucket and comes back; one
// that is not encrypted is refused.
func TestMigrateOutside(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	bodies, settings := c.provider()
	config, keys := c.path("cloud.json"), c.path("keys")
	if err := os.WriteFile(config, settings, 0o600); err != nil {
		t.Fatal(err)
	}
	c.run("key", "create", "--key-file", keys)
	mount, d := c.mount("mx1", "key-file="+keys, "pool=cloud="+config)
	if err := os.MkdirAll(filepath.Join(mount, "secret.org"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.run("key", "encrypt", filepath.Join(mount, "secret.org"))
	sums := c.files(filepath.Join(mount, "secret.org/alice"), 3, 1)
	c.files(filepath.Join(mount, "open.org/bob"), 1, 2)
	c.run("pool", "create", "cloud", "--type", "s3", "--config", config, "--conf", c.admin)
	ways := []string{"--key-file", keys, "--pool", "cloud=" + config}
	c.refused("/open.org/bob is not encrypted", append([]string{"pool", "migrate", "/", "cloud"}, ways...)...)
	if out := c.run("pool", "get", "/", "--conf", c.admin); !strings.HasPrefix(out, "data") {
		t.Errorf("what was refused chose a pool: %s", out)
	}
	if m := c.migrate("/secret.org", "cloud", ways...); m.Chunks != 4 || m.Errors != 0 {
		t.Errorf("migrate: %+v", m)
	}
	if n := objects(t, bodies); n != 4 {
		t.Errorf("%d objects in the bucket", n)
	}
	c.same(sums, "cloud")
	if m := c.migrate("/secret.org", "data", ways...); m.Chunks != 4 || m.Errors != 0 {
		t.Errorf("back: %+v", m)
	}
	c.same(sums, "data")
	c.eventually("the bucket is empty", func() bool { return objects(t, bodies) == 0 })
	c.stop(d)
}
