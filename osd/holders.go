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

// holders are a leader's. The mutex comes before a lockTable's and that of the
// subscriptions.
type holders struct {
	mu      sync.Mutex
	known   map[uint64]*holder // all that are in the state
	changed chan struct{}      // closed when some holder is known better
}

type holder struct {
	heard   bool   // it has asked this leader, or said what it has (Hold)
	bye     bool   // it has ended in good order: it knows nothing and has nothing
	removal uint64 // index of the entry that takes it out of the state; others wait for that. 0: none yet
	until   int64  // ticks; when its lease is over if it is not heard
	vols    map[objstore.VolumeID]struct{}
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
		if k.heard && !k.bye {
			sessions = append(sessions, s)
		}
	}
	h.known = nil
	h.wake()
	return sessions
}

// goodbye takes in that a session ended in good order.
func (h *holders) goodbye(session uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := h.known[session]; k != nil && k.heard {
		k.vols, k.bye = nil, true
		h.wake()
	}
}

// standing is what a leader makes of a session.
type standing int

const (
	stranger standing = iota // it has not asked in the group
	unheard                  // it asked an earlier leader, and has not said yet what it has
	over                     // its lease is, or it has said goodbye
	good
)

// standing under mu.
func (h *holders) standing(session uint64, now int64) standing {
	k := h.known[session]
	switch {
	case k == nil:
		return stranger
	case k.bye || k.removal != 0 || !k.heard && now > k.until:
		return over
	case !k.heard:
		return unheard
	}
	return good
}

// note says that a session is about to learn something of a volume, if it may.
func (h *holders) note(session uint64, vol objstore.VolumeID, now int64) standing {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := h.standing(session, now)
	if st == good {
		h.known[session].learn(vol)
	}
	return st
}

func (k *holder) learn(vols ...objstore.VolumeID) {
	if k.vols == nil {
		k.vols = map[objstore.VolumeID]struct{}{}
	}
	for _, v := range vols {
		k.vols[v] = struct{}{}
	}
}

// add takes in a stranger that is about to learn something of a volume.
func (h *holders) add(session uint64, vol objstore.VolumeID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := &holder{heard: true}
	k.learn(vol)
	h.known[session] = k
	h.wake()
}

// resume makes a session one that was heard and must hear of volumes. said is
// called before others go on.
func (h *holders) resume(session uint64, vols []objstore.VolumeID, now int64, said func() error) (standing, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := h.standing(session, now)
	if st != unheard && st != good {
		return st, nil
	}
	if err := said(); err != nil {
		return st, err
	}
	k := h.known[session]
	k.heard = true
	k.learn(vols...)
	h.wake()
	return good, nil
}

// over lists sessions whose record is to go.
func (h *holders) over(now int64, alive func(session uint64) bool) (sessions []uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s, k := range h.known {
		if k.removal == 0 && (k.bye || k.heard && !alive(s) || !k.heard && now > k.until) {
			sessions = append(sessions, s)
		}
	}
	return sessions
}

// removing notes that the entry with this index takes out sessions' records.
func (h *holders) removing(sessions []uint64, index uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range sessions {
		if k := h.known[s]; k != nil {
			k.removal = index
		}
	}
}

// removed lists the sessions that are not in the state any more. done is called
// for each before others go on.
func (h *holders) removed(committed uint64, done func(session uint64)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	any := false
	for s, k := range h.known {
		if k.removal != 0 && k.removal <= committed {
			done(s)
			delete(h.known, s)
			any = true
		}
	}
	if any {
		h.wake()
	}
}

// drop forgets that a session was known.
func (h *holders) drop(session uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.known, session)
	h.wake()
}

// others lists who may know something of a volume, and until when to wait for
// those who may still take something there for their own (0: for none): who has
// not been heard, and who has fallen silent, until its record is gone for good.
// For as long as a next leader can find that record it believes what the session
// says. leads is false when this is no leader any more.
func (h *holders) others(vol objstore.VolumeID, self uint64, now int64, alive func(session uint64) bool) (tell []uint64, until int64, changed <-chan struct{}, leads bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s, k := range h.known {
		switch _, has := k.vols[vol]; {
		case s == self || k.bye:
		case !k.heard:
			until = max(until, k.until, now+1)
		case k.removal != 0 || !alive(s):
			until = max(until, now+1)
		case has:
			tell = append(tell, s)
		}
	}
	return tell, until, h.changed, h.known != nil
}

// under says why a request cannot be served under its lease. Unavailable: the
// stream that it is made under has ended.
func (o *OSD) under(l objstore.Lease) error {
	if s := o.subs.get(l.Session); s == nil || s.id != l.Stream {
		return fmt.Errorf("osd.%d: the stream of session %d has ended: %w", o.opt.ID, l.Session, objstore.Unavailable)
	}
	return nil
}

