package cluster

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDiskCache delivers through a mount with a disk cache, and reads again after
// the mount was killed, with the cache kept, damaged and wiped.
func TestDiskCache(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	cache := c.path("cache")
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	options := []string{"cache-dir=" + cache, "cache-size=200MiB", "cache-free=1MiB"}
	point, d := c.mount("a", options...)
	dir := filepath.Join(point, "example.org", "alice", "Maildir", "new")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sums := map[string][32]byte{}
	for i, size := range []int{100, 5000, 60_000, 100_000, 9 << 20} {
		mail := make([]byte, size)
		for j := range mail {
			mail[j] = byte(rand.Uint32())
		}
		name := filepath.Join(dir, fmt.Sprint(i))
		if err := writeSynced(name, string(mail)); err != nil {
			t.Fatal(err)
		}
		sums[name] = sha256.Sum256(mail)
	}
	files := func() []string { return bodiesIn(cache) }
	readAll := func(what string) {
		t.Helper()
		for name, want := range sums {
			mail, err := os.ReadFile(name)
			if err != nil || sha256.Sum256(mail) != want {
				t.Fatalf("%s: %s: %v, or other bytes", what, name, err)
			}
		}
		// 3 messages that are no inline extents, and 3 chunks of the largest.
		c.eventually("all bodies are cached", func() bool { return len(files()) == 6 })
	}
	again := func() {
		t.Helper()
		c.kill(d)
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		c.all = c.all[:len(c.all)-1]
		point, d = c.mount("a", options...)
	}
	readAll("delivered")
	again()
	readAll("killed")
	for i, path := range files() {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			b = b[:len(b)/2]
		} else {
			b[len(b)*2/3] ^= 1
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again()
	readAll("damaged")
	if err := os.RemoveAll(cache); err != nil {
		t.Fatal(err)
	}
	again()
	for name, want := range sums {
		if mail, err := os.ReadFile(name); err != nil || sha256.Sum256(mail) != want {
			t.Fatalf("without a cache: %s: %v, or other bytes", name, err)
		}
	}
	c.stop(d)
}

// bodiesIn lists the files of a disk cache.
func bodiesIn(cache string) (list []string) {
	filepath.WalkDir(cache, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && e.Name() != "lock" && e.Name()[0] != '.' {
			list = append(list, path)
		}
		return nil
	})
	return list
}
