package client_test

import (
	"testing"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
)

// TestRules: the nearest rule above a file chooses the pool of its new chunks.
func TestRules(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		mkdir := func(parent objstore.Ino, name string) objstore.Ino {
			t.Helper()
			r, err := cl.Apply(t.Context(), objstore.Create{Parent: parent, Name: name, Mode: objstore.ModeDir | 0o755}, objstore.Committed)
			if err != nil {
				t.Fatal(err)
			}
			return r.Attr.Ino
		}
		domain := mkdir(root, "example.org")
		alice, bob := mkdir(domain, "alice"), mkdir(domain, "bob")
		mail := mkdir(alice, "Maildir")
		pools := func(want ...int) {
			t.Helper()
			for i, ino := range []objstore.Ino{root, domain, alice, mail, bob} {
				id, err := cl.NewChunk(t.Context(), ino, 3)
				if err != nil || id.Pool() != want[i] || id.Ino != ino || id.Index != 3 || id.Session() != 7 {
					t.Errorf("a new chunk of %v: %v of pool %d, want %d; %v", ino, id, id.Pool(), want[i], err)
				}
			}
		}
		pools(1, 1, 1, 1, 1)
		c.next(func(m *objstore.Map) {
			m.Format = objstore.PoolsMapFormat
			for id, name := range map[int]string{2: "b", 3: "c", 64: "d"} {
				p := *m.Data()
				p.ID, p.Name = id, name
				m.Pools = append(m.Pools, p)
			}
			m.Rules = []objstore.PoolRule{{Dir: domain, Pool: 2}, {Dir: alice, Pool: 64}}
		}, cl)
		pools(1, 1, 64, 64, 2)
		c.next(func(m *objstore.Map) { m.Rules = append(m.Rules[:1:1], objstore.PoolRule{Dir: root, Pool: 3}) }, cl)
		pools(3, 3, 2, 2, 2)

		// A chunk goes to the OSDs of its pool, and comes from there whatever rules there are.
		id, err := cl.NewChunk(t.Context(), alice, 0)
		if err != nil {
			t.Fatal(err)
		}
		mustPut(t, cl, id, content(100))
		pool := c.m.Pool(2)
		for _, osd := range c.m.Acting(pool, pool.ChunkPG(id)) {
			if !c.osds[osd].has(id, content(100)) {
				t.Errorf("osd.%d lacks the chunk", osd)
			}
		}
		c.next(func(m *objstore.Map) { m.Rules = nil }, cl)
		mustRead(t, cl, id, content(100))
	})
}

// TestPoolUnknown: a client whose map is older than a pool waits for a newer one.
func TestPoolUnknown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		old, cl := c.client(client.Options{}), c.client(client.Options{})
		add := func(m *objstore.Map) {
			p := *m.Data()
			p.ID, p.Name = 2, "b"
			m.Format, m.Pools = objstore.PoolsMapFormat, append(m.Pools, p)
		}
		c.next(add, cl)
		id := objstore.ChunkID{Ino: 5, Version: objstore.PooledVersion(2, 7, 1)}
		mustPut(t, cl, id, content(10))
		got := make(chan error)
		b := make([]byte, 10)
		go func() { got <- old.ReadChunk(t.Context(), id, 0, b) }()
		old.SetMap(c.m)
		if err := <-got; err != nil || string(b) != string(content(10)) {
			t.Errorf("%q, %v", b, err)
		}
	})
}
