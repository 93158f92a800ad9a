package wal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"pillarbox/objstore"
)

func open(t *testing.T, dir string, from LSN) (*Log, []Record) {
	t.Helper()
	l, recs, err := tryOpen(dir, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, recs
}

func tryOpen(dir string, from LSN) (*Log, []Record, error) {
	var recs []Record
	l, err := Open(Options{Dir: dir}, from, func(_ LSN, r Record) error {
		r.Payload = bytes.Clone(r.Payload)
		recs = append(recs, r)
		return nil
	})
	return l, recs, err
}

func rec(i, size int) Record {
	p := bytes.Repeat([]byte{byte(i)}, size)
	copy(p, fmt.Sprint(i))
	return Record{Group: uint32(i % 7), Type: 1, Payload: p}
}

func mustAppend(t *testing.T, l *Log, recs ...Record) LSN {
	t.Helper()
	lsn, err := l.Append(recs...)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

func TestReopenReplaysInOrder(t *testing.T) {
	dir := t.TempDir()
	var want []Record
	for round := range 4 {
		l, got := open(t, dir, 0)
		if len(got) != len(want) {
			t.Fatalf("round %d: %d records replayed, want %d", round, len(got), len(want))
		}
		for i := range got {
			if !bytes.Equal(got[i].Payload, want[i].Payload) || got[i].Group != want[i].Group {
				t.Fatalf("round %d: record %d differs", round, i)
			}
		}
		for i := range 300 {
			r := rec(len(want), 1+i*997%200000)
			want = append(want, r)
			mustAppend(t, l, r)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReleaseRecyclesAndOldRecordsStayDead(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir, 0)
	var lsn LSN
	for i := range 60 {
		lsn = mustAppend(t, l, rec(i, 1<<20))
		if _, err := l.Sync(lsn); err != nil {
			t.Fatal(err)
		}
		if err := l.Release(lsn); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.Stats().Segments; n > 4 {
		t.Fatalf("%d segments kept, want a few", n)
	}
	tail := mustAppend(t, l, rec(1000, 10))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, got := open(t, dir, lsn)
	if len(got) != 1 || !bytes.Equal(got[0].Payload, rec(1000, 10).Payload) {
		t.Fatalf("replay from %d to %d gave %d records", lsn, tail, len(got))
	}
}

func TestRoomIsWhatNeedsNoDisk(t *testing.T) {
	l, _ := open(t, t.TempDir(), 0)
	defer l.Close()
	if r := l.Room(); r != SegmentSize-headerSize {
		t.Errorf("a new log has room for %d bytes", r)
	}
	lsn := mustAppend(t, l, rec(1, 1<<20))
	if r, want := l.Room(), int64(SegmentSize-headerSize-recordSize(1<<20)); r != want {
		t.Errorf("room for %d bytes after a record, want %d", r, want)
	}
	for lsn < 3*SegmentSize {
		lsn = mustAppend(t, l, rec(1, 1<<20))
	}
	if _, err := l.Sync(lsn); err != nil {
		t.Fatal(err)
	}
	before := l.Room()
	if err := l.Release(lsn); err != nil {
		t.Fatal(err)
	}
	if r := l.Room(); r != before+int64(l.Stats().Segments-1)*SegmentSize || r == before {
		t.Errorf("room for %d bytes after a release, was %d", r, before)
	}
}

// lastSegment returns the file that holds the end of the log.
func lastSegment(t *testing.T, l *Log) (string, int64) {
	t.Helper()
	s := l.segs[len(l.segs)-1]
	return s.path, int64(l.end - s.start())
}

func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func TestTornTailIsCutAndNeverComesBack(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir, 0)
	lsn := mustAppend(t, l, rec(1, 100))
	if _, err := l.Sync(lsn); err != nil {
		t.Fatal(err)
	}
	path, tornAt := lastSegment(t, l)
	mustAppend(t, l, rec(2, 100))
	mustAppend(t, l, rec(3, 100)) // unsynced, reached the disk before record 2 did
	l.closeFiles()
	flip(t, path, tornAt+30)

	l, got := open(t, dir, 0)
	if len(got) != 1 {
		t.Fatalf("%d records after a torn tail, want 1", len(got))
	}
	mustAppend(t, l, rec(4, 100)) // as long as the torn one
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, got = open(t, dir, 0)
	if len(got) != 2 || !bytes.Equal(got[1].Payload, rec(4, 100).Payload) {
		t.Fatalf("got %d records, want the first and the fourth", len(got))
	}
}

func TestDamageToDurableRecordsIsReported(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir, 0)
	path, at := lastSegment(t, l)
	for i := range 3 {
		lsn := mustAppend(t, l, rec(i, 100))
		if _, err := l.Sync(lsn); err != nil {
			t.Fatal(err)
		}
	}
	l.closeFiles()
	flip(t, path, at+30)
	_, _, err := tryOpen(dir, 0)
	var damage *CorruptError
	if !errors.As(err, &damage) || !errors.Is(err, objstore.Corrupt) {
		t.Fatalf("got %v, want a CorruptError", err)
	}
	if damage.File != path || damage.Offset != at {
		t.Fatalf("reported %s:%d, want %s:%d", damage.File, damage.Offset, path, at)
	}
}

// TestDamagedSegmentIsReported cuts the newest segment short, or breaks its
// header, behind which nothing reads as a record any more.
func TestDamagedSegmentIsReported(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string) int64{
		"cut between records": func(t *testing.T, path string) int64 {
			cut := int64(headerSize + recordSize(100))
			if err := os.Truncate(path, cut); err != nil {
				t.Fatal(err)
			}
			return cut
		},
		"header": func(t *testing.T, path string) int64 {
			flip(t, path, 20)
			return 0
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l, _ := open(t, dir, 0)
			mustAppend(t, l, rec(0, 100))
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l, _ = open(t, dir, 0)
			path, _ := lastSegment(t, l)
			for i := range 3 {
				lsn := mustAppend(t, l, rec(i, 100))
				if _, err := l.Sync(lsn); err != nil {
					t.Fatal(err)
				}
			}
			l.closeFiles()
			at := damage(t, path)
			_, _, err := tryOpen(dir, 0)
			var found *CorruptError
			if !errors.As(err, &found) || found.File != path || found.Offset != at {
				t.Fatalf("got %v, want a CorruptError of %s at %d", err, path, at)
			}
		})
	}
}

func TestMissingSegmentIsReported(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir, 0)
	lsn := mustAppend(t, l, rec(1, 100))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	segs, err := filepath.Glob(filepath.Join(dir, "*"+nameSuffix))
	if err != nil || len(segs) == 0 {
		t.Fatal("no segment", err)
	}
	for _, s := range segs {
		os.Remove(s)
	}
	if _, _, err := tryOpen(dir, lsn); !errors.Is(err, objstore.Corrupt) {
		t.Fatalf("got %v, want Corrupt", err)
	}
}

func TestFailedSyncIsFinal(t *testing.T) {
	l, _ := open(t, t.TempDir(), 0)
	broken := errors.New("disk gone")
	l.SyncHook = func() error { return broken }
	lsn := mustAppend(t, l, rec(1, 10))
	if _, err := l.Sync(lsn); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	l.SyncHook = nil
	if _, err := l.Append(rec(2, 10)); !errors.Is(err, broken) {
		t.Fatalf("append after a failed sync: %v", err)
	}
	if _, err := l.Sync(lsn); !errors.Is(err, broken) {
		t.Fatalf("sync after a failed sync: %v", err)
	}
}

func FuzzParseRecord(f *testing.F) {
	good := appendRecord(nil, 3, headerSize, 7, rec(1, 50))
	f.Add(good, 0)
	f.Add(append(make([]byte, 8), good...), 8)
	f.Fuzz(func(t *testing.T, data []byte, off int) {
		if off < 0 || off > len(data) {
			return
		}
		r, _, size, ok := parseRecord(data, 3, off)
		if ok && (off+size > len(data) || len(r.Payload) > size) {
			t.Fatalf("record of %d bytes in %d", size, len(data)-off)
		}
	})
}
