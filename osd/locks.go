package osd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
)

// File locks live in the memory of a placement group's leader. A new leader
// grants none before every session that asked the one before has said which it
// has (Hold), or its lease is over. A cycle of waiting owners within a group is
// found at once, one over several by the clients (client/deadlock.go).

// lockWait is how long a request waits for a lock before the client asks again.
const lockWait = 2 * time.Second

// lockTable has the locks of a group's volumes. The mutex is a leaf.
type lockTable struct {
	mu      sync.Mutex
	table   locks.Table
	turns   map[uint64]uint64 // by session: in which it last said what it has
	waiting map[*locks.Request]struct{}
	changed chan struct{} // closed when a lock may have become free
	terms   uint64        // how often the lead began or ended; nothing is granted by what was known in an earlier one
}

func (t *lockTable) wake() {
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// try does what can be done at once, if the request is still good. changed is not
// nil when the lock is held by another: it tells when to try again. The request
// counts as waiting then, until leave.
func (t *lockTable) try(r *locks.Request, turn, term uint64, good func() error) (a locks.Answer, changed <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, r)
	if term != t.terms {
		return a, nil, fmt.Errorf("lock inode %v: another leads, or did: %w", r.Ino, objstore.Unavailable)
	}
	if err := good(); err != nil {
		return a, nil, err
	}
	session := r.Lock.Owner.Session
	if last := t.turns[session]; turn < last {
		return a, nil, fmt.Errorf("lock inode %v: session %d has said since what it has: %w", r.Ino, session, objstore.Unavailable)
	}
	if r.Op == locks.Unlock {
		if t.table.Clear(r.Ino, r.Lock.Owner, r.Lock.Start, r.Lock.End) {
			t.wake()
		}
		return locks.Answer{Granted: true}, nil, nil
	}
	holder, conflict := t.table.Conflict(r.Ino, r.Lock)
	switch {
	case !conflict && r.Op == locks.Test:
		return locks.Answer{Granted: true}, nil, nil
	case !conflict:
		t.table.Set(r.Ino, r.Lock)
		t.wake() // a write lock may have become a read lock
		return locks.Answer{Granted: true}, nil, nil
	case r.Op != locks.Wait:
		return locks.Answer{Holder: holder}, nil, nil
	case !r.Lock.Owner.Flock && t.deadlock(r.Lock.Owner, r.Ino, r.Lock, map[locks.Owner]bool{}):
		return locks.Answer{}, nil, fmt.Errorf("lock inode %v: %w", r.Ino, objstore.Deadlock)
	}
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	if t.waiting == nil {
		t.waiting = map[*locks.Request]struct{}{}
	}
	t.waiting[r] = struct{}{}
	return locks.Answer{Holder: holder}, t.changed, nil
}

// leave ends a request's waiting.
func (t *lockTable) leave(r *locks.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, r)
}

// deadlock says whether those who are in the way of a lock wait for self.
func (t *lockTable) deadlock(self locks.Owner, ino objstore.Ino, l locks.Lock, seen map[locks.Owner]bool) bool {
	for _, o := range t.table.Blockers(ino, l) {
		if o == self {
			return true
		}
		if seen[o] {
			continue
		}
		seen[o] = true
		for w := range t.waiting {
			if w.Lock.Owner == o && t.deadlock(self, w.Ino, w.Lock, seen) {
				return true
			}
		}
	}
	return false
}

// waits lists who waits for whom.
func (t *lockTable) waits() (list []locks.Waiting) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range t.waiting {
		if !r.Lock.Owner.Flock {
			list = append(list, locks.Waiting{Owner: r.Lock.Owner, Wait: r.Wait, For: t.table.Blockers(r.Ino, r.Lock)})
		}
	}
	return list
}

// drop takes away a session's locks.
func (t *lockTable) drop(session uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.turns, session)
	if t.table.DropSession(session) {
		t.wake()
	}
}

// assert makes a session's locks those that it says, unless it has said so since.
// Unavailable.
func (t *lockTable) assert(lease objstore.Lease, held []locks.Held) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if lease.Turn < t.turns[lease.Session] {
		return fmt.Errorf("session %d has said since which locks it has: %w", lease.Session, objstore.Unavailable)
	}
	if t.turns == nil {
		t.turns = map[uint64]uint64{}
	}
	t.turns[lease.Session] = lease.Turn
	t.table.DropSession(lease.Session)
	for _, h := range held {
		h.Owner.Session = lease.Session
		t.table.Set(h.Ino, h.Lock)
	}
	t.wake()
	return nil
}

// clear begins a leader's time, or ends it.
func (t *lockTable) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.table, t.turns = locks.Table{}, nil
	t.terms++
	t.wake()
}

func (t *lockTable) term() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.terms
}

// Lock tests, sets or clears a lock of the session of ctx's lease. A request that
// waits is answered as not granted after a while, and is to be made again.
// Deadlock: waiting would never end.
func (o *OSD) Lock(ctx context.Context, pg uint32, r locks.Request) (locks.Answer, error) {
	lease, ok := objstore.LeaseOf(ctx)
	if !ok || r.Lock.Start > r.Lock.End || r.Op < locks.Test || r.Op > locks.Unlock || o.Map().Group(r.Ino.Volume()) != pg {
		return locks.Answer{}, fmt.Errorf("lock inode %v: %w", r.Ino, objstore.Invalid)
	}
	g, err := o.group(pg)
	if err != nil {
		return locks.Answer{}, err
	}
	r.Lock.Owner.Session = lease.Session
	good := func() error {
		if ctx.Err() != nil {
			return fmt.Errorf("lock inode %v: %w: %w", r.Ino, objstore.Unavailable, context.Cause(ctx))
		}
		return o.under(lease)
	}
	give := time.NewTimer(lockWait)
	defer give.Stop()
	defer g.locks.leave(&r)
	for {
		term := g.locks.term()
		if err := o.mayLock(ctx, g, r, lease); err != nil {
			return locks.Answer{}, err
		}
		a, changed, err := g.locks.try(&r, lease.Turn, term, good)
		if err != nil || changed == nil {
			return a, err
		}
		select {
		case <-changed:
		case <-give.C:
			return a, nil
		case <-ctx.Done():
			return a, fmt.Errorf("wait for a lock: %w: %w", objstore.Unavailable, context.Cause(ctx))
		}
	}
}

// mayLock waits until the group's table of locks is one to go by.
func (o *OSD) mayLock(ctx context.Context, g *group, r locks.Request, lease objstore.Lease) error {
	if err := g.confirm(ctx); err != nil {
		return err
	}
	if err := o.hold(ctx, g, r.Ino.Volume()); err != nil {
		return err
	}
	// A next leader must find the session's record, and so wait for it to say
	// which locks it has.
	if err := g.settle(ctx); err != nil {
		return err
	}
	_, err := o.listeners(ctx, g, r.Ino.Volume(), lease.Session)
	return err
}

// Waits lists who waits for whose fcntl locks in the groups that this OSD leads.
func (o *OSD) Waits(context.Context) (list []locks.Waiting, err error) {
	for _, g := range o.hosted() {
		list = append(list, g.locks.waits()...)
	}
	return list, nil
}

// awaitHolders waits until some holder is known better, or for some ticks.
func (o *OSD) awaitHolders(ctx context.Context, ticks int64, changed <-chan struct{}) error {
	t := time.NewTimer(time.Duration(ticks+1) * tickEvery)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
		return fmt.Errorf("wait for clients of the leader before: %w: %w", objstore.Unavailable, context.Cause(ctx))
	}
	return nil
}
