package osd

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
	"pillarbox/objstore/volume"
)

// listener is a client that watches one OSD. It acknowledges unless it is frozen.
type listener struct {
	sub *Subscription

	mu     sync.Mutex
	frozen bool
	heard  []objstore.Event
	pushes []objstore.Push
	unseen []uint64
	lost   []uint32
	busy   objstore.Ino
	wg     sync.WaitGroup
}

func listen(t *testing.T, o *OSD, session uint64) *listener {
	t.Helper()
	sub, err := o.Subscribe(session)
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{sub: sub}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); l.wg.Wait() })
	l.wg.Go(func() {
		for {
			list, err := sub.Next(ctx)
			if err != nil {
				return
			}
			for _, p := range list {
				l.take(p)
			}
		}
	})
	return l
}

func (l *listener) take(p Pushed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = append(l.lost, p.Lost...)
	if p.Push == nil {
		return
	}
	l.heard = append(l.heard, p.Push.Events...)
	l.pushes = append(l.pushes, *p.Push)
	if l.frozen {
		l.unseen = append(l.unseen, p.Push.Seq)
		return
	}
	a := objstore.Ack{Seq: p.Push.Seq}
	if l.busy != 0 {
		a.Busy = []objstore.Ino{l.busy}
	}
	l.sub.Ack(a)
}

func (l *listener) events() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.heard)
}

func (l *listener) ctx(t *testing.T) context.Context {
	return objstore.WithLease(t.Context(), objstore.Lease{Session: l.sub.session, Stream: l.sub.ID()})
}

// leader waits until a group is led by the OSD that is given the lead for good:
// the first of the group's that runs.
func (f *fabric) leader(pg uint32) (found *OSD) {
	f.t.Helper()
	f.eventually("a leader", func() bool {
		for _, id := range f.m.Acting(f.m.Meta(), pg) {
			if found = f.reach(id, id); found != nil {
				break
			}
		}
		_, unlock, err := found.leading(pg)
		if err == nil {
			unlock()
		}
		return err == nil
	})
	return found
}

// TestToldAttrs: who is told of a change hears what it left of the file and of the
// directory, and so does its author; both hear the same place in the order of changes.
func TestToldAttrs(t *testing.T) {
	f := newFabric(t, 1)
	f.makeVolumes(0, 1)
	o, pg, root := f.osds[0], f.m.Group(1), objstore.VolumeRoot(1)
	a, b := listen(t, o, 11), listen(t, o, 12)
	if _, err := o.GetAttr(b.ctx(t), pg, root); err != nil {
		t.Fatal(err)
	}
	changes := []objstore.Change{create("x"), create("y"), objstore.Rename{OldParent: root, OldName: "x", NewParent: root, NewName: "y"}}
	var last uint64
	for i, c := range changes {
		r, err := o.Apply(a.ctx(t), pg, objstore.Request{Session: 11, Seq: uint64(i + 1)}, c, objstore.Committed)
		if err != nil {
			t.Fatal(err)
		}
		b.mu.Lock()
		p := b.pushes[i]
		b.mu.Unlock()
		dir, err := o.GetAttr(a.ctx(t), pg, root)
		if err != nil {
			t.Fatal(err)
		}
		if p.Index <= last || r.Index != p.Index {
			t.Errorf("change %d is told as the one at %d, and at %d to its author, after %d", i, p.Index, r.Index, last)
		}
		if want := []objstore.Attr{r.Attr, dir}; r.Dirs[0] != dir || !slices.Equal(p.Attrs, want) {
			t.Errorf("change %d left %+v, told was %+v", i, want, p.Attrs)
		}
		last = p.Index
	}
	if e := b.heard[len(b.heard)-1]; e.Kind != objstore.Touched || e.Ino != b.pushes[1].Attrs[0].Ino {
		t.Errorf("of what a rename replaced was heard %+v", e)
	}
	// An answer given again does not say how things are by now.
	r, err := o.Apply(a.ctx(t), pg, objstore.Request{Session: 11, Seq: 1}, changes[0], objstore.Committed)
	if err != nil || r.Index != 0 {
		t.Errorf("asked again: %+v, %v", r, err)
	}
}

func create(name string) objstore.Create {
	return objstore.Create{Parent: objstore.VolumeRoot(1), Name: name, Mode: objstore.ModeRegular}
}

