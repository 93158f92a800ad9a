package osd

import (
	"errors"
	"testing"
	"time"

	"pillarbox/objstore"
)

// TestLeftovers: chunks that were never named go when their session has ended, not
// before, and named ones never; so do inodes without a name that it had open.
func TestLeftovers(t *testing.T) {
	f := newFabricOf(t, 3, 50*time.Millisecond)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1)
	named, _ := f.putOn(1, 1, 0, 1, 2)
	pg := f.m.Group(1)
	o := f.leader(pg)
	alive := listen(t, o, 8)
	if _, err := o.GetAttr(alive.ctx(t), pg, objstore.VolumeRoot(1)); err != nil {
		t.Fatal(err)
	}
	stray := func(session uint64) objstore.ChunkID {
		id := objstore.ChunkID{Ino: named.Ino, Index: 3, Version: objstore.PooledVersion(1, session, 5)}
		for osd := range 3 {
			if err := f.osds[osd].PutChunk(t.Context(), id, []byte("never named")); err != nil {
				t.Fatal(err)
			}
		}
		return id
	}
	ofDead, ofAlive := stray(9), stray(8)
	orphan := func(name string) objstore.Ino {
		r, err := f.apply(objstore.Request{}, create(name))
		if err == nil {
			_, err = f.apply(objstore.Request{}, objstore.Remove{Parent: objstore.VolumeRoot(1), Name: name})
		}
		if err != nil {
			t.Fatal(err)
		}
		return r.Attr.Ino
	}
	open := orphan("open")
	alive.mu.Lock()
	alive.busy = open
	alive.mu.Unlock()
	lost := orphan("lost")
	isThere := func(ino objstore.Ino) bool {
		_, err := o.GetAttr(t.Context(), pg, ino)
		if err != nil && !errors.Is(err, objstore.Stale) {
			t.Fatal(err)
		}
		return err == nil
	}
	scrub := func() {
		for osd := range 3 {
			if _, err := f.osds[osd].Scrub(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	scrub()
	o.lookForOrphans(pg)
	f.eventually("what the dead left is gone", func() bool {
		return f.has(0, ofDead)+f.has(1, ofDead)+f.has(2, ofDead) == 0 && !isThere(lost)
	})
	if f.has(0, ofAlive)+f.has(1, ofAlive)+f.has(2, ofAlive) != 3 || !isThere(open) {
		t.Error("what a session has that lives is gone")
	}
	alive.sub.Close()
	f.eventually("what the session had is gone", func() bool {
		scrub()
		return f.has(0, ofAlive)+f.has(1, ofAlive)+f.has(2, ofAlive) == 0 && !isThere(open)
	})
	if f.has(0, named)+f.has(1, named)+f.has(2, named) != 3 {
		t.Error("a chunk that a file names is gone")
	}
}
