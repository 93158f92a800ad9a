package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
)

func content(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b)
	return b
}

func chunk(version uint64) objstore.ChunkID {
	return objstore.ChunkID{Ino: objstore.MakeIno(0, 77), Version: objstore.PooledVersion(1, 7, version)}
}

// acting lists the OSDs of a chunk, the first choice for reads first.
func (c *cluster) acting(id objstore.ChunkID) []*fakeOSD {
	var out []*fakeOSD
	for _, osd := range c.m.Acting(c.m.Data(), c.m.Data().ChunkPG(id)) {
		out = append(out, c.osds[osd])
	}
	return out
}

// byReading orders the OSDs of a chunk as a client reads from them, by trying.
func (c *cluster) byReading(cl *client.Client, id objstore.ChunkID, data []byte) []*fakeOSD {
	c.t.Helper()
	mustPut(c.t, cl, id, data)
	first := slowest
	for i, o := range c.acting(id) {
		n := o.count("ReadChunk")
		mustRead(c.t, cl, id, data)
		if o.count("ReadChunk") > n {
			first = i
		}
	}
	if first == slowest {
		c.t.Fatal("nobody was read from")
	}
	a := c.acting(id)
	return append(a[first:len(a):len(a)], a[:first]...)
}

const slowest = -1

func holding(osds []*fakeOSD, id objstore.ChunkID, data []byte) (n int) {
	for _, o := range osds {
		if o.has(id, data) {
			n++
		}
	}
	return n
}

func mustPut(t testing.TB, cl *client.Client, id objstore.ChunkID, data []byte) {
	t.Helper()
	if err := cl.PutChunk(t.Context(), id, data); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, cl *client.Client, id objstore.ChunkID, data []byte) {
	t.Helper()
	p := make([]byte, len(data))
	if err := cl.ReadChunk(t.Context(), id, 0, p); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, data) {
		t.Fatal("other bytes were read than written")
	}
}

func TestPutReachesAll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 4, replicated(3, 2))
		cl := c.client(client.Options{})
		data := content(1000)
		for _, o := range c.osds {
			o.set(takes(time.Second)) // at the same time
		}
		for v := range uint64(8) {
			took(t, time.Second, time.Second, func() { mustPut(t, cl, chunk(v), data) })
			if n := holding(c.acting(chunk(v)), chunk(v), data); n != 3 {
				t.Errorf("%d replicas", n)
			}
		}
	})
}

func TestPutDoesNotWaitForSlowOnes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		c.osds[1].set(takes(3 * time.Second))
		data := content(1000)
		sent := bytes.Clone(data)
		took(t, 2*time.Second, 2*time.Second, func() { mustPut(t, cl, chunk(1), sent) })
		clear(sent) // the caller's again
		if n := holding(c.acting(chunk(1)), chunk(1), data); n != 2 {
			t.Fatalf("%d replicas", n)
		}
		took(t, time.Second, time.Second, func() { cl.Close() })
		if !c.osds[1].has(chunk(1), data) {
			t.Error("the slow one did not get it, or not as it was")
		}
	})
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		c.osds[1].set(hangs)
		mustPut(t, cl, chunk(1), content(10))
		took(t, 2*time.Second, 2*time.Second, func() { cl.Close() })
		want(t, cl.PutChunk(t.Context(), chunk(2), content(10)), objstore.Unavailable)
	})
}

// What goes on after PutChunk is bounded.
func TestLateWritesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{Attempt: time.Minute, Timeout: time.Minute})
		under := make(chan struct{}, 1000)
		c.osds[2].set(only("PutChunk", func(ctx context.Context, _ string) error {
			under <- struct{}{}
			<-ctx.Done()
			<-under
			return ctx.Err()
		}))
		for v := range uint64(30) {
			mustPut(t, cl, chunk(v), content(10))
		}
		synctest.Wait()
		if n := len(under); n < 1 || n > 16 {
			t.Errorf("%d writes go on", n)
		}
	})
}

