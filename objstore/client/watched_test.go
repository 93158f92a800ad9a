package client_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/objstore/locks"
)

// watched is a fakeOSD that tells of changes, through push. A hook that hangs
// makes the OSD silent: nothing is heard of its streams any more.
type watched struct {
	*fakeOSD
	mu   sync.Mutex
	open []client.Watching
}

func (w *watched) Watch(ctx context.Context, _ uint64, to client.Watching) error {
	to.Begun(1)
	w.mu.Lock()
	w.open = append(w.open, to)
	w.mu.Unlock()
	beat := time.NewTicker(time.Second)
	defer beat.Stop()
	for heard := time.Now(); ; {
		select {
		case <-beat.C:
			sent := time.Now()
			answer, cancel := context.WithTimeout(ctx, time.Second)
			err := w.enter(answer, "Beat")
			cancel()
			if err == nil {
				heard = sent
				to.Beat(sent)
			} else if time.Since(heard) > objstore.LeaseTime*9/10 {
				return objstore.Unavailable
			}
		case <-to.End.Done():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *watched) Hold(ctx context.Context, _ uint32, _ []objstore.VolumeID, _ []locks.Held) (bool, error) {
	return true, w.enter(ctx, "Hold")
}

func (w *watched) Lock(ctx context.Context, _ uint32, _ locks.Request) (locks.Answer, error) {
	return locks.Answer{}, w.enter(ctx, "Lock")
}

func (w *watched) Waits(ctx context.Context) ([]locks.Waiting, error) {
	return nil, w.enter(ctx, "Waits")
}

// push tells all streams of a change and waits until they have taken it in.
func (w *watched) push(p objstore.Push) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, to := range w.open {
		done := make(chan struct{})
		to.Push(p, func(objstore.Ack) { close(done) })
		<-done
	}
}

// watchedRouter makes a cluster's OSDs tell of changes.
type watchedRouter map[int]*watched

func (r watchedRouter) OSD(id int) (client.OSD, error) { return r[id], nil }

// listener takes note of nothing.
type listener struct{}

func (listener) Told(p objstore.Push, ack func(objstore.Ack))                  { ack(objstore.Ack{Seq: p.Seq}) }
func (listener) Void(func(objstore.VolumeID) bool, bool)                       {}
func (listener) Known(func(objstore.VolumeID) bool) (list []objstore.VolumeID) { return nil }

// watching is a client that is told of changes. Close it before the bubble ends.
func (c *cluster) watching(opt client.Options) (*client.Client, watchedRouter) {
	c.t.Helper()
	r := watchedRouter{}
	for id, o := range c.osds {
		r[id] = &watched{fakeOSD: o}
	}
	cl, err := client.New(context.Background(), c.m, 42, r, opt)
	if err != nil {
		c.t.Fatal(err)
	}
	cl.SetWatcher(listener{})
	c.t.Cleanup(func() {
		if err := cl.Close(); err != nil {
			c.t.Error(err)
		}
	})
	return cl, r
}

func (c *cluster) asked(op string) (n int) {
	for _, o := range c.osds {
		n += o.count(op)
	}
	return n
}

// TestExtentsAreKept delivers a message and reads where its bytes are without
// asking, until somebody else writes it.
func TestExtentsAreKept(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl, osds := c.watching(client.Options{})
		res, err := cl.Apply(t.Context(), objstore.Create{Parent: root, Name: "mail", Mode: objstore.ModeRegular | 0o600}, objstore.Committed)
		want(t, err, nil)
		ino := res.Attr.Ino
		_, err = cl.GetAttr(t.Context(), ino)
		want(t, err, nil)
		body := bytes.Repeat([]byte("x"), 5000)
		write := objstore.Write{Ino: ino, Size: 5000, Mtime: 1, Extents: []objstore.Extent{{Len: 5000, Kind: objstore.Resident, Data: body}}}
		res, err = cl.Apply(t.Context(), write, objstore.Committed)
		want(t, err, nil)
		ask := func(asks int) objstore.Extent {
			t.Helper()
			before := c.asked("Extents")
			list, err := cl.Extents(t.Context(), ino, 0, 1<<20)
			if err != nil || len(list) != 1 {
				t.Fatal(list, err)
			}
			if n := c.asked("Extents") - before; n != asks {
				t.Errorf("asked %d times, want %d", n, asks)
			}
			return list[0]
		}
		if e := ask(0); len(res.Chunks) != 1 || e.Chunk != res.Chunks[0] || e.Len != 5000 || e.Data != nil {
			t.Errorf("extent %+v, written %v", e, res.Chunks)
		}
		if _, err := cl.Extents(t.Context(), ino, 6000, 10); err != nil {
			t.Fatal(err)
		}
		// A part of it written: what the whole is must be asked.
		write.Size, write.Extents[0].Off = 10_000, 5000
		_, err = cl.Apply(t.Context(), write, objstore.Committed)
		want(t, err, nil)
		if list, err := cl.Extents(t.Context(), ino, 0, 1<<20); err != nil || len(list) != 2 {
			t.Errorf("%v %v", list, err)
		}
		_, err = cl.Apply(t.Context(), objstore.SetAttr{Ino: ino, Set: objstore.SetSize, Size: 100}, objstore.Committed)
		want(t, err, nil)
		ask(1)
		ask(0)
		for _, o := range osds {
			o.push(objstore.Push{Volume: 0, Events: []objstore.Event{{Kind: objstore.Modified, Ino: ino}}})
		}
		ask(1)
		ask(0)
		// Bytes that are not where they should be: the place is asked for again.
		if err := cl.ReadChunk(t.Context(), res.Chunks[0], 0, make([]byte, 10)); !errors.Is(err, objstore.Stale) {
			t.Fatal(err)
		}
		ask(1)
	})
}

