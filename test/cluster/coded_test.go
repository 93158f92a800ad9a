package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unchanged fails unless files have these sums.
func (c *cluster) unchanged(when string, sums map[string][32]byte) {
	c.t.Helper()
	for name, sum := range sums {
		b, err := os.ReadFile(name)
		if err != nil || sha256.Sum256(b) != sum {
			c.t.Errorf("%s %s: %d bytes, %v", name, when, len(b), err)
		}
	}
}

// rot damages chunks of an OSD that have one of the marks in them, and says how many.
func (c *cluster) rot(osd string, marks [][]byte) (rotten int) {
	c.t.Helper()
	err := filepath.WalkDir(c.path(osd+"/osd/chunks"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		for _, mark := range marks {
			if at := bytes.Index(b, mark); at >= 0 {
				if _, err := f.WriteAt([]byte("rot"), int64(at)); err != nil {
					return err
				}
				rotten++
			}
		}
		return f.Sync()
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return rotten
}

// TestCodedPool makes an erasure-coded pool, loses an OSD for good, lets bits
// rot and loses another one.
func TestCodedPool(t *testing.T) {
	c := newCluster(t, 5)
	c.healthy(5)
	osds := c.all[1:6]
	c.refused("needs 6 failure domains", "pool", "create", "wide", "--type", "erasure", "--k", "4", "--m", "2")
	c.run("pool", "create", "wide", "--type", "erasure", "--k", "2", "--m", "2", "--pgs", "16", "--conf", c.admin)
	c.run("pool", "set", "/", "wide", "--conf", c.admin)
	if out := c.run("pool", "ls", "--conf", c.admin); !strings.Contains(out, "2+2") {
		t.Errorf("pool ls:\n%s", out)
	}
	mount, d := c.mount("mx1")
	sums := c.files(filepath.Join(mount, "example.org/before"), 4, 1)
	for name := range sums {
		if out := c.run("where", "--conf", c.admin, name); !strings.Contains(out, "as 2+2 shards on osd.") {
			t.Errorf("where says\n%s", out)
		}
	}
	c.stop(d)
	c.eventually("twice the bytes are on the disks", func() bool { n := c.poolUse()["wide"]; return n > 14<<20 && n < 18<<20 })

	c.kill(osds[0])
	c.eventually("its shards are missed", func() bool {
		out, _ := c.try("health", "detail", "--conf", c.admin) // which fails, for not all is well
		return strings.Contains(out, "pool wide: ") && strings.Contains(out, " shards")
	})
	mount, d = c.mount("mx1")
	c.unchanged("with an OSD down", sums)
	maps.Copy(sums, c.files(filepath.Join(mount, "example.org/degraded"), 3, 2))
	c.run("osd", "out", "0", "--conf", c.admin)
	c.healthy(4)
	c.unchanged("made again", sums)
	c.stop(d)

	// A piece of a file lies in the data shard of one OSD, and maybe still where
	// that was before.
	var marks [][]byte
	mount, d = c.mount("mx1")
	for name := range sums {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		marks = append(marks, b[50_000:50_032])
	}
	c.stop(d)
	rotten := 0
	for _, osd := range osds[1:] {
		rotten += c.rot(osd.name, marks)
	}
	if rotten < len(marks) {
		t.Fatalf("%d pieces of %d files found to damage", rotten, len(marks))
	}
	for _, want := range [][2]int{{len(marks), rotten}, {}} {
		var found []struct{ Healed, Bad int }
		if err := json.Unmarshal([]byte(c.run("scrub", "--format", "json", "--conf", c.admin)), &found); err != nil {
			t.Fatal(err)
		}
		healed := 0
		for _, f := range found {
			healed += f.Healed
			if f.Bad != 0 {
				t.Errorf("scrub could not heal %d", f.Bad)
			}
		}
		if healed < want[0] || healed > want[1] {
			t.Errorf("scrub healed %d, not %d to %d", healed, want[0], want[1])
		}
	}
	c.kill(osds[1])
	mount, d = c.mount("mx1")
	c.unchanged("healed, with another OSD down", sums)
	c.stop(d)
}
