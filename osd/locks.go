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
// has (Hold), or its lease is over.

// lockWait is how long a request waits for a lock before the client asks again.
const lockWait = 2 * time.Second

// lockTable has the locks of a group's volumes. The mutex is a leaf.
type lockTable struct {
	mu      sync.Mutex
	table   locks.Table
	waiting map[*locks.Request]struct{}
	changed chan struct{} // closed when a lock may have become free
}

func (t *lockTable) wake() {
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// try does what can be done at once. wait: the lock is held by another, and
// changed tells when to try again.
func (t *lockTable) try(r locks.Request) (a locks.Answer, wait bool, changed <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.Op == locks.Unlock {
		if t.table.Clear(r.Ino, r.Lock.Owner, r.Lock.Start, r.Lock.End) {
			t.wake()
		}
		return locks.Answer{Granted: true}, false, nil, nil
	}
	holder, conflict := t.table.Conflict(r.Ino, r.Lock)
	switch {
	case !conflict && r.Op == locks.Test:
		return locks.Answer{Granted: true}, false, nil, nil
	case !conflict:
		t.table.Set(r.Ino, r.Lock)
		t.wake() // a write lock may have become a read lock
		return locks.Answer{Granted: true}, false, nil, nil
	case r.Op != locks.Wait:
		return locks.Answer{Holder: holder}, false, nil, nil
	case !r.Lock.Owner.Flock && t.deadlock(r.Lock.Owner, r.Ino, r.Lock, map[locks.Owner]bool{}):
		return locks.Answer{}, false, nil, fmt.Errorf("lock inode %v: %w", r.Ino, objstore.Deadlock)
	}
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return locks.Answer{Holder: holder}, true, t.changed, nil
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

func (t *lockTable) waits(r *locks.Request, yes bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !yes {
		delete(t.waiting, r)
		return
	}
	if t.waiting == nil {
		t.waiting = map[*locks.Request]struct{}{}
	}
	t.waiting[r] = struct{}{}
}

// drop takes away a session's locks.
func (t *lockTable) drop(session uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.table.DropSession(session) {
		t.wake()
	}
}

// assert makes a session's locks those that it says.
func (t *lockTable) assert(session uint64, held []locks.Held) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.table.DropSession(session)
	for _, h := range held {
		h.Owner.Session = session
		t.table.Set(h.Ino, h.Lock)
	}
	t.wake()
}

// clear begins a leader's time, or ends it.
func (t *lockTable) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.table = locks.Table{}
	t.wake()
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
	give := time.NewTimer(lockWait)
	defer give.Stop()
	if r.Op == locks.Wait {
		defer g.locks.waits(&r, false)
	}
	for {
		if err := g.confirm(ctx); err != nil {
			return locks.Answer{}, err
		}
		if _, err := o.hold(ctx, g, r.Ino.Volume()); err != nil {
			return locks.Answer{}, err
		}
		now := o.ticks.Load()
		if _, until, changed := g.holders.others(r.Ino.Volume(), lease.Session, now); until > 0 {
			if err := o.awaitHolders(ctx, until-now, changed); err != nil {
				return locks.Answer{}, err
			}
			continue
		}
		a, wait, changed, err := g.locks.try(r)
		if err != nil || !wait {
			return a, err
		}
		g.locks.waits(&r, true)
		select {
		case <-changed:
		case <-give.C:
			return a, nil
		case <-ctx.Done():
			return a, fmt.Errorf("wait for a lock: %w: %w", objstore.Unavailable, context.Cause(ctx))
		}
	}
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
