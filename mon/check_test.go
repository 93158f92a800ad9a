package mon

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"pillarbox/objstore"
)

// specimen makes a monitor's directory as a kill leaves it, and returns the map
// and the last session given out.
func specimen(t *testing.T, sessions int) (dir string, last uint64) {
	t.Helper()
	from := t.TempDir()
	m := open(t, from)
	for range sessions {
		var err error
		if last, err = m.NewSession(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	dir = filepath.Join(t.TempDir(), "mon")
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := Check(dir); err != nil {
		t.Fatalf("undamaged: %v", err)
	}
	return dir, last
}

func fileOf(t *testing.T, dir, pattern string) (path string, data []byte) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v, %v", pattern, names, err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	return names[0], b
}

// TestCheckFindsFlips flips a bit in many of the bytes that etcd has written.
func TestCheckFindsFlips(t *testing.T) {
	dir, _ := specimen(t, 5)
	for _, name := range []string{"member/snap/db", "member/wal/*.wal"} {
		path, b := fileOf(t, dir, name)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		put := func(c byte, at int) {
			if _, err := f.WriteAt([]byte{c}, int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		seen, tried := 0, 0
		for at, c := range b {
			if c == 0 || at%29 != 0 {
				continue
			}
			put(c^1<<(at%8), at)
			err := Check(dir)
			put(c, at)
			tried++
			var damage *FileError
			if errors.As(err, &damage) {
				seen++
			} else if err != nil {
				t.Errorf("%s: byte %d: %v", name, at, err)
			}
		}
		t.Logf("%s: %d of %d", name, seen, tried)
		// Most pages of the database belong to older transactions, and the type
		// of some of the log's records and the padding are in no checksum.
		if least := map[string]int{"member/snap/db": tried / 4, "member/wal/*.wal": tried - 3}[name]; seen < least {
			t.Errorf("%s: %d of %d flips were seen, want %d", name, seen, tried, least)
		}
	}
}

// TestDamageIsSeen damages a file at random and opens the monitor: it is
// refused, or it is the same as before.
func TestDamageIsSeen(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	from, last := specimen(t, 1100) // enough for a snapshot and a tree of several levels
	cm, err := open(t, clone(t, from)).Map(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		dir := clone(t, from)
		path, b := fileOf(t, dir, []string{"member/snap/db", "member/wal/*.wal", "member/snap/*.snap"}[i%3])
		what := spoil(r, b, &b)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := Open(t.Context(), Options{Dir: dir, FSID: cm.FSID, Log: quiet()})
		if err != nil {
			if !errors.Is(err, objstore.Corrupt) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s: %s: %v", filepath.Base(path), what, err)
			}
			continue
		}
		id, err := m.NewSession(t.Context())
		if err != nil || id <= last {
			t.Errorf("%s: %s: session %d after %d: %v", filepath.Base(path), what, id, last, err)
		}
		if now, err := m.Map(t.Context()); err != nil || !reflect.DeepEqual(now, cm) {
			t.Errorf("%s: %s: map %+v, was %+v: %v", filepath.Base(path), what, now, cm, err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

func clone(t *testing.T, from string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mon")
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func spoil(r *rand.Rand, b []byte, cut *[]byte) string {
	used := len(bytes.TrimRight(b, "\x00"))
	at := r.IntN(used)
	switch n := 1 + r.IntN(300); r.IntN(3) {
	case 0:
		*cut = b[:at]
		return fmt.Sprintf("cut at %d of %d", at, used)
	case 1:
		for i := at; i < min(at+n, used); i++ {
			b[i] = byte(r.Uint32())
		}
		return fmt.Sprintf("%d random bytes at %d of %d", n, at, used)
	default:
		b[at] ^= 1 << r.IntN(8)
		return fmt.Sprintf("one bit at %d of %d", at, used)
	}
}

// TestTornLogIsMended leaves half of a record at the log's end, as a power cut
// does before the write is acknowledged.
func TestTornLogIsMended(t *testing.T) {
	dir, last := specimen(t, 3)
	path, b := fileOf(t, dir, "member/wal/*.wal")
	log, err := checkLog(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint64(b[log.end:], 2000)
	for i := range 300 {
		b[log.end+8+int64(i)] = 0x5a
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := open(t, dir).NewSession(t.Context()); err != nil || id <= last {
		t.Errorf("session %d after %d: %v", id, last, err)
	}
}

// TestLostLogIsSeen takes away records that the database knows of.
// TestLogOfAJoinedMonitor: it knows the term before it gets the changes of earlier
// ones, and a leader may replace what was not committed by older changes.
func TestLogOfAJoinedMonitor(t *testing.T) {
	smallLog()
	dir := t.TempDir()
	w, err := wal.Create(zap.NewNop(), filepath.Join(dir, "member", "wal"), []byte("member"))
	if err != nil {
		t.Fatal(err)
	}
	entry := func(index, term uint64) *raftpb.Entry { return &raftpb.Entry{Index: &index, Term: &term} }
	state := func(term, commit uint64) *raftpb.HardState {
		return &raftpb.HardState{Term: &term, Vote: new(uint64), Commit: &commit}
	}
	for _, batch := range []struct {
		state   *raftpb.HardState
		entries []*raftpb.Entry
	}{
		{state(3, 0), nil},
		{state(3, 1), []*raftpb.Entry{entry(1, 1), entry(2, 3), entry(3, 3)}},
		{state(4, 3), []*raftpb.Entry{entry(2, 2), entry(3, 4)}},
	} {
		if err := w.Save(batch.state, batch.entries); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err := checkLog(filepath.Join(dir, "member", "wal")); err != nil || s.last != 3 || s.commit != 3 {
		t.Errorf("last %d, %d committed: %v", s.last, s.commit, err)
	}
}

func TestLostLogIsSeen(t *testing.T) {
	dir, _ := specimen(t, 3)
	path, b := fileOf(t, dir, "member/wal/*.wal")
	log, err := checkLog(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	clear(b[log.end-300:])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var damage *FileError
	if _, err := Open(t.Context(), Options{Dir: dir, Log: quiet()}); !errors.As(err, &damage) || damage.File != path || damage.Offset > log.end {
		t.Errorf("opens: %v", err)
	}
}

func TestValuesAreSealed(t *testing.T) {
	sealed := []byte(seal(keySession, []byte("41")))
	if b, err := unseal(keySession, sealed); err != nil || string(b) != "41" {
		t.Errorf("unseal: %q, %v", b, err)
	}
	if _, err := unseal(keyMap, sealed); !errors.Is(err, objstore.Corrupt) {
		t.Errorf("value of another key: %v", err)
	}
	for i := range sealed {
		sealed[i] ^= 4
		if b, err := unseal(keySession, sealed); !errors.Is(err, objstore.Corrupt) {
			t.Errorf("byte %d damaged: %q, %v", i, b, err)
		}
		sealed[i] ^= 4
	}
	newer := []byte{valueFormat + 1, 0, 0, 0, 0, '7'}
	binary.BigEndian.PutUint32(newer[1:], sealSum(newer[0], keySession, newer[sealSize:]))
	if _, err := unseal(keySession, newer); !errors.Is(err, objstore.Unsupported) {
		t.Errorf("newer format: %v", err)
	}
	if _, err := unseal(keySession, []byte("41")); !errors.Is(err, objstore.Corrupt) || !strings.Contains(err.Error(), "no checksum") {
		t.Errorf("value without an envelope: %v", err)
	}
}
