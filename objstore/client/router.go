package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"pillarbox/objstore"
)

func jitter(d time.Duration) time.Duration { return time.Duration(rand.Int64N(int64(d) + 1)) }

// ask puts a question to the leader of a meta placement group.
func ask[T any](ctx context.Context, c *Client, pg uint32, question func(context.Context, OSD) (T, error)) (T, error) {
	if e := c.now.Load(); e.only != nil {
		return question(ctx, e.only)
	}
	var answer T
	err := c.toLeader(ctx, pg, func(ctx context.Context, osd OSD) error {
		a, err := question(ctx, osd)
		if err == nil {
			answer = a
		}
		return err
	})
	return answer, err
}

// toLeader finds the leader of a meta placement group and has it carry out op,
// which may be carried out several times.
func (c *Client) toLeader(ctx context.Context, pg uint32, op func(context.Context, OSD) error) error {
	return c.seekLeader(ctx, pg, false, op)
}

// seekLeader is toLeader that, if it is patient, asks also OSDs that did not
// answer for long.
func (c *Client) seekLeader(ctx context.Context, pg uint32, patient bool, op func(context.Context, OSD) error) error {
	began := time.Now()
	ctx, cancel := c.limited(ctx)
	defer cancel()
	var wait pause
	for round := 0; ; round++ {
		e := c.now.Load()
		if err := c.groupAway(e, pg); err != nil && !patient {
			return fmt.Errorf("placement group %d: %w", pg, err)
		}
		var failed []error
		order, all := c.lastLeader(e, pg), false
		for i := 0; ctx.Err() == nil; i++ {
			if i == len(order) && !all {
				order, all = appendNew(order, c.members(e, pg, round)...), true
			}
			if i == len(order) {
				break
			}
			id := order[i]
			err := c.call(ctx, id, c.opt.Attempt, func(ctx context.Context, osd OSD) error {
				ctx, learned, err := c.leased(ctx, pg, id, osd)
				if err == nil {
					if err = op(ctx, osd); err == nil {
						learned()
					}
				}
				return err
			})
			if err == nil {
				c.leaders.Store(pg, id)
				return nil
			}
			if k := kindOf(err); k != objstore.Unavailable && k != objstore.Elsewhere {
				return err
			}
			c.leaders.CompareAndDelete(pg, id)
			failed = append(failed, err)
			var hint *objstore.LeaderError
			if errors.As(err, &hint) && hint.Leader >= 0 && !slices.Contains(order[:i+1], hint.Leader) {
				rest := slices.DeleteFunc(slices.Clone(order[i+1:]), func(id int) bool { return id == hint.Leader })
				order = append(append(order[:i+1:i+1], hint.Leader), rest...)
			}
			if c.now.Load() != e {
				break // maybe it was asked in vain because of that
			}
		}
		if ctx.Err() != nil || !wait.wait(ctx, e) {
			c.waited(ctx, order, began)
			return fmt.Errorf("placement group %d: %w", pg, gaveUp(ctx, failed))
		}
	}
}

// strangers is how many OSDs that should not know a placement group are asked
// in a round, when those that should do not.
const strangers = 4

// lastLeader is who led a placement group when it was last asked, if that is
// known and may still be so.
func (c *Client) lastLeader(e *epoch, pg uint32) []int {
	if id, ok := c.leaders.Load(pg); ok && e.up(id.(int)) {
		return []int{id.(int)}
	}
	return nil
}

// members lists the OSDs to ask for the leader of a placement group: those it
// should be on, those it was on, and after some rounds in vain anybody, for a
// group moves later than the map says.
func (c *Client) members(e *epoch, pg uint32, round int) []int {
	order := appendNew(nil, e.Acting(e.Meta(), pg)...)
	for _, m := range e.past {
		order = appendNew(order, m.Acting(m.Meta(), pg)...)
	}
	order = slices.DeleteFunc(order, func(id int) bool { return !e.up(id) })
	if round < 2 {
		return order
	}
	n := len(order)
	for _, i := range rand.Perm(len(e.OSDs)) {
		if o := e.OSDs[i]; o.Up && len(order) < n+strangers {
			order = appendNew(order, o.ID)
		}
	}
	return order
}

// apply has a change made once, however often it is sent, by its volume's group.
func (c *Client) apply(ctx context.Context, ch objstore.Change, p objstore.Promise) (objstore.Result, error) {
	e := c.now.Load()
	pg := e.Group(ch.Volume())
	if e.only != nil {
		return e.only.Apply(ctx, pg, objstore.Request{}, ch, p)
	}
	p = promiseToAsk(p)
	seq := c.seqs.begin()
	defer c.seqs.end(seq)
	q := c.cache.begin(ch.Volume())
	fences := c.pinned(ctx, pg)
	r, err := ask(ctx, c, pg, func(ctx context.Context, osd OSD) (objstore.Result, error) {
		if c.fences(pg) != fences {
			return objstore.Result{}, fmt.Errorf("the lease was over before the change was made: %w", objstore.Fenced)
		}
		return osd.Apply(ctx, pg, objstore.Request{Session: c.session.ID, Seq: seq, Ack: c.seqs.ack()}, ch, p)
	})
	c.cache.changed(q, c.under(pg), ch, r, err)
	return r, err
}

// promiseToAsk is the promise asked of a leader for a change that is to be kept
// as p has it. A leader that dies takes with it what it has only ordered, and
// nobody would send that again; so in a cluster every change is committed.
func promiseToAsk(objstore.Promise) objstore.Promise { return objstore.Committed }

// sequence numbers a session's changes.
type sequence struct {
	mu   sync.Mutex // a leaf
	last uint64
	low  uint64 // all up to it are over
	over map[uint64]struct{}
}

// begin allots a number.
func (s *sequence) begin() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	return s.last
}

// end notes that the change is not sent again: its answer came, or its caller
// was told that none will.
func (s *sequence) end(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over == nil {
		s.over = make(map[uint64]struct{})
	}
	s.over[seq] = struct{}{}
	for {
		if _, ok := s.over[s.low+1]; !ok {
			return
		}
		s.low++
		delete(s.over, s.low)
	}
}

// ack is the lowest number that is not over.
func (s *sequence) ack() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.low + 1
}
