package osd

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"pillarbox/objstore"
	"pillarbox/osd/wal"
)

func memberID(osd int) uint64 { return uint64(osd) + 1 } // raft's ids are never 0

func osdID(member uint64) int { return int(member) - 1 } // -1: none

// soleVoter says whether the group needs nobody else to decide.
func (g *group) soleVoter() bool {
	m := g.members
	return len(m.GetVoters()) == 1 && m.GetVoters()[0] == g.osd.member() && len(m.GetVotersOutgoing()) == 0
}

// elsewhere is the answer to what only the leader can do.
func (g *group) elsewhere() error {
	leader := osdID(g.leader)
	if leader == g.osd.opt.ID {
		leader = -1 // soon, or no longer
	}
	return &objstore.LeaderError{PG: g.id, Leader: leader}
}

// send hands a message to another member. A snapshot carries no state: its
// receiver pulls that.
func (g *group) send(m *raftpb.Message) {
	if peers := g.osd.opt.Peers; peers != nil {
		peers.Send(osdID(m.GetTo()), []RaftMessage{{PG: g.id, Msg: m}})
	}
}

// noteRole takes in that raft's role changed. Called with mu held.
func (g *group) noteRole(s *raft.SoftState) {
	was := g.role
	g.role, g.leader = s.RaftState, s.Lead
	if g.leader != 0 {
		g.hurry = 0
	}
	switch {
	case g.role == raft.StateLeader && was != raft.StateLeader:
		g.barrier = g.last + 1 // the entry a new leader begins with
	case g.role != raft.StateLeader && was == raft.StateLeader:
		g.stepDown()
	}
}

// noteLeads makes a new leader serve, once what earlier leaders logged is
// committed, and so in the state. Called with mu held.
func (g *group) noteLeads() {
	if g.role != raft.StateLeader || g.leads || g.committed < g.barrier {
		return
	}
	if err := errors.Join(g.seen.load(&g.st), g.holders.load(&g.st, g.osd.ticks.Load())); err != nil {
		g.fail(fmt.Errorf("group %d: %w", g.id, err))
		return
	}
	g.leads = true
	select {
	case <-g.led:
	default:
		close(g.led)
	}
	g.osd.ledNow(g)
}

// stepDown undoes what this member executed as leader and nobody committed, and
// sends those who wait for it to the next leader. Called with mu held.
func (g *group) stepDown() {
	g.leads = false
	g.locks.clear()
	for _, session := range g.holders.stepDown() {
		if s := g.osd.subs.get(session); s != nil {
			s.send(Pushed{Lost: []uint32{g.id}})
		}
	}
	for _, w := range g.waiters {
		w.done <- g.elsewhere()
	}
	g.waiters = nil
	g.reads.fail(g.elsewhere())
	g.room.Broadcast()
	if g.executed > g.committed {
		if err := g.rebuild(); err != nil {
			g.fail(fmt.Errorf("group %d: undo what was not committed: %w", g.id, err))
		}
	}
}

// rebuild makes the state again as of the last committed entry: the layers that
// know more are dropped and the log is executed anew.
func (g *group) rebuild() error {
	drop := func(l *layer) { g.osd.unflushed.Add(-int64(l.meta + l.bodies)) }
	from := g.hard.applied
	drop(g.st.active)
	if f := g.st.frozen; f != nil {
		if f.last <= g.committed {
			from = f.last
		} else {
			drop(f)
			g.st.frozen = nil // the flush under way notices
			g.hardDirty = true
		}
	}
	g.st.active = &layer{}
	g.executed = from
	if from >= g.committed {
		return nil
	}
	entries, err := g.storage.Entries(from+1, g.committed+1, 1<<62)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := g.execute(e); err != nil {
			return err
		}
	}
	return nil
}

// changeMembers carries out a committed change of the members. It is durable
// before it has any effect: a member that woke up among the members of long ago
// could decide with those alone.
func (g *group) changeMembers(e *raftpb.Entry) error {
	if e.GetType() != raftpb.EntryConfChangeV2 || e.GetIndex() <= g.hard.membersIndex {
		return nil
	}
	cc := &raftpb.ConfChangeV2{}
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return fmt.Errorf("change of members in entry %d: %w: %w", e.GetIndex(), objstore.Corrupt, err)
	}
	g.members = g.rn.ApplyConfChange(cc)
	g.hard.members, g.hard.membersIndex = g.members, e.GetIndex()
	g.hardDirty = true
	lsn, err := g.osd.wal.Append(wal.Record{Group: g.id, Type: recMembers, Payload: encodeMembers(g.members, e.GetIndex())})
	if err == nil {
		_, err = g.osd.wal.Sync(lsn)
	}
	if err != nil {
		return err
	}
	g.osd.log.Info("members changed", "pg", g.id, "voters", osdIDs(g.members.GetVoters()), "outgoing", osdIDs(g.members.GetVotersOutgoing()), "learners", osdIDs(g.members.GetLearners()))
	return nil
}

func osdIDs(members []uint64) []int {
	out := make([]int, len(members))
	for i, m := range members {
		out[i] = osdID(m)
	}
	slices.Sort(out)
	return out
}

