package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/osd"
)

func TestLeaderHintsAreFollowed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 5, replicated(3, 2))
		cl := c.client(client.Options{})
		took(t, 0, 0, func() {
			for to := range 5 { // also to OSDs that the map does not place it on
				c.lead(0, to)
				before := 0
				for _, o := range c.osds {
					before += o.count("Apply")
				}
				mustMkdir(t, cl, root, fmt.Sprint("d", to))
				calls := -before
				for _, o := range c.osds {
					calls += o.count("Apply")
				}
				if calls > 2 {
					t.Errorf("%d calls to find a leader whose name everybody knows", calls)
				}
				if _, err := cl.Lookup(t.Context(), root, fmt.Sprint("d", to)); err != nil {
					t.Error(err)
				}
			}
		})
	})
}

func TestElectionIsWaitedFor(t *testing.T) {
	for _, hint := range []int{-1, 99} { // none, or an OSD that the client's map does not have yet
		bubble(t, func(t *testing.T) {
			c := newCluster(t, 3, replicated(3, 2))
			cl := c.client(client.Options{})
			c.lead(0, hint)
			time.AfterFunc(900*time.Millisecond, func() { c.lead(0, 2) })
			took(t, 900*time.Millisecond, 1400*time.Millisecond, func() { mustMkdir(t, cl, root, "d") })
		})
	}
}

// A change that was made but whose answer was lost is not made again, and the
// request says that it is the same.
func TestLostAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		leader := c.leader[0]
		heir := (leader + 1) % 3
		lost := 0
		c.osds[leader].after = func(string) error {
			lost++
			c.lead(0, heir)
			return fmt.Errorf("connection reset: %w", objstore.Unavailable)
		}
		mustMkdir(t, cl, root, "d") // Exist, were it made twice
		if lost != 1 {
			t.Fatalf("%d answers lost", lost)
		}
		was, is := c.osds[leader].reqs, c.osds[heir].reqs
		if is[len(is)-1].Seq != was[len(was)-1].Seq || is[len(is)-1].Session != 7 {
			t.Errorf("sent as %+v, then as %+v", was[len(was)-1], is[len(is)-1])
		}
	})
}

// Many changes at once, with failures before and after they are made: each is
// made once, and no answer is acknowledged before it was there (Apply checks).
func TestConcurrentRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{Timeout: time.Hour})
		r := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		flaky := func() error {
			mu.Lock()
			pause, what, leader := time.Duration(r.IntN(5))*time.Millisecond, r.IntN(4), r.IntN(4)-1
			mu.Unlock()
			time.Sleep(pause)
			switch what {
			case 0:
				return objstore.Unavailable
			case 1:
				c.lead(0, leader)
			}
			return nil
		}
		for _, o := range c.osds {
			o.set(func(context.Context, string) error { return flaky() })
			o.after = func(string) error { return flaky() }
		}
		const n = 60
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if _, err := mkdir(cl, root, fmt.Sprint("d", i)); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		wg.Wait()
		for _, o := range c.osds {
			o.set(nil)
			o.after = nil
		}
		c.lead(0, 1)
		seen := map[uint64]bool{}
		for _, o := range c.osds {
			for _, q := range o.reqs {
				seen[q.Seq] = true
			}
		}
		if len(seen) != n+1 { // and the root volume's
			t.Errorf("%d numbers for %d changes", len(seen), n+1)
		}
		mustMkdir(t, cl, root, "last")
		if q := c.osds[1].reqs[len(c.osds[1].reqs)-1]; q.Ack != q.Seq {
			t.Errorf("with nothing under way: %+v", q)
		}
	})
}

func TestSilentLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		leader := c.leader[0]
		heir := (leader + 1) % 3
		c.osds[leader].set(hangs)
		c.lead(0, heir)
		// By itself a call ends after its time.
		took(t, 5*time.Second, 5*time.Second, func() { mustMkdir(t, cl, root, "a") })
		c.osds[leader].set(nil)
		c.osds[heir].set(hangs)
		c.lead(0, leader)
		// The map ends it sooner.
		time.AfterFunc(time.Second, func() { c.next(down(heir), cl) })
		took(t, time.Second, time.Second, func() { mustMkdir(t, cl, root, "b") })
		// Down ones are not asked.
		n := c.osds[heir].count("Apply")
		mustMkdir(t, cl, root, "c")
		if c.osds[heir].count("Apply") != n {
			t.Error("an OSD that is down was asked")
		}
	})
}

func TestNewEpochEndsThePause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		c.next(down(0, 1, 2), cl)
		time.AfterFunc(10*time.Second, func() { c.next(up(0, 1, 2), cl) })
		took(t, 10*time.Second, 10*time.Second, func() { mustMkdir(t, cl, root, "d") })
	})
}

