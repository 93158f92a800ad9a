package osd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"pillarbox/objstore"
)

// leaseTicks is objstore.LeaseTime.
const leaseTicks = int64(objstore.LeaseTime / tickEvery)

// Pushed is one message to a client that watches.
type Pushed struct {
	Beat uint64         // not 0: answers the client's beat
	Push *objstore.Push // to be acknowledged
	Lost []uint32       // placement groups that this OSD leads no more
}

// Subscription is a client's stream of pushes. The client is taken to know what
// it was told until it acknowledges a push, begins another stream, or has not
// been heard for the time of a lease.
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
	acks  map[uint64]chan objstore.Ack
	ended bool
}

// subscriptions are those of the clients that are there, by session.
type subscriptions struct {
	mu   sync.Mutex // before a Subscription's
	m    map[uint64]*Subscription
	last uint64
}

// Subscribe begins a session's stream. By that the client says that it has
// forgotten all it learned under an earlier one.
func (o *OSD) Subscribe(session uint64) (*Subscription, error) {
	if session == 0 {
		return nil, fmt.Errorf("a stream of no session: %w", objstore.Invalid)
	}
	s := &Subscription{
		o: o, session: session, gone: make(chan struct{}), heard: o.ticks.Load(),
		more: make(chan struct{}, 1), acks: map[uint64]chan objstore.Ack{},
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
		o.forget(session, false)
	}
	return s, nil
}

// ID is the stream's number, for leases.
func (s *Subscription) ID() uint64 { return s.id }

// Heard takes in a sign of life.
func (s *Subscription) Heard(beat uint64) {
	s.mu.Lock()
	s.heard = s.o.ticks.Load()
	s.mu.Unlock()
	s.send(Pushed{Beat: beat})
}

// Ack takes in an acknowledgement.
func (s *Subscription) Ack(a objstore.Ack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = s.o.ticks.Load()
	if done := s.acks[a.Seq]; done != nil {
		delete(s.acks, a.Seq)
		done <- a
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
	s.o.subs.mu.Lock()
	current := s.o.subs.m[s.session] == s
	if current {
		delete(s.o.subs.m, s.session)
	}
	s.o.subs.mu.Unlock()
	s.end()
	if current {
		s.o.forget(s.session, true)
	}
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
func (s *Subscription) push(p objstore.Push) (seq uint64, ack <-chan objstore.Ack) {
	done := make(chan objstore.Ack, 1)
	s.mu.Lock()
	s.last++
	p.Seq = s.last
	s.acks[p.Seq] = done
	s.queue = append(s.queue, Pushed{Push: &p})
	s.mu.Unlock()
	kick(s.more)
	return p.Seq, done
}

func (s *Subscription) giveUp(seq uint64) {
	s.mu.Lock()
	delete(s.acks, seq)
	s.mu.Unlock()
}

// get is a session's stream, nil if it has none.
func (t *subscriptions) get(session uint64) *Subscription {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[session]
}

// lapse ends the streams of clients that have been silent for too long.
func (o *OSD) lapse(now int64) {
	var over []*Subscription
	o.subs.mu.Lock()
	for session, s := range o.subs.m {
		s.mu.Lock()
		silent := now-s.heard > leaseTicks
		s.mu.Unlock()
		if silent {
			delete(o.subs.m, session)
			over = append(over, s)
		}
	}
	o.subs.mu.Unlock()
	for _, s := range over {
		o.log.Warn("a client has not been heard for the time of its lease", "session", s.session)
		s.end()
		o.forget(s.session, true)
	}
}

// forget takes in that a session knows nothing any more; gone: it is no more.
func (o *OSD) forget(session uint64, gone bool) {
	for _, g := range o.hosted() {
		g.holders.forget(session, gone)
		if gone {
			g.locks.drop(session)
		}
	}
}
