package outside

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/types"
	"pillarbox/test/harness"
)

// secret is in every line of the mail, its name and its account.
const secret = "nobody-may-read-this"

// host is a store of one host with a pool outside, as a user would start it.
type host struct {
	*testing.T
	node   *harness.Node
	config string   // the file with the pool's settings
	access []string // the flags for keys and pool
	args   []string // these and all others of `up`
	pool   pool.Store
}

func newHost(t *testing.T, kind string, settings map[string]string, args ...string) *host {
	t.Helper()
	h := &host{T: t}
	dir := t.TempDir()
	own := maps.Clone(settings)
	own["type"] = kind
	text, err := json.Marshal(own)
	if err != nil {
		t.Fatal(err)
	}
	h.config = filepath.Join(dir, "pool.json")
	if err := os.WriteFile(h.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(dir, "keys")
	h.run("key", "create", "--key-file", keys)
	h.access = []string{"--key-file", keys, "--pool", "cloud=" + h.config}
	h.args = append(append([]string{"--s3", "off", "--encrypt"}, h.access...), args...)
	h.node = harness.Start(t, harness.Options{Args: h.args})
	if h.pool, err = types.All()[kind].Open(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) run(args ...string) string {
	h.Helper()
	out, err := exec.Command(harness.Binary(h), args...).CombinedOutput()
	if err != nil {
		h.Fatalf("pillarbox %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// bodies are the objects in the pool that are bodies of files. Of all that is there
// nothing can be read.
func (h *host) bodies() map[string][]byte {
	h.Helper()
	all := map[string][]byte{}
	err := pool.Each(h.Context(), h.pool, func(o pool.Object) error {
		b := make([]byte, o.Size)
		err := h.pool.Get(h.Context(), o.Name, 0, b)
		if errors.Is(err, objstore.NotFound) { // it was removed since
			return nil
		}
		if bytes.Contains(append(b, o.Name...), []byte(secret)) || bytes.Contains(b, []byte("Subject:")) || bytes.Contains(b, []byte("example.org")) {
			h.Errorf("object %s shows what it is", o.Name)
		}
		if _, ok := pool.ParseName(o.Name); ok {
			all[o.Name] = b
		}
		return err
	})
	if err != nil {
		h.Fatal(err)
	}
	return all
}

// write writes a message with fsync.
func (h *host) write(path string, data []byte) {
	h.Helper()
	f, err := os.Create(path)
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		h.Fatalf("%s: %v", path, err)
	}
	f.Close()
}

// message is one of a length, with much in it that compresses and much that does not.
func message(rnd *rand.Rand, size int) []byte {
	var b bytes.Buffer
	for b.Len() < size {
		fmt.Fprintf(&b, "Subject: %s %x\n", secret, rnd.Uint64())
	}
	return b.Bytes()[:size]
}

// mailOn puts mail on a store of one host with a pool outside, of which nothing
// can be read there, reads it again after a restart, and removes it.
func mailOn(t *testing.T, kind string, settings map[string]string) {
	h := newHost(t, kind, settings)
	dir := filepath.Join(h.node.Mount, "example.org", secret)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	files := map[string][]byte{}
	for name, size := range map[string]int{"small": 20_000, "large": 300_000, "huge": 9_000_000} {
		name = filepath.Join(dir, secret+name)
		files[name] = message(rnd, size)
		h.write(name, files[name])
	}
	if there := h.bodies(); len(there) != 4 { // of large 1, of huge 3
		t.Errorf("%d objects in the pool", len(there))
	}
	h.node.Term()
	h.node.Fsck()
	if out := h.run(append([]string{"verify", "--data", h.node.Data, "cloud"}, h.access...)...); !bytes.Contains([]byte(out), []byte("4 chunks, 9300000 bytes: 0 missing or damaged; 0 objects")) {
		t.Errorf("verify: %s", out)
	}
	h.node.Restart()
	for name, want := range files {
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
	for deadline := time.Now().Add(2 * time.Minute); len(h.bodies()) > 0; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d removed objects are still there", len(h.bodies()))
		}
	}
}
