package osd

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"pillarbox/objstore"
)

// tickEvery is raft's unit of time.
const tickEvery = 100 * time.Millisecond

// Map is the cluster map the OSD goes by.
func (o *OSD) Map() *objstore.Map { return o.cmap.Load() }

// SetMap gives the OSD a newer cluster map; an older one is passed over.
func (o *OSD) SetMap(m *objstore.Map) error {
	if have := o.Map(); m.FSID != have.FSID {
		return fmt.Errorf("osd.%d: a map of store %s, not of %s: %w", o.opt.ID, m.FSID, have.FSID, objstore.Invalid)
	}
	for {
		have := o.cmap.Load()
		if m.Epoch <= have.Epoch {
			return nil
		}
		if o.cmap.CompareAndSwap(have, m) {
			break
		}
	}
	kick(o.recovery.now)
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	if o.flushErr != nil {
		return o.flushErr
	}
	return o.record(nil)
}

// started is the zero of times that must not jump as the clock may.
var started = time.Now()

// stallTime is how long time may stand still in the groups without anybody having
// to mind: less than the others take to have another leader.
const stallTime = 1500 * time.Millisecond

// stalled says that time stands still in the groups, as when a disk hangs: others may
// lead them since, and nobody here steps down.
func (o *OSD) stalled() bool { return int64(time.Since(started))-o.ticked.Load() > int64(stallTime) }

// tickLoop drives time in all groups.
func (o *OSD) tickLoop(ctx context.Context) error {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		o.ticked.Store(int64(time.Since(started)))
		now, m := o.ticks.Add(1), o.Map()
		o.lapse(now)
		for _, g := range o.hosted() {
			g.mu.Lock()
			err := g.tick(m, now)
			g.mu.Unlock()
			if err != nil {
				continue // sticks to the group
			}
			o.leaveIfGone(ctx, g, m, now)
		}
	}
}

// Step takes in raft's messages from another OSD. Those of a group that this
// one has no replica of make it a new member, if its leader says so.
func (o *OSD) Step(ctx context.Context, from int, ms []RaftMessage) error {
	var errs error // of the first bad one; the others may be of other groups
	for _, m := range ms {
		if err := o.stepOne(ctx, from, m); err != nil && errs == nil {
			errs = err
		}
	}
	return errs
}

func (o *OSD) stepOne(ctx context.Context, from int, m RaftMessage) error {
	if m.Msg == nil || m.Msg.GetFrom() != memberID(from) || m.Msg.GetTo() != o.member() || raft.IsLocalMsg(m.Msg.GetType()) && m.Msg.GetType() != raftpb.MsgSnapStatus {
		return fmt.Errorf("raft message %v from osd.%d that is none: %w", m.Msg.GetType(), from, objstore.Invalid)
	}
	g, err := o.groupFor(m.PG, m.Msg)
	if g != nil {
		g.step(ctx, m.Msg)
	}
	return err
}

// groupFor is the group a message is for; nil when there is none and the message
// is no reason to make one.
func (o *OSD) groupFor(pg uint32, m *raftpb.Message) (*group, error) {
	if int(pg) >= len(o.groups) {
		return nil, fmt.Errorf("placement group %d of %d: %w", pg, len(o.groups), objstore.Invalid)
	}
	if g := o.groups[pg].Load(); g != nil {
		return g, nil
	}
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap:
	default:
		return nil, nil
	}
	o.makeMu.Lock()
	defer o.makeMu.Unlock()
	if g := o.groups[pg].Load(); g != nil {
		return g, nil
	}
	g, err := newGroup(o, pg, groupRecord{term: o.terms[pg], members: &raftpb.ConfState{}})
	if err != nil {
		return nil, err
	}
	if err := g.start(); err != nil {
		return nil, err
	}
	o.groups[pg].Store(g)
	o.log.Info("a new replica", "pg", pg)
	return g, nil
}

