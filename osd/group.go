package osd

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
	"pillarbox/osd/wal"
)

// entryVersion begins the data of every raft entry that carries a delta.
const entryVersion = 1

// maxScratch is the largest buffer that a group keeps between proposals, in bytes.
const maxScratch = 256 << 10

// A group is one placement group's replica: a raft member whose log holds
// deltas and whose state is the keys of the group's volumes. Its leader works
// out a change against the state including what is not committed yet, logs what
// the change did, and applies that at once, so that the order of changes is the
// order of the log.
type group struct {
	id  uint32
	osd *OSD

	// mu guards everything below. Reads of the state hold it shared. Lock order:
	// group.mu before OSD.pendMu and the chunk table's mu; never two groups at once.
	mu      sync.RWMutex
	room    *sync.Cond // on mu: a flush made room
	rn      *raft.RawNode
	storage *raft.MemoryStorage
	st      state

	last      uint64        // index of the last log entry
	logged    wal.LSN       // where the last record of this run ends in the write-ahead log
	catch     uint64        // index that a proposal under way is about to get
	caught    *raftpb.Entry // what it became
	scratch   []byte        // of propose
	executed  uint64        // entries up to here are in the state
	committed uint64
	term      uint64 // of the last entry
	hard      groupRecord
	hardDirty bool // term or vote changed since the last flush
	waiters   []waiter
	unsynced  []unsynced
	tail      []place // of entries that are not in the state
	err       error   // sticky

	// The group among its peers (members.go).
	role      raft.StateType
	leader    uint64        // raft id; 0: unknown
	leads     bool          // leader, and all that earlier leaders committed is executed
	barrier   uint64        // index at which a new leader leads
	led       chan struct{} // closed once it has led
	members   *raftpb.ConfState
	hurry     int  // ticks until standing for election, the leader being dead; 0: no
	pulling   bool // the state is on its way here from the leader
	pinned    map[*pin]struct{}
	reads     readQueue
	seen      sessions
	holders   holders
	locks     lockTable
	lastHeard int64 // ticks of the OSD when the last message came; of a follower
}

// waiter wants to know when an index is committed.
type waiter struct {
	index uint64
	done  chan error
}

// place is where an entry lies in the write-ahead log.
type place struct {
	index uint64
	lsn   wal.LSN
}

// unsynced are raft's messages to itself that wait for the log to be durable up to lsn.
type unsynced struct {
	lsn       wal.LSN
	responses []*raftpb.Message
}

func newGroup(o *OSD, id uint32, rec groupRecord) (*group, error) {
	g := &group{id: id, osd: o, storage: raft.NewMemoryStorage(), led: make(chan struct{}), pinned: map[*pin]struct{}{}, lastHeard: o.ticks.Load()}
	g.room = sync.NewCond(&g.mu)
	g.hard, g.members = rec, rec.members
	g.executed, g.committed, g.last, g.term = rec.applied, rec.applied, rec.applied, rec.appliedTerm
	g.st = state{group: id, active: &layer{}, base: o.flushed()}
	if rec.applied == 0 {
		return g, nil // a new member: it gets everything from the leader
	}
	err := g.storage.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: proto.Uint64(rec.applied), Term: proto.Uint64(rec.appliedTerm), ConfState: rec.members,
	}})
	if err != nil {
		return nil, fmt.Errorf("group %d: %w", id, err)
	}
	return g, nil
}

// replayRecord takes in one record of the write-ahead log at start.
func (g *group) replayRecord(lsn wal.LSN, r wal.Record) error {
	switch r.Type {
	case recHardState:
		if len(r.Payload) != 16 {
			return fmt.Errorf("group %d: hard state of %d bytes: %w", g.id, len(r.Payload), objstore.Corrupt)
		}
		g.hard.term = binary.BigEndian.Uint64(r.Payload)
		g.hard.vote = binary.BigEndian.Uint64(r.Payload[8:])
		g.hardDirty = true
	case recMembers:
		members, index, err := decodeMembers(r.Payload)
		if err != nil {
			return fmt.Errorf("group %d: %w", g.id, err)
		}
		if index > g.hard.membersIndex {
			g.members, g.hard.members, g.hard.membersIndex = members, members, index
			g.hardDirty = true
		}
	case recEntry:
		e, err := decodeEntry(r.Payload)
		if err != nil {
			return fmt.Errorf("group %d: %w", g.id, err)
		}
		if e.GetIndex() <= g.hard.applied {
			return nil // a flush has it
		}
		if e.GetIndex() > g.last+1 {
			return fmt.Errorf("group %d: entry %d follows %d: %w", g.id, e.GetIndex(), g.last, objstore.Corrupt)
		}
		if err := g.storage.Append([]*raftpb.Entry{e}); err != nil {
			return fmt.Errorf("group %d: entry %d: %w", g.id, e.GetIndex(), err)
		}
		g.last, g.term = e.GetIndex(), e.GetTerm()
		g.noteTail(g.last, lsn)
	default:
		return fmt.Errorf("group %d: log record of unknown type %d: %w", g.id, r.Type, objstore.Corrupt)
	}
	return nil
}

