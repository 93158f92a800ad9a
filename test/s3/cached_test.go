package s3

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pillarbox/test/harness"
)

// TestCacheOfOneHost: a store of one host with --cache-dir reads what lies in its pool
// outside from there once, and again with the provider gone; what lies on its own disk
// is not kept twice. Without a pool outside there is nothing to keep.
func TestCacheOfOneHost(t *testing.T) {
	provider := newSite(t)
	provider.aws("s3", "mb", "s3://bodies")
	settings := provider.settings("bodies", "")
	settings["type"] = "s3"
	text, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	cache, keys := t.TempDir(), filepath.Join(t.TempDir(), "keys")
	try := func(args ...string) (string, error) {
		out, err := exec.Command(harness.Binary(t), args...).CombinedOutput()
		return string(out), err
	}
	must := func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	must(try("key", "create", "--key-file", keys))
	if out, err := try("up", "--data", t.TempDir(), "--s3", "off", "--cache-dir", cache, t.TempDir()); err == nil || !strings.Contains(out, "no pool outside") {
		t.Errorf("--cache-dir without a pool outside: %v\n%s", err, out)
	}
	n := harness.Start(t, harness.Options{Args: []string{
		"--s3", "off", "--ship", "off", "--encrypt", "--key-file", keys, "--pool", "cloud=" + provider.write("pool.json", text),
		"--cache-dir", cache, "--cache-size", "64MiB", "--cache-free", "1MiB",
	}})
	large, small := filepath.Join(n.Mount, "example.org", "alice", "large"), filepath.Join(n.Mount, "example.org", "alice", "small")
	if err := os.MkdirAll(filepath.Dir(large), 0o700); err != nil {
		t.Fatal(err)
	}
	mail := bytes.Repeat([]byte("Subject: nobody may read this\n"), 200_000)
	for name, body := range map[string][]byte{large: mail, small: mail[:30_000]} {
		if err := os.WriteFile(name, body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.Term()
	kept := func() (list []string) {
		t.Helper()
		err := filepath.WalkDir(cache, func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() && e.Name() != "lock" {
				list = append(list, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if got := kept(); len(got) != 2 { // of large; small is on the host's disk
		t.Errorf("the cache has %q", got)
	}
	for _, path := range kept() {
		if b, err := os.ReadFile(path); err != nil || bytes.Contains(b, mail[:20]) {
			t.Errorf("%s: %v, or plain text", path, err)
		}
	}
	provider.node.Term()
	n.Restart()
	for name, want := range map[string][]byte{large: mail, small: mail[:30_000]} {
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s with the provider gone: %d bytes, %v", name, len(got), err)
		}
	}
	if out := must(try("cache", "stats", n.Mount)); !strings.Contains(out, "100.0% of") {
		t.Errorf("cache stats: %s", out)
	}
	if out := must(try("warmup", n.Mount)); !strings.Contains(out, "0 B of bodies brought") {
		t.Errorf("warmup: %s", out)
	}
	must(try("cache", "drop", n.Mount))
	for deadline := time.Now().Add(time.Minute); len(kept()) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("dropped, the cache has %q", kept())
		}
	}
}
