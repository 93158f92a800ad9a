package wal

import (
	"bytes"
	"errors"
	"testing"

	"pillarbox/objstore"
)

// readAll reads the log from a position to its end, some records at a time.
func readAll(t *testing.T, l *Log, from LSN) (recs []Record, end LSN) {
	t.Helper()
	for {
		next, err := l.Read(from, noKeep, 100_000, func(r Record) error { recs = append(recs, r); return nil })
		if err != nil {
			t.Fatal(err)
		}
		if next == from {
			return recs, next
		}
		from = next
	}
}

func same(t *testing.T, got, want []Record) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d records read, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i].Group != want[i].Group || !bytes.Equal(got[i].Payload, want[i].Payload) {
			t.Fatalf("record %d differs", i)
		}
	}
}

// TestReadKept: what a reader keeps is read in order, over segments, releases and
// restarts, and only what is durable.
func TestReadKept(t *testing.T) {
	dir := t.TempDir()
	keep := LSN(0)
	reopen := func(from LSN) *Log {
		t.Helper()
		l, err := Open(Options{Dir: dir, Keep: &keep}, from, func(LSN, Record) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := reopen(0)
	var want []Record
	add := func(n, size int) (end LSN) {
		for range n {
			want = append(want, rec(len(want), size))
			end = mustAppend(t, l, want[len(want)-1])
		}
		return end
	}
	end := add(6, 4_000_000) // several segments
	if got, _ := readAll(t, l, 0); len(got) > 0 {
		t.Fatalf("%d records read that are not durable", len(got))
	}
	if _, err := l.Sync(end); err != nil {
		t.Fatal(err)
	}
	if err := l.Release(end); err != nil {
		t.Fatal(err)
	}
	got, at := readAll(t, l, 0)
	same(t, got, want)
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = reopen(end)
		got, _ = readAll(t, l, 0)
		same(t, got, want)
		end = add(5, 10)
		if _, err := l.Sync(end); err != nil {
			t.Fatal(err)
		}
	}
	got, end = readAll(t, l, at)
	same(t, got, want[6:])
	l.Keep(end)
	add(6, 4_000_000)
	if _, err := l.Sync(l.End()); err != nil {
		t.Fatal(err)
	}
	if err := l.Release(l.End()); err != nil {
		t.Fatal(err)
	}
	got, _ = readAll(t, l, end)
	same(t, got, want[16:])
	if _, err := l.Read(0, noKeep, 1, func(Record) error { return nil }); !errors.Is(err, ErrGone) {
		t.Errorf("read what was released: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestReadDamage: a record that no longer reads back is no end of the log.
func TestReadDamage(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir, 0)
	l.Keep(0)
	first := mustAppend(t, l, rec(1, 1000))
	end := mustAppend(t, l, rec(2, 1000))
	if _, err := l.Sync(end); err != nil {
		t.Fatal(err)
	}
	s := l.segs[0]
	if _, err := s.f.WriteAt([]byte("damage"), int64(first-s.start())+100); err != nil {
		t.Fatal(err)
	}
	n := 0
	_, err := l.Read(0, noKeep, 1<<20, func(Record) error { n++; return nil })
	_, err2 := l.Read(first, noKeep, 1<<20, func(Record) error { return nil })
	if n != 1 || err != nil && !errors.Is(err, objstore.Corrupt) || !errors.Is(err2, objstore.Corrupt) {
		t.Errorf("%d records, %v, then %v", n, err, err2)
	}
}
