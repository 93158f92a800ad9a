package chunkstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func body(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(b)
	return b
}

func chunk(i int) objstore.ChunkID {
	return objstore.ChunkID{Ino: objstore.MakeIno(3, uint64(i+2)), Index: uint32(i), Version: uint64(i)}
}

var sizes = []int{1, 10, 4056, 4057, blockSize - 1, blockSize, blockSize + 1, 300000, MaxChunk}

func TestReadBackAnyRange(t *testing.T) {
	s := open(t, t.TempDir())
	for i, n := range sizes {
		data := body(uint64(i), n)
		loc, err := s.Append(Pooled, chunk(i), data)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			off := rand.IntN(n)
			p := make([]byte, 1+rand.IntN(n-off))
			if err := s.Read(loc, chunk(i), uint32(off), p); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, data[off:off+len(p)]) {
				t.Fatalf("chunk of %d bytes: range %d+%d differs", n, off, len(p))
			}
		}
		if err := s.Read(loc, chunk(i), uint32(n), make([]byte, 1)); err == nil {
			t.Fatal("read beyond the end succeeded")
		}
		if err := s.Read(loc, chunk(i+1), 0, make([]byte, 1)); !errors.Is(err, objstore.Corrupt) {
			t.Fatalf("read under another id: %v", err)
		}
	}
}

func TestDamageIsReportedAndNeverServed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i, n := range sizes {
		data := body(uint64(i), n)
		loc, err := s.Append(Resident, chunk(i), data)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(s.segs[loc.Seg].path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		at := rand.Int64N(int64(headerSize(n) + n))
		if at >= int64(headerSize(n)) { // what is between header and data means nothing
			at += int64(dataOffset(n) - headerSize(n))
		}
		at += loc.offset()
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
		f.Close()
		var damage *CorruptError
		if err := s.Verify(loc, chunk(i)); !errors.As(err, &damage) {
			t.Fatalf("size %d, byte %d: got %v, want a CorruptError", n, at, err)
		}
	}
}

func TestScanFindsWhatCameAfterAPosition(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	want := map[objstore.ChunkID]Loc{}
	var pos Position
	var torn Loc
	for i := range 40 {
		if i == 15 {
			pos = s.Position(Pooled)
		}
		loc, err := s.Append(Pooled, chunk(i), body(uint64(i), sizes[i%len(sizes)]))
		if err != nil {
			t.Fatal(err)
		}
		if i == 30 {
			torn = loc
		} else if i >= 15 {
			want[chunk(i)] = loc
		}
	}
	seg, _ := s.segment(torn.Seg)
	if _, err := seg.f.WriteAt(make([]byte, 8), torn.offset()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, dir)
	got := map[objstore.ChunkID]Loc{}
	if err := s.Scan(Pooled, pos, func(id objstore.ChunkID, l Loc) error { got[id] = l; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("found %d chunks, want %d", len(got), len(want))
	}
	for id, l := range want {
		if got[id] != l {
			t.Fatalf("chunk %v at %v, want %v", id, got[id], l)
		}
	}
}

func blocksInUse(t *testing.T, s *Store) (n int64) {
	t.Helper()
	s.segMu.RLock()
	defer s.segMu.RUnlock()
	for _, seg := range s.segs {
		var st unix.Stat_t
		if err := unix.Fstat(int(seg.f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		n += st.Blocks
	}
	return n
}

func TestFreeGivesSpaceBackAndRemovesEmptySegments(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var locs []Loc
	for i := range 50 {
		loc, err := s.Append(Pooled, chunk(i), body(uint64(i), 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		locs = append(locs, loc)
	}
	if err := s.Sync(Pooled); err != nil {
		t.Fatal(err)
	}
	before := blocksInUse(t, s)
	if err := s.Free(locs[:25]); err != nil {
		t.Fatal(err)
	}
	if after := blocksInUse(t, s); after > before*6/10 {
		t.Fatalf("%d blocks in use after freeing half of %d", after, before)
	}
	if err := s.Verify(locs[25], chunk(25)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, dir) // no active segment now
	if err := s.Free(locs[25:]); err != nil {
		t.Fatal(err)
	}
	if n, err := os.ReadDir(dir); err != nil || len(n) != 0 {
		t.Fatalf("%d segments left, %v", len(n), err)
	}
}

// TestLastSmallChunkOfASegmentStays: one that takes as little as a filesystem may
// keep for itself is no empty segment.
func TestLastSmallChunkOfASegmentStays(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var locs []Loc
	for i := range 3 {
		loc, err := s.Append(Resident, chunk(i), body(uint64(i), 100))
		if err != nil {
			t.Fatal(err)
		}
		locs = append(locs, loc)
	}
	if err := s.Sync(Resident); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir) // what is appended from now on goes to another segment
	if err := s.Free(locs[:2]); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(locs[2], chunk(2)); err != nil {
		t.Fatal(err)
	}
	if err := s.Free(locs[2:]); err != nil {
		t.Fatal(err)
	}
	if n, err := os.ReadDir(dir); err != nil || len(n) != 0 {
		t.Fatalf("%d segments left, %v", len(n), err)
	}
}

func TestConcurrentAppendAndSync(t *testing.T) {
	s := open(t, t.TempDir())
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 20 {
				id := chunk(w*1000 + i)
				data := body(uint64(w*i), 1+rand.IntN(200000))
				loc, err := s.Append(Stream(w%2), id, data)
				if err == nil {
					err = s.Sync(Stream(w % 2))
				}
				got := make([]byte, len(data))
				if err == nil {
					err = s.Read(loc, id, 0, got)
				}
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("chunk %v: %v", id, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestFailedSyncIsFinal(t *testing.T) {
	s := open(t, t.TempDir())
	broken := errors.New("disk gone")
	s.SyncHook = func() error { return broken }
	if _, err := s.Append(Pooled, chunk(1), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(Pooled); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	s.SyncHook = nil
	if _, err := s.Append(Pooled, chunk(2), []byte("x")); !errors.Is(err, broken) {
		t.Fatalf("append after a failed sync: %v", err)
	}
}

func FuzzDecodeHeader(f *testing.F) {
	f.Add(appendHeader(nil, chunk(1), body(1, 100000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, length, s, ok := decodeHeader(b); ok && len(s) != 4*blocks(int(length)) {
			t.Fatal("checksums do not fit the length")
		}
	})
}
