package osd

import (
	"errors"
	"fmt"
	"testing"

	"pillarbox/objstore"
)

// TestRequestsOnce: a change sent again is made once, one held up until its
// client was answered is refused, also by the next leader, and what was kept for
// a client that is silent for long goes.
func TestRequestsOnce(t *testing.T) {
	f := newFabric(t, 3)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1)
	pg := f.m.Group(1)
	made := map[uint64]objstore.Ino{}
	for seq := uint64(1); seq <= 5; seq++ {
		r, err := f.apply(objstore.Request{Session: 9, Seq: seq, Ack: max(seq, 3) - 2}, create(fmt.Sprint("f", seq)))
		if err != nil {
			t.Fatal(err)
		}
		made[seq] = r.Attr.Ino
	}
	check := func(when string) {
		t.Helper()
		for seq := uint64(0); seq <= 5; seq++ {
			r, err := f.apply(objstore.Request{Session: 9, Seq: seq, Ack: 3}, create(fmt.Sprint("f", seq)))
			switch {
			case seq == 0 && !errors.Is(err, objstore.Invalid):
				t.Errorf("%s: request 0: %v", when, err)
			case seq > 0 && seq < 3 && !errors.Is(err, objstore.Fenced):
				t.Errorf("%s: request %d, which was acknowledged: %v", when, seq, err)
			case seq >= 3 && (err != nil || r.Attr.Ino != made[seq]):
				t.Errorf("%s: request %d made %v, then %v, %v", when, seq, made[seq], r.Attr.Ino, err)
			}
		}
	}
	check("the same leader")
	f.kill(f.leader(pg).opt.ID)
	check("the next leader")
	if n := len(f.names(objstore.VolumeRoot(1))); n != 5 {
		t.Errorf("%d files, not 5", n)
	}
	g := f.leader(pg).groups[pg].Load()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen[9].seen = -expireAfter
	delta := g.seen.silent(1)
	if len(delta) != 4 { // results 3 to 5, and what was acknowledged
		t.Errorf("%d keys of a silent session go, not 4", len(delta))
	}
	g.seen.expire(1)
	if g.seen[9] != nil {
		t.Error("a silent session is still known")
	}
}