// hold notes that the request with ctx is about to learn something of a volume
// from the group. Unavailable: the stream that the request is made under has
// ended, or the session has to say first what it has (Hold).
func (o *OSD) hold(ctx context.Context, g *group, vol objstore.VolumeID) error {
	lease, ok := objstore.LeaseOf(ctx)
	if !ok {
		return nil
	}
	if err := o.under(lease); err != nil {
		return err
	}
	now := o.ticks.Load()
	st := g.holders.note(lease.Session, vol, now)
	if st == stranger {
		g.mu.Lock()
		defer g.mu.Unlock()
		if err := g.canLead(); err != nil {
			return err
		}
		st = g.holders.note(lease.Session, vol, now)
	}
	switch st {
	case good:
		return nil
	case stranger:
	default:
		return fmt.Errorf("osd.%d: session %d has not said what it has of placement group %d: %w", o.opt.ID, lease.Session, g.id, objstore.Unavailable)
	}
	// What is answered from here on waits for this entry, too.
	g.holders.add(lease.Session, vol)
	if _, err := g.propose(volume.Delta{{Key: holderKey(lease.Session), Value: []byte{1}}}); err != nil {
		g.holders.drop(lease.Session)
		return err
	}
	return nil
}

// Hold says that the session of ctx's lease has forgotten what another OSD told
// it of a placement group's volumes. known is false when its lease had ended
// before: others may have changed what it took for its own, and it is a stranger
// from now on. Else it hears of changes of vols. held are the locks it has in the
// group. Unavailable: too early to say.
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
	if err := o.under(lease); err != nil {
		return false, err
	}
	st, err := g.holders.resume(lease.Session, vols, o.ticks.Load(), func() error { return g.locks.assert(lease, held) })
	if err != nil {
		return false, err
	}
	if st == over {
		return false, fmt.Errorf("osd.%d: the lease of session %d is being ended: %w", o.opt.ID, lease.Session, objstore.Unavailable)
	}
	g.mu.RLock()
	err, index := g.canLead(), g.executed
	g.mu.RUnlock()
	if err != nil {
		return false, err
	}
	return st == good, g.wait(ctx, index)
}

// tell tells all sessions but self that may know something of a volume what was
// changed, and returns when they have taken it in or their leases are over. busy
// are the inodes of Purged events that some have open.
func (o *OSD) tell(ctx context.Context, g *group, self uint64, p objstore.Push) (busy map[objstore.Ino]bool, err error) {
	if len(p.Events) == 0 {
		return nil, nil
	}
	sessions, err := o.listeners(ctx, g, p.Volume, self)
	if err != nil || len(sessions) == 0 {
		return nil, err
	}
	if busy, err = o.push(ctx, sessions, p); err != nil {
		return nil, err
	}
	_, err = o.listeners(ctx, g, p.Volume, self) // some may have fallen silent instead
	return busy, err
}

// listeners lists the other sessions that may know something of a volume once
// there are none whose lease is ending.
func (o *OSD) listeners(ctx context.Context, g *group, vol objstore.VolumeID, self uint64) ([]uint64, error) {
	for {
		now := o.ticks.Load()
		sessions, until, changed, leads := g.holders.others(vol, self, now, o.subs.alive)
		if leads && until == 0 {
			return sessions, nil
		}
		if leads {
			if err := o.awaitHolders(ctx, until-now, changed); err != nil {
				return nil, err
			}
		}
		g.mu.RLock()
		err := g.canLead()
		g.mu.RUnlock()
		if err != nil {
			return nil, err
		}
	}
}

// push has sessions take in what happened, all at once, and waits for them.
func (o *OSD) push(ctx context.Context, sessions []uint64, p objstore.Push) (busy map[objstore.Ino]bool, err error) {
	type told struct {
		session uint64
		s       *Subscription
		ack     <-chan objstore.Ack
	}
	send := func(session uint64) (told, bool) {
		s := o.subs.get(session)
		if s == nil {
			return told{}, false
		}
		return told{session, s, s.push(p)}, true
	}
	var wait []told
	for _, session := range sessions {
		if t, ok := send(session); ok {
			wait = append(wait, t)
		}
	}
	for len(wait) > 0 {
		t := wait[0]
		select {
		case a := <-t.ack:
			for _, ino := range a.Busy {
				if busy == nil {
					busy = map[objstore.Ino]bool{}
				}
				busy[ino] = true
			}
		case <-t.s.gone: // it may have begun another stream, and pages of before
			if again, ok := send(t.session); ok {
				wait = append(wait, again)
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("tell session %d of a change: %w: %w", t.session, objstore.Unavailable, context.Cause(ctx))
		}
		wait = wait[1:]
	}
	return busy, nil
}

// expireHolders removes the records of sessions that are no more. Called with
// mu held, by the leader's tick.
func (g *group) expireHolders(now int64) error {
	g.holders.removed(g.committed, func(session uint64) {
		g.locks.drop(session)
		g.osd.lookForOrphans(g.id) // what it had open
	})
	over := g.holders.over(now, g.osd.subs.alive)
	if len(over) == 0 {
		return nil
	}
	var delta volume.Delta
	for _, s := range over {
		delta = append(delta, volume.Write{Key: holderKey(s)})
	}
	index, err := g.propose(delta)
	if err != nil {
		g.osd.log.Debug("end leases", "pg", g.id, "err", err) // the next tick tries again, if this member leads then
		return g.err
	}
	g.holders.removing(over, index)
	g.osd.kickSync()
	return nil
}