// TestTold: who read in a volume hears of a change there before it returns, the
// author does not, nor who never asked.
func TestTold(t *testing.T) {
	f := newFabric(t, 1)
	f.makeVolumes(0, 1)
	o, pg := f.osds[0], f.m.Group(1)
	a, b, c := listen(t, o, 11), listen(t, o, 12), listen(t, o, 13)
	for _, l := range []*listener{a, b} {
		if _, err := o.GetAttr(l.ctx(t), pg, objstore.VolumeRoot(1)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := o.Apply(a.ctx(t), pg, objstore.Request{Session: 11, Seq: 1}, create("x"), objstore.Committed)
	if err != nil {
		t.Fatal(err)
	}
	if a.events() != 0 || b.events() != 1 || c.events() != 0 {
		t.Errorf("author heard %d, reader %d, stranger %d", a.events(), b.events(), c.events())
	}
	b.mu.Lock()
	if e := b.heard[0]; e.Kind != objstore.Created || e.Name != "x" || e.Ino != r.Attr.Ino || e.Type != objstore.ModeRegular {
		t.Errorf("heard %+v", e)
	}
	b.busy = r.Attr.Ino // open there
	b.mu.Unlock()

	// What another has open is not purged.
	ctx := a.ctx(t)
	if _, err := o.Apply(ctx, pg, objstore.Request{Session: 11, Seq: 2}, objstore.Remove{Parent: objstore.VolumeRoot(1), Name: "x"}, objstore.Committed); err != nil {
		t.Fatal(err)
	}
	purge := objstore.Purge{Vol: 1, Inos: []objstore.Ino{r.Attr.Ino}}
	if _, err := o.Apply(ctx, pg, objstore.Request{Session: 11, Seq: 3}, purge, objstore.Committed); err != nil {
		t.Fatal(err)
	}
	if _, err := o.GetAttr(ctx, pg, r.Attr.Ino); err != nil {
		t.Errorf("a file that is open elsewhere: %v", err)
	}
	if _, err := o.Apply(b.ctx(t), pg, objstore.Request{Session: 12, Seq: 1}, purge, objstore.Committed); err != nil {
		t.Fatal(err)
	}
	if _, err := o.GetAttr(ctx, pg, r.Attr.Ino); !errors.Is(err, objstore.Stale) {
		t.Errorf("after it was closed: %v", err)
	}

	// An ended stream's requests are refused.
	old := b.ctx(t)
	b.sub.Close()
	if _, err := o.GetAttr(old, pg, objstore.VolumeRoot(1)); !errors.Is(err, objstore.Unavailable) {
		t.Errorf("under an ended lease: %v", err)
	}
	if _, err := o.Subscribe(0); !errors.Is(err, objstore.Invalid) {
		t.Errorf("no session: %v", err)
	}
}

// TestFrozenListener: a change waits for one who does not answer, but not longer
// than its lease; then it is no listener any more.
func TestFrozenListener(t *testing.T) {
	f := newFabric(t, 1)
	f.makeVolumes(0, 1)
	o, pg := f.osds[0], f.m.Group(1)
	l := listen(t, o, 11)
	l.frozen = true
	if _, err := o.GetAttr(l.ctx(t), pg, objstore.VolumeRoot(1)); err != nil {
		t.Fatal(err)
	}
	start, done := o.ticks.Load(), make(chan error, 1)
	go func() {
		_, err := o.Apply(t.Context(), pg, objstore.Request{}, create("x"), objstore.Committed)
		done <- err
	}()
	f.eventually("it is told", func() bool { return l.events() == 1 })
	select {
	case err := <-done:
		t.Fatalf("the change did not wait: %v", err)
	default:
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if waited := o.ticks.Load() - start; waited < lapseTicks-2 {
		t.Errorf("waited for %d ticks only", waited)
	}
	if _, err := o.Apply(t.Context(), pg, objstore.Request{}, create("y"), objstore.Committed); err != nil {
		t.Fatal(err)
	}
	if l.events() != 1 {
		t.Errorf("told after its lease was over")
	}
	if _, err := o.GetAttr(l.ctx(t), pg, objstore.VolumeRoot(1)); !errors.Is(err, objstore.Unavailable) {
		t.Errorf("under a lapsed lease: %v", err)
	}
}

// TestNewLeaderWaitsForListeners of the one before.
func TestNewLeaderWaitsForListeners(t *testing.T) {
	f := newFabric(t, 3)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1)
	pg := f.m.Group(1)
	old := f.leader(pg)
	l := listen(t, old, 11)
	if _, err := old.GetAttr(l.ctx(t), pg, objstore.VolumeRoot(1)); err != nil {
		t.Fatal(err)
	}
	f.kill(old.opt.ID)
	now := f.leader(pg)
	done := make(chan error, 1)
	go func() {
		_, err := f.apply(objstore.Request{Session: 12, Seq: 1}, create("x"))
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("the change did not wait: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	again := listen(t, now, 11)
	if _, err := now.GetAttr(again.ctx(t), pg, objstore.VolumeRoot(1)); !errors.Is(err, objstore.Unavailable) {
		t.Errorf("asked before it said what it has: %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("the change did not wait: %v", err)
	default:
	}
	known, err := now.Hold(again.ctx(t), pg, []objstore.VolumeID{1}, nil)
	if err != nil || !known {
		t.Fatalf("known %v, %v", known, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := f.apply(objstore.Request{Session: 12, Seq: 2}, create("y")); err != nil {
		t.Fatal(err)
	}
	if again.events() == 0 {
		t.Error("not told of a volume that it named")
	}
	stranger := listen(t, now, 14)
	if known, err := now.Hold(stranger.ctx(t), pg, nil, nil); err != nil || known {
		t.Errorf("a session that never asked: known %v, %v", known, err)
	}
}

// TestDeafListener: who lives but does not take in a push loses its lease as one
// who is silent does, whatever became of those who waited for it; no later leader
// believes what it has.
func TestDeafListener(t *testing.T) {
	f := newFabric(t, 1)
	f.makeVolumes(0, 1)
	o, pg := f.osds[0], f.m.Group(1)
	l := listen(t, o, 11)
	l.frozen = true
	if _, err := o.GetAttr(l.ctx(t), pg, objstore.VolumeRoot(1)); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var beating sync.WaitGroup
	beating.Go(func() {
		for {
			select {
			case <-time.After(100 * time.Millisecond):
				l.sub.Heard(1)
			case <-stop:
				return
			}
		}
	})
	defer beating.Wait()
	defer close(stop)
	req := objstore.Request{Session: 12, Seq: 1}
	impatient, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := o.Apply(impatient, pg, req, create("x"), objstore.Committed)
		done <- err
	}()
	f.eventually("it is told", func() bool { return l.events() == 1 })
	cancel()
	if err := <-done; !errors.Is(err, objstore.Unavailable) {
		t.Errorf("the change did not wait: %v", err)
	}
	start := o.ticks.Load()
	if _, err := o.Apply(t.Context(), pg, req, create("x"), objstore.Committed); err != nil {
		t.Fatal(err)
	}
	if waited := o.ticks.Load() - start; waited > leaseTicks {
		t.Errorf("waited for %d ticks", waited)
	}
	if err := o.View(pg, func(v volume.View) error {
		if b, err := v.Get(holderKey(11)); err != nil || b != nil {
			t.Errorf("its record is there when others go on: %v, %v", b, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := o.GetAttr(l.ctx(t), pg, objstore.VolumeRoot(1)); !errors.Is(err, objstore.Unavailable) {
		t.Errorf("under a lapsed lease: %v", err)
	}
	again := listen(t, o, 11)
	for range 2 { // an answer may be lost
		if known, err := o.Hold(again.ctx(t), pg, nil, nil); err != nil || known {
			t.Errorf("after its lease was over: known %v, %v", known, err)
		}
	}
}

// TestNextStream: who begins another stream hears by that of what it did not take
// in by the one before.
func TestNextStream(t *testing.T) {
	f := newFabric(t, 1)
	f.makeVolumes(0, 1)
	o, pg := f.osds[0], f.m.Group(1)
	l := listen(t, o, 11)
	l.frozen = true
	if _, err := o.GetAttr(l.ctx(t), pg, objstore.VolumeRoot(1)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := o.Apply(t.Context(), pg, objstore.Request{}, create("x"), objstore.Committed)
		done <- err
	}()
	f.eventually("it is told", func() bool { return l.events() == 1 })
	again := listen(t, o, 11)
	f.eventually("it is told again", func() bool { return again.events() == 1 })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := o.Apply(t.Context(), pg, objstore.Request{}, create("y"), objstore.Committed); err != nil {
		t.Fatal(err)
	}
	if again.events() != 2 {
		t.Errorf("heard of %d changes, not 2", again.events())
	}
}

// TestLockTurns: what a session asked for, or said, before it last said which
// locks it has comes too late.
func TestLockTurns(t *testing.T) {
	f := newFabric(t, 1)
	f.makeVolumes(0, 1)
	o, pg := f.osds[0], f.m.Group(1)
	l, other := listen(t, o, 11), listen(t, o, 12)
	ino := objstore.VolumeRoot(1)
	turn := func(n uint64) context.Context {
		return objstore.WithLease(t.Context(), objstore.Lease{Session: 11, Stream: l.sub.ID(), Turn: n})
	}
	lock := func(ctx context.Context, session uint64, write bool) (locks.Answer, error) {
		return o.Lock(ctx, pg, locks.Request{Op: locks.Try, Ino: ino, Lock: locks.Lock{
			Owner: locks.Owner{Session: session, ID: 1}, Write: write, End: 9}})
	}
	if a, err := lock(turn(1), 11, true); err != nil || !a.Granted {
		t.Fatalf("%+v, %v", a, err)
	}
	if known, err := o.Hold(turn(2), pg, nil, nil); err != nil || !known {
		t.Fatalf("known %v, %v", known, err)
	}
	if a, err := lock(other.ctx(t), 12, true); err != nil || !a.Granted {
		t.Fatalf("a lock that its holder does not know of: %+v, %v", a, err)
	}
	if _, err := o.Lock(other.ctx(t), pg, locks.Request{Op: locks.Unlock, Ino: ino, Lock: locks.Lock{Owner: locks.Owner{ID: 1}, End: 9}}); err != nil {
		t.Fatal(err)
	}
	if a, err := lock(turn(1), 11, true); !errors.Is(err, objstore.Unavailable) {
		t.Errorf("a late request: %+v, %v", a, err)
	}
	if _, err := o.Hold(turn(1), pg, nil, nil); !errors.Is(err, objstore.Unavailable) {
		t.Errorf("a late word of which locks there are: %v", err)
	}
	if a, err := lock(turn(2), 11, true); err != nil || !a.Granted {
		t.Fatalf("%+v, %v", a, err)
	}
}

// TestNoLockBeforeTheRecord: a session whose record no next leader would find is
// granted no lock, for that leader would not wait to hear of it.
func TestNoLockBeforeTheRecord(t *testing.T) {
	f := newFabric(t, 3)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1)
	pg := f.m.Group(1)
	old := f.leader(pg)
	lock := func(o *OSD, l *listener, wait time.Duration) (locks.Answer, error) {
		ctx, cancel := context.WithTimeout(l.ctx(t), wait)
		defer cancel()
		return o.Lock(ctx, pg, locks.Request{Op: locks.Try, Ino: objstore.VolumeRoot(1), Lock: locks.Lock{
			Owner: locks.Owner{ID: 1}, Write: true, End: 9}})
	}
	f.mu.Lock()
	f.lost = func(from, _ int, m RaftMessage) bool {
		return from == old.opt.ID && m.PG == pg && len(m.Msg.GetEntries()) > 0
	}
	f.mu.Unlock()
	if a, err := lock(old, listen(t, old, 11), time.Second); err == nil {
		t.Fatalf("%+v", a)
	}
	f.kill(old.opt.ID)
	now := f.leader(pg)
	if a, err := lock(now, listen(t, now, 12), time.Minute); err != nil || !a.Granted {
		t.Fatalf("%+v, %v", a, err)
	}
}

// TestStalledAnswersNoBeat: while time stands still in the groups, leases are not
// renewed, for others may lead them.
func TestStalledAnswersNoBeat(t *testing.T) {
	f := newFabric(t, 1)
	o := f.osds[0]
	sub, err := o.Subscribe(11)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	queued := func() int {
		sub.mu.Lock()
		defer sub.mu.Unlock()
		return len(sub.queue)
	}
	g := o.hosted()[0]
	g.mu.Lock()
	unlock := sync.OnceFunc(g.mu.Unlock)
	defer unlock()
	f.eventually("the ticks stand still", o.stalled)
	sub.Heard(1)
	if queued() != 0 {
		t.Error("a beat is answered by who does not know that it leads")
	}
	unlock()
	f.eventually("the ticks go on", func() bool { return !o.stalled() })
	sub.Heard(2)
	if list, err := sub.Next(t.Context()); err != nil || len(list) != 1 || list[0].Beat != 2 {
		t.Errorf("answered with %v, %v", list, err)
	}
}