// Time in ticks of tickEvery: a follower that hears nothing from its leader for
// one to two election times stands for election itself. A killed leader is known
// at once by its connections (OSD.PeerLost).
const (
	electionTicks  = 20
	heartbeatTicks = 4
)

// start makes the raft member. The only voter stands for election at once.
func (g *group) start() error {
	hs := &raftpb.HardState{Term: proto.Uint64(g.hard.term), Vote: proto.Uint64(g.hard.vote), Commit: proto.Uint64(g.hard.applied)}
	if err := g.storage.SetHardState(hs); err != nil {
		return fmt.Errorf("group %d: %w", g.id, err)
	}
	rn, err := raft.NewRawNode(&raft.Config{
		ID: g.osd.member(), ElectionTick: electionTicks, HeartbeatTick: heartbeatTicks, Storage: initial{g.storage, g.members}, Applied: g.hard.applied,
		MaxSizePerMsg: 1 << 20, MaxCommittedSizePerReady: 64 << 20, MaxInflightMsgs: 256, MaxInflightBytes: 16 << 20,
		MaxUncommittedEntriesSize: 64 << 20,
		AsyncStorageWrites:        true, CheckQuorum: true, PreVote: true, DisableProposalForwarding: true, StepDownOnRemoval: true,
		Logger: raftLogger{g.osd.log.With("group", g.id)},
	})
	if err != nil {
		return fmt.Errorf("group %d: %w", g.id, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rn = rn
	if g.soleVoter() {
		if err := rn.Campaign(); err != nil {
			return fmt.Errorf("group %d: campaign: %w", g.id, err)
		}
	}
	return g.process()
}

// initial is a group's log with the members as they are known by now, which may
// be as of a later entry than the state.
type initial struct {
	*raft.MemoryStorage
	members *raftpb.ConfState
}

func (s initial) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	hs, _, err := s.MemoryStorage.InitialState()
	return hs, s.members, err
}

// process does what raft asks for until it asks no more. Called with mu held.
func (g *group) process() error {
	if g.err != nil {
		return g.err
	}
	for g.rn.HasReady() {
		rd := g.rn.Ready()
		if rd.SoftState != nil {
			g.noteRole(rd.SoftState)
		}
		for _, r := range rd.ReadStates {
			g.reads.confirmed(r.RequestCtx)
		}
		if g.leads {
			g.askRead()
		}
		for _, m := range rd.Messages {
			var err error
			switch m.GetTo() {
			case raft.LocalAppendThread:
				err = g.store(m)
			case raft.LocalApplyThread:
				err = g.applyCommitted(m)
			default:
				g.send(m)
			}
			if err != nil {
				return g.fail(fmt.Errorf("group %d: %w", g.id, err))
			}
		}
	}
	return nil
}

// fail makes err stick and tells all who wait.
func (g *group) fail(err error) error {
	if g.err == nil {
		g.err = fmt.Errorf("%w: %w", objstore.Unavailable, err)
		for _, w := range g.waiters {
			w.done <- g.err
		}
		g.waiters = nil
		g.reads.fail(g.err)
		g.room.Broadcast()
	}
	return g.err
}

// store writes entries and hard state to the write-ahead log. Raft hears of it
// when they are durable.
func (g *group) store(m *raftpb.Message) error {
	var recs []wal.Record
	// Term and vote are set only when there is a hard state to keep; that alone
	// a commit index moved needs no write, for it is found again.
	if t := m.GetTerm(); t != 0 && (t != g.hard.term || m.GetVote() != g.hard.vote) {
		g.hard.term, g.hard.vote, g.hardDirty = t, m.GetVote(), true
		p := binary.BigEndian.AppendUint64(nil, t)
		recs = append(recs, wal.Record{Group: g.id, Type: recHardState, Payload: binary.BigEndian.AppendUint64(p, m.GetVote())})
	}
	for _, e := range m.GetEntries() {
		recs = append(recs, wal.Record{Group: g.id, Type: recEntry, Head: entryHead(e), Payload: e.GetData()})
		g.last, g.term = e.GetIndex(), e.GetTerm()
		if g.last == g.catch {
			g.caught = e
		}
	}
	if len(m.GetEntries()) > 0 {
		if err := g.storage.Append(m.GetEntries()); err != nil {
			return err
		}
	}
	if len(recs) == 0 {
		// What answers for entries logged before must wait for them.
		if n := len(g.unsynced); n > 0 {
			g.unsynced[n-1].responses = append(g.unsynced[n-1].responses, m.GetResponses()...)
			return nil
		}
		return g.respond(m.GetResponses())
	}
	at := g.osd.wal.End() // or somewhat before
	lsn, err := g.osd.wal.Append(recs...)
	if err != nil {
		return err
	}
	g.logged = lsn
	for _, e := range m.GetEntries() {
		g.noteTail(e.GetIndex(), at)
	}
	g.unsynced = append(g.unsynced, unsynced{lsn, m.GetResponses()})
	g.osd.notePending(g)
	for _, r := range m.GetResponses() {
		if to := r.GetTo(); to != g.osd.member() && to != raft.LocalApplyThread && to != raft.LocalAppendThread {
			g.osd.kickSync() // another member waits for it
			break
		}
	}
	return nil
}

// noteTail remembers where an entry lies that is not in the state. It replaces
// what had its index before, and all behind that.
func (g *group) noteTail(index uint64, lsn wal.LSN) {
	for len(g.tail) > 0 && g.tail[len(g.tail)-1].index >= index {
		g.tail = g.tail[:len(g.tail)-1]
	}
	g.tail = append(g.tail, place{index, lsn})
}

func (g *group) respond(ms []*raftpb.Message) error {
	for _, m := range ms {
		if m.GetTo() != g.osd.member() {
			g.send(m)
		} else if err := g.rn.Step(m); err != nil {
			return fmt.Errorf("raft step %v: %w", m.GetType(), err)
		}
	}
	return nil
}

// synced tells raft that the log is durable up to lsn.
func (g *group) synced(lsn wal.LSN) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for n < len(g.unsynced) && g.unsynced[n].lsn <= lsn {
		if err := g.respond(g.unsynced[n].responses); err != nil {
			g.fail(err)
			return
		}
		n++
	}
	g.unsynced = append(g.unsynced[:0], g.unsynced[n:]...)
	if len(g.unsynced) > 0 {
		g.osd.notePending(g)
	}
	g.process() // a failure sticks to the group
	if len(g.unsynced) > 0 && len(g.waiters) > 0 {
		g.osd.kickSync()
	}
}