// A failing replica does not hold up the others, and gets the chunk when it is well again.
func TestPutToFailingReplica(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		c.osds[2].set(only("PutChunk", fails(errors.New("input/output error"))))
		took(t, 0, 0, func() { mustPut(t, cl, chunk(1), content(10)) })
		time.Sleep(10 * time.Second)
		c.osds[2].set(nil)
		time.Sleep(time.Second)
		if !c.osds[2].has(chunk(1), content(10)) {
			t.Error("it did not get the chunk afterwards")
		}
	})
}

func TestPutBelowMinSize(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		c.next(down(1, 2), cl)
		time.AfterFunc(10*time.Second, func() { c.next(up(2), cl) })
		took(t, 10*time.Second, 10*time.Second, func() { mustPut(t, cl, chunk(1), content(10)) })
		if n := holding(c.acting(chunk(1)), chunk(1), nil); n != 2 {
			t.Errorf("%d replicas", n)
		}
		c.next(down(0, 2), cl)
		took(t, 30*time.Second, 30*time.Second, func() {
			want(t, cl.PutChunk(t.Context(), chunk(2), content(10)), objstore.Unavailable)
		})
		// An OSD that is up but fails, and recovers in time.
		c.next(up(0, 1), cl)
		c.osds[1].set(fails(objstore.Unavailable))
		time.AfterFunc(20*time.Second, func() { c.osds[1].set(nil) })
		took(t, 20*time.Second, 21*time.Second, func() { mustPut(t, cl, chunk(3), content(10)) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c.osds[1].set(hangs)
		took(t, time.Second, time.Second, func() { want(t, cl.PutChunk(ctx, chunk(4), content(10)), objstore.Unavailable) })
	})
}

func TestPutToFullOSDs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 4, replicated(3, 2))
		cl := c.client(client.Options{})
		full := only("PutChunk", fails(objstore.NoSpace))
		id := chunk(1)
		a := c.acting(id)
		a[0].set(full)
		took(t, 0, 0, func() { mustPut(t, cl, id, content(10)) })
		a[1].set(full)
		took(t, 0, 0, func() { want(t, cl.PutChunk(t.Context(), id, content(10)), objstore.NoSpace) })
		// One full, one failing: that one may come back.
		a[1].set(only("PutChunk", fails(objstore.Unavailable)))
		took(t, 30*time.Second, 30*time.Second, func() { want(t, cl.PutChunk(t.Context(), chunk(1), content(10)), objstore.Unavailable) })
	})
}

// OSDs that the map has as full are not asked.
func TestPutToOSDsFullByTheMap(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 4, replicated(3, 2))
		cl := c.client(client.Options{})
		id, data := chunk(1), content(10)
		mark := func(how objstore.Fullness, osds ...*fakeOSD) {
			c.next(func(m *objstore.Map) {
				for _, o := range osds {
					m.OSD(o.id).Full = how
				}
			}, cl)
		}
		a := c.acting(id)
		mark(objstore.Full, a[0], a[1])
		took(t, 0, 0, func() { want(t, cl.PutChunk(t.Context(), id, data), objstore.NoSpace) })
		if n := holding(a[:2], id, data); n != 0 {
			t.Errorf("%d full OSDs have the chunk", n)
		}
		mark(objstore.NearFull, a[1])
		took(t, 0, 0, func() { mustPut(t, cl, id, data) })
		if holding(a[:1], id, data) != 0 || holding(a[1:], id, data) != 2 {
			t.Error("the chunk is not on the two that are not full")
		}
	})
}

func TestPutInvalidIsFinal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		c.osds[1].set(fails(objstore.Fenced))
		took(t, 0, 0, func() { want(t, cl.PutChunk(t.Context(), chunk(1), content(10)), objstore.Fenced) })
		resident := objstore.ChunkID{Ino: 1, Version: objstore.ResidentVersion | 1}
		want(t, cl.PutChunk(t.Context(), resident, content(10)), objstore.Invalid)
	})
}

