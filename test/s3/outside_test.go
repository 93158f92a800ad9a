package s3

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pillarbox/objstore/pool"
	"pillarbox/objstore/ship"
	"pillarbox/test/harness"
)

// TestOutsidePool: large bodies of an encrypted store lie in a bucket, where
// nobody can read them, and go when their files do; with the provider away what needs it
// fails and the rest goes on.
func TestOutsidePool(t *testing.T) {
	provider := newSite(t)
	provider.aws("s3", "mb", "s3://bodies")
	settings := provider.settings("bodies", "")
	settings["type"] = "s3"
	text, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	config, keys := provider.write("pool.json", text), filepath.Join(t.TempDir(), "keys")
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(harness.Binary(t), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("pillarbox %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	run("key", "create", "--key-file", keys)
	access := []string{"--key-file", keys, "--pool", "cloud=" + config}
	n := harness.Start(t, harness.Options{Args: append([]string{"--s3", "off", "--encrypt"}, access...)})
	dir := filepath.Join(n.Mount, "example.org", "alice")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	files := map[string][]byte{}
	put := func(name string, size int) {
		t.Helper()
		b := bytes.Repeat([]byte("Subject: nobody may read this\n"), size/30+1)[:size]
		for range size / 100 { // so that it does not all compress away
			b[rnd.IntN(size)] = byte(rnd.Uint32())
		}
		files[name] = b
		f, err := os.Create(filepath.Join(dir, name))
		if err == nil {
			_, err = f.Write(b)
		}
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f.Close()
	}
	objects := func() (list []string) {
		t.Helper()
		out := provider.aws("s3api", "list-objects-v2", "--bucket", "bodies", "--query", "Contents[].Key", "--output", "text")
		if out == "None" {
			return nil
		}
		return slices.DeleteFunc(strings.Fields(out), func(key string) bool { return key == pool.OwnerName || ship.Is(key) })
	}
	put("small", 20_000)
	put("large", 300_000)
	put("huge", 9_000_000)
	if got := len(objects()); got != 4 { // of large 1, of huge 3
		t.Errorf("%d objects in the bucket", got)
	}
	for _, key := range objects() {
		b, err := os.ReadFile(filepath.Join(provider.node.Mount, "bodies", key))
		if err != nil || bytes.Contains(b, []byte("nobody may")) || bytes.Contains(b, []byte("Subject:")) {
			t.Errorf("object %s shows what it is (%v)", key, err)
		}
	}
	plain := filepath.Join(n.Mount, "plain.net")
	if err := os.Mkdir(plain, 0o700); err != nil {
		t.Fatal(err)
	}
	run("key", "encrypt", "--off", plain)
	if err := os.Mkdir(plain+"/bob", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(plain+"/bob/large", files["large"], 0o600); err != nil {
		t.Fatal(err)
	}
	if got := len(objects()); got != 4 {
		t.Errorf("%d objects in the bucket: what is not encrypted went there", got)
	}
	reread := func() {
		t.Helper()
		n.Term()
		n.Fsck()
		n.Restart()
		for name, want := range files {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
			}
		}
	}
	reread()
	put("large", 400_000) // in place of what was there
	if err := os.Remove(filepath.Join(dir, "huge")); err != nil {
		t.Fatal(err)
	}
	delete(files, "huge")
	for deadline := time.Now().Add(2 * time.Minute); len(objects()) != 1; {
		if time.Now().After(deadline) {
			t.Fatalf("what was freed is still there: %q", objects())
		}
		time.Sleep(100 * time.Millisecond)
	}
	reread()
	n.Term()
	verify := append([]string{"verify", "--data", n.Data, "cloud"}, access...)
	if out := run(verify...); !strings.Contains(out, "1 chunks, 400000 bytes: 0 missing or damaged; 0 objects") {
		t.Errorf("verify: %s", out)
	}
	// A provider that gives other bytes, or none, is found out.
	key := filepath.Join(provider.node.Mount, "bodies", objects()[0])
	b, err := os.ReadFile(key)
	if err == nil {
		b[len(b)/2] ^= 1
		err = os.WriteFile(key, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(harness.Binary(t), verify...).CombinedOutput(); err == nil || !strings.Contains(string(out), "/example.org/alice/large") {
		t.Errorf("verify of a damaged object: %v, %s", err, out)
	}
	n.Restart()
	if _, err := os.ReadFile(filepath.Join(dir, "large")); err == nil {
		t.Error("damaged bytes were served")
	}
	if got, err := os.ReadFile(filepath.Join(dir, "small")); err != nil || !bytes.Equal(got, files["small"]) {
		t.Errorf("small: %v", err)
	}
}
