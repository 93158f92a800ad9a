package osd

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
	"pillarbox/objstore/volume"
)

// Which clients may know something of a volume is kept by its group's leader, in
// memory: they are told of every change before it returns. That a session has
// asked in a group at all is in the group's state, so that a new leader knows
// for whom to wait: each must say that it has forgotten what it learned from the
// leader before, or its lease must be over (Gray and Cheriton, Leases, 1989).

// holderPrefix begins the keys of sessions that asked; no volume's key does.
const holderPrefix = 0xfd

func holderKey(session uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{holderPrefix}, session)
}

// holders are a leader's. The mutex is a leaf.
type holders struct {
	mu      sync.Mutex
	known   map[uint64]*holder // all that are in the state
	changed chan struct{}      // closed when some holder is known better
}

type holder struct {
	heard bool  // it has asked this leader
	gone  bool  // its stream has ended for good
	until int64 // ticks; when its lease is over if it is not heard
	vols  map[objstore.VolumeID]struct{}
}

// load begins a leader's time with what is in the state.
func (h *holders) load(v volume.View, now int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known = map[uint64]*holder{}
	h.wake()
	return v.Scan([]byte{holderPrefix}, nil, func(key, _ []byte) bool {
		if len(key) == 9 {
			h.known[binary.BigEndian.Uint64(key[1:])] = &holder{until: now + leaseTicks}
		}
		return true
	})
}

func (h *holders) wake() {
	if h.changed != nil {
		close(h.changed)
	}
	h.changed = make(chan struct{})
}

// stepDown lists the sessions to be told that another leads.
func (h *holders) stepDown() (sessions []uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s, k := range h.known {
		if k.heard && !k.gone {
			sessions = append(sessions, s)
		}
	}
	h.known = nil
	h.wake()
	return sessions
}

// forget takes in that a session knows nothing any more.
func (h *holders) forget(session uint64, gone bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := h.known[session]; k != nil && k.heard {
		k.vols, k.gone = nil, gone
		h.wake()
	}
}

// note says that a session is about to learn something of a volume, and whether
// it was in the state before.
func (h *holders) note(session uint64, vol objstore.VolumeID, now int64, record bool) (known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := h.known[session]
	known = k != nil && !k.gone && (k.heard || now <= k.until)
	if !known {
		if !record || h.known == nil {
			return false
		}
		k = &holder{}
		h.known[session] = k
	}
	if !k.heard {
		k.heard = true
		h.wake()
	}
	if k.vols == nil {
		k.vols = map[objstore.VolumeID]struct{}{}
	}
	k.vols[vol] = struct{}{}
	return known
}

// over takes out sessions whose record can go.
func (h *holders) over(now int64) (sessions []uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s, k := range h.known {
		if k.gone || !k.heard && now > k.until {
			sessions = append(sessions, s)
			delete(h.known, s)
		}
	}
	if len(sessions) > 0 {
		h.wake()
	}
	return sessions
}

// drop forgets that a session was known.
func (h *holders) drop(session uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.known, session)
	h.wake()
}

// others lists who may know something of a volume, and until when to wait for
// those who have not been heard yet (0: for none).
func (h *holders) others(vol objstore.VolumeID, self uint64, now int64) (tell []uint64, until int64, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s, k := range h.known {
		switch _, has := k.vols[vol]; {
		case s == self || k.gone:
		case !k.heard && now <= k.until:
			until = max(until, k.until)
		case has:
			tell = append(tell, s)
		}
	}
	return tell, until, h.changed
}