// A chunk that the map moves while it is written is on enough OSDs of its new place.
func TestPutWhileTheMapChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 6, replicated(3, 2))
		cl := c.client(client.Options{Slow: time.Hour})
		data := content(10)
		before := c.acting(chunk(1))
		before[0].set(hangs)
		before[1].set(hangs)
		time.AfterFunc(3*time.Second, func() {
			c.next(func(m *objstore.Map) {
				for _, o := range before[:2] {
					m.OSD(o.id).Up, m.OSD(o.id).In = false, false
				}
			}, cl)
		})
		took(t, 3*time.Second, 3*time.Second, func() { mustPut(t, cl, chunk(1), data) })
		if n := holding(c.acting(chunk(1)), chunk(1), data); n != 3 {
			t.Errorf("%d of the new OSDs hold it", n)
		}
	})
}

func TestHedgedRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		data := content(1000)
		order := c.byReading(cl, chunk(1), data)
		order[0].set(takes(4 * time.Second))
		took(t, 10*time.Millisecond, 10*time.Millisecond, func() { mustRead(t, cl, chunk(1), data) })
		took(t, 0, 0, func() { mustRead(t, cl, chunk(1), data) }) // it is known to be slow
		// Where everything takes its time, second replicas are left in peace.
		for _, o := range c.osds {
			o.set(takes(20 * time.Millisecond))
		}
		for range 100 {
			mustRead(t, cl, chunk(1), data)
		}
		n := 0
		for _, o := range c.osds {
			n -= o.count("ReadChunk")
		}
		for range 100 {
			mustRead(t, cl, chunk(1), data)
		}
		for _, o := range c.osds {
			n += o.count("ReadChunk")
		}
		if n != 100 {
			t.Errorf("%d calls for 100 reads", n)
		}
	})
}

func TestReadsAreSpread(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		near := c.client(client.Options{Host: "h1"})
		for v := range uint64(300) {
			mustPut(t, cl, chunk(v), content(10))
			mustRead(t, cl, chunk(v), content(10))
		}
		for id, o := range c.osds {
			if n := o.count("ReadChunk"); n < 50 || n > 150 {
				t.Errorf("osd.%d: %d of 300 reads", id, n)
			}
		}
		n := c.osds[1].count("ReadChunk")
		for v := range uint64(30) {
			mustRead(t, near, chunk(v), content(10))
		}
		if got := c.osds[1].count("ReadChunk") - n; got != 30 {
			t.Errorf("%d of 30 reads from the OSD of the same host", got)
		}
	})
}

// name gives the test's file an extent that names the chunk.
func (c *cluster) name(cl *client.Client, version uint64, n int) objstore.ChunkID {
	c.t.Helper()
	res, err := cl.Apply(c.t.Context(), objstore.Create{Parent: root, Name: fmt.Sprint("f", version), Mode: objstore.ModeRegular | 0o600}, objstore.Committed)
	if err != nil {
		c.t.Fatal(err)
	}
	id := objstore.ChunkID{Ino: res.Attr.Ino, Version: objstore.PooledVersion(1, 7, version)}
	mustPut(c.t, cl, id, content(n))
	_, err = cl.Apply(c.t.Context(), objstore.Write{Ino: id.Ino, Size: uint64(n), Extents: []objstore.Extent{{Len: uint32(n), Kind: objstore.Pooled, Chunk: id}}}, objstore.Committed)
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

func TestReadFailsOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		data := content(5000)
		id := c.name(cl, 1, len(data))
		read := func() error { return cl.ReadChunk(t.Context(), id, 0, make([]byte, len(data))) }
		for _, kind := range []error{objstore.Unavailable, objstore.Corrupt, objstore.Stale, objstore.NotFound, errors.New("input/output error")} {
			for good, o := range c.osds {
				for id, bad := range c.osds {
					if id != good {
						bad.set(only("ReadChunk", fails(kind)))
					}
				}
				o.set(nil)
				took(t, 0, 0, func() { mustRead(t, cl, id, data) })
			}
		}
		for _, o := range c.osds {
			o.set(only("ReadChunk", fails(objstore.Corrupt)))
		}
		took(t, 0, 0, func() { want(t, read(), objstore.Corrupt) })
		// One that fails, or is down, may have good bytes.
		c.osds[2].set(only("ReadChunk", fails(objstore.Unavailable)))
		took(t, 30*time.Second, 30*time.Second, func() { want(t, read(), objstore.Unavailable) })
		c.osds[2].set(nil)
		c.next(down(2), cl)
		time.AfterFunc(7*time.Second, func() { c.next(up(2), cl) })
		took(t, 7*time.Second, 7*time.Second, func() { mustRead(t, cl, id, data) })
		for _, o := range c.osds {
			o.set(nil)
		}
		want(t, cl.ReadChunk(t.Context(), id, 1, make([]byte, len(data))), objstore.Invalid)
	})
}