func TestTimeLimit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		for _, o := range c.osds {
			o.set(fails(fmt.Errorf("no route: %w", objstore.Unavailable)))
		}
		took(t, 30*time.Second, 30*time.Second, func() {
			_, err := cl.GetAttr(t.Context(), root)
			want(t, err, objstore.Unavailable)
			for id := range c.osds {
				if !strings.Contains(err.Error(), fmt.Sprintf("osd.%d: no route", id)) {
					t.Errorf("osd.%d is not in %q", id, err)
				}
			}
		})
		if n := c.osds[0].count("GetAttr"); n < 30 || n > 200 {
			t.Errorf("%d tries in 30 s", n)
		}
		c = newCluster(t, 3, replicated(3, 2))
		cl = c.client(client.Options{})
		for _, o := range c.osds {
			o.set(fails(fmt.Errorf("no route: %w", objstore.Unavailable)))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		took(t, time.Second, time.Second, func() {
			_, err := cl.GetAttr(ctx, root)
			want(t, err, objstore.Unavailable)
			want(t, err, context.DeadlineExceeded)
		})
	})
}

func TestOtherErrorsAreFinal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		broken := errors.New("no kind")
		for _, kind := range []error{objstore.Exist, objstore.NoSpace, objstore.Fenced, objstore.Corrupt, broken} {
			leader := c.osds[c.leader[0]]
			n := leader.count("Apply")
			leader.set(fails(kind))
			_, err := mkdir(cl, root, "d")
			want(t, err, kind)
			if got := leader.count("Apply") - n; got != 1 {
				t.Errorf("%v: %d calls", kind, got)
			}
		}
	})
}

// In a cluster every change is committed; see promiseToAsk.
func TestPromises(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		mustMkdir(t, cl, root, "d") // Ordered
		for _, o := range c.osds {
			for _, p := range o.asked {
				if p != objstore.Committed {
					t.Errorf("promise %v", p)
				}
			}
		}
	})
}

// spy sees what reaches the OSD of an embedded store.
type spy struct {
	*osd.OSD
	reqs []objstore.Request
	asks []objstore.Promise
	put  []byte
	read []byte
}

func (s *spy) Apply(ctx context.Context, pg uint32, r objstore.Request, c objstore.Change, p objstore.Promise) (objstore.Result, error) {
	s.reqs, s.asks = append(s.reqs, r), append(s.asks, p)
	return s.OSD.Apply(ctx, pg, r, c, p)
}

func (s *spy) PutChunk(ctx context.Context, id objstore.ChunkID, data []byte) error {
	s.put = data
	return s.OSD.PutChunk(ctx, id, data)
}

func (s *spy) ReadChunk(ctx context.Context, pg uint32, id objstore.ChunkID, off uint32, p []byte) error {
	s.read = p
	return s.OSD.ReadChunk(ctx, pg, id, off, p)
}

// Embedded, a call is the OSD's and nothing else.
func TestEmbeddedCallsAreDirect(t *testing.T) {
	s := &spy{OSD: openOSD(t)}
	cl := newClient(t, s)
	mustMkdir(t, cl, root, "d")
	for _, r := range s.reqs {
		if r != (objstore.Request{}) {
			t.Errorf("request %+v", r)
		}
	}
	if s.asks[len(s.asks)-1] != objstore.Ordered {
		t.Error("an ordered change was sent as another")
	}
	id := objstore.ChunkID{Ino: objstore.MakeIno(0, 99), Version: 5}
	data, p := []byte("some bytes"), make([]byte, 5)
	if err := cl.PutChunk(t.Context(), id, data); err != nil {
		t.Fatal(err)
	}
	if err := cl.ReadChunk(t.Context(), id, 5, p); err != nil {
		t.Fatal(err)
	}
	if &s.put[0] != &data[0] || &s.read[0] != &p[0] || string(p) != "bytes" {
		t.Errorf("bytes were copied, or read as %q", p)
	}
}

// An account that one client is making or removing is not another's to settle,
// until so much time went by that the first one must be dead.
func TestOthersAccountsAreLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		one := c.client(client.Options{})
		domain := mustMkdir(t, one, root, "example.org")
		res, err := one.Apply(t.Context(), objstore.ReserveVolume{Parent: domain, Name: "alice"}, objstore.Committed)
		if err != nil {
			t.Fatal(err)
		}
		vol := res.Attr.Ino.Volume()
		if _, err := one.Apply(t.Context(), objstore.InitVolume{Vol: vol, Parent: domain, Mode: objstore.ModeDir | 0o700}, objstore.Committed); err != nil {
			t.Fatal(err)
		}
		two, err := client.New(t.Context(), c.m, 8, c, client.Options{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer two.Close()
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		if _, err := one.GetAttr(t.Context(), objstore.VolumeRoot(vol)); err != nil {
			t.Fatalf("in the making: %v", err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		_, err = one.GetAttr(t.Context(), objstore.VolumeRoot(vol))
		want(t, err, objstore.Stale)
	})
}

// When nobody can tell whether an account got its name, it is not dropped.
func TestUncertainMkdirIsSettledLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		domain := mustMkdir(t, cl, root, "example.org")
		c.giveUp = true
		leader := c.osds[c.leader[0]]
		leader.after = func(change string) error {
			if change == "objstore.AttachVolume" {
				return objstore.Unavailable
			}
			return nil
		}
		_, err := mkdir(cl, domain, "alice")
		want(t, err, objstore.Unavailable)
		leader.mu.Lock()
		leader.after = nil
		leader.mu.Unlock()
		a, err := cl.Lookup(t.Context(), domain, "alice")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		mustMkdir(t, cl, a.Ino, "Maildir")
	})
}
