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

// TestScrub lets bits rot in one OSD's segments; scrub heals them.
func TestScrub(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	mount, d := c.mount("mx1")
	dir := filepath.Join(mount, "example.org/user")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	var marks [][]byte
	sums := map[string][32]byte{}
	for _, name := range []string{"a", "b", "c", "d"} {
		data := make([]byte, 1<<20)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		marks, sums[name] = append(marks, data[500_000:500_032]), sha256.Sum256(data)
	}
	if out := c.run("where", "--conf", c.admin, filepath.Join(dir, "a")); !strings.Contains(out, "1048576 bytes") || !strings.Contains(out, "pooled  ") {
		t.Errorf("where says\n%s", out)
	}
	if out := c.run("pg", "dump", "--conf", c.admin); strings.Count(out, "meta.") != 64 || !strings.Contains(out, "data.0 ") {
		t.Errorf("pg dump says\n%s", out)
	}
	if rotten := c.rot("osd.1", marks[:3]); rotten != 3 {
		t.Fatalf("%d chunks found to damage", rotten)
	}
	if out, err := c.try("scrub", "--conf", c.path("client.mx1")); err == nil || !strings.Contains(out+err.Error(), "may not") {
		t.Errorf("a client may scrub: %s, %v", out, err)
	}
	for _, healed := range []int{3, 0} {
		var found []struct{ OSD, Chunks, Healed, Bad int }
		if err := json.Unmarshal([]byte(c.run("scrub", "osd.1", "--format", "json", "--conf", c.admin)), &found); err != nil {
			t.Fatal(err)
		}
		if len(found) != 1 || found[0].OSD != 1 || found[0].Chunks < 4 || found[0].Healed != healed || found[0].Bad != 0 {
			t.Errorf("scrub says %+v; want %d healed", found, healed)
		}
	}
	if out := c.run("scrub", "--conf", c.admin); !strings.Contains(out, "osd.2 ") {
		t.Errorf("scrub of all says\n%s", out)
	}
	c.stop(d)
	// With another copy gone, the healed ones are read as well.
	c.kill(c.all[1])
	mount, d = c.mount("mx2")
	for name, sum := range sums {
		b, err := os.ReadFile(filepath.Join(mount, "example.org/user", name))
		if err != nil || sha256.Sum256(b) != sum {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	c.stop(d)
}