func TestReadOfRemovedChunk(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		took(t, 0, 0, func() {
			want(t, cl.ReadChunk(t.Context(), chunk(1), 0, make([]byte, 1)), objstore.Stale) // no such file
		})
		id := c.name(cl, 2, 100)
		for _, o := range c.osds {
			o.drop(id)
		}
		took(t, 0, 0, func() { want(t, cl.ReadChunk(t.Context(), id, 0, make([]byte, 1)), objstore.Corrupt) }) // named and nowhere
		if _, err := cl.Apply(t.Context(), objstore.SetAttr{Ino: id.Ino, Set: objstore.SetSize}, objstore.Committed); err != nil {
			t.Fatal(err)
		}
		c.next(down(1), cl)
		took(t, 0, 0, func() { want(t, cl.ReadChunk(t.Context(), id, 0, make([]byte, 1)), objstore.Stale) })
	})
}

// After a change of the map chunks are found where they were, also by a client
// that has not seen the map before.
func TestReadOfChunkThatHasNotMovedYet(t *testing.T) {
	for _, pool := range []objstore.Pool{replicated(2, 1), {Size: 3, MinSize: 2, Coding: &objstore.Coding{K: 2, M: 1}}} {
		bubble(t, func(t *testing.T) {
			c := newCluster(t, 8, pool)
			cl := c.client(client.Options{})
			data := content(70000)
			id := c.name(cl, 1, len(data))
			if pool.Coding != nil { // one shard where it belongs, one where it was, one lost
				before := c.acting(id)
				lost := before[0].chunks[id]
				before[0].drop(id)
				c.next(func(m *objstore.Map) {
					for _, o := range c.acting(id)[:2] {
						m.OSD(o.id).In = false
					}
				}, cl)
				if n := holding(c.acting(id), id, nil); n != 1 {
					t.Fatalf("%d of the new OSDs hold it", n)
				}
				mustRead(t, cl, id, data)
				mustRead(t, c.client(client.Options{}), id, data)
				before[0].chunks[id] = lost
			}
			c.next(func(m *objstore.Map) {
				for _, o := range c.acting(id) {
					m.OSD(o.id).In = false
				}
			}, cl)
			if n := holding(c.acting(id), id, nil); n != 0 {
				t.Fatalf("%d of the new OSDs hold it", n)
			}
			mustRead(t, cl, id, data)
			mustRead(t, c.client(client.Options{}), id, data)
		})
	}
}

func TestResidentChunksAreTheLeaders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		id := objstore.ChunkID{Ino: objstore.MakeIno(0, 5), Version: objstore.ResidentVersion | 9}
		leader := c.osds[c.leader[0]]
		leader.chunks[id] = content(10)
		for _, o := range c.osds {
			if o != leader {
				o.set(only("ReadChunk", fails(&objstore.LeaderError{PG: 0, Leader: leader.id})))
			}
		}
		mustRead(t, cl, id, content(10))
	})
}

