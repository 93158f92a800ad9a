package client_test

import (
	"testing"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
)

// What a client itself costs: the OSDs are in memory and answer at once.
func BenchmarkCluster(b *testing.B) {
	for name, pool := range map[string]objstore.Pool{
		"replicated": replicated(3, 2),
		"4+2":        {Size: 6, MinSize: 5, Coding: &objstore.Coding{K: 4, M: 2}},
	} {
		c := newCluster(b, 6, pool)
		cl := c.client(client.Options{})
		data, id := content(4<<20), chunk(1)
		b.Run(name+"/put", func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if err := cl.PutChunk(b.Context(), id, data); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/read", func(b *testing.B) {
			p := make([]byte, 128<<10)
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if err := cl.ReadChunk(b.Context(), id, 1<<20, p); err != nil {
					b.Fatal(err)
				}
			}
		})
		if pool.Coding == nil {
			b.Run("getattr", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := cl.GetAttr(b.Context(), root); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
