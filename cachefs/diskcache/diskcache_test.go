package diskcache

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

const store = "5f3a"

// bench is a cache under test, with a clock of its own.
type bench struct {
	*testing.T
	dir string
	c   *Cache
	o   Options

	mu  sync.Mutex
	now time.Time
}

func newBench(t *testing.T, o Options) *bench {
	b := &bench{T: t, dir: o.Dir, now: time.Unix(1e9, 0)}
	if b.dir == "" {
		b.dir = t.TempDir()
	}
	o.Dir, o.Store = b.dir, store
	o.Now = func() time.Time { b.mu.Lock(); defer b.mu.Unlock(); return b.now }
	o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	if o.Free == 0 {
		o.Free = 1
	}
	b.o = o
	b.open()
	t.Cleanup(b.close)
	return b
}

func (b *bench) open() {
	b.Helper()
	var err error
	if b.c, err = Open(b.o); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) close() {
	if b.c != nil {
		if err := b.c.Close(); err != nil {
			b.Error(err)
		}
	}
	b.c = nil
}

func (b *bench) pass(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = b.now.Add(d)
}

func chunk(n int) objstore.ChunkID {
	return objstore.ChunkID{Ino: objstore.MakeIno(7, uint64(n)), Version: uint64(n)<<8 | 1}
}

func data(n, size int) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(i>>8*(n+7) + i*(n+1))
	}
	return p
}

func (b *bench) put(n, size int) {
	b.c.Put(chunk(n), data(n, size))
	b.c.Wait()
}

// has says whether a chunk is there, and fails if it is not what was put.
func (b *bench) has(n, size int) bool {
	b.Helper()
	p := make([]byte, size)
	if !b.c.Get(chunk(n), 0, p) {
		return false
	}
	if !bytes.Equal(p, data(n, size)) {
		b.Fatalf("chunk %d: other bytes", n)
	}
	return true
}

func (b *bench) file(n int) string {
	return filepath.Join(b.dir, store, shardDir(shardOf(chunk(n).Ino)), nameOf(chunk(n)))
}

func TestPartsOfChunks(t *testing.T) {
	b := newBench(t, Options{})
	for n, size := range []int{1, 4096, blockSize, blockSize + 1, 300_000, objstore.ChunkSize, objstore.StoredMax} {
		want := data(n, size)
		b.put(n, size)
		for range 20 {
			off := rand.Intn(size)
			p := make([]byte, 1+rand.Intn(size-off))
			if !b.c.Get(chunk(n), uint32(off), p) || !bytes.Equal(p, want[off:off+len(p)]) {
				t.Fatalf("%d bytes at %d of %d are missing or other ones", len(p), off, size)
			}
		}
		if b.c.Get(chunk(n), 1, make([]byte, size)) {
			t.Error("bytes behind the end")
		}
	}
	// A longer part of a chunk replaces a shorter one, never the other way round.
	long := data(99, 5000)
	for _, n := range []int{100, 5000, 200} {
		b.c.Put(chunk(99), long[:n])
		b.c.Wait()
	}
	if p := make([]byte, 5000); !b.c.Get(chunk(99), 0, p) || !bytes.Equal(p, long) {
		t.Error("the longer part is not there")
	}
}

func TestKeptAcrossRestarts(t *testing.T) {
	b := newBench(t, Options{})
	for n := range 20 {
		b.put(n, 10_000)
	}
	used := b.c.Stats().Used
	left := filepath.Join(filepath.Dir(b.file(1)), ".half-written.before")
	b.close()
	if err := os.WriteFile(left, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.open()
	for n := range 20 {
		if !b.has(n, 10_000) {
			t.Errorf("chunk %d is gone", n)
		}
	}
	b.c.countAll()
	if now := b.c.Stats().Used; now != used || used != 20*12288 {
		t.Errorf("%d bytes used before, %d after", used, now)
	}
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was half-written is still there: %v", err)
	}
}

func TestLeastRecentlyUsedGoesFirst(t *testing.T) {
	const size = 1<<20 - 200 // with its head 1 MiB on disk
	b := newBench(t, Options{Size: 16 << 20})
	for n := range 16 {
		b.pass(2 * time.Minute)
		b.put(n, size)
		// The file's time is the disk's clock; the test's is another.
		if err := os.Chtimes(b.file(n), b.now, b.now); err != nil {
			t.Fatal(err)
		}
	}
	b.pass(2 * time.Minute)
	for _, n := range []int{0, 2} {
		if !b.has(n, size) {
			t.Fatalf("chunk %d went though there was room", n)
		}
	}
	b.put(16, size)
	b.put(17, size)
	for n := range 18 {
		if gone := n == 1 || n == 3; b.has(n, size) == gone {
			t.Errorf("chunk %d: gone is %v", n, !gone)
		}
	}
	if s := b.c.Stats(); s.Used > s.Size {
		t.Errorf("%d bytes used of %d", s.Used, s.Size)
	}
}

