package outside

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/test/harness"
	"pillarbox/test/mailset"
	"pillarbox/test/provider"
)

const (
	packedMails = 900 // of the real mail
	packLeast   = 64  // bodies of an account that are worth an object
)

// until waits for something to come true.
func until(t *testing.T, what string, true func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !true(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain waited for %s", what)
		}
	}
}

// packStatus is what status tells that matters here.
type packStatus struct {
	Packed struct{ Packs, Files, Bytes int64 }
	Pools  []struct{ Requests int64 } `json:"outside_pools"`
	Ship   struct {
		Behind uint64 `json:"behind_bytes"`
		Whole  bool
	} `json:"shipped"`
}

func (h *host) packStatus() (st packStatus) {
	h.Helper()
	if err := json.Unmarshal([]byte(h.run("status", "--data", h.node.Data, "--format", "json")), &st); err != nil {
		h.Fatal(err)
	}
	return st
}

// used is what a directory takes of the disk.
func used(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && e.Type().IsRegular() && unix.Lstat(path, &st) == nil { // it may be gone since
			n += st.Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// same compares all mail with what it must be.
func (h *host) same(mail map[string][]byte) {
	h.Helper()
	for name, want := range mail {
		if got, err := os.ReadFile(filepath.Join(h.node.Mount, name)); err != nil || !bytes.Equal(got, want) {
			h.Fatalf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
	}
}

// packs are the objects in the pool that are packs, and how many bytes they have.
func (h *host) packs() (names map[string]bool, size int) {
	h.Helper()
	names = map[string]bool{}
	for name, b := range h.bodies() {
		if id, ok := pool.ParseName(name); ok && id.Ino == objstore.PackIno(id.Ino.Volume()) {
			names[name], size = true, size+len(b)
		}
	}
	return names, size
}

// TestPackedMail: real mail leaves the host's disk for a few objects outside, which
// are read from, and packed anew when much of them was removed. The host is lost,
// and a new one has every message.
func TestPackedMail(t *testing.T) {
	settings, _ := provider.Pillarbox(t)
	h := newHost(t, "s3", settings, "--pack-after", "1s")
	set, err := mailset.Load()
	if err != nil {
		t.Fatal(err)
	}
	mail, order, small, size := map[string][]byte{}, []string{}, 0, int64(0)
	for i, m := range set[:packedMails] {
		name := filepath.Join("example.org", fmt.Sprintf("%s%d", secret, i%2), fmt.Sprintf("%d.%s", i, secret))
		body := m.Stored()
		mail[name], order = body, append(order, name)
		if len(body) <= objstore.ResidentMax {
			small, size = small+1, size+int64(len(body))
		}
		path := filepath.Join(h.node.Mount, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		h.write(path, body)
	}
	var st packStatus
	until(t, "small mail to be packed", func() bool { st = h.packStatus(); return st.Packed.Files >= int64(small-2*packLeast) })
	chunks := filepath.Join(h.node.Data, "osd.0", "chunks")
	until(t, "the disk to have its space back", func() bool { return used(t, chunks) < size/2 })
	objects, packed := h.packs()
	t.Logf("%d messages, %d of them small, %d bytes: %d packed into %d objects of %d bytes; %d bytes left here; %d requests in all",
		len(mail), small, size, st.Packed.Files, len(objects), packed, used(t, chunks), st.Pools[0].Requests)
	if st.Packed.Packs*packLeast > st.Packed.Files {
		t.Errorf("%d files are in %d packs", st.Packed.Files, st.Packed.Packs)
	}
	h.same(mail)
	for i, name := range order {
		if i%10 < 7 {
			if err := os.Remove(filepath.Join(h.node.Mount, name)); err != nil {
				t.Fatal(err)
			}
			delete(mail, name)
		}
	}
	until(t, "packs to be packed anew", func() bool {
		now, left := h.packs()
		for name := range now {
			if objects[name] {
				return false
			}
		}
		return len(now) > 0 && left < packed/2
	})
	h.same(mail)
	h.rebuilt(mail)
}

// rebuilt loses the host, and has another one take its place.
func (h *host) rebuilt(mail map[string][]byte) {
	h.Helper()
	until(h.T, "everything to be shipped", func() bool { st := h.packStatus(); return st.Ship.Behind == 0 && st.Ship.Whole })
	h.node.Kill9()
	h.node.Unmount()
	if err := os.RemoveAll(h.node.Data); err != nil {
		h.Fatal(err)
	}
	data := filepath.Join(h.TempDir(), "data")
	h.run("rebuild", "--from", h.config, "--key-file", h.access[1], "--data", data)
	h.node = harness.Start(h, harness.Options{Data: data, Args: h.args})
	h.same(mail)
	h.node.Term()
	h.node.Fsck()
	out := h.run(append([]string{"verify", "--data", data, "cloud"}, h.access...)...)
	if !bytes.Contains([]byte(out), []byte("all as in the store")) || !bytes.Contains([]byte(out), []byte(": 0 missing or damaged;")) {
		h.Errorf("verify: %s", out)
	}
}