// applyCommitted takes in committed entries; a leader has executed them already.
func (g *group) applyCommitted(m *raftpb.Message) error {
	for _, e := range m.GetEntries() {
		if e.GetIndex() > g.executed {
			if err := g.execute(e); err != nil {
				return err
			}
		}
		g.committed = e.GetIndex()
		if err := g.changeMembers(e); err != nil {
			return err
		}
	}
	g.noteLeads()
	n := 0
	for _, w := range g.waiters {
		if w.index <= g.committed {
			w.done <- nil
		} else {
			g.waiters[n] = w
			n++
		}
	}
	g.waiters = g.waiters[:n]
	return g.respond(m.GetResponses())
}

// execute puts an entry's delta into the state.
func (g *group) execute(e *raftpb.Entry) error {
	if e.GetType() == raftpb.EntryNormal && len(e.GetData()) > 0 {
		delta, err := decodeDelta(e.GetData())
		if err != nil {
			return fmt.Errorf("entry %d: %w", e.GetIndex(), err)
		}
		g.merge(delta)
	}
	g.executed = e.GetIndex()
	g.st.active.last, g.st.active.term = e.GetIndex(), e.GetTerm()
	return nil
}

func (g *group) merge(delta volume.Delta) {
	before := g.st.active.meta + g.st.active.bodies
	for _, w := range delta {
		g.st.active.put(w)
	}
	if g.osd.unflushed.Add(int64(g.st.active.meta+g.st.active.bodies-before)) > flushSoft {
		kick(g.osd.flushNow)
	}
}

