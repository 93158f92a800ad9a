package osd

import (
	"context"
	"time"
)

// lazySync is how long a change nobody waits for may stay unsynced.
const lazySync = 20 * time.Millisecond

// notePending remembers that a group waits for the log to be durable.
func (o *OSD) notePending(g *group) {
	o.pendMu.Lock()
	o.pending[g] = struct{}{}
	o.pendMu.Unlock()
}

// kickSync asks for a sync now; kicks while one runs share the next.
func (o *OSD) kickSync() { kick(o.syncNow) }

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// syncForMe syncs in the caller's goroutine if nobody does so right now, which
// spares a lone writer two changes of thread; else the loop does it next.
func (o *OSD) syncForMe() {
	if o.syncing.TryLock() {
		o.syncOnce()
		o.syncing.Unlock()
		return
	}
	o.kickSync()
}

// syncLoop makes the log durable, at once when somebody waits, else lazily, and
// tells the groups, which commits their entries.
func (o *OSD) syncLoop(ctx context.Context) error {
	tick := time.NewTicker(lazySync)
	defer tick.Stop()
	for {
		select {
		case <-o.syncNow:
		case <-tick.C:
			if !o.anyPending() {
				continue
			}
		case <-ctx.Done():
			return nil
		}
		o.syncing.Lock()
		o.syncOnce()
		o.syncing.Unlock()
	}
}

func (o *OSD) anyPending() bool {
	o.pendMu.Lock()
	defer o.pendMu.Unlock()
	return len(o.pending) > 0
}

// syncOnce syncs and tells the groups. Under syncing.
func (o *OSD) syncOnce() {
	lsn, err := o.wal.Sync(o.wal.End())
	o.pendMu.Lock()
	todo := o.pending
	o.pending = make(map[*group]struct{}, len(todo))
	o.pendMu.Unlock()
	for g := range todo {
		if err != nil {
			g.mu.Lock()
			g.fail(err)
			g.mu.Unlock()
			continue
		}
		g.synced(lsn)
	}
}