// TestDamage flips and cuts: what is served is right or nothing, and the file goes.
func TestDamage(t *testing.T) {
	b := newBench(t, Options{})
	const size = 3 * blockSize / 2
	r := rand.New(rand.NewSource(1))
	b.put(0, size)
	whole, err := os.ReadFile(b.file(0))
	if err != nil {
		t.Fatal(err)
	}
	damage := func(what string, bad []byte) {
		t.Helper()
		if err := os.WriteFile(b.file(0), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if b.has(0, size) {
			t.Fatalf("%s: served", what)
		}
		if _, err := os.Lstat(b.file(0)); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: the file is still there: %v", what, err)
		}
	}
	for range 100 {
		bad := bytes.Clone(whole)
		bad[r.Intn(len(bad))] ^= 1 << r.Intn(8)
		damage("a bit flipped", bad)
	}
	for _, n := range []int{0, 1, fixedHead, headLen(size) - 1, headLen(size), len(whole) - 1} {
		damage("truncated", whole[:n])
	}
	damage("longer", append(bytes.Clone(whole), 0))
	damage("zeros", make([]byte, len(whole)))
	other := append(head(chunk(1), data(1, size)), data(1, size)...)
	damage("another chunk's", other)
	if n := b.c.Stats().Damaged; n != 109 {
		t.Errorf("%d damaged files counted", n)
	}
	b.put(0, size)
	if !b.has(0, size) {
		t.Error("it cannot be cached again")
	}
}

func TestWipedAndVanished(t *testing.T) {
	b := newBench(t, Options{})
	b.put(1, 1000)
	if err := os.RemoveAll(filepath.Dir(b.file(1))); err != nil {
		t.Fatal(err)
	}
	if b.has(1, 1000) {
		t.Error("served from a directory that is gone")
	}
	b.put(1, 1000)
	if !b.has(1, 1000) {
		t.Error("not cached again after the directory was wiped")
	}
	if err := os.RemoveAll(filepath.Join(b.dir, store)); err != nil {
		t.Fatal(err)
	}
	b.put(2, 1000)
	if b.has(2, 1000) || b.c.Stats().Away == "" {
		t.Error("nobody noticed that the directory is gone")
	}
	b.pass(retryAfter)
	b.put(2, 1000)
	if !b.has(2, 1000) || b.c.Stats().Away != "" {
		t.Error("not cached again after the directory came back")
	}
}

func TestNotThereAtTheStart(t *testing.T) {
	dir := t.TempDir()
	b := newBench(t, Options{Dir: filepath.Join(dir, "later")})
	b.put(1, 1000)
	if b.has(1, 1000) {
		t.Error("cached nowhere")
	}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b.pass(retryAfter)
	b.put(1, 1000)
	if !b.has(1, 1000) {
		t.Error("not cached when the directory had come")
	}
	second := newBench(t, Options{Dir: b.dir})
	second.put(2, 1000)
	if second.has(2, 1000) || second.c.Stats().Away == "" {
		t.Error("two use one directory")
	}
}

// TestFullAndReadOnly has a disk of its own.
func TestFullAndReadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("no tmpfs here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	b := newBench(t, Options{Dir: dir, Free: 2 << 20})
	for n := range 64 {
		b.put(n, 200_000)
	}
	s := b.c.Stats()
	if !b.has(63, 200_000) || s.Evicted == 0 || s.Used > 6<<20 {
		t.Errorf("the newest is not there, or more is used than may be: %+v", s)
	}
	// Others fill the disk.
	if err := os.WriteFile(filepath.Join(dir, "others"), make([]byte, 6<<20), 0o600); err == nil {
		b.put(64, 200_000)
	}
	b.put(65, 200_000)
	if err := os.Remove(filepath.Join(dir, "others")); err != nil {
		t.Fatal(err)
	}
	b.pass(retryAfter)
	b.put(66, 200_000)
	if !b.has(66, 200_000) {
		t.Error("not cached when there was room again")
	}
	b.pass(2 * touchAfter)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	b.put(67, 200_000)
	if !b.has(66, 200_000) || b.has(67, 200_000) {
		t.Error("a read-only directory serves what it has, and takes nothing")
	}
	b.close()
	b.open()
	if !b.has(66, 200_000) {
		t.Error("a read-only directory serves after a restart")
	}
}

func TestDrop(t *testing.T) {
	b := newBench(t, Options{})
	for n := range 10 {
		b.put(n, 1000)
	}
	files, size, err := b.c.Drop(func(ino objstore.Ino) bool { return ino.Local()%2 == 0 })
	if err != nil || files != 5 || size != 5*4096 {
		t.Fatalf("%d files, %d bytes, %v", files, size, err)
	}
	for n := range 10 {
		if b.has(n, 1000) != (n%2 == 1) {
			t.Errorf("chunk %d", n)
		}
	}
}

// TestManyAtOnce is for the race detector: readers, writers, eviction, drops.
func TestManyAtOnce(t *testing.T) {
	b := newBench(t, Options{Size: 8 << 20})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewSource(int64(g)))
			for range 60 {
				n := r.Intn(60)
				if p := make([]byte, 200_000); b.c.Get(chunk(n), 0, p) {
					if !bytes.Equal(p, data(n, 200_000)) {
						t.Errorf("chunk %d: other bytes", n)
					}
				} else {
					b.c.Put(chunk(n), data(n, 200_000))
				}
			}
		})
	}
	if _, _, err := b.c.Drop(func(ino objstore.Ino) bool { return ino.Local() < 10 }); err != nil {
		t.Error(err)
	}
	wg.Wait()
	b.c.Wait()
	b.c.countAll()
	if s := b.c.Stats(); s.Used > s.Size {
		t.Errorf("%d bytes used of %d", s.Used, s.Size)
	}
}

// FuzzHead reads heads that somebody else wrote.
func FuzzHead(f *testing.F) {
	f.Add(head(chunk(1), data(1, 100)))
	f.Add(head(chunk(1), data(1, 200_000)))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, sums, err := parseHead(chunk(1), b)
		if err == nil && (n > objstore.StoredMax || len(sums) != 4*blocks(n)) {
			t.Errorf("%d bytes with %d of checksums", n, len(sums))
		}
	})
}
