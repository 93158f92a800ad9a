package fusefs

import (
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pillarbox/objstore"
)

// TestSteps: every time is counted in the step whose ends it lies between.
func TestSteps(t *testing.T) {
	last := 0
	for d := time.Duration(1); d < 200*time.Second; d += 1 + d/7 {
		i := stepOf(d)
		if i < last {
			t.Fatalf("%v is in step %d, shorter times in %d", d, i, last)
		}
		last = i
		if over := d >= StepEnd(i); over && i < timeStep-1 {
			t.Errorf("%v is not below the end of its step, %v", d, StepEnd(i))
		}
		if i > 0 && d < StepEnd(i-1) {
			t.Errorf("%v is in step %d, and below the end of that before, %v", d, i, StepEnd(i-1))
		}
		if end := StepEnd(i); i > 0 && i < timeStep-1 && end > d+d/4+1 {
			t.Errorf("%v is counted as if it were up to %v", d, end)
		}
	}
	if stepOf(-1) != 0 || last != timeStep-1 {
		t.Errorf("the ends: %d, %d", stepOf(-1), last)
	}
}

func TestBelow(t *testing.T) {
	var c counter
	for range 98 {
		c.add(time.Millisecond, false)
	}
	before := c.times()
	c.add(time.Second, true)
	c.add(time.Second, false)
	all := c.times()
	if all.Count != 100 || all.Failed != 1 || all.Total != 98*time.Millisecond+2*time.Second {
		t.Errorf("counted %+v", all)
	}
	if d := all.Below(0.5); d < time.Millisecond || d > 1250*time.Microsecond {
		t.Errorf("half are below %v", d)
	}
	if d := all.Below(0.99); d < time.Second || d > 1250*time.Millisecond {
		t.Errorf("99 of 100 are below %v", d)
	}
	if d := all.Since(before); d.Count != 2 || d.Failed != 1 || d.Total != 2*time.Second || d.Below(0.01) < time.Second {
		t.Errorf("since: %+v", d)
	}
	if d := (&Times{}).Below(0.5); d != 0 {
		t.Errorf("of none: %v", d)
	}
}

// TestProfile tells requests apart, and counts together what there is too much of.
func TestProfile(t *testing.T) {
	m := &Mounted{raw: &raw{}}
	me := &m.raw.meter
	ask := func(o op, vol objstore.VolumeID, uid uint32, d time.Duration) {
		in := &fuse.InHeader{NodeId: uint64(objstore.VolumeRoot(vol))}
		in.Uid, in.Pid = uid, uid+1
		me.done(o, in, time.Now().Add(-d), fuse.OK)
	}
	ask(opRead, 1, 1, time.Second) // before any
	profiles := map[By]*Profile{}
	for _, by := range []By{ByNothing, ByVolume, ByUID, ByPID} {
		p, stop := m.StartProfile(by)
		defer stop()
		profiles[by] = p
	}
	ask(opRead, 7, 1000, time.Hour)
	ask(opRead, 7, 1001, time.Hour)
	ask(opLookup, 8, 1000, time.Minute)
	for by, want := range map[By]struct {
		rows int
		of   uint64
		n    uint64
	}{ByNothing: {2, 0, 2}, ByVolume: {2, 7, 2}, ByUID: {3, 1000, 1}, ByPID: {3, 1001, 1}} {
		rows := profiles[by].Rows()
		if len(rows) != want.rows || rows[0].Op != "read" || rows[0].Count != want.n || rows[len(rows)-1].Op != "lookup" {
			t.Errorf("by %q: %+v", by, rows)
		}
		if by == ByVolume && rows[0].Of != want.of {
			t.Errorf("by volume: of %d", rows[0].Of)
		}
	}
	p, stop := m.StartProfile(ByUID)
	for uid := range uint32(maxRows + 3) {
		ask(opRead, 7, uid, 0)
	}
	stop()
	ask(opRead, 7, 1, 0) // after
	rest := 0
	for _, r := range p.Rows() {
		if r.Other {
			rest += int(r.Count)
		}
	}
	if len(p.Rows()) != maxRows+1 || rest != 3 {
		t.Errorf("%d rows, %d counted together", len(p.Rows()), rest)
	}
	if n := m.Stats().Ops["read"].Count; n != maxRows+3+4 {
		t.Errorf("%d reads in all", n)
	}
}

// BenchmarkMeter is what counting costs each request.
func BenchmarkMeter(b *testing.B) {
	var m meter
	in := &fuse.InHeader{}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.done(opLookup, in, time.Now(), fuse.OK)
		}
	})
}
