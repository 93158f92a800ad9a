package layer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/pooltest"
)

func TestConformance(t *testing.T) {
	pooltest.Run(t, Over(pooltest.NewMemory(), "a", NewMetrics()), pooltest.NewMemory())
}

// gate is a Store whose reads do what a test says.
type gate struct {
	pool.Store
	get func(ctx context.Context, n int64, p []byte) error
	n   atomic.Int64
}

func (g *gate) Get(ctx context.Context, _ string, _ int64, p []byte) error {
	return g.get(ctx, g.n.Add(1), p)
}

var errLater = fmt.Errorf("later: %w", objstore.Unavailable)

func TestRetry(t *testing.T) {
	for _, c := range []struct {
		name     string
		err      error
		fails    int64 // so many requests
		requests int64
		atLeast  time.Duration
	}{
		{"nothing", nil, 0, 1, 0},
		{"away for a moment", errLater, 3, 4, 0},
		{"away", errLater, 1000, attempts, 0},
		{"not there", objstore.NotFound, 1000, 1, 0},
		{"not allowed", objstore.NotPermitted, 1000, 1, 0},
		{"throttled", &pool.Throttled{After: 7 * time.Second, Err: errors.New("slow down")}, 2, 3, 14 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &gate{get: func(_ context.Context, n int64, _ []byte) error {
					if n <= c.fails {
						return c.err
					}
					return nil
				}}
				begun := time.Now()
				err := Retry(g).Get(t.Context(), "x", 0, make([]byte, 1))
				if good := c.fails < attempts; good != (err == nil) || !good && !errors.Is(err, c.err) {
					t.Errorf("%v", err)
				}
				if g.n.Load() != c.requests {
					t.Errorf("%d requests instead of %d", g.n.Load(), c.requests)
				}
				if d := time.Since(begun); d < c.atLeast {
					t.Errorf("only %v", d)
				}
			})
		})
	}
}

// TestRetryEnds: a store that never answers is left after a time, and asked again;
// whose context ends waits no longer.
func TestRetryEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{get: func(ctx context.Context, _ int64, _ []byte) error {
			<-ctx.Done()
			return fmt.Errorf("%w: %w", objstore.Unavailable, ctx.Err())
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		begun := time.Now()
		if err := Retry(g).Get(ctx, "x", 0, make([]byte, 1)); !errors.Is(err, objstore.Unavailable) {
			t.Error(err)
		}
		if time.Since(begun) != 2*time.Minute || g.n.Load() != 4 {
			t.Errorf("%d requests in %v", g.n.Load(), time.Since(begun))
		}
	})
}

// TestLimit: as many requests are made at a time as the store takes without
// complaint; when it wants none for a while, none are made.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 5
		var mu sync.Mutex
		busy, most := 0, 0
		var quiet time.Time
		early := false
		g := &gate{get: func(_ context.Context, _ int64, _ []byte) error {
			mu.Lock()
			early = early || time.Now().Before(quiet)
			busy++
			most = max(most, busy)
			over := busy > takes
			mu.Unlock()
			time.Sleep(10 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			busy--
			if over {
				return &pool.Throttled{Err: errors.New("slow down")}
			}
			return nil
		}}
		s := Limit(g).(*limited)
		var wg sync.WaitGroup
		load := func(clients, each int) {
			for range clients {
				wg.Go(func() {
					for range each {
						s.Get(t.Context(), "x", 0, make([]byte, 1))
					}
				})
			}
			wg.Wait()
		}
		load(100, 20)
		if most > firstLimit+1 {
			t.Errorf("%d requests at a time", most)
		}
		most = 0
		load(100, 20)
		if most > 2*takes {
			t.Errorf("%d requests at a time of a store that takes %d", most, takes)
		}
		s.leave(time.Now(), fmt.Errorf("x: %w", &pool.Throttled{After: time.Minute, Err: errors.New("no")}))
		s.busy++ // what leave took off
		quiet = time.Now().Add(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := s.Get(ctx, "x", 0, make([]byte, 1)); !errors.Is(err, objstore.Unavailable) {
			t.Errorf("a request that waited in vain: %v", err)
		}
		cancel()
		load(10, 1)
		if early || len(s.waiting) > 0 || s.busy != 0 {
			t.Errorf("early: %v, %d waiting, %d under way", early, len(s.waiting), s.busy)
		}
	})
}

// TestHedge: of many quick reads and one slow one, that is made again; a store that
// is slow as a whole is not asked for more than a few reads twice.
func TestHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(n int64) bool { return n%100 == 0 }
		usual := 5 * time.Millisecond
		g := &gate{}
		g.get = func(ctx context.Context, n int64, p []byte) error {
			d := usual
			if slow(n) {
				d = time.Hour
			}
			select {
			case <-time.After(d):
			case <-ctx.Done():
				return fmt.Errorf("%w: %w", objstore.Unavailable, ctx.Err())
			}
			p[0] = 7
			return nil
		}
		s := Hedge(g)
		read := func() {
			p := make([]byte, 1000)
			begun := time.Now()
			if err := s.Get(t.Context(), "x", 0, p); err != nil || p[0] != 7 {
				t.Errorf("%v, %d", err, p[0])
			}
			if d := time.Since(begun); d > time.Minute {
				t.Errorf("a read took %v", d)
			}
		}
		for range 1000 {
			read()
		}
		if got := g.n.Load(); got < 1005 || got > 1015 {
			t.Errorf("%d requests for 1000 reads", got)
		}
		g.n.Store(0)
		var wg sync.WaitGroup
		slow = func(int64) bool { return false }
		usual = time.Second
		for range 200 {
			wg.Go(read)
		}
		wg.Wait()
		if got := g.n.Load(); got > 200+200/hedgeShare+5 {
			t.Errorf("%d requests for 200 reads of a slow store", got)
		}
	})
}

func TestMeasure(t *testing.T) {
	m := NewMetrics()
	var answer error
	s := m.Measure(&gate{Store: pooltest.NewMemory(), get: func(context.Context, int64, []byte) error { return answer }}, "cloud")
	ask := func(err error) Stats {
		answer = err
		s.Get(t.Context(), "x", 0, make([]byte, 10))
		return m.Pools()[0]
	}
	if st := ask(nil); st.Requests != 1 || st.Received != 10 || st.Failed != 0 || st.Away != "" {
		t.Errorf("%+v", st)
	}
	if st := ask(errLater); st.Failed != 1 || st.Away != errLater.Error() {
		t.Errorf("away: %+v", st)
	}
	if st := ask(objstore.NotFound); st.Failed != 1 || st.Away != "" || st.Received != 10 {
		t.Errorf("back: %+v", st)
	}
	if st := ask(&pool.Throttled{Err: errLater}); st.Throttled != 1 || st.Away != "" || time.Until(st.Slowed) <= 0 {
		t.Errorf("throttled: %+v", st)
	}
	if err := s.Put(t.Context(), "x", make([]byte, 3)); err != nil {
		t.Error(err)
	}
	if st := m.Pools()[0]; st.Sent != 3 || st.Requests != 5 {
		t.Errorf("%+v", st)
	}
}
