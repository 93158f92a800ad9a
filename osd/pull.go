package osd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
	"pillarbox/osd/chunkstore"
)

// A member that lacks more than the leader's log still has gets the group's
// state whole: raft's snapshot message tells it so, and it pulls the state as
// the leader's last flush left it. Until all of it is there the member is none:
// it neither votes nor answers, for it has given up its log.

// pin keeps entries in the leader's log while a member pulls what is before them.
type pin struct{ index uint64 }

// maxPinned bounds the log that a pull holds back, in entries.
const maxPinned = 1 << 20

// PullGroup sends a group's state as of a flush made for it, so that it is no
// older than anything the member that asks ever acknowledged: that may have lost
// its log. Only the group's leader does.
func (o *OSD) PullGroup(ctx context.Context, pg uint32, send func(GroupPiece) error) error {
	o.files.RLock()
	defer o.files.RUnlock()
	if o.filesClosed {
		return fmt.Errorf("%w: %w", objstore.Unavailable, ErrClosed)
	}
	// A new leader may need the member's vote for its first entry, so that it
	// tells what it knows before it serves anybody else.
	if _, err := o.pullHead(pg); err != nil {
		return err
	}
	if err := o.flush(ctx); err != nil {
		return err
	}
	// Under flushMu no flush moves the database on between the two.
	o.flushMu.Lock()
	head, err := o.pullHead(pg)
	if err != nil {
		o.flushMu.Unlock()
		return err
	}
	g := o.groups[pg].Load()
	base := snapshot{txn: o.db.NewTransactionAt(o.ts, false), chunks: o.chunks}
	defer base.txn.Discard()
	p := &pin{index: head.Index}
	g.mu.Lock()
	g.pinned[p] = struct{}{}
	g.mu.Unlock()
	o.holdTS(o.ts, +1)
	ts := o.ts
	o.flushMu.Unlock()
	defer func() {
		o.holdTS(ts, -1)
		g.mu.Lock()
		delete(g.pinned, p)
		g.mu.Unlock()
	}()
	if err := send(GroupPiece{Head: head}); err != nil {
		return err
	}
	if _, err := base.scan(pg, nil, nil, func(key, value []byte) bool {
		err = ctx.Err()
		if err == nil {
			err = send(GroupPiece{Key: append([]byte(nil), key...), Value: append([]byte(nil), value...)})
		}
		return err == nil
	}); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	return o.sendBodies(ctx, base, pg, send)
}

// pullHead is the head of a group's state as of the last flush.
func (o *OSD) pullHead(pg uint32) (*GroupHead, error) {
	g, err := o.group(pg)
	if err != nil {
		return nil, err
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	switch {
	case g.err != nil:
		return nil, g.err
	case g.role != raft.StateLeader:
		return nil, g.elsewhere()
	}
	return &GroupHead{Index: g.hard.applied, Term: g.hard.appliedTerm, Members: g.hard.members, MembersIndex: g.hard.membersIndex}, nil
}

// sendBodies sends a group's resident chunks. One that went in the meantime is
// left out: the log that follows removes it.
func (o *OSD) sendBodies(ctx context.Context, base snapshot, pg uint32, send func(GroupPiece) error) error {
	return o.groupBodies(base, pg, func(id objstore.ChunkID, _ chunkstore.Loc) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := base.body(id)
		if errors.Is(err, objstore.Corrupt) {
			if o.chunkGone(pg, id) {
				return nil
			}
			b, err = o.healBody(ctx, id)
		}
		if err != nil {
			return err
		}
		return send(GroupPiece{Key: volume.BodyKey(id), Value: b})
	})
}

// groupBodies lists the resident chunks of a group's volumes.
func (o *OSD) groupBodies(base snapshot, pg uint32, fn func(objstore.ChunkID, chunkstore.Loc) error) error {
	it := base.txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyChunk}, PrefetchValues: true, PrefetchSize: 64})
	defer it.Close()
	m := o.Map()
	for it.Rewind(); it.Valid(); it.Next() {
		id, ok := parseChunkKey(it.Item().Key())
		if !ok {
			return fmt.Errorf("chunk key %x: %w", it.Item().Key(), objstore.Corrupt)
		}
		if !id.Resident() || m.Group(id.Ino.Volume()) != pg {
			continue
		}
		var loc chunkstore.Loc
		err := it.Item().Value(func(v []byte) (err error) {
			loc, err = decodeLoc(v)
			return err
		})
		if err != nil {
			return err
		}
		if err := fn(id, loc); err != nil {
			return err
		}
	}
	return nil
}

