package client

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
)

// A leader finds the cycles of waiting owners within its placement group. One
// that lies across groups is found by the clients whose processes are in it: who
// has waited for some time asks all OSDs who waits for whom, twice. An owner that
// waits can let nothing go, so what stands in both answers stood all the time in
// between, and a cycle in that is one.

// waitsFor is who waits for whom: by owner, and by the number of its wait.
type waitsFor map[locks.Owner]map[uint64][]locks.Owner

// cycleEvery is how long a request waits until it is asked whether it is in a cycle.
const cycleEvery = time.Second

// untilDeadlock ends the returned context with Deadlock once the request that waits
// with it has to give up. It is asked about while it waits: else no leader would list it.
func (c *Client) untilDeadlock(ctx context.Context, r locks.Request) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(ctx)
	c.start(func() { // when the client ends, so does the wait
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(cycleEvery):
				if c.deadlocked(ctx, r) {
					end(fmt.Errorf("lock inode %v: %w", r.Ino, objstore.Deadlock))
				}
			}
		}
	})
	return ctx, func() { end(nil) }
}

// deadlocked says whether a request that waits is in a cycle, and the one of it
// that is to give up.
func (c *Client) deadlocked(ctx context.Context, r locks.Request) bool {
	first, ok := c.waits(ctx)
	if !ok || first.victim(r.Lock.Owner) != r.Wait {
		return false
	}
	second, ok := c.waits(ctx)
	return ok && first.and(second).victim(r.Lock.Owner) == r.Wait
}

// waits asks all OSDs. Not ok: not all answered, so nothing is known.
func (c *Client) waits(ctx context.Context) (waitsFor, bool) {
	var mu sync.Mutex
	all := waitsFor{}
	g, ctx := errgroup.WithContext(ctx)
	for _, o := range c.now.Load().OSDs {
		if !o.Up {
			continue
		}
		g.Go(func() error {
			return c.call(ctx, o.ID, c.opt.Attempt, func(ctx context.Context, osd OSD) error {
				w, ok := osd.(Watchable)
				if !ok {
					return objstore.Unsupported
				}
				list, err := w.Waits(ctx)
				mu.Lock()
				defer mu.Unlock()
				for _, e := range list {
					if all[e.Owner] == nil {
						all[e.Owner] = map[uint64][]locks.Owner{}
					}
					all[e.Owner][e.Wait] = e.For
				}
				return err
			})
		})
	}
	return all, g.Wait() == nil
}

// and is what stands in both.
func (w waitsFor) and(other waitsFor) waitsFor {
	both := waitsFor{}
	for o, waits := range w {
		for n, list := range waits {
			again := other[o][n]
			list = slices.DeleteFunc(slices.Clone(list), func(o locks.Owner) bool { return !slices.Contains(again, o) })
			if len(list) == 0 {
				continue
			}
			if both[o] == nil {
				both[o] = map[uint64][]locks.Owner{}
			}
			both[o][n] = list
		}
	}
	return both
}

// victim is the wait of an owner by which it is in a cycle, if it is the one of
// all in cycles with it to give up; 0: none.
func (w waitsFor) victim(self locks.Owner) (wait uint64) {
	after := w.reach(self)
	for n, blockers := range w[self] {
		for _, o := range blockers {
			if o == self || w.reach(o)[self] {
				wait = max(wait, n)
			}
		}
	}
	if wait == 0 {
		return 0
	}
	for o := range after {
		if o != self && w.reach(o)[self] && before(self, o) {
			return 0
		}
	}
	return wait
}

// before orders owners, the same everywhere.
func before(a, b locks.Owner) bool {
	if a.Session != b.Session {
		return a.Session < b.Session
	}
	return a.ID < b.ID
}

// reach is whom an owner waits for, through others, too.
func (w waitsFor) reach(from locks.Owner) map[locks.Owner]bool {
	seen := map[locks.Owner]bool{}
	todo := []locks.Owner{from}
	for len(todo) > 0 {
		o := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, list := range w[o] {
			for _, next := range list {
				if !seen[next] {
					seen[next] = true
					todo = append(todo, next)
				}
			}
		}
	}
	return seen
}
