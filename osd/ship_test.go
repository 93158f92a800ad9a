package osd

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// TestShippedStateIsTheState: a picture taken while mail is delivered and removed,
// and the log from its position on, restored elsewhere, are what the store has;
// over crashes and flushes.
func TestShippedStateIsTheState(t *testing.T) {
	keep := uint64(0)
	opt := testOptions(t.TempDir())
	opt.Keep = &keep
	reopen := func(opt Options) *OSD {
		t.Helper()
		o, err := Open(t.Context(), opt)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	o := reopen(opt)
	dir := initVolume(t, o, 7)
	var inos []objstore.Ino
	for i := range 40 {
		inos = append(inos, deliver(t, o, dir, fmt.Sprintf("m%d", i), message(i)))
	}
	var shipped []volume.Delta
	pos, n := uint64(0), 0
	remove := func(i int) {
		apply(t, o, objstore.Remove{Parent: dir, Name: fmt.Sprintf("m%d", i)}, objstore.Ordered)
		apply(t, o, objstore.Purge{Vol: 7, Inos: inos[i : i+1]}, objstore.Committed)
	}
	err := o.Picture(t.Context(), func(from uint64) error { pos = from; o.KeepLog(from); return nil }, func(w volume.Write) error {
		if n++; n == 10 { // what is delivered and removed meanwhile is in the log
			remove(3)
			deliver(t, o, dir, "during", message(100))
			if err := o.flushAll(); err != nil {
				t.Fatal(err)
			}
		}
		shipped = append(shipped, volume.Delta{w})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		deliver(t, o, dir, fmt.Sprintf("later%d", round), message(200+round))
		remove(10 + round)
		if round == 1 {
			if err := o.flushAll(); err != nil {
				t.Fatal(err)
			}
		}
		crash(t, o)
		keep = pos
		o = reopen(opt)
	}
	defer o.Close()
	deliver(t, o, dir, "last", message(300))
	if err := o.Sync(t.Context(), o.Map().Group(7)); err != nil {
		t.Fatal(err)
	}
	end := o.LoggedTo()
	for pos < end {
		more, next, err := o.ReadLog(pos, end, 4096)
		if err != nil {
			t.Fatal(err)
		}
		shipped, pos = append(shipped, more...), next
	}

	there := testOptions(t.TempDir())
	r := reopen(there)
	for _, d := range shipped {
		if err := r.Restore(d); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	there.Unclean = true
	r = reopen(there)
	defer r.Close()
	<-r.Settled()
	checkClean(t, r)
	want, got := dump(t, o), dump(t, r)
	for key, v := range want {
		if !bytes.Equal(got[key], v) {
			t.Errorf("key %x: %x, want %x", key, got[key], v)
		}
		delete(got, key)
	}
	for key := range got {
		t.Errorf("key %x is too many", key)
	}
}

// dump is a store's whole state.
func dump(t *testing.T, o *OSD) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := o.Picture(t.Context(), func(uint64) error { return nil }, func(w volume.Write) error {
		all[string(w.Key)] = w.Value
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestCommittedWaitsForShipping: with Shipped set, what is Committed is outside.
func TestCommittedWaitsForShipping(t *testing.T) {
	opt := testOptions(t.TempDir())
	var asked []uint64
	fail := error(nil)
	opt.Shipped = func(_ context.Context, upTo uint64) error { asked = append(asked, upTo); return fail }
	o, err := Open(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	dir := initVolume(t, o, 7)
	n := len(asked)
	deliver(t, o, dir, "m", message(1))
	if len(asked) == n || asked[len(asked)-1] > o.LoggedTo() {
		t.Errorf("asked for %v, the log is durable to %d", asked, o.LoggedTo())
	}
	fail = objstore.Unavailable
	if _, err := o.Apply(t.Context(), o.Map().Group(7), objstore.Request{}, objstore.Remove{Parent: dir, Name: "m"}, objstore.Committed); err == nil {
		t.Error("a change was Committed that is not outside")
	}
}
