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

	replayed  uint64        // index of the last entry found at start; immutable since
	last      uint64        // index of the last log entry
	newest    *raftpb.Entry // the last one logged by this run
	scratch   []byte        // of propose
	executed  uint64        // entries up to here are in the state
	committed uint64
	term      uint64 // of the last entry
	hard      groupRecord
	hardDirty bool // term or vote changed since the last flush
	waiters   []waiter
	unsynced  []unsynced
	err       error // sticky
}

// waiter wants to know when an index is committed.
type waiter struct {
	index uint64
	done  chan error
}

// unsynced are raft's messages to itself that wait for the log to be durable up to lsn.
type unsynced struct {
	lsn       wal.LSN
	responses []*raftpb.Message
}

func newGroup(o *OSD, id uint32, rec groupRecord) (*group, error) {
	g := &group{id: id, osd: o, storage: raft.NewMemoryStorage()}
	g.room = sync.NewCond(&g.mu)
	g.hard = rec
	g.executed, g.committed, g.last, g.term = rec.applied, rec.applied, rec.applied, rec.appliedTerm
	g.st = state{group: id, active: &layer{}, base: o.base}
	err := g.storage.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: proto.Uint64(rec.applied), Term: proto.Uint64(rec.appliedTerm),
		ConfState: &raftpb.ConfState{Voters: []uint64{o.member()}},
	}})
	if err != nil {
		return nil, fmt.Errorf("group %d: %w", id, err)
	}
	return g, nil
}

// replayRecord takes in one record of the write-ahead log at start.
func (g *group) replayRecord(r wal.Record) error {
	switch r.Type {
	case recHardState:
		if len(r.Payload) != 16 {
			return fmt.Errorf("group %d: hard state of %d bytes: %w", g.id, len(r.Payload), objstore.Corrupt)
		}
		g.hard.term = binary.BigEndian.Uint64(r.Payload)
		g.hard.vote = binary.BigEndian.Uint64(r.Payload[8:])
		g.hardDirty = true
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
	default:
		return fmt.Errorf("group %d: log record of unknown type %d: %w", g.id, r.Type, objstore.Corrupt)
	}
	return nil
}

// start makes the raft member and stands for election.
func (g *group) start() error {
	hs := &raftpb.HardState{Term: proto.Uint64(g.hard.term), Vote: proto.Uint64(g.hard.vote), Commit: proto.Uint64(g.hard.applied)}
	if err := g.storage.SetHardState(hs); err != nil {
		return fmt.Errorf("group %d: %w", g.id, err)
	}
	rn, err := raft.NewRawNode(&raft.Config{
		ID: g.osd.member(), ElectionTick: 10, HeartbeatTick: 1, Storage: g.storage, Applied: g.hard.applied,
		MaxSizePerMsg: 1 << 20, MaxCommittedSizePerReady: 64 << 20, MaxInflightMsgs: 256,
		AsyncStorageWrites: true, CheckQuorum: true, PreVote: true, Logger: raftLogger{g.osd.log.With("group", g.id)},
	})
	if err != nil {
		return fmt.Errorf("group %d: %w", g.id, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rn, g.replayed = rn, g.last
	if err := rn.Campaign(); err != nil {
		return fmt.Errorf("group %d: campaign: %w", g.id, err)
	}
	return g.process()
}

// process does what raft asks for until it asks no more. Called with mu held.
func (g *group) process() error {
	if g.err != nil {
		return g.err
	}
	for g.rn.HasReady() {
		rd := g.rn.Ready()
		for _, m := range rd.Messages {
			var err error
			switch m.GetTo() {
			case raft.LocalAppendThread:
				err = g.store(m)
			case raft.LocalApplyThread:
				err = g.applyCommitted(m)
			default:
				err = fmt.Errorf("message for member %d, which is unknown", m.GetTo())
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
		g.last, g.term, g.newest = e.GetIndex(), e.GetTerm(), e
	}
	if len(m.GetEntries()) > 0 {
		if err := g.storage.Append(m.GetEntries()); err != nil {
			return err
		}
	}
	if len(recs) == 0 {
		return g.respond(m.GetResponses())
	}
	lsn, err := g.osd.wal.Append(recs...)
	if err != nil {
		return err
	}
	g.unsynced = append(g.unsynced, unsynced{lsn, m.GetResponses()})
	g.osd.notePending(g)
	return nil
}

func (g *group) respond(ms []*raftpb.Message) error {
	for _, m := range ms {
		if err := g.rn.Step(m); err != nil {
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
	}
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
	g.osd.unflushed.Add(int64(g.st.active.meta + g.st.active.bodies - before))
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
	before := g.last
	if err := g.rn.Propose(data); err != nil {
		return 0, fmt.Errorf("group %d: propose: %w: %w", g.id, objstore.Unavailable, err)
	}
	if err := g.process(); err != nil {
		return 0, err
	}
	if g.last != before+1 {
		return 0, g.fail(fmt.Errorf("group %d: proposal did not become entry %d", g.id, before+1))
	}
	// The state takes the logged bytes, as a replica would, not the caller's.
	logged, err := decodeDelta(g.newest.GetData())
	if err != nil {
		return 0, g.fail(err)
	}
	g.merge(logged)
	g.executed = g.last
	g.st.active.last, g.st.active.term = g.last, g.term
	return g.last, nil
}

// wait returns when index is committed, or with ctx's end.
func (g *group) wait(ctx context.Context, index uint64) error {
	g.mu.Lock()
	if g.err != nil || g.committed >= index {
		defer g.mu.Unlock()
		return g.err
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
