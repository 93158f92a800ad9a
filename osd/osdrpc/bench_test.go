package osdrpc

import (
	"context"
	"testing"

	"pillarbox/objstore"
	"pillarbox/osd"
)

func benchConn(b *testing.B) *Conn {
	a := newAuthority(b)
	f := &fake{call: func(_ context.Context, name string, _ ...any) (any, error) { return nil, nil }}
	_, addr := serve(b, a, 2, "", f, ServerOptions{})
	c := connect(b, addr, 2, a.config(b, roleClient, "client.mx1"))
	for _, n := range []int{0, objstore.ChunkSize} { // both links
		if err := c.PutChunk(b.Context(), objstore.ChunkID{}, make([]byte, n)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	return c
}

func apply(b *testing.B, c *Conn, ch objstore.Change) {
	if _, err := c.Apply(b.Context(), 1, objstore.Request{Session: 1, Seq: 2, Ack: 1}, ch, objstore.Committed); err != nil {
		b.Fatal(err)
	}
}

var smallChange = objstore.Create{Parent: 1 << 40, Name: "1764000000.M1P2.mx1", Mode: objstore.ModeRegular | 0o600}

func BenchmarkApply(b *testing.B) {
	c := benchConn(b)
	for b.Loop() {
		apply(b, c, smallChange)
	}
}

func BenchmarkApplyParallel(b *testing.B) {
	c := benchConn(b)
	b.SetParallelism(16)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			apply(b, c, smallChange)
		}
	})
}

func BenchmarkApplyMessage(b *testing.B) {
	c := benchConn(b)
	data := make([]byte, 16<<10)
	b.SetBytes(int64(len(data)))
	w := objstore.Write{Ino: 1 << 40, Size: 16 << 10, Extents: []objstore.Extent{{Len: 16 << 10, Kind: objstore.Resident, Data: data}}}
	for b.Loop() {
		apply(b, c, w)
	}
}

func benchChunks(b *testing.B, parallel int, call func(c *Conn, buf []byte) error) {
	c := benchConn(b)
	b.SetBytes(objstore.ChunkSize)
	b.SetParallelism(parallel)
	b.RunParallel(func(p *testing.PB) {
		buf := make([]byte, objstore.ChunkSize)
		for p.Next() {
			if err := call(c, buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkPutChunk(b *testing.B) {
	c := benchConn(b)
	data := make([]byte, objstore.ChunkSize)
	b.SetBytes(objstore.ChunkSize)
	for b.Loop() {
		if err := c.PutChunk(b.Context(), objstore.ChunkID{}, data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPutChunkParallel(b *testing.B) {
	benchChunks(b, 2, func(c *Conn, buf []byte) error { return c.PutChunk(b.Context(), objstore.ChunkID{}, buf) })
}

func BenchmarkReadChunk(b *testing.B) {
	c := benchConn(b)
	p := make([]byte, objstore.ChunkSize)
	b.SetBytes(objstore.ChunkSize)
	for b.Loop() {
		if err := c.ReadChunk(b.Context(), 1, objstore.ChunkID{}, 0, p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRaft(b *testing.B) {
	a, l := newAuthority(b), newListener(b)
	_, addr := serve(b, a, 2, "", l, ServerOptions{})
	c, _ := peerConns(b, a, map[int]string{2: addr})
	b.ReportAllocs()
	for b.Loop() { // there and into the hands of Step
		c.Send(2, []osd.RaftMessage{message(1, 500)})
		<-l.got
	}
}
