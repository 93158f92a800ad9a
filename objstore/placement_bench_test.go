package objstore

import (
	"fmt"
	"testing"
)

// BenchmarkMapChange is what a daemon computes when the map of a hundred OSDs
// changes: where all of 10,000 placement groups lie.
func BenchmarkMapChange(b *testing.B) {
	m := validMap()
	m.OSDs = nil
	for id := range 100 {
		m.OSDs = append(m.OSDs, OSDInfo{ID: id, Host: fmt.Sprint("h", id/4), Rack: fmt.Sprint("r", id/20), Weight: 1, Up: true, In: true})
	}
	p := &m.Pools[1]
	p.PGs = 10_000
	for b.Loop() {
		next := m.Clone()
		next.OSDs[17].In = false
		for pg := range uint32(p.PGs) {
			next.Acting(&next.Pools[1], pg)
		}
	}
}
