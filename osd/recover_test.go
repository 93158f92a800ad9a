package osd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"pillarbox/objstore"
	"pillarbox/osd/chunkstore"
)

// putOn stores a chunk on some OSDs and names it in a new file.
func (f *fabric) putOn(vol objstore.VolumeID, n int, osds ...int) (objstore.ChunkID, []byte) {
	f.t.Helper()
	res, err := f.apply(objstore.Request{}, objstore.Create{Parent: objstore.VolumeRoot(vol), Name: fmt.Sprint("c", n), Mode: objstore.ModeRegular | 0o600})
	if err != nil {
		f.t.Fatal(err)
	}
	id := objstore.ChunkID{Ino: res.Attr.Ino, Version: objstore.PooledVersion(1, 1, uint64(n))}
	data := bytes.Repeat([]byte(fmt.Sprint(n, " ")), 30000)
	for _, osd := range osds {
		if err := f.osds[osd].PutChunk(f.t.Context(), id, data); err != nil {
			f.t.Fatal(err)
		}
	}
	_, err = f.apply(objstore.Request{}, objstore.Write{Ino: id.Ino, Size: uint64(len(data)), Extents: []objstore.Extent{{Len: uint32(len(data)), Kind: objstore.Pooled, Chunk: id}}})
	if err != nil {
		f.t.Fatal(err)
	}
	return id, data
}

func (f *fabric) has(osd int, ids ...objstore.ChunkID) (n int) {
	f.t.Helper()
	has, err := f.osds[osd].HasChunks(f.t.Context(), ids)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, h := range has {
		if h {
			n++
		}
	}
	return n
}

func TestRecoveryCopiesWhatIsMissingAndWanted(t *testing.T) {
	f := newFabric(t, 3)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1, 2)
	var ids []objstore.ChunkID
	bodies := map[objstore.ChunkID][]byte{}
	for i := range 40 {
		on := []int{i % 3, (i + 1) % 3}
		if i%2 == 0 {
			on = on[:1]
		}
		id, data := f.putOn(objstore.VolumeID(1+i%2), i, on...)
		ids, bodies[id] = append(ids, id), data
	}
	unnamed := objstore.ChunkID{Ino: ids[0].Ino, Index: 7, Version: 5}
	if err := f.osds[0].PutChunk(t.Context(), unnamed, []byte("never named")); err != nil {
		t.Fatal(err)
	}
	f.setMap(func(*objstore.Map) {})
	f.eventually("every chunk on every OSD", func() bool {
		return f.has(0, ids...)+f.has(1, ids...)+f.has(2, ids...) == 3*len(ids)
	})
	for id, want := range bodies {
		for osd := range 3 {
			got, err := f.osds[osd].FetchChunk(t.Context(), id)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("osd.%d, chunk %v: %d bytes, %v", osd, id, len(got), err)
			}
		}
	}
	if f.has(1, unnamed)+f.has(2, unnamed) != 0 {
		t.Error("a chunk that nothing names was copied")
	}
}

func TestChunksMoveWhenAnOSDGoesOut(t *testing.T) {
	f := newFabric(t, 4)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1)
	pool := f.m.Data()
	var ids []objstore.ChunkID
	for i := range 40 {
		id, _ := f.putOn(1, i)
		for _, osd := range f.m.Acting(pool, pool.ChunkPG(id)) {
			if err := f.osds[osd].PutChunk(t.Context(), id, bytes.Repeat([]byte{byte(i)}, 60000)); err != nil {
				t.Fatal(err)
			}
		}
		ids = append(ids, id)
	}
	if f.has(0, ids...) == 0 {
		t.Fatal("osd.0 has no chunk to begin with")
	}
	f.setMap(func(m *objstore.Map) { m.OSDs[0].In = false })
	f.eventually("three replicas on the others, none on osd.0", func() bool {
		return f.has(1, ids...)+f.has(2, ids...)+f.has(3, ids...) == 3*len(ids) && f.has(0, ids...) == 0
	})
}

// TestTooFullForRecovery: an OSD that is backfillfull is given neither chunks nor
// groups, until it is not.
func TestTooFullForRecovery(t *testing.T) {
	f := newFabric(t, 4)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1)
	pool := f.m.Data()
	var ids []objstore.ChunkID
	for i := range 40 {
		id, data := f.putOn(1, i)
		for _, osd := range f.m.Acting(pool, pool.ChunkPG(id)) {
			if err := f.osds[osd].PutChunk(t.Context(), id, data); err != nil {
				t.Fatal(err)
			}
		}
		ids = append(ids, id)
	}
	chunks, groups := f.has(3, ids...), len(f.osds[3].hosted())
	f.setMap(func(m *objstore.Map) { m.OSDs[0].In, m.OSDs[3].Full = false, objstore.BackfillFull })
	f.eventually("the others have theirs, and osd.3 is passed over", func() bool {
		return f.has(1, ids...)+f.has(2, ids...) == 2*len(ids) && f.osds[0].recovery.held.Load() > 0
	})
	if now, hosts := f.has(3, ids...), len(f.osds[3].hosted()); now != chunks || hosts != groups {
		t.Errorf("%d chunks and %d groups, before %d and %d", now, hosts, chunks, groups)
	}
	f.setMap(func(m *objstore.Map) { m.OSDs[3].Full = objstore.NearFull })
	f.eventually("three replicas on the others, none on osd.0", func() bool {
		return f.has(1, ids...)+f.has(2, ids...)+f.has(3, ids...) == 3*len(ids) && f.has(0, ids...) == 0
	})
	f.eventually("voters as the map wants", f.whole)
}