// voids is a listener that counts how often what is known was dropped.
type voids struct {
	listener
	n atomic.Int32
}

func (v *voids) Void(func(objstore.VolumeID) bool, bool) { v.n.Add(1) }

// loseLead has all OSDs say that they lead placement group 0 no more.
func loseLead(osds watchedRouter) {
	for _, o := range osds {
		o.mu.Lock()
		for _, to := range o.open {
			to.Lost([]uint32{0})
		}
		o.mu.Unlock()
	}
}

// growing is a listener that comes to know a volume while the leader is told.
type growing struct {
	listener
	asked atomic.Int32
}

func (g *growing) Known(func(objstore.VolumeID) bool) []objstore.VolumeID {
	if g.asked.Add(1) == 1 {
		return nil
	}
	return []objstore.VolumeID{0}
}

// TestTellsOfAllVolumes: a volume that came to be known while the next leader was
// told of the others is told, too, before anything goes by what that leader says.
func TestTellsOfAllVolumes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl, osds := c.watching(client.Options{})
		cl.SetWatcher(&growing{})
		_, err := cl.Lookup(t.Context(), root, "absent")
		want(t, err, objstore.NotFound)
		loseLead(osds)
		synctest.Wait()
		if n := c.asked("Hold"); n != 2 {
			t.Errorf("told %d times", n)
		}
	})
}

// TestLostLeadVoids: what is known of a placement group is not served any more when
// its leader says that it leads no more, though the next one is not reached for long.
func TestLostLeadVoids(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl, osds := c.watching(client.Options{})
		v := &voids{}
		cl.SetWatcher(v)
		_, err := cl.Lookup(t.Context(), root, "absent")
		want(t, err, objstore.NotFound)
		for _, o := range c.osds {
			o.set(hangs)
		}
		loseLead(osds)
		if v.n.Load() == 0 {
			t.Error("the kernel keeps what it has")
		}
		for _, o := range c.osds {
			o.set(nil)
		}
	})
}

// TestLateLock: a request for a lock that was not answered, and was made again, must
// not be carried out after what its owner asks for next.
func TestLateLock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl, _ := c.watching(client.Options{})
		_, err := cl.Lookup(t.Context(), root, "absent")
		want(t, err, objstore.NotFound)
		var once sync.Once
		late := func(ctx context.Context, op string) (err error) {
			once.Do(func() { err = hangs(ctx, op) })
			return err
		}
		unlock := locks.Request{Op: locks.Unlock, Ino: root, Lock: locks.Lock{End: 9}}
		for i, hook := range []func(context.Context, string) error{nil, only("Lock", late)} {
			before := c.asked("Hold")
			for _, o := range c.osds {
				o.set(hook)
			}
			_, err := cl.Lock(t.Context(), unlock)
			want(t, err, nil)
			synctest.Wait()
			if n := c.asked("Hold") - before; n != i {
				t.Errorf("the leader was told %d times which locks there are, not %d", n, i)
			}
		}
	})
}