// startPull gets the group's state from the leader that sent a message which
// shows that it is needed. Called with mu held.
func (o *OSD) startPull(g *group, m *raftpb.Message) {
	if g.pulling {
		return
	}
	if at := m.GetSnapshot().GetMetadata(); m.GetType() == raftpb.MsgSnap && g.hasEntry(at.GetIndex(), at.GetTerm()) {
		if err := g.rn.Step(m); err == nil { // raft answers that it needs no state
			g.process()
		}
		return
	}
	g.pulling = true
	o.pulls <- pullJob{g, &raftpb.Message{ // never full: one for each group
		Type: raftpb.MsgSnap.Enum(), From: proto.Uint64(m.GetFrom()), To: proto.Uint64(m.GetTo()), Term: proto.Uint64(m.GetTerm()),
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{}},
	}}
}

// hasEntry says whether the member's own log leads to an entry, so that no state
// has to come from elsewhere. Raft goes by the same rule.
func (g *group) hasEntry(index, term uint64) bool {
	if index <= g.committed {
		return true
	}
	t, err := g.storage.Term(index)
	return err == nil && t == term
}

type pullJob struct {
	g *group
	m *raftpb.Message
}

// pullLoop fetches groups' states, one after the other.
func (o *OSD) pullLoop(ctx context.Context) error {
	for {
		select {
		case job := <-o.pulls:
			err := o.pull(ctx, job)
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				o.log.Warn("pull of a placement group failed; the leader will offer it again", "pg", job.g.id, "from", osdID(job.m.GetFrom()), "err", err)
				job.g.send(&raftpb.Message{
					Type: raftpb.MsgSnapStatus.Enum(), From: proto.Uint64(o.member()), To: proto.Uint64(job.m.GetFrom()), Term: proto.Uint64(job.m.GetTerm()),
				})
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// pull replaces a group by its state at the leader.
func (o *OSD) pull(ctx context.Context, job pullJob) error {
	start := time.Now()
	old := job.g
	in, err := o.beginInstall(old, job.m.GetTerm())
	if err != nil {
		return err
	}
	err = o.opt.Peers.PullGroup(ctx, osdID(job.m.GetFrom()), old.id, in.take)
	if err == nil && in.head == nil {
		err = fmt.Errorf("an empty answer: %w", objstore.Invalid)
	}
	if err != nil {
		o.abortInstall(old, in)
		if errors.Is(err, errCameBefore) {
			return o.tellRaft(old, job.m, in.head)
		}
		return err
	}
	g, err := in.finish()
	if err != nil {
		return err
	}
	o.log.Info("pulled a placement group", "pg", old.id, "from", osdID(job.m.GetFrom()), "index", in.head.Index, "keys", in.count, "bytes", in.bytes, "took", time.Since(start).Round(time.Millisecond))
	return o.tellRaft(g, job.m, in.head)
}

// errCameBefore says that the log has brought what was being pulled.
var errCameBefore = errors.New("the log was faster")

// tellRaft gives raft the snapshot message again, as of what came: it answers
// that it has that already.
func (o *OSD) tellRaft(g *group, m *raftpb.Message, head *GroupHead) error {
	m.Snapshot.Metadata.Index, m.Snapshot.Metadata.Term, m.Snapshot.Metadata.ConfState = &head.Index, &head.Term, head.Members
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.rn.Step(m); err != nil {
		return fmt.Errorf("tell raft: %w", err)
	}
	return g.process()
}

// install is a group's state on its way into the database.
type install struct {
	osd    *OSD
	pg     uint32
	term   uint64
	vote   uint64
	head   *GroupHead
	kvs    []kv
	size   int
	count  int
	bytes  int64
	wiped  bool
	before *group
}

// installBatch is how many bytes of an install go into the database at once.
const installBatch = 4 << 20

// beginInstall stops the group's member; nothing on disk has changed yet.
func (o *OSD) beginInstall(g *group, term uint64) (*install, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return nil, g.err
	}
	in := &install{osd: o, pg: g.id, term: max(term, g.hard.term), before: g}
	if in.term == g.hard.term {
		in.vote = g.hard.vote
	}
	return in, nil
}

// take writes down one piece. With the first key the old state goes.
func (in *install) take(p GroupPiece) error {
	if p.Head != nil {
		if in.head != nil || p.Head.Members == nil {
			return fmt.Errorf("placement group %d: a second or broken head: %w", in.pg, objstore.Invalid)
		}
		in.head = p.Head
		return in.wipe()
	}
	if in.head == nil || len(p.Key) == 0 {
		return fmt.Errorf("placement group %d: a piece out of place: %w", in.pg, objstore.Invalid)
	}
	in.count++
	in.bytes += int64(len(p.Key) + len(p.Value))
	if id, ok := volume.ParseBodyKey(p.Key); ok {
		loc, err := in.osd.chunks.Append(chunkstore.Resident, id, p.Value)
		if err != nil {
			return err
		}
		in.kvs = append(in.kvs, kv{chunkKey(id), encodeLoc(nil, loc)})
		in.size += 64
	} else {
		in.kvs = append(in.kvs, kv{stateKey(in.pg, p.Key), p.Value})
		in.size += len(p.Key) + len(p.Value)
	}
	if in.size < installBatch {
		return nil
	}
	return in.write(nil)
}

// write commits what has come so far, and more with it.
func (in *install) write(more []kv) error {
	in.osd.flushMu.Lock()
	defer in.osd.flushMu.Unlock()
	return in.writeLocked(more)
}

func (in *install) writeLocked(more []kv) error {
	o := in.osd
	if o.flushErr != nil {
		return o.flushErr
	}
	if err := o.roomToFlush(); err != nil {
		return err
	}
	b := newBatch(o)
	for _, e := range in.kvs {
		b.add([]kv{e})
	}
	b.add(more)
	in.kvs, in.size = in.kvs[:0], 0
	if err := b.commit(); err != nil {
		return fmt.Errorf("placement group %d: %w", in.pg, err)
	}
	return nil
}

// wipe ends the old member, marks the group as being replaced, and removes its
// old state. Under flushMu no flush writes to it meanwhile.
func (in *install) wipe() error {
	o, old := in.osd, in.before
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	old.mu.Lock()
	if in.head != nil && old.hasEntry(in.head.Index, in.head.Term) {
		old.mu.Unlock()
		return errCameBefore
	}
	in.wiped = true
	if in.term = max(in.term, old.hard.term); in.term == old.hard.term {
		in.vote = old.hard.vote
	}
	old.fail(fmt.Errorf("placement group %d is replaced: %w", in.pg, objstore.Elsewhere))
	o.unflushed.Add(-int64(old.st.active.meta + old.st.active.bodies))
	old.mu.Unlock()
	rec := groupRecord{state: groupInstalling, term: in.term, members: &raftpb.ConfState{}, since: o.wal.End()}
	if err := in.writeLocked([]kv{{groupKey(in.pg), rec.encode()}}); err != nil {
		return err
	}
	return o.wipeGroup(in.pg)
}

// wipeGroup removes a group's keys and bodies from the database. Under flushMu.
func (o *OSD) wipeGroup(pg uint32) error {
	b := newBatch(o)
	if _, err := o.base.scan(pg, nil, nil, func(key, _ []byte) bool {
		b.add([]kv{{stateKey(pg, key), nil}})
		return b.err == nil
	}); err != nil {
		return err
	}
	err := o.groupBodies(o.base, pg, func(id objstore.ChunkID, loc chunkstore.Loc) error {
		b.forget(id, loc, b.add)
		return b.err
	})
	if err != nil {
		return err
	}
	if err := b.commit(); err != nil {
		return fmt.Errorf("placement group %d: %w", pg, err)
	}
	o.garbage = append(o.garbage, b.freed...)
	return o.chunks.Free(b.freed)
}

// finish makes the installed state the group's and starts its member.
func (in *install) finish() (*group, error) {
	o := in.osd
	rec := groupRecord{
		applied: in.head.Index, appliedTerm: in.head.Term, term: max(in.term, in.head.Term), vote: in.vote,
		members: in.head.Members, membersIndex: in.head.MembersIndex, since: o.wal.End(),
	}
	if rec.term != in.term {
		rec.vote = 0
	}
	if err := o.chunks.Sync(chunkstore.Resident); err != nil {
		return nil, err
	}
	if err := in.write([]kv{{groupKey(in.pg), rec.encode()}}); err != nil {
		return nil, err
	}
	return o.adopt(in.pg, rec)
}

// adopt starts a group's member from its record.
func (o *OSD) adopt(pg uint32, rec groupRecord) (*group, error) {
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	g, err := newGroup(o, pg, rec)
	if err != nil {
		return nil, err
	}
	if err := g.start(); err != nil {
		return nil, err
	}
	o.groups[pg].Store(g)
	return g, nil
}

// abortInstall goes back to the old member, if that still has its state.
func (o *OSD) abortInstall(old *group, in *install) {
	old.mu.Lock()
	old.pulling = false
	old.mu.Unlock()
	if !in.wiped {
		return
	}
	// A member without a log: the leader's next message shows that, and it pulls again.
	if _, err := o.adopt(in.pg, groupRecord{term: in.term, vote: in.vote, members: &raftpb.ConfState{}}); err != nil {
		o.log.Error("placement group without a replica", "pg", in.pg, "err", err)
	}
}

// leaveIfGone removes the replica of a group whose members have gone on without
// this OSD: the map does not want it here, nobody has spoken to it for a while,
// and the leader says that it is no member.
func (o *OSD) leaveIfGone(ctx context.Context, g *group, m *objstore.Map, now int64) {
	g.mu.RLock()
	idle := !g.leads && !g.pulling && g.rn != nil && now-g.lastHeard > leaveAfter && (now+int64(g.id))%leaveAfter == 0
	g.mu.RUnlock()
	if !idle || o.opt.Peers == nil {
		return
	}
	for _, id := range m.Acting(m.Meta(), g.id) {
		if id == o.opt.ID {
			return
		}
	}
	select {
	case o.leaves <- g:
	default:
	}
}

// leaveAfter is how long a replica hears nothing before it asks, in ticks.
const leaveAfter = 100

// leaveLoop asks for and removes replicas that are no members any more.
func (o *OSD) leaveLoop(ctx context.Context) error {
	for {
		select {
		case g := <-o.leaves:
			if err := o.leave(ctx, g); err != nil && ctx.Err() == nil {
				o.log.Debug("replica kept", "pg", g.id, "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (o *OSD) leave(ctx context.Context, g *group) error {
	term, gone, err := o.goneFrom(ctx, g.id)
	if err != nil || !gone {
		return err
	}
	o.makeMu.Lock()
	defer o.makeMu.Unlock()
	o.terms[g.id] = term
	in := &install{osd: o, pg: g.id, before: g, term: term}
	if err := in.wipe(); err != nil {
		return err
	}
	rec := groupRecord{state: groupLeft, term: term, members: &raftpb.ConfState{}, since: o.wal.End()}
	if err := in.write([]kv{{groupKey(g.id), rec.encode()}}); err != nil {
		return err
	}
	o.groups[g.id].Store(nil)
	o.log.Info("left a placement group", "pg", g.id)
	return nil
}

// goneFrom asks the group's leader whether this OSD is a member.
func (o *OSD) goneFrom(ctx context.Context, pg uint32) (term uint64, gone bool, err error) {
	m := o.Map()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = fmt.Errorf("placement group %d: nobody to ask: %w", pg, objstore.Unavailable)
	for _, id := range m.Acting(m.Meta(), pg) {
		var peer Peer
		if peer, err = o.opt.Peers.Peer(id); err != nil {
			continue
		}
		var members []int
		if term, members, err = peer.Members(ctx, pg); err != nil {
			continue
		}
		for _, member := range members {
			if member == o.opt.ID {
				return 0, false, nil
			}
		}
		return term, true, nil
	}
	return 0, false, err
}

// Members tells a group's members, voters and learners, and its term. Only its
// leader does, after making sure that it still is.
func (o *OSD) Members(ctx context.Context, pg uint32) (term uint64, osds []int, err error) {
	g, err := o.group(pg)
	if err != nil {
		return 0, nil, err
	}
	if err := g.confirm(ctx); err != nil {
		return 0, nil, err
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	if err := g.canLead(); err != nil {
		return 0, nil, err
	}
	all := append(append(append([]uint64(nil), g.members.GetVoters()...), g.members.GetVotersOutgoing()...), g.members.GetLearners()...)
	return g.term, osdIDs(append(all, g.members.GetLearnersNext()...)), nil
}