// propose logs a delta and applies it. Called with mu held.
func (g *group) propose(delta volume.Delta) (index uint64, err error) {
	if g.err != nil {
		return 0, g.err
	}
	data := delta.AppendTo(append(g.scratch[:0], entryVersion))
	if cap(data) <= maxScratch {
		g.scratch = data // raft copies what is proposed
	}
	if len(data) > wal.MaxPayload-64 {
		return 0, fmt.Errorf("group %d: a change of %d bytes: %w", g.id, len(data), objstore.TooBig)
	}
	g.catch, g.caught = g.last+1, nil
	defer func() { g.catch, g.caught = 0, nil }()
	if err := g.rn.Propose(data); err != nil {
		return 0, fmt.Errorf("group %d: propose: %w: %w", g.id, g.elsewhere(), err)
	}
	if err := g.process(); err != nil {
		return 0, err
	}
	if !g.leads {
		return 0, g.elsewhere()
	}
	if g.caught == nil {
		return 0, g.fail(fmt.Errorf("group %d: proposal did not become entry %d", g.id, g.catch))
	}
	// The state takes the logged bytes, as a replica would, not the caller's.
	logged, err := decodeDelta(g.caught.GetData())
	if err != nil {
		return 0, g.fail(err)
	}
	g.merge(logged)
	g.executed = g.caught.GetIndex()
	g.st.active.last, g.st.active.term = g.executed, g.caught.GetTerm()
	return g.executed, nil
}

// moment is how far a group's log had come, and whether this member alone decides
// what is committed.
type moment struct {
	index uint64
	lsn   wal.LSN // where the entry, or what came after it, ends in the write-ahead log
	alone bool
}

// moment is of the entry at index, which is logged. Called with mu held, shared or not.
func (g *group) moment(index uint64) moment { return moment{index, g.logged, g.soleVoter()} }

// durable returns when the moment's entry is committed for good, or with ctx's end.
// An only voter need not wait until raft has heard of the sync, which happens for
// many entries at a time: what its log has on stable storage is committed. If it
// gets company meanwhile, nobody decides without it, and so without the entry,
// before the others have the entry as well.
func (g *group) durable(ctx context.Context, m moment) error {
	if !m.alone {
		return g.wait(ctx, m.index)
	}
	if _, err := g.osd.wal.Sync(m.lsn); err != nil {
		return fmt.Errorf("group %d: %w: %w", g.id, objstore.Unavailable, err)
	}
	if shipped := g.osd.opt.Shipped; shipped != nil {
		return shipped(ctx, uint64(m.lsn))
	}
	return nil
}

// wait returns when index is committed and raft knows, or with ctx's end.
func (g *group) wait(ctx context.Context, index uint64) error {
	g.mu.Lock()
	if g.err != nil || g.committed >= index {
		defer g.mu.Unlock()
		return g.err
	}
	if g.role != raft.StateLeader {
		defer g.mu.Unlock()
		return g.elsewhere()
	}
	w := waiter{index, make(chan error, 1)}
	g.waiters = append(g.waiters, w)
	g.mu.Unlock()
	g.osd.syncForMe()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for commit: %w: %w", objstore.Unavailable, context.Cause(ctx))
	}
}

// entryHead goes in front of an entry's data in the log.
func entryHead(e *raftpb.Entry) []byte {
	b := make([]byte, 0, 17)
	b = binary.BigEndian.AppendUint64(b, e.GetTerm())
	b = binary.BigEndian.AppendUint64(b, e.GetIndex())
	return append(b, byte(e.GetType()))
}

func decodeEntry(b []byte) (*raftpb.Entry, error) {
	if len(b) < 17 {
		return nil, fmt.Errorf("raft entry of %d bytes: %w", len(b), objstore.Corrupt)
	}
	e := &raftpb.Entry{
		Term: proto.Uint64(binary.BigEndian.Uint64(b)), Index: proto.Uint64(binary.BigEndian.Uint64(b[8:])),
		Type: raftpb.EntryType(b[16]).Enum(),
	}
	if len(b) > 17 {
		e.Data = append([]byte(nil), b[17:]...)
	}
	return e, nil
}

func decodeDelta(data []byte) (volume.Delta, error) {
	if data[0] != entryVersion {
		return nil, fmt.Errorf("log entry of version %d, this program knows %d: %w", data[0], entryVersion, objstore.Corrupt)
	}
	return volume.ParseDelta(data[1:])
}
