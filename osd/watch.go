package osd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"pillarbox/objstore"
)

// leaseTicks is objstore.LeaseTime. A client that is silent, or leaves a push
// unanswered, has a little less, so that all is over by then.
const (
	leaseTicks = int64(objstore.LeaseTime / tickEvery)
	lapseTicks = leaseTicks * 9 / 10
)

// Pushed is one message to a client that watches.
type Pushed struct {
	Beat uint64         // not 0: answers the client's beat
	Push *objstore.Push // to be acknowledged
	Lost []uint32       // placement groups that this OSD leads no more
}

// Subscription is a client's stream of pushes. The client is taken to know what
// it was told before until it acknowledges a push, or its lease is over: it has not
// been heard for that time, or not acknowledged one.
type Subscription struct {
	o       *OSD
	id      uint64
	session uint64
	gone    chan struct{} // closed when it has ended

	mu    sync.Mutex // a leaf
	heard int64      // ticks
	last  uint64     // push
	queue []Pushed
	more  chan struct{}
	acks  map[uint64]unacked
	ended bool
}

// unacked is a push whose acknowledgement has not come.
type unacked struct {
	done  chan<- objstore.Ack
	since int64 // ticks
}

// subscriptions are those of the clients that are there, by session.
type subscriptions struct {
	mu   sync.Mutex // before a Subscription's
	m    map[uint64]*Subscription
	last uint64
}

// Subscribe begins a session's stream, in the place of an earlier one.
func (o *OSD) Subscribe(session uint64) (*Subscription, error) {
	if session == 0 {
		return nil, fmt.Errorf("a stream of no session: %w", objstore.Invalid)
	}
	s := &Subscription{
		o: o, session: session, gone: make(chan struct{}), heard: o.ticks.Load(),
		more: make(chan struct{}, 1), acks: map[uint64]unacked{},
	}
	o.subs.mu.Lock()
	before := o.subs.m[session]
	if o.subs.m == nil {
		o.subs.m = map[uint64]*Subscription{}
		o.subs.last = uint64(time.Now().UnixNano()) // no stream of an earlier run has such a number
	}
	o.subs.last++
	s.id = o.subs.last
	o.subs.m[session] = s
	o.subs.mu.Unlock()
	if before != nil {
		before.end()
	}
	return s, nil
}

// ID is the stream's number, for leases.
func (s *Subscription) ID() uint64 { return s.id }

// Heard takes in a sign of life. It is not answered while the OSD is stalled: the
// client's lease must be over before the next leader lets others go on.
func (s *Subscription) Heard(beat uint64) {
	s.mu.Lock()
	s.heard = s.o.ticks.Load()
	s.mu.Unlock()
	if !s.o.stalled() {
		s.send(Pushed{Beat: beat})
	}
}

// Ack takes in an acknowledgement.
func (s *Subscription) Ack(a objstore.Ack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = s.o.ticks.Load()
	if u, ok := s.acks[a.Seq]; ok {
		delete(s.acks, a.Seq)
		u.done <- a
	}
}

// Next waits for something to send. An error: the stream has ended.
func (s *Subscription) Next(ctx context.Context) ([]Pushed, error) {
	for {
		s.mu.Lock()
		list := s.queue
		s.queue = nil
		s.mu.Unlock()
		if len(list) > 0 {
			return list, nil
		}
		select {
		case <-s.more:
		case <-s.gone:
			return nil, fmt.Errorf("stream of session %d: %w", s.session, objstore.Fenced)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Close ends the stream for good: the client has forgotten everything.
func (s *Subscription) Close() {
	if !s.o.subs.remove(s) {
		return
	}
	for _, g := range s.o.hosted() {
		g.holders.goodbye(s.session)
		g.locks.drop(s.session)
	}
	s.end()
}

func (s *Subscription) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		close(s.gone)
	}
}

func (s *Subscription) send(p Pushed) {
	s.mu.Lock()
	s.queue = append(s.queue, p)
	s.mu.Unlock()
	kick(s.more)
}

// push sends a push and returns where its acknowledgement will come.
func (s *Subscription) push(p objstore.Push) (ack <-chan objstore.Ack) {
	done := make(chan objstore.Ack, 1)
	s.mu.Lock()
	s.last++
	p.Seq = s.last
	s.acks[p.Seq] = unacked{done, s.o.ticks.Load()}
	s.queue = append(s.queue, Pushed{Push: &p})
	s.mu.Unlock()
	kick(s.more)
	return done
}

// overdue says that the client's lease is over: it is silent, or lives and does
// not take in what it is told.
func (s *Subscription) overdue(now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now-s.heard > lapseTicks {
		return true
	}
	for _, u := range s.acks {
		if now-u.since > lapseTicks {
			return true
		}
	}
	return false
}

// get is a session's stream, nil if it has none.
func (t *subscriptions) get(session uint64) *Subscription {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[session]
}

func (t *subscriptions) alive(session uint64) bool { return t.get(session) != nil }

// remove says whether the stream was its session's.
func (t *subscriptions) remove(s *Subscription) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[s.session] != s {
		return false
	}
	delete(t.m, s.session)
	return true
}

// lapse ends the streams of clients whose lease is over. The groups' leaders see
// that a session has none (holders.others).
func (o *OSD) lapse(now int64) {
	var over []*Subscription
	o.subs.mu.Lock()
	for session, s := range o.subs.m {
		if s.overdue(now) {
			delete(o.subs.m, session)
			over = append(over, s)
		}
	}
	o.subs.mu.Unlock()
	for _, s := range over {
		o.log.Warn("a client has not been heard, or has not taken in a change, for the time of its lease", "session", s.session)
		s.end()
	}
}
