package s3

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

func TestNicePath(t *testing.T) {
	for key, want := range map[string]bool{
		"a": true, "a/b/c": true, "a/": true, ".hidden": true, "a/.s3": true, "ü/é": true, strings.Repeat("x", 255): true,
		"": false, "/": false, "/a": false, "a//b": false, "a//": false, ".": false, "..": false, "a/../b": false, "a/./b": false, "a/..": false,
		".s3": false, ".s3/x": false, "a\x00b": false, strings.Repeat("x", 256): false,
	} {
		parts, dir, ok := nicePath(key)
		if ok != want {
			t.Errorf("%q: %v %v", key, parts, ok)
		}
		if ok && strings.Join(parts, "/") != strings.TrimSuffix(key, "/") || ok && dir != strings.HasSuffix(key, "/") {
			t.Errorf("%q became %q, %v", key, parts, dir)
		}
	}
}

// sortOdd is the order in which a walk meets odd paths.
func sortOdd(a, b []string) int { return slices.Compare(a, b) }

// FuzzOddPath: an odd path tells its key, fits into names, and sorts as its key.
func FuzzOddPath(f *testing.F) {
	f.Add("a//b", "a//b/c")
	f.Add(strings.Repeat("/", 100), strings.Repeat("/", 101))
	f.Add(strings.Repeat("k", 200), strings.Repeat("k", 1024))
	f.Fuzz(func(t *testing.T, a, b string) {
		if len(a) > maxKey || len(b) > maxKey {
			return
		}
		pa, pb := oddPath(a), oddPath(b)
		got := ""
		for i, p := range pa {
			name, more := strings.CutSuffix(p, "+")
			piece, err := hex.DecodeString(name)
			if err != nil || len(p) > 255 || more != (i < len(pa)-1) {
				t.Fatalf("%q", pa)
			}
			got += string(piece)
		}
		if got != a {
			t.Fatalf("%q became %q", a, pa)
		}
		if sortOdd(pa, pb) != strings.Compare(a, b) {
			t.Fatalf("%q and %q sort as %q and %q", a, b, pa, pb)
		}
	})
}