func TestCodedPool(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 7, objstore.Pool{Size: 6, MinSize: 5, Coding: &objstore.Coding{K: 4, M: 2}})
		cl := c.client(client.Options{})
		data := content(200001)
		id := c.name(cl, 1, len(data))
		a := c.acting(id)
		if n := holding(a, id, nil); n != 6 {
			t.Fatalf("%d shards", n)
		}
		r := rand.New(rand.NewPCG(5, 5))
		check := func(cl *client.Client) {
			t.Helper()
			for range 20 {
				off := r.IntN(len(data))
				p := make([]byte, 1+r.IntN(len(data)-off))
				if err := cl.ReadChunk(t.Context(), id, uint32(off), p); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(p, data[off:off+len(p)]) {
					t.Fatalf("other bytes at %d", off)
				}
			}
		}
		check(cl)
		for i := range a {
			for j := range i {
				for n, how := range []func(context.Context, string) error{fails(objstore.Unavailable), fails(objstore.Corrupt), fails(objstore.Stale), hangs} {
					a[i].set(only("ReadChunk", how))
					a[j].set(only("ReadChunk", how))
					check(cl)
					check(c.client(client.Options{})) // knows nothing
					if n == 0 {
						c.next(down(a[i].id, a[j].id), cl)
						check(cl)
						c.next(up(a[i].id, a[j].id), cl)
					}
					a[i].set(nil)
					a[j].set(nil)
				}
			}
		}
		for _, o := range a[:3] {
			o.set(only("ReadChunk", fails(objstore.Corrupt)))
		}
		want(t, cl.ReadChunk(t.Context(), id, 0, make([]byte, len(data))), objstore.Corrupt)
	})
}

// A range is read from where it lies, not from all shards.
func TestCodedRangeReadsLittle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 6, objstore.Pool{Size: 6, MinSize: 5, Coding: &objstore.Coding{K: 4, M: 2}})
		cl := c.client(client.Options{})
		data := content(4 << 20)
		id := c.name(cl, 1, len(data))
		p := make([]byte, 1000)
		if err := cl.ReadChunk(t.Context(), id, 3<<20+500_000, p); err != nil || !bytes.Equal(p, data[3<<20+500_000:][:1000]) {
			t.Fatal(err)
		}
		n := 0
		for _, o := range c.osds {
			n += o.bytes
		}
		if n > 1100 {
			t.Errorf("%d bytes were read for 1000", n)
		}
	})
}

func TestCodedPutNeedsMinSize(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 6, objstore.Pool{Size: 6, MinSize: 5, Coding: &objstore.Coding{K: 4, M: 2}})
		cl := c.client(client.Options{})
		c.osds[0].set(only("PutChunk", hangs))
		took(t, 2*time.Second, 2*time.Second, func() { mustPut(t, cl, chunk(1), content(1000)) })
		mustRead(t, cl, chunk(1), content(1000))
		c.next(down(1), cl)
		took(t, 30*time.Second, 30*time.Second, func() {
			want(t, cl.PutChunk(t.Context(), chunk(2), content(1000)), objstore.Unavailable)
		})
	})
}

// A shard that is not what it should be, but reads without an error, is not served.
func TestCodedShardThatLies(t *testing.T) {
	for name, lie := range map[string]func(right, other []byte) []byte{
		"flipped bit":     func(b, _ []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b },
		"wrong place":     func(_, b []byte) []byte { return bytes.Clone(b) },
		"no header":       func(b, _ []byte) []byte { return make([]byte, len(b)) },
		"of another code": func(b, _ []byte) []byte { return content(len(b)) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := newCluster(t, 6, objstore.Pool{Size: 6, MinSize: 5, Coding: &objstore.Coding{K: 4, M: 2}})
				cl := c.client(client.Options{})
				data := content(400000)
				id := c.name(cl, 1, len(data))
				a := c.acting(id)
				a[1].chunks[id] = lie(a[1].chunks[id], a[3].chunks[id])
				mustRead(t, cl, id, data)
				if name == "flipped bit" {
					return // only the OSD sees that in a part of a shard
				}
				p := make([]byte, 1000)
				if err := c.client(client.Options{}).ReadChunk(t.Context(), id, 150000, p); err != nil || !bytes.Equal(p, data[150000:151000]) {
					t.Errorf("a range of it: %v", err)
				}
			})
		})
	}
}