// tick passes a tick of time on to raft, and brings the members nearer to what
// the cluster map wants. Called with mu held.
func (g *group) tick(m *objstore.Map, now int64) error {
	if g.rn == nil || g.err != nil {
		return g.err
	}
	g.rn.Tick()
	if g.hurry > 0 {
		if g.hurry--; g.hurry == 0 && g.role != raft.StateLeader {
			if err := g.rn.Campaign(); err != nil {
				return err
			}
		}
	}
	if err := g.process(); err != nil {
		return err
	}
	if g.leads {
		if err := g.expireHolders(now); err != nil {
			return err
		}
	}
	// Groups take turns: each looks at its members about once a second.
	if (now+int64(g.id))%10 != 0 || g.role != raft.StateLeader {
		return nil
	}
	// Before it leads, too: it may need the very members that lack its state.
	g.retrySnapshots()
	if g.leads {
		g.reconfigure(m)
		if old := g.seen.silent(now); len(old) > 0 {
			if _, err := g.propose(old); err != nil {
				return err
			}
		}
		g.seen.expire(now)
	}
	return g.process()
}

// peerLost takes in that another member is dead: its groups elect a new leader
// at once, the members one after the other so that one of them wins.
func (g *group) peerLost(peer uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rn == nil || g.err != nil {
		return nil
	}
	if g.role == raft.StateLeader {
		g.rn.ReportUnreachable(peer)
		if g.progress(peer).State == tracker.StateSnapshot {
			g.rn.ReportSnapshot(peer, raft.SnapshotFailure)
		}
		return g.process()
	}
	if g.leader != peer {
		return nil
	}
	if err := g.rn.ForgetLeader(); err != nil {
		return err
	}
	rank := 0
	for _, v := range g.members.GetVoters() {
		if v != peer && (v^uint64(g.id)) < (g.osd.member()^uint64(g.id)) {
			rank++
		}
	}
	if slices.Contains(g.members.GetVoters(), g.osd.member()) {
		g.hurry = 1 + 4*rank
	}
	return g.process()
}

// retrySnapshots offers the state anew to members that should be pulling it and
// are not: they failed to, or the log has moved on since they had it.
func (g *group) retrySnapshots() {
	if len(g.pinned) > 0 {
		return
	}
	var stuck []uint64
	g.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if p.State == tracker.StateSnapshot {
			stuck = append(stuck, id)
		}
	})
	for _, id := range stuck {
		g.rn.ReportSnapshot(id, raft.SnapshotFailure)
	}
}

// progress is how far a member has come, as its leader knows.
func (g *group) progress(member uint64) (found tracker.Progress) {
	g.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if id == member {
			found = p
		}
	})
	return found
}

// caughtUp is how many entries a learner may lack to become a voter.
const caughtUp = 64

// reconfigure proposes the next step towards the members that CRUSH wants:
// newcomers learn first, then one joint change swaps the voters, and the lead
// goes to the first OSD of the group that is up. Called with mu held, by the
// leader's tick.
func (g *group) reconfigure(m *objstore.Map) {
	if len(g.members.GetVotersOutgoing()) > 0 {
		return // a change is under way
	}
	var want []uint64
	for _, id := range m.Acting(m.Meta(), g.id) {
		want = append(want, memberID(id))
	}
	if len(want) == 0 {
		return
	}
	voters, learners := g.members.GetVoters(), g.members.GetLearners()
	var cc raftpb.ConfChangeV2
	change := func(t raftpb.ConfChangeType, id uint64) {
		cc.Changes = append(cc.Changes, &raftpb.ConfChangeSingle{Type: t.Enum(), NodeId: &id})
	}
	ready := true
	for _, id := range want {
		switch {
		case slices.Contains(voters, id):
		case !slices.Contains(learners, id):
			if o := m.OSD(osdID(id)); o == nil || !o.Up || m.NoBackfill(o.ID) {
				ready = false // it would only be missed, or filled
				continue
			}
			change(raftpb.ConfChangeAddLearnerNode, id)
		default:
			p := g.progress(id)
			ready = ready && p.State == tracker.StateReplicate && p.Match+caughtUp >= g.last && p.RecentActive
		}
	}
	for _, id := range learners {
		if !slices.Contains(want, id) {
			change(raftpb.ConfChangeRemoveNode, id)
		}
	}
	switch {
	case len(cc.Changes) > 0:
	case !ready:
		return
	default:
		for _, id := range want {
			if !slices.Contains(voters, id) {
				change(raftpb.ConfChangeAddNode, id)
			}
		}
		for _, id := range voters {
			if !slices.Contains(want, id) {
				change(raftpb.ConfChangeRemoveNode, id)
			}
		}
	}
	if len(cc.Changes) == 0 {
		g.handOver(m, want)
		return
	}
	if !slices.Contains(want, g.osd.member()) && slices.ContainsFunc(cc.Changes, func(c *raftpb.ConfChangeSingle) bool {
		return c.GetType() == raftpb.ConfChangeRemoveNode && c.GetNodeId() == g.osd.member()
	}) {
		// The leader leaves last: somebody who stays carries out the change, if
		// there is one already.
		if g.handOver(m, slices.DeleteFunc(slices.Clone(want), func(id uint64) bool { return !slices.Contains(voters, id) })) {
			return
		}
	}
	if err := g.rn.ProposeConfChange(&cc); err != nil {
		g.osd.log.Debug("change of members not proposed", "pg", g.id, "err", err)
	}
}

// handOver gives the lead to the first of the wanted members that can take it,
// if that is not this one.
func (g *group) handOver(m *objstore.Map, want []uint64) bool {
	for _, id := range want {
		if id == g.osd.member() {
			return false
		}
		o := m.OSD(osdID(id))
		if o == nil || !o.Up {
			continue
		}
		if p := g.progress(id); p.State == tracker.StateReplicate && p.RecentActive && p.Match+caughtUp >= g.last {
			g.rn.TransferLeader(id)
			return true
		}
	}
	return false
}
