package cluster

import (
	"crypto/sha256"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// files writes files with chunks into a directory of a mount and returns their sums.
func (c *cluster) files(dir string, n int, seed uint64) map[string][32]byte {
	c.t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(seed, 1))
	sums := map[string][32]byte{}
	for i := range n {
		data := make([]byte, 300_000+r.IntN(500_000))
		if i == 0 {
			data = make([]byte, 6<<20) // two chunks
		}
		for j := range data {
			data[j] = byte(r.Uint32())
		}
		name := filepath.Join(dir, string(rune('a'+i)))
		f, err := os.Create(name)
		if err == nil {
			_, err = f.Write(data)
		}
		if err == nil {
			err = f.Sync()
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			c.t.Fatal(err)
		}
		sums[name] = sha256.Sum256(data)
	}
	return sums
}

// pooled says in which pools the chunks of a file lie.
func (c *cluster) pooled(path string) map[string]int {
	c.t.Helper()
	var w struct {
		Extents []struct {
			Kind  string `json:"kind"`
			Place struct {
				Pool string `json:"pool"`
			} `json:"place"`
		} `json:"extents"`
	}
	if err := json.Unmarshal([]byte(c.run("where", "--format", "json", "--conf", c.admin, path)), &w); err != nil {
		c.t.Fatal(err)
	}
	n := map[string]int{}
	for _, e := range w.Extents {
		if e.Kind == "pooled" {
			n[e.Place.Pool]++
		}
	}
	return n
}

// poolUse is what df says that each pool takes on disk.
func (c *cluster) poolUse() map[string]uint64 {
	c.t.Helper()
	var df struct {
		Pools []struct {
			Name string `json:"name"`
			Used uint64 `json:"used_bytes"`
		} `json:"pools"`
	}
	if err := json.Unmarshal([]byte(c.run("df", "--conf", c.admin, "--format", "json")), &df); err != nil {
		c.t.Fatal(err)
	}
	use := map[string]uint64{}
	for _, p := range df.Pools {
		use[p.Name] = p.Used
	}
	return use
}

// refused fails unless a command of the admin is.
func (c *cluster) refused(why string, args ...string) {
	c.t.Helper()
	if out, err := c.try(append(args, "--conf", c.admin)...); err == nil || !strings.Contains(err.Error(), why) {
		c.t.Errorf("%v: %q, %v; want it refused with %q", args, out, err, why)
	}
}

// TestPools makes a second data pool, chooses it for a domain, and loses an OSD.
func TestPools(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	mount, d := c.mount("mx1")
	before := c.files(filepath.Join(mount, "example.org/old"), 2, 1)

	c.run("pool", "create", "pair", "--size", "2", "--pgs", "32", "--conf", c.admin)
	c.run("pool", "create", "pair", "--size", "2", "--pgs", "32", "--conf", c.admin) // again
	c.refused("already exists", "pool", "create", "pair", "--size", "3")
	c.run("pool", "set", "/example.org", "pair", "--conf", c.admin)
	c.refused("not found", "pool", "set", "/nowhere", "pair")
	for path, want := range map[string]string{
		"/": "data (by default)", "/example.org": "pair (as chosen for /example.org)", "/example.org/old": "pair (as chosen for /example.org)",
	} {
		if out := c.run("pool", "get", path, "--conf", c.admin); out != want {
			t.Errorf("pool get %s: %q, want %q", path, out, want)
		}
	}
	if out := c.run("pool", "ls", "--conf", c.admin); !strings.Contains(out, "/example.org  pair") {
		t.Errorf("pool ls:\n%s", out)
	}
	c.eventually("the mount knows the rule", func() bool {
		probe := c.files(filepath.Join(mount, "example.org/probe"), 1, 2)
		for name := range probe {
			if c.pooled(name)["pair"] == 2 {
				return true
			}
		}
		return false
	})
	sums := c.files(filepath.Join(mount, "example.org/fresh"), 3, 3)
	other := c.files(filepath.Join(mount, "example.com/user"), 2, 4)
	for name := range sums {
		if at := c.pooled(name); at["pair"] == 0 || at["data"] > 0 {
			t.Errorf("%s lies in %v", name, at)
		}
		before[name] = sums[name]
	}
	for name := range other {
		if at := c.pooled(name); at["data"] == 0 || at["pair"] > 0 {
			t.Errorf("%s lies in %v", name, at)
		}
		before[name] = other[name]
	}
	// An account that is moved into the domain: what is written from then on.
	user, moved := filepath.Join(mount, "example.com/user"), filepath.Join(mount, "example.org/moved")
	if err := os.Rename(user, moved); err != nil {
		t.Fatal(err)
	}
	for name := range c.files(filepath.Join(moved, "late"), 1, 5) {
		if at := c.pooled(name); at["pair"] == 0 || at["data"] > 0 {
			t.Errorf("%s lies in %v", name, at)
		}
	}
	if err := os.Rename(moved, user); err != nil {
		t.Fatal(err)
	}
	c.eventually("df shows both pools", func() bool { u := c.poolUse(); return u["pair"] > 12<<20 && u["data"] > 18<<20 })
	c.refused("new bodies below /example.org", "pool", "rm", "pair")
	c.run("pool", "unset", "/example.org", "--conf", c.admin)
	c.refused("pool \"pair\" is not removed", "pool", "rm", "pair")
	c.healthy(3)
	c.stop(d)

	c.kill(c.all[1]) // osd.0
	mount, d = c.mount("mx1")
	for name, sum := range before {
		b, err := os.ReadFile(name)
		if err != nil || sha256.Sum256(b) != sum {
			t.Errorf("%s with an OSD down: %d bytes, %v", name, len(b), err)
		}
	}
	c.restart(c.all[1])
	c.healthy(3)
	// Not before: what an OSD that is away should remove stays for an hour.
	for _, dir := range []string{"example.org/probe", "example.org/fresh", "example.com/user/late"} {
		if err := os.RemoveAll(filepath.Join(mount, dir)); err != nil {
			t.Fatal(err)
		}
	}
	c.eventually("the empty pool is removed", func() bool { _, err := c.try("pool", "rm", "pair", "--conf", c.admin); return err == nil })
	c.run("pool", "rm", "pair", "--conf", c.admin)
	c.stop(d)
}
