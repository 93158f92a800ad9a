package outside

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pillarbox/test/provider"
)

// TestFaults: over a provider whose requests fail in all ways, mail is written and
// read as if nothing were; wrong bytes are never served; away, it is missed by what
// needs it only, status says so, and all goes on when it is back.
func TestFaults(t *testing.T) {
	settings, _ := provider.Azurite(t)
	origin, err := url.Parse(settings["endpoint"])
	if err != nil {
		t.Fatal(err)
	}
	p := newProvider(t, "http://"+origin.Host)
	faulty := maps.Clone(settings)
	faulty["endpoint"] = p.URL + origin.Path
	h := newHost(t, "azure", faulty)
	dir := filepath.Join(h.node.Mount, "example.org", secret)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(2, 2))
	files := map[string][]byte{}
	p.set(11, none)
	for i := range 40 {
		name := filepath.Join(dir, fmt.Sprint("m", i))
		files[name] = message(rnd, 70_000+i*5_000)
		h.write(name, files[name])
	}
	read := func() {
		t.Helper()
		h.node.Term() // so that nothing is in the kernel
		h.node.Restart()
		for name, want := range files {
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
			}
		}
	}
	read()
	for name := range files { // some of them
		if strings.HasSuffix(name, "5") {
			if err := os.Remove(name); err != nil {
				t.Error(err)
			}
			delete(files, name)
		}
	}
	p.set(0, none)
	for deadline := time.Now().Add(2 * time.Minute); len(h.bodies()) > len(files); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d objects of %d files", len(h.bodies()), len(files))
		}
	}
	if missed := p.missed(); len(missed) > 0 {
		t.Errorf("not tried: %v", missed)
	}

	p.set(1, garbled)
	h.node.Term()
	h.node.Restart()
	for name := range files {
		if _, err := os.ReadFile(name); err == nil {
			t.Errorf("%s: wrong bytes were served", name)
		}
	}
	p.set(1, broken)
	small := filepath.Join(dir, "small")
	files[small] = []byte("a small body")
	h.write(small, files[small])
	if _, err := os.ReadFile(filepath.Join(dir, "m0")); err == nil {
		t.Error("m0 was read without the provider")
	}
	if out := h.run("status", "--data", h.node.Data); !strings.Contains(out, `pool "cloud" does not answer`) {
		t.Errorf("status: %s", out)
	}
	p.set(0, none)
	read()
	if out := h.run("df", "--data", h.node.Data); !strings.Contains(out, "cloud") {
		t.Errorf("df: %s", out)
	}
}
