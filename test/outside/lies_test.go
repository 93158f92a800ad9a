package outside

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"pillarbox/test/harness"
	"pillarbox/test/provider"
)

// age makes all objects look a month old, so that verify removes what nothing names.
func age(t *testing.T, bucket string) {
	t.Helper()
	then := time.Now().Add(-30 * 24 * time.Hour)
	err := filepath.WalkDir(bucket, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			err = os.Chtimes(path, then, then)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// verify verifies the pool of a host that is not running, removes what nothing names,
// and returns how much that was.
func (h *host) verify() int {
	h.Helper()
	out := h.run(append([]string{"verify", "--remove", "--data", h.node.Data, "cloud"}, h.access...)...)
	m := regexp.MustCompile(` 0 missing or damaged; (\d+) objects`).FindStringSubmatch(out)
	if m == nil {
		h.Fatalf("verify: %s", out)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// TestLies: a provider who says that he removed what he keeps, and whose lists lack
// what is new and show what was removed, makes nothing be taken for garbage that is
// not; what he kept is removed when he no longer lies.
func TestLies(t *testing.T) {
	settings, bucket := provider.Pillarbox(t)
	p := newProvider(t, settings["endpoint"])
	lying := maps.Clone(settings)
	lying["endpoint"] = p.URL
	h := newHost(t, "s3", lying)
	dir := h.maildir(secret)
	rnd := rand.New(rand.NewPCG(4, 4))
	mail := map[string][]byte{}
	deliver := func(n int) {
		t.Helper()
		for range n {
			name := fmt.Sprint("m", len(mail))
			mail[name] = message(rnd, []int{3_000, 200_000}[len(mail)%2])
			if err := h.deliver(dir, name, mail[name]); err != nil {
				t.Fatal(err)
			}
		}
	}
	deliver(10)
	h.shipped()
	age(t, bucket)
	if n := len(h.bodies()); n != 5 { // and the provider's list is known
		t.Errorf("%d bodies in the bucket", n)
	}

	p.set(1, lost)
	for _, name := range []string{"m1", "m3"} {
		if err := os.Remove(filepath.Join(dir, "new", name)); err != nil {
			t.Fatal(err)
		}
	}
	h.eventually("a removal is lost", func() bool { return p.removals() > 0 })
	deliver(6)
	delete(mail, "m1")
	delete(mail, "m3")
	h.shipped()
	h.node.Term()
	age(t, bucket)
	p.set(1, stale) // lists lack the three, and show the two
	if n := len(h.bodies()); n != 5 {
		t.Errorf("%d bodies in the list, which should be the old one with 5", n)
	}
	for range 2 {
		if n := h.verify(); n < 2 {
			t.Errorf("%d objects that nothing names, of 2 at least", n)
		}
	}
	p.set(0, none)
	h.verify()
	if n := h.verify(); n != 0 {
		t.Errorf("%d objects that nothing names are left", n)
	}
	if n := len(h.bodies()); n != 6 {
		t.Errorf("%d bodies in the bucket, of 6", n)
	}
	h.node = harness.Start(t, harness.Options{Data: h.node.Data, Args: h.args})
	h.holds(filepath.Join(h.maildir(secret), "new"), mail)
	h.shipped()

	p.set(1, stale)
	h.burn()
	h.holds(filepath.Join(h.maildir(secret), "new"), mail)
}