// rot damages a chunk in its segment.
func rot(t *testing.T, o *OSD, loc chunkstore.Loc, at int64) {
	t.Helper()
	file, err := os.OpenFile(fmt.Sprintf("%s/chunks/%08x.seg", o.opt.Dir, loc.Seg), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte("rot"), int64(loc.Off)*4096+at); err != nil {
		t.Fatal(err)
	}
}

// TestResidentBodiesHeal: small bodies beside a group's replicas, at the leader
// when they are read, elsewhere by a scrub.
func TestResidentBodiesHeal(t *testing.T) {
	f := newFabric(t, 3)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1)
	res, err := f.apply(objstore.Request{}, create("m"))
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("mail "), 1000)
	_, err = f.apply(objstore.Request{}, objstore.Write{Ino: res.Attr.Ino, Size: uint64(len(data)), Extents: []objstore.Extent{{Len: uint32(len(data)), Kind: objstore.Resident, Data: data}}})
	if err != nil {
		t.Fatal(err)
	}
	f.sameEverywhere()
	pg := f.m.Group(1)
	leader := f.leader(pg)
	ext, err := leader.Extents(t.Context(), pg, res.Attr.Ino, 0, 1<<20)
	if err != nil || len(ext) != 1 {
		t.Fatalf("%d extents, %v", len(ext), err)
	}
	id := ext[0].Chunk
	for _, o := range f.all() {
		var loc chunkstore.Loc
		f.eventually("the body is in a segment", func() bool {
			if err := o.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, loc, err = o.groups[pg].Load().locateBody(id)
			return err == nil && loc.Len > 0
		})
		rot(t, o, loc, 1000)
		if _, err := o.FetchChunk(t.Context(), id); !errors.Is(err, objstore.Corrupt) {
			t.Fatalf("osd.%d: the damage does not show: %v", o.opt.ID, err)
		}
		if o == leader {
			got := make([]byte, 100)
			if err := o.ReadChunk(t.Context(), pg, id, 900, got); err != nil || !bytes.Equal(got, data[900:1000]) {
				t.Errorf("read of a damaged body: %v", err)
			}
		} else if s, err := o.Scrub(t.Context()); err != nil || s.Healed != 1 || s.Bad != 0 {
			t.Errorf("scrub of osd.%d: %+v, %v", o.opt.ID, s, err)
		}
		if got, err := o.FetchChunk(t.Context(), id); err != nil || !bytes.Equal(got, data) {
			t.Errorf("osd.%d healed: %d bytes, %v", o.opt.ID, len(got), err)
		}
	}
	f.kill(2)
	if got, err := f.start(2).FetchChunk(t.Context(), id); err != nil || !bytes.Equal(got, data) {
		t.Errorf("healed and started again: %d bytes, %v", len(got), err)
	}
}

func TestScrubHeals(t *testing.T) {
	f := newFabric(t, 3)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1)
	id, data := f.putOn(1, 1, 0, 1, 2)
	o := f.osds[1]
	loc, err := o.table.locate(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.flush(t.Context()); err != nil { // the healed copy will be beside this one
		t.Fatal(err)
	}
	rot(t, o, loc, 5000)
	if _, err := o.FetchChunk(t.Context(), id); err == nil {
		t.Fatal("the damage does not show")
	}
	s, err := o.Scrub(t.Context())
	if err != nil || s.Chunks < 1 || s.Healed != 1 || s.Bad != 0 {
		t.Fatalf("scrub: %+v, %v", s, err)
	}
	if o.lastScrub() != s || s.Ended.IsZero() {
		t.Errorf("remembered %+v of %+v", o.lastScrub(), s)
	}
	got, err := o.FetchChunk(t.Context(), id)
	if err != nil || !slices.Equal(got, data) {
		t.Fatalf("after scrub: %d bytes, %v", len(got), err)
	}
	if again, err := o.Scrub(t.Context()); err != nil || again.Chunks != s.Chunks || again.Healed+again.Bad != 0 {
		t.Errorf("a second scrub: %+v, %v; the first: %+v", again, err, s)
	}
}
