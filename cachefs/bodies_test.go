package cachefs

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"pillarbox/cachefs/diskcache"
	"pillarbox/objstore"
)

func newBodies(t *testing.T, dir string) *diskcache.Cache {
	t.Helper()
	c, err := diskcache.Open(diskcache.Options{Dir: dir, Store: "s", Size: 256 << 20, Free: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// memory is Bodies without a disk.
type memory struct{ sync.Map }

func (m *memory) Get(id objstore.ChunkID, off uint32, p []byte) bool {
	b, ok := m.Load(id)
	if !ok || int(off)+len(p) > len(b.([]byte)) {
		return false
	}
	copy(p, b.([]byte)[off:])
	return true
}

func (m *memory) Put(id objstore.ChunkID, data []byte) { m.Store(id, data) }

func (m *memory) Has(id objstore.ChunkID, n uint32) bool {
	b, ok := m.Load(id)
	return ok && len(b.([]byte)) >= int(n)
}

func (m *memory) Room() {}

func (m *memory) Spare() int64 { return 1 << 40 }

// open opens a file that nobody has open, so that nothing of it is in memory.
func (b *bench) open(ino objstore.Ino) *Handle {
	b.Helper()
	h, err := b.fs.Open(b.ctx, ino)
	if err != nil {
		b.Fatal(err)
	}
	return h
}

// TestBodiesNear delivers messages and reads them without asking the store for a
// body, until the cache is wiped; then each chunk is fetched once.
func TestBodiesNear(t *testing.T) {
	dir := t.TempDir()
	near := newBodies(t, dir)
	b := newFS(t, Options{Bodies: near})
	r := rand.New(rand.NewSource(1))
	mails := map[objstore.Ino][]byte{}
	chunks := 0
	for _, size := range []int{100, 5000, objstore.ResidentMax, objstore.ResidentMax + 1, 2*objstore.ChunkSize + 1<<20} {
		ino, h := b.create(fmt.Sprint(size))
		mails[ino] = random(r, size)
		b.write(h, mails[ino], 0)
		if err := h.Fsync(b.ctx); err != nil {
			t.Fatal(err)
		}
		h.Release()
		for _, e := range b.extents(ino) {
			if e.Kind != objstore.Inline {
				chunks++
			}
		}
	}
	near.Wait()
	readAll := func(want int, what string) {
		t.Helper()
		before := b.store.Count("ReadChunk")
		for ino, mail := range mails {
			h := b.open(ino)
			b.want(h, mail)
			h.Release()
		}
		if n := b.store.Count("ReadChunk") - before; n != want {
			t.Errorf("%s: %d chunks were read from the store, want %d", what, n, want)
		}
		near.Wait()
	}
	readAll(0, "delivered")
	shards, err := filepath.Glob(filepath.Join(dir, "s", "??"))
	if err != nil || len(shards) == 0 {
		t.Fatal(shards, err)
	}
	for _, s := range shards {
		if err := os.RemoveAll(s); err != nil {
			t.Fatal(err)
		}
	}
	readAll(chunks, "wiped")
	readAll(0, "read before")
}

// TestLocalIsNotKept: what the host has anyway is not kept a second time, nor fetched
// whole for a part of it.
func TestLocalIsNotKept(t *testing.T) {
	near := &memory{}
	b := newFS(t, Options{Bodies: near, Local: func(objstore.ChunkID) bool { return true }})
	ino, h := b.create("a")
	mail := random(rand.New(rand.NewSource(1)), 2<<20)
	b.write(h, mail, 0)
	if err := h.Fsync(b.ctx); err != nil {
		t.Fatal(err)
	}
	h.Release()
	h = b.open(ino)
	b.want(h, mail)
	h.Release()
	near.Range(func(id, _ any) bool { t.Errorf("chunk %v is kept", id); return true })
	var w Warming
	if err := b.fs.Warm(b.ctx, &w, 1<<40, ino); err != nil || w.So(1).Near != uint64(len(mail)) {
		t.Errorf("warmed: %+v, %v", w.So(1), err)
	}
}

// TestPartsAtOnce reads a large file in small parts, everywhere at once.
func TestPartsAtOnce(t *testing.T) {
	b := newFS(t, Options{Bodies: newBodies(t, t.TempDir())})
	ino, h := b.create("attachment")
	want := random(rand.New(rand.NewSource(1)), 3*objstore.ChunkSize)
	b.write(h, want, 0)
	if err := h.Fsync(b.ctx); err != nil {
		t.Fatal(err)
	}
	h.Release()
	b.fs.opt.Bodies = newBodies(t, t.TempDir()) // one that has nothing of it
	h = b.open(ino)
	defer h.Release()
	var wg sync.WaitGroup
	for off := 0; off < len(want); off += 512 << 10 {
		wg.Go(func() {
			p := make([]byte, 512<<10)
			n, err := h.Read(b.ctx, p, uint64(off))
			if err != nil || n != len(p) || string(p) != string(want[off:off+n]) {
				t.Errorf("%d bytes at %d: %v, or other ones", n, off, err)
			}
		})
	}
	wg.Wait()
}

// TestOnlyFinalIDsAreKept closes a file without a sync: the id that its body got
// may, until it is committed, still become that of other bytes.
func TestOnlyFinalIDsAreKept(t *testing.T) {
	near := newBodies(t, t.TempDir())
	b := newFS(t, Options{Bodies: near})
	_, h := b.create("a")
	b.write(h, make([]byte, 10_000), 0)
	if err := h.Flush(b.ctx); err != nil {
		t.Fatal(err)
	}
	near.Wait()
	if n := near.Stats().Stored; n != 0 {
		t.Errorf("%d bodies kept", n)
	}
	b.write(h, make([]byte, 10_000), 0)
	if err := h.Fsync(b.ctx); err != nil {
		t.Fatal(err)
	}
	near.Wait()
	if n := near.Stats().Stored; n != 1 {
		t.Errorf("%d bodies kept, want the committed one", n)
	}
	h.Release()
}

// TestBytesFreedElsewhere has a chunk freed by another host after its place was
// looked up, before the push about it came.
func TestBytesFreedElsewhere(t *testing.T) {
	b := newFS(t, Options{})
	ino, h := b.create("a")
	old, fresh := random(rand.New(rand.NewSource(1)), 400_000), random(rand.New(rand.NewSource(2)), 400_000)
	b.write(h, old, 0)
	if err := h.Fsync(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.want(h, old)
	extents, err := b.store.Extents(b.ctx, ino, 0, uint64(len(old)))
	if err != nil || len(extents) != 1 {
		t.Fatalf("%v, %v", extents, err)
	}
	other, err := New(b.store, Options{})
	if err != nil {
		t.Fatal(err)
	}
	oh, err := other.Open(b.ctx, ino)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oh.Write(b.ctx, fresh, 0, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := oh.Fsync(b.ctx); err != nil {
		t.Fatal(err)
	}
	oh.Release()
	b.store.FailWith(func(op string, subject any) error {
		if id, ok := subject.(objstore.ChunkID); ok && op == "ReadChunk" && id == extents[0].Chunk {
			return fmt.Errorf("chunk %v: %w", id, objstore.Stale)
		}
		return nil
	})
	b.want(h, fresh)
	h.Release()
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

// TestWarm brings a tree near, of whose bodies some are there already, until so
// many bytes are; then all of it is read with the store away.
func TestWarm(t *testing.T) {
	b := newFS(t, Options{})
	mails := map[objstore.Ino][]byte{}
	total := 0
	for i, n := range []int{0, 100, 5000, 90 << 10, 5 << 20, 20_000} {
		ino, h := b.create(fmt.Sprint("mail", i))
		mails[ino] = bytes.Repeat([]byte{byte(i + 1)}, n)
		b.write(h, mails[ino], 0)
		if err := h.Fsync(b.ctx); err != nil {
			t.Fatal(err)
		}
		h.Release()
		if n > 512 {
			total += n
		}
	}
	near := newBodies(t, t.TempDir())
	b.fs.opt.Bodies = near
	var some Warming
	if err := b.fs.Warm(b.ctx, &some, 1, objstore.VolumeRoot(objstore.RootVolume)); err != nil {
		t.Fatal(err)
	}
	if w := some.So(1); w.Dirs != 1 || w.Files != uint64(len(mails)) || w.Bytes == 0 || !w.Full {
		t.Errorf("warmed up to a byte: %+v", w)
	}
	near.Wait()
	var all Warming
	if err := b.fs.Warm(b.ctx, &all, 1<<40, objstore.VolumeRoot(objstore.RootVolume)); err != nil {
		t.Fatal(err)
	}
	if w := all.So(1 << 40); w.Bytes+w.Near != uint64(total) || w.Near == 0 || w.Bytes == 0 || w.Failed != 0 || w.Full {
		t.Errorf("warmed: %+v of %d bytes", w, total)
	}
	near.Wait()
	asked := b.store.Count("ReadChunk")
	var again Warming
	if err := b.fs.Warm(b.ctx, &again, 1<<40, objstore.VolumeRoot(objstore.RootVolume)); err != nil {
		t.Fatal(err)
	}
	if w := again.So(1 << 40); w.Near != uint64(total) || w.Bytes != 0 {
		t.Errorf("warmed again: %+v of %d bytes", w, total)
	}
	for ino, want := range mails {
		h := b.open(ino)
		b.want(h, want)
		h.Release()
	}
	if n := b.store.Count("ReadChunk"); n != asked {
		t.Errorf("%d bodies were read from the store all the same", n-asked)
	}
}