// step passes a message to raft. What raft refuses is dropped, as the network
// might have done.
func (g *group) step(ctx context.Context, m *raftpb.Message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil || g.rn == nil {
		return
	}
	g.lastHeard = g.osd.ticks.Load()
	switch m.GetType() {
	case raftpb.MsgSnap:
		g.osd.startPull(g, m)
		return
	case raftpb.MsgHeartbeat:
		if g.last == 0 && m.GetCommit() > 0 {
			g.osd.startPull(g, m) // it had a log once, as its leader knows, and lost it
			return
		}
		fallthrough
	case raftpb.MsgVote, raftpb.MsgPreVote:
		if g.last == 0 && m.GetType() != raftpb.MsgHeartbeat {
			return // without a log it does not know what it may have promised before
		}
		fallthrough
	default: // raft's own
		if err := g.rn.Step(m); err != nil {
			g.osd.log.Debug("raft message", "pg", g.id, "type", m.GetType(), "err", err)
			return
		}
	case raftpb.MsgSnapStatus:
		g.rn.ReportSnapshot(m.GetFrom(), raft.SnapshotFailure)
	}
	g.process() // a failure sticks to the group
}

// PeerLost says that another OSD's process is gone: its connections broke and
// it takes no new ones.
func (o *OSD) PeerLost(id int) {
	for _, g := range o.hosted() {
		if err := g.peerLost(memberID(id)); err != nil {
			o.log.Warn("a peer is lost", "peer", id, "pg", g.id, "err", err)
		}
	}
}

// hosted lists the groups that this OSD has a replica of.
func (o *OSD) hosted() []*group {
	out := make([]*group, 0, len(o.groups))
	for i := range o.groups {
		if g := o.groups[i].Load(); g != nil {
			out = append(out, g)
		}
	}
	return out
}

// group finds a placement group. A LeaderError when this OSD has no replica.
func (o *OSD) group(id uint32) (*group, error) {
	if int(id) >= len(o.groups) {
		return nil, fmt.Errorf("placement group %d of %d: %w", id, len(o.groups), objstore.Invalid)
	}
	if g := o.groups[id].Load(); g != nil {
		return g, nil
	}
	return nil, &objstore.LeaderError{PG: id, Leader: -1}
}

// leading finds a placement group that this OSD leads; its mu is held shared
// then, and unlock ends that.
func (o *OSD) leading(id uint32) (g *group, unlock func(), err error) {
	if g, err = o.group(id); err != nil {
		return nil, nil, err
	}
	g.mu.RLock()
	if err = g.canLead(); err != nil {
		g.mu.RUnlock()
		return nil, nil, err
	}
	return g, g.mu.RUnlock, nil
}

func (g *group) canLead() error {
	switch {
	case g.err != nil:
		return g.err
	case !g.leads:
		return g.elsewhere()
	}
	return nil
}

// Stats are what an OSD tells of itself.
type Stats struct {
	Epoch     uint64 // of the map that it goes by
	Groups    int    // replicas of placement groups
	Leads     int    // of those, it leads
	Degraded  int    // of those it leads, lack a live voter that the map wants
	Missing   int    // replicas of chunks that recovery has found lacking and not made yet
	Lost      int    // of these, shards that nobody has
	Copied    int    // replicas of chunks that recovery has made in this run
	Moved     int64  // bytes of these
	Seen      int    // chunks that recovery has been through in the pass under way
	Bad       int    // chunks that the last scrub found damaged and could not heal
	Unchecked bool   // recovery has not been through all chunks since the map changed
}

// Stats counts.
func (o *OSD) Stats() (s Stats) {
	m := o.Map()
	s.Epoch, s.Unchecked = m.Epoch, o.recovery.checked.Load() < m.Epoch
	s.Bad = o.lastScrub().Bad
	s.Moved, s.Seen = o.recovery.bytes.Load(), int(o.recovery.seen.Load())
	s.Lost = int(o.recovery.lost.Load())
	s.Missing, s.Copied = int(o.recovery.missing.Load()), int(o.recovery.copied.Load())
	for _, g := range o.hosted() {
		s.Groups++
		want := m.Acting(m.Meta(), g.id)
		g.mu.RLock()
		if g.leads {
			s.Leads++
			alive := 0
			g.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
				if !p.IsLearner && (id == o.member() || p.RecentActive) && slices.Contains(want, osdID(id)) {
					alive++
				}
			})
			if alive < len(want) {
				s.Degraded++
			}
		}
		g.mu.RUnlock()
	}
	return s
}
