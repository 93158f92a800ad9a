package osd

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"pillarbox/objstore"
)

// TestPoolUse: what each pool holds is counted, over removal, storing again and
// a restart, and the space of a copy that another took the place of comes back.
func TestPoolUse(t *testing.T) {
	dir := t.TempDir()
	o := open(t, dir)
	ino := objstore.MakeIno(0, 5)
	id := func(pool int, n uint64) objstore.ChunkID {
		return objstore.ChunkID{Ino: ino, Version: objstore.PooledVersion(pool, 1, n)}
	}
	put := func(id objstore.ChunkID, n int) {
		t.Helper()
		if err := o.PutChunk(t.Context(), id, bytes.Repeat([]byte{1}, n)); err != nil {
			t.Fatal(err)
		}
	}
	uses := func(want map[int]PoolUse) {
		t.Helper()
		if got := o.PoolUse(); !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	flush := func() {
		t.Helper()
		if err := o.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	const mib = 1 << 20
	put(id(1, 1), mib)
	put(id(1, 2), mib)
	put(id(64, 3), mib)
	put(id(64, 3), mib+600)
	uses(map[int]PoolUse{1: {2, 2 * mib}, 64: {1, mib + 600}})
	flush()
	put(id(1, 1), mib+100)
	if err := o.DropChunks(t.Context(), []objstore.ChunkID{id(1, 2), id(1, 9)}); err != nil {
		t.Fatal(err)
	}
	uses(map[int]PoolUse{1: {1, mib + 100}, 64: {1, mib + 600}})
	put(id(1, 2), mib+200)
	want := map[int]PoolUse{1: {2, 2*mib + 300}, 64: {1, mib + 600}}
	uses(want)
	flush()
	segs, err := os.ReadDir(filepath.Join(dir, "chunks"))
	if err != nil {
		t.Fatal(err)
	}
	var blocks int64
	for _, s := range segs {
		blocks += fileBlocks(t, filepath.Join(dir, "chunks", s.Name()))
	}
	if blocks*512 < 3*mib || blocks*512 > 3*mib+mib/2 {
		t.Errorf("3 chunks of 1 MiB take %d KiB", blocks/2)
	}
	o.table.use = [objstore.MaxDataPool]PoolUse{}
	if err := o.table.count(); err != nil { // as a start does
		t.Fatal(err)
	}
	uses(want)
}
