package main

import "testing"

// TestShares: what the parts of a mount may take is together what --cache-memory says,
// and each has enough to work with.
func TestShares(t *testing.T) {
	for _, size := range []string{"32MiB", "100MiB", "192MiB", "10GiB"} {
		for _, dir := range []string{"", "/cache"} {
			o := cacheOptions{memory: size, dir: dir}
			m, err := o.shares()
			if err != nil {
				t.Fatal(err)
			}
			if m.dirty+m.bodies+m.waiting+m.metadata != m.total {
				t.Errorf("%s: %+v", size, m)
			}
			if m.dirty < 8<<20 || m.bodies < 4<<20 || m.metadata < 8<<20 || dir != "" && m.waiting < 5<<20 {
				t.Errorf("%s: too little of something: %+v", size, m)
			}
		}
	}
	for _, size := range []string{"31MiB", "lots", "0"} {
		if m, err := (&cacheOptions{memory: size}).shares(); err == nil {
			t.Errorf("--cache-memory %s: %+v", size, m)
		}
	}
}
