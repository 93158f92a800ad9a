package cluster

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
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

// TestReadAhead lists on one host a mailbox that another delivered into: its newest
// messages come near, and reading them asks the store for no body. Reading on brings the next.
func TestReadAhead(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	const mails, size, ahead = 60, 40 << 10, 20 // of each message, and how many may be brought
	a, _ := c.mount("a")
	name := func(point string, i int) string {
		return filepath.Join(point, "example.org", "alice", "Maildir", "new", fmt.Sprintf("17%08d.host", i))
	}
	if err := os.MkdirAll(filepath.Dir(name(a, 0)), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range mails {
		if err := writeSynced(name(a, i), strings.Repeat(fmt.Sprintf("mail %4d\n", i), size/10)); err != nil {
			t.Fatal(err)
		}
	}
	cache := c.path("cache")
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	b, d := c.mount("b", "cache-dir="+cache, "cache-size=200MiB", "cache-free=1MiB", fmt.Sprintf("cache-ahead=%d", ahead*size))
	type stats struct {
		Files struct {
			Prefetched int `json:"prefetched_bytes"`
			Used       int `json:"prefetch_used_bytes"`
		}
		Cache struct {
			Used   int `json:"used_bytes"`
			Misses int
			Stored int
		} `json:"disk_cache"`
	}
	look := func() stats {
		t.Helper()
		var list []stats
		if err := json.Unmarshal([]byte(c.run("cache", "stats", "--format", "json", b)), &list); err != nil || len(list) != 1 {
			t.Fatalf("cache stats: %v", err)
		}
		return list[0]
	}
	if list, err := os.ReadDir(filepath.Dir(name(b, 0))); err != nil || len(list) != mails {
		t.Fatalf("%d messages, %v", len(list), err)
	}
	c.eventually("the newest messages are near", func() bool { return look().Cache.Stored == ahead })
	if st := look(); st.Files.Prefetched != ahead*size || st.Cache.Misses != 0 {
		t.Errorf("after a listing: %+v", st)
	}
	read := func(from, to int) {
		t.Helper()
		for i := from; i > to; i-- {
			if mail, err := os.ReadFile(name(b, i)); err != nil || !strings.HasPrefix(string(mail), fmt.Sprintf("mail %4d\n", i)) || len(mail) != size {
				t.Fatalf("message %d: %d bytes, %v", i, len(mail), err)
			}
		}
	}
	read(mails-1, mails-1-ahead)
	c.eventually("the next messages are near", func() bool { return look().Cache.Stored == 2*ahead })
	if st := look(); st.Cache.Misses != 0 || st.Files.Used != ahead*size {
		t.Errorf("after reading what was near: %+v", st)
	}
	c.stop(d)
}

// TestCacheMemory writes more than a mount may keep in memory, and reads it: what the
// mount says that it keeps is never more than --cache-memory.
func TestCacheMemory(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	cache := c.path("cache")
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	point, d := c.mount("a", "cache-dir="+cache, "cache-free=1MiB", "cache-memory=32MiB")
	dir := filepath.Join(point, "example.org", "alice")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	most := int64(0)
	look := func() {
		t.Helper()
		var list []struct {
			Memory struct {
				Used int64 `json:"used_bytes"`
				Max  int64 `json:"max_bytes"`
			}
		}
		out, err := c.try("cache", "stats", "--format", "json", point)
		if err != nil {
			t.Errorf("cache stats: %v\n%s", err, out)
			return
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 {
			t.Errorf("cache stats: %v", err)
			return
		}
		m := list[0].Memory
		mu.Lock()
		defer mu.Unlock()
		most = max(most, m.Used)
		if m.Max != 32<<20 || m.Used > m.Max || m.Used <= 0 {
			t.Errorf("%d bytes are kept of %d", m.Used, m.Max)
		}
	}
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			for j := range 2 {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i, ".", j)), make([]byte, 6<<20), 0o600); err != nil {
					t.Error(err)
				}
				look()
			}
		})
	}
	wg.Wait()
	for i := range 2 {
		for j := range 2 {
			if b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i, ".", j))); err != nil || len(b) != 6<<20 {
				t.Errorf("%d bytes read, %v", len(b), err)
			}
		}
		look()
	}
	t.Logf("%d bytes were kept at most", most)
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
