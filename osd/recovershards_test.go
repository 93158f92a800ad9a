package osd

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"pillarbox/objstore"
	"pillarbox/objstore/ec"
)

// codedFabric has OSDs with an erasure-coded data pool of 2+2.
func codedFabric(t *testing.T, osds int) *fabric {
	f := newFabric(t, osds, func(m *objstore.Map) {
		p := &m.Pools[1]
		p.Coding, p.Size, p.MinSize = &objstore.Coding{K: 2, M: 2}, 4, 3
	})
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1)
	return f
}

// shardsOf are the payloads of the chunk that putShards makes of n.
func (f *fabric) shardsOf(n int) [][]byte {
	f.t.Helper()
	code, err := ec.New(2, 2)
	if err != nil {
		f.t.Fatal(err)
	}
	shards, err := code.Encode(bytes.Repeat([]byte(fmt.Sprint(n, " ")), 30000+n))
	if err != nil {
		f.t.Fatal(err)
	}
	return shards
}

func (f *fabric) acting(id objstore.ChunkID) []int {
	pool := f.m.PoolOf(id)
	return f.m.Acting(pool, pool.ChunkPG(id))
}

// putShards stores a chunk, each shard on the OSD that is chosen for it, -1 for
// none, and names it.
func (f *fabric) putShards(n int, where func(shard int, acting []int) int) objstore.ChunkID {
	f.t.Helper()
	res, err := f.apply(objstore.Request{}, create(fmt.Sprint("c", n)))
	if err != nil {
		f.t.Fatal(err)
	}
	id := objstore.ChunkID{Ino: res.Attr.Ino, Version: objstore.PooledVersion(1, 1, uint64(n))}
	size := 0
	for i, payload := range f.shardsOf(n) {
		h, err := ec.ParseHeader(payload)
		if err != nil {
			f.t.Fatal(err)
		}
		size = h.Length
		if osd := where(i, f.acting(id)); osd >= 0 {
			if err := f.osds[osd].PutChunk(f.t.Context(), id, payload); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	_, err = f.apply(objstore.Request{}, objstore.Write{Ino: id.Ino, Size: uint64(size), Extents: []objstore.Extent{{Len: uint32(size), Kind: objstore.Pooled, Chunk: id}}})
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

// inPlace says whether every shard is where it belongs, and only there.
func (f *fabric) inPlace(ids []objstore.ChunkID) bool {
	f.t.Helper()
	for n, id := range ids {
		want := f.shardsOf(n)
		for osd, o := range f.osds {
			shard := -1
			for i, at := range f.acting(id) {
				if at == osd {
					shard = i
				}
			}
			if held, err := o.shardOf(id); err != nil || held != shard {
				return false
			}
			if shard < 0 {
				continue
			}
			if got, err := o.FetchChunk(f.t.Context(), id); err != nil || !bytes.Equal(got, want[shard]) {
				f.t.Fatalf("shard %d of chunk %v on osd.%d: %d bytes, %v", shard, id, osd, len(got), err)
			}
		}
	}
	return true
}

func right(shard int, acting []int) int { return acting[shard] }

func TestLackingShardsAreMade(t *testing.T) {
	f := codedFabric(t, 5)
	var ids []objstore.ChunkID
	for n := range 24 {
		ids = append(ids, f.putShards(n, func(shard int, acting []int) int {
			if n%6 == shard || n%3 == shard {
				return -1 // written while OSDs were down
			}
			return acting[shard]
		}))
	}
	unnamed := objstore.ChunkID{Ino: ids[0].Ino, Index: 7, Version: 5}
	if err := f.osds[f.acting(unnamed)[2]].PutChunk(t.Context(), unnamed, f.shardsOf(0)[2]); err != nil {
		t.Fatal(err)
	}
	f.setMap(func(*objstore.Map) {})
	f.eventually("every shard in its place", func() bool { return f.inPlace(ids) })
	if f.has(f.acting(unnamed)[0], unnamed) != 0 {
		t.Error("shards of a chunk that nothing names were made")
	}
}

func TestShardsMoveWhenAnOSDGoesOut(t *testing.T) {
	f := codedFabric(t, 6)
	var ids []objstore.ChunkID
	for n := range 24 {
		ids = append(ids, f.putShards(n, right))
	}
	f.setMap(func(m *objstore.Map) { m.OSDs[0].In = false })
	f.eventually("every shard in its new place", func() bool { return f.inPlace(ids) })
	f.kill(1)
	f.setMap(func(m *objstore.Map) { m.OSDs[1].In, m.OSDs[1].Up = false, false })
	f.eventually("the shards of a dead OSD on others", func() bool { return f.inPlace(ids) })
	f.setMap(func(m *objstore.Map) { m.OSDs[0].In = true })
	f.eventually("every shard back", func() bool { return f.inPlace(ids) })
}

// TestWrongShards: recovery of shards that lie on OSDs of others of the chunk.
func TestWrongShards(t *testing.T) {
	f := codedFabric(t, 5)
	var ids []objstore.ChunkID
	for n := range 12 {
		ids = append(ids, f.putShards(n, func(shard int, acting []int) int {
			switch n % 4 {
			case 0: // two have each other's
				return acting[[]int{1, 0, 2, 3}[shard]]
			case 1: // all have another's
				return acting[(shard+1)%4]
			case 2: // one has another's, which has none; one shard is nowhere
				return []int{acting[1], -1, acting[2], acting[3]}[shard]
			}
			return acting[shard]
		}))
	}
	f.setMap(func(*objstore.Map) {})
	f.eventually("every shard in its place", func() bool { return f.inPlace(ids) })
}

// TestShardsAreChecked: what an OSD takes for a coded pool, and what it knows of
// it after a crash.
func TestShardsAreChecked(t *testing.T) {
	f := codedFabric(t, 4)
	id := f.putShards(0, right)
	shards := f.shardsOf(0)
	o := f.osds[f.acting(id)[1]]
	for what, c := range map[string]struct {
		data []byte
		want objstore.Kind
	}{
		"no shard":      {[]byte("a whole chunk, as of a replicated pool, is none"), objstore.Corrupt},
		"damaged":       {append(bytes.Clone(shards[1][:len(shards[1])-1]), '!'), objstore.Corrupt},
		"another shard": {shards[2], objstore.Unavailable},
	} {
		if err := o.PutChunk(t.Context(), id, c.data); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	newer := objstore.ChunkID{Ino: id.Ino, Version: objstore.PooledVersion(9, 1, 1)}
	if err := o.PutChunk(t.Context(), newer, shards[1]); !errors.Is(err, objstore.Unavailable) {
		t.Errorf("a chunk of a pool that is not in the map: %v", err)
	}
	at := o.opt.ID
	f.kill(at)
	o = f.start(at)
	if held, err := o.HeldShards(t.Context(), []objstore.ChunkID{id, newer}); err != nil || held[0] != 1 || held[1] != -1 {
		t.Errorf("after a crash it holds %v, %v", held, err)
	}
	if err := o.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if held, err := o.shardOf(id); err != nil || held != 1 {
		t.Errorf("after a flush it holds %d, %v", held, err)
	}
}

func TestScrubHealsShards(t *testing.T) {
	f := codedFabric(t, 5)
	id := f.putShards(0, right)
	o := f.osds[f.acting(id)[3]]
	if err := o.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	loc, err := o.table.locate(id)
	if err != nil || loc.Tag != tagOf(3) {
		t.Fatalf("where the shard lies: %+v, %v", loc, err)
	}
	rot(t, o, loc, 5000)
	for _, healed := range []int{1, 0} {
		s, err := o.Scrub(t.Context())
		if err != nil || s.Healed != healed || s.Bad != 0 {
			t.Fatalf("scrub: %+v, %v; want %d healed", s, err, healed)
		}
	}
	if !f.inPlace([]objstore.ChunkID{id}) {
		t.Error("the shard is not what it was")
	}
}