// hold notes that the request with ctx is about to learn something of a volume
// from the group. known: the session had asked in the group before, and its
// lease was not over since. Unavailable: the stream that the request is made
// under has ended.
func (o *OSD) hold(ctx context.Context, g *group, vol objstore.VolumeID) (known bool, err error) {
	lease, ok := objstore.LeaseOf(ctx)
	if !ok {
		return true, nil
	}
	s := o.subs.get(lease.Session)
	if s == nil || s.id != lease.Stream {
		return false, fmt.Errorf("osd.%d: the stream of session %d has ended: %w", o.opt.ID, lease.Session, objstore.Unavailable)
	}
	now := o.ticks.Load()
	if g.holders.note(lease.Session, vol, now, false) {
		return true, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.canLead(); err != nil {
		return false, err
	}
	if g.holders.note(lease.Session, vol, now, true) {
		return true, nil
	}
	// What is answered from here on waits for this entry, too.
	if _, err := g.propose(volume.Delta{{Key: holderKey(lease.Session), Value: []byte{1}}}); err != nil {
		g.holders.drop(lease.Session)
		return false, err
	}
	return false, nil
}

// Hold says that the session of ctx's lease has forgotten what another OSD told
// it of a placement group's volumes. known is false when its lease had ended
// before: others may have changed what it took for its own. From now on it hears
// of changes of vols. held are the locks it has in the group.
func (o *OSD) Hold(ctx context.Context, pg uint32, vols []objstore.VolumeID, held []locks.Held) (known bool, err error) {
	g, err := o.group(pg)
	if err != nil {
		return false, err
	}
	if err := g.confirm(ctx); err != nil {
		return false, err
	}
	lease, ok := objstore.LeaseOf(ctx)
	if !ok {
		return false, fmt.Errorf("no lease: %w", objstore.Invalid)
	}
	g.locks.assert(lease.Session, held) // before others go on
	if known, err = o.hold(ctx, g, objstore.RootVolume); err != nil {
		return false, err
	}
	if !known {
		g.locks.drop(lease.Session)
	}
	for _, v := range vols {
		g.holders.note(lease.Session, v, o.ticks.Load(), false)
	}
	g.mu.RLock()
	err, index := g.canLead(), g.executed
	g.mu.RUnlock()
	if err != nil {
		return false, err
	}
	return known, g.wait(ctx, index)
}

// tell tells all other sessions that may know something of a volume what was
// changed, and returns when they have taken it in or their leases are over. busy
// are the inodes of Purged events that some have open.
func (o *OSD) tell(ctx context.Context, g *group, vol objstore.VolumeID, self uint64, events []objstore.Event) (busy map[objstore.Ino]bool, err error) {
	if len(events) == 0 {
		return nil, nil
	}
	for {
		now := o.ticks.Load()
		sessions, until, changed := g.holders.others(vol, self, now)
		if until == 0 {
			return o.push(ctx, g, vol, sessions, events)
		}
		if err := o.awaitHolders(ctx, until-now, changed); err != nil {
			return nil, err
		}
		g.mu.RLock()
		err := g.canLead()
		g.mu.RUnlock()
		if err != nil {
			return nil, err
		}
	}
}

func (o *OSD) push(ctx context.Context, g *group, vol objstore.VolumeID, sessions []uint64, events []objstore.Event) (busy map[objstore.Ino]bool, err error) {
	type told struct {
		s   *Subscription
		seq uint64
		ack <-chan objstore.Ack
	}
	var wait []told
	for _, session := range sessions {
		if s := o.subs.get(session); s != nil {
			seq, ack := s.push(objstore.Push{Volume: vol, Events: events})
			wait = append(wait, told{s, seq, ack})
		}
	}
	for _, t := range wait {
		select {
		case a := <-t.ack:
			for _, ino := range a.Busy {
				if busy == nil {
					busy = map[objstore.Ino]bool{}
				}
				busy[ino] = true
			}
		case <-t.s.gone:
		case <-ctx.Done():
			err = fmt.Errorf("tell session %d of a change: %w: %w", t.s.session, objstore.Unavailable, context.Cause(ctx))
			t.s.giveUp(t.seq)
		}
	}
	return busy, err
}

// expireHolders removes the records of sessions that are no more. Called with
// mu held, by the leader's tick.
func (g *group) expireHolders(now int64) error {
	over := g.holders.over(now)
	if len(over) == 0 {
		return nil
	}
	var delta volume.Delta
	for _, s := range over {
		delta = append(delta, volume.Write{Key: holderKey(s)})
	}
	if _, err := g.propose(delta); err != nil {
		return err
	}
	for _, s := range over {
		g.locks.drop(s)
	}
	return nil
}
