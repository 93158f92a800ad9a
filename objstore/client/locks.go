package client

import (
	"context"
	"fmt"
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
}

// of lists the locks in some volumes.
func (h *heldLocks) of(in func(objstore.VolumeID) bool) []locks.Held {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.table.All(func(ino objstore.Ino) bool { return in(ino.Volume()) })
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

// LostLock says whether locks of the inode were lost with the lease, unknown to
// those who had them.
func (c *Client) LostLock(ino objstore.Ino) bool {
	c.locks.mu.Lock()
	defer c.locks.mu.Unlock()
	return c.locks.lost[ino]
}

// ForgetLock ends LostLock: nobody has the inode open any more.
func (c *Client) ForgetLock(ino objstore.Ino) {
	c.locks.mu.Lock()
	defer c.locks.mu.Unlock()
	delete(c.locks.lost, ino)
}

// Lock tests, sets or clears a lock. A request that waits ends with ctx, and
// then leaves the owner what it had. Deadlock.
func (c *Client) Lock(ctx context.Context, r locks.Request) (locks.Answer, error) {
	r.Lock.Owner.Session = c.session.ID
	pg := c.pg(r.Ino)
	for {
		// An answer may be on its way when ctx ends: it is waited for.
		a, err := ask(context.WithoutCancel(ctx), c, pg, func(ctx context.Context, osd OSD) (locks.Answer, error) {
			w, ok := osd.(Watchable)
			if !ok {
				return locks.Answer{}, fmt.Errorf("lock inode %v: the kernel has the locks of this store: %w", r.Ino, objstore.Unsupported)
			}
			return w.Lock(ctx, pg, r)
		})
		if err != nil {
			return a, err
		}
		switch {
		case a.Granted && ctx.Err() != nil && r.Op == locks.Wait:
			return a, c.giveBack(ctx, pg, r)
		case a.Granted && r.Op != locks.Test:
			c.noteLock(r)
			return a, nil
		case a.Granted || r.Op != locks.Wait:
			return a, nil
		case ctx.Err() != nil:
			return a, context.Cause(ctx)
		}
	}
}

func (c *Client) noteLock(r locks.Request) {
	c.locks.mu.Lock()
	defer c.locks.mu.Unlock()
	if r.Op == locks.Unlock {
		c.locks.table.Clear(r.Ino, r.Lock.Owner, r.Lock.Start, r.Lock.End)
	} else {
		c.locks.table.Set(r.Ino, r.Lock)
	}
}

// giveBack undoes a lock that was granted to somebody who waits no more.
func (c *Client) giveBack(ctx context.Context, pg uint32, r locks.Request) error {
	c.locks.mu.Lock()
	before := c.locks.table.Of(r.Ino, r.Lock.Owner)
	c.locks.mu.Unlock()
	undo := []locks.Request{{Op: locks.Unlock, Ino: r.Ino, Lock: r.Lock}}
	for _, l := range before {
		undo = append(undo, locks.Request{Op: locks.Try, Ino: r.Ino, Lock: l})
	}
	for _, u := range undo {
		_, err := ask(context.WithoutCancel(ctx), c, pg, func(ctx context.Context, osd OSD) (locks.Answer, error) {
			return osd.(Watchable).Lock(ctx, pg, u)
		})
		if err != nil {
			return fmt.Errorf("give a lock of inode %v back: %w", r.Ino, err)
		}
	}
	return context.Cause(ctx)
}