func TestStatFS(t *testing.T) {
	const gib = 1 << 30
	for name, tc := range map[string]struct {
		osds               int
		pool               objstore.Pool
		free               []uint64 // of 100 GiB
		change             func(*objstore.Map)
		total, left, avail uint64
	}{
		"3 of 3":      {3, replicated(3, 2), []uint64{50, 40, 30}, nil, 100, 40, 30},
		"2 of 4":      {4, replicated(2, 1), []uint64{50, 50, 50, 50}, nil, 200, 100, 100},
		"fullest":     {4, replicated(2, 1), []uint64{50, 50, 50, 10}, nil, 200, 80, 20},
		"weights":     {4, replicated(1, 1), []uint64{50, 50, 50, 50}, func(m *objstore.Map) { m.OSDs[0].Weight = 3 }, 400, 200, 100},
		"out":         {4, replicated(1, 1), []uint64{50, 50, 50, 1}, func(m *objstore.Map) { m.OSDs[3].In = false }, 300, 150, 150},
		"4+2":         {6, objstore.Pool{Size: 6, MinSize: 5, Coding: &objstore.Coding{K: 4, M: 2}}, []uint64{50, 50, 50, 50, 50, 50}, nil, 400, 200, 200},
		"too few":     {2, replicated(3, 2), []uint64{50, 40}, nil, 100, 45, 40},
		"one at nil":  {3, replicated(2, 1), []uint64{50, 50, 0}, nil, 150, 50, 0},
		"uneven":      {3, replicated(2, 1), []uint64{60, 50, 50}, func(m *objstore.Map) { m.OSDs[0].Weight = 4 }, 150, 80, 60},
		"by ratio":    {3, replicated(3, 2), []uint64{50, 40, 30}, func(m *objstore.Map) { m.Ratios = objstore.Ratios{} }, 100, 40, 25},
		"zero weight": {2, replicated(1, 1), []uint64{50, 5}, func(m *objstore.Map) { m.OSDs[1].Weight = 0 }, 200, 55, 50},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := newCluster(t, tc.osds, tc.pool)
				cl := c.client(client.Options{})
				c.next(func(m *objstore.Map) {
					m.Ratios, m.Format = objstore.Ratios{Full: 1}, objstore.RatiosFormat
					if tc.change != nil {
						tc.change(m)
					}
				}, cl)
				for id, free := range tc.free {
					c.osds[id].total, c.osds[id].free = 100*gib, free*gib
				}
				check := func() {
					t.Helper()
					st, err := cl.StatFS(t.Context())
					if err != nil || st.Total/gib != tc.total || st.Free/gib != tc.left || st.Avail/gib != tc.avail {
						t.Errorf("%d %d %d GiB, %v; want %d %d %d", st.Total/gib, st.Free/gib, st.Avail/gib, err, tc.total, tc.left, tc.avail)
					}
				}
				check()
				check()
				if st, err := cl.StatFS(t.Context()); err != nil || st.Files-st.FilesFree != uint64(5*tc.osds) || st.FilesFree > tc.left*gib/1024 {
					t.Errorf("%d inodes, %d free, %v", st.Files, st.FilesFree, err)
				}
				if n := c.osds[0].count("Space"); n != 1 {
					t.Errorf("asked %d times within a second", n)
				}
				// An OSD that does not answer counts with what it said last.
				c.osds[1].set(hangs)
				time.Sleep(2 * time.Second)
				took(t, 500*time.Millisecond, 500*time.Millisecond, check)
				c.next(down(1), cl)
				time.Sleep(2 * time.Second)
				took(t, 0, 0, check)
			})
		})
	}
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		for _, o := range c.osds {
			o.set(hangs)
		}
		_, err := cl.StatFS(t.Context())
		want(t, err, objstore.Unavailable)
	})
}
