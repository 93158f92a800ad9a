package client

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
)

// heldLocks are the locks that this client was granted, to be told to a new
// leader. The mutex is a leaf.
type heldLocks struct {
	mu    sync.Mutex
	table locks.Table
	lost  map[objstore.Ino]bool // had locks when the lease was over
	turn  uint64                // of telling any leader
	turns map[uint32]uint64     // by placement group: the last
	waits uint64
}

// say lists the locks in a placement group to be told to its leader. What was
// asked for in an earlier turn, and not noted yet, must be asked for again.
func (h *heldLocks) say(pg uint32, in func(objstore.VolumeID) bool) (turn uint64, held []locks.Held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.turns == nil {
		h.turns = map[uint32]uint64{}
	}
	h.turn++
	h.turns[pg] = h.turn
	return h.turn, h.table.All(func(ino objstore.Ino) bool { return in(ino.Volume()) })
}

func (h *heldLocks) turnOf(pg uint32) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.turns[pg]
}

// note takes in what was granted in a turn. False: that turn is over, and the
// leader of now may not know of it.
func (h *heldLocks) note(pg uint32, turn uint64, r locks.Request) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.turns[pg] != turn {
		return false
	}
	h.table.Set(r.Ino, r.Lock)
	return true
}

func (h *heldLocks) clear(r locks.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.table.Clear(r.Ino, r.Lock.Owner, r.Lock.Start, r.Lock.End)
}

func (h *heldLocks) of(r locks.Request) []locks.Lock {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.table.Of(r.Ino, r.Lock.Owner)
}

func (h *heldLocks) nextWait() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waits++
	return h.waits
}

// lose notes that the locks in some volumes may be others' by now.
func (h *heldLocks) lose(in func(objstore.VolumeID) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.table.All(func(ino objstore.Ino) bool { return in(ino.Volume()) }) {
		if h.lost == nil {
			h.lost = map[objstore.Ino]bool{}
		}
		h.lost[l.Ino] = true
		h.table.Clear(l.Ino, l.Owner, l.Start, l.End)
	}
}

// Locked says whether this client has a lock of the inode.
func (c *Client) Locked(ino objstore.Ino) bool {
	c.locks.mu.Lock()
	defer c.locks.mu.Unlock()
	return c.locks.table.Any(ino)
}

// found ends LostLock: those who had locks in some volumes know.
func (h *heldLocks) found(in func(objstore.VolumeID) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.lost, func(ino objstore.Ino, _ bool) bool { return in(ino.Volume()) })
}

// LostLock says, while the Watcher is told that a lease was over, whether locks
// of the inode were lost with it.
func (c *Client) LostLock(ino objstore.Ino) bool {
	c.locks.mu.Lock()
	defer c.locks.mu.Unlock()
	return c.locks.lost[ino]
}

// Lock tests, sets or clears a lock. A request that waits ends with ctx, and
// then leaves the owner what it had. Deadlock.
func (c *Client) Lock(ctx context.Context, r locks.Request) (locks.Answer, error) {
	r.Lock.Owner.Session = c.session.ID
	pg := c.pg(r.Ino)
	if r.Op == locks.Wait {
		r.Wait = c.locks.nextWait()
	}
	if err := c.convert(ctx, pg, r); err != nil {
		return locks.Answer{}, err
	}
	if r.Op == locks.Unlock {
		c.locks.clear(r) // whatever comes, no leader is told of it any more
	}
	if r.Op == locks.Wait && !r.Lock.Owner.Flock {
		var stop context.CancelFunc
		ctx, stop = c.untilDeadlock(ctx, r)
		defer stop()
	}
	for {
		a, err := c.tryLock(ctx, pg, r)
		if err != nil || a.Granted || r.Op != locks.Wait {
			return a, err
		}
	}
}

// tryLock asks the leader once, and takes note of what it grants. When an answer
// does not come, or nobody waits for it any more, the leader is told anew which
// locks there are: what was asked for before comes too late from then on.
func (c *Client) tryLock(ctx context.Context, pg uint32, r locks.Request) (locks.Answer, error) {
	if r.Op != locks.Wait {
		ctx = context.WithoutCancel(ctx)
	}
	for {
		var turn uint64
		unsure := false // an attempt got no answer: it may yet be carried out
		a, err := ask(ctx, c, pg, func(ctx context.Context, osd OSD) (locks.Answer, error) {
			w, ok := osd.(Watchable)
			if !ok {
				return locks.Answer{}, fmt.Errorf("lock inode %v: the kernel has the locks of this store: %w", r.Ino, objstore.Unsupported)
			}
			lease, _ := objstore.LeaseOf(ctx)
			turn = lease.Turn
			a, err := w.Lock(ctx, pg, r)
			unsure = unsure || err != nil && kindOf(err) == objstore.Unavailable
			return a, err
		})
		switch {
		case ctx.Err() != nil:
			c.sayLocksAgain(pg)
			return locks.Answer{}, context.Cause(ctx)
		case err != nil:
			if kindOf(err) == objstore.Unavailable && r.Op != locks.Test {
				c.sayLocksAgain(pg)
			}
			return a, err
		case !a.Granted || r.Op == locks.Test || r.Op == locks.Unlock || c.locks.note(pg, turn, r):
			if unsure && r.Op != locks.Test {
				c.sayLocksAgain(pg) // else it could undo what the owner asks for next
			}
			return a, nil
		}
	}
}

// sayLocksAgain has the leader of a placement group told which locks there are
// before it is asked anything else.
func (c *Client) sayLocksAgain(pg uint32) {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	if s := c.watch.holding(pg).from; s != nil {
		s.lost[pg]++
		c.resumeLater([]uint32{pg})
	}
}

// convert lets a lock of flock(2) go before one of the other kind is asked for,
// as the system call does: two who have it to read and wait to write would wait
// for ever.
func (c *Client) convert(ctx context.Context, pg uint32, r locks.Request) error {
	if !r.Lock.Owner.Flock || r.Op != locks.Try && r.Op != locks.Wait {
		return nil
	}
	for _, l := range c.locks.of(r) {
		if l.Write == r.Lock.Write {
			continue
		}
		u := locks.Request{Op: locks.Unlock, Ino: r.Ino, Lock: l}
		c.locks.clear(u)
		if _, err := c.tryLock(ctx, pg, u); err != nil {
			return err
		}
	}
	return nil
}
