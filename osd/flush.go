package osd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
	"pillarbox/osd/chunkstore"
	"pillarbox/osd/wal"
)

const (
	flushEvery = 5 * time.Second // a change reaches the database within this
	flushSoft  = 16 << 20        // unflushed bytes that start a flush early
	flushHard  = 48 << 20        // unflushed bytes at which changes wait for a flush

	logRoom = 4 << 20 // room in the log at which changes ask whether it can grow

	// One group's layer has to fit one transaction of the database.
	layerKeys = 12000
	layerMeta = 2 << 20
)

// afterApply starts what a change makes due.
func (o *OSD) afterApply(delta volume.Delta) {
	if o.unflushed.Load() > flushSoft {
		kick(o.flushNow)
	}
	for _, w := range delta {
		if vol, ok := volume.ParseFreedKey(w.Key); ok && w.Value != nil {
			o.noteFreed(vol)
			return
		}
	}
}

// waitRoom waits until the group's layer can take another change, and makes sure
// that the log can. Called with mu held; it gives mu up while it waits.
func (g *group) waitRoom() error {
	for g.err == nil && (g.st.active.keys.Len() > layerKeys || g.st.active.meta > layerMeta || g.osd.unflushed.Load() > flushHard) {
		if err := g.osd.roomToFlush(); err != nil {
			return err
		}
		kick(g.osd.flushNow)
		g.room.Wait()
	}
	if g.err == nil && g.osd.wal.Room() < logRoom {
		// A log that cannot grow has failed for good.
		err := g.osd.full.roomFor(wal.SegmentSize + logRoom)
		if err != nil && g.osd.opt.Keep != nil {
			g.osd.wal.GiveUp() // mail comes before what waits to be shipped
			kick(g.osd.flushNow)
		}
		return err
	}
	return g.err
}

func (o *OSD) flushLoop(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	waited := false
	for {
		select {
		case <-tick.C:
		case <-o.flushNow:
		case <-ctx.Done():
			return nil
		}
		err := o.flush(ctx)
		waits := errors.Is(err, errNoRoom)
		switch {
		case waits && !waited:
			o.log.Warn("flush waits for room on the disk", "err", err)
		case err != nil && !waits && ctx.Err() == nil:
			o.log.Error("flush failed; no further change is accepted", "err", err)
		}
		waited = waits
	}
}

// flushAll brings everything to the database, also what an earlier flush left to free.
func (o *OSD) flushAll() error {
	if err := o.flush(context.Background()); err != nil {
		return err
	}
	return o.flush(context.Background())
}

// flush writes all that changed since the last one to the database and lets go
// of the log before it. With too little room on the disk it does nothing but
// say so (errNoRoom): the log has everything, and a later one makes up for it.
func (o *OSD) flush(ctx context.Context) error {
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	if o.flushErr != nil {
		return o.flushErr
	}
	if err := o.roomToFlush(); err != nil {
		for _, g := range o.hosted() { // who waits for room in a layer must not wait for this
			g.mu.Lock()
			g.room.Broadcast()
			g.mu.Unlock()
		}
		return err
	}
	if err := o.flushLocked(ctx); err != nil {
		o.flushErr = fmt.Errorf("flush: %w", err)
		for _, g := range o.hosted() {
			g.mu.Lock()
			g.fail(o.flushErr)
			g.mu.Unlock()
		}
		return o.flushErr
	}
	return nil
}

func (o *OSD) flushLocked(ctx context.Context) error {
	// Everything logged before cut is in a layer that freeze takes, for a group
	// logs and applies under one hold of its lock; or it is not committed yet, and
	// the group says from where on it still needs the log.
	cut := o.wal.End()
	frozen, cut := o.freeze(cut)
	m, pooled, replaced := o.freezeChunks()
	if len(frozen) == 0 && len(pooled[0])+len(pooled[1])+len(o.garbage) == 0 {
		return nil
	}
	frozen, whole, err := o.awaitFrozen(ctx, frozen)
	if err != nil {
		return err
	}
	if !whole {
		cut = o.released // what was undone is still wanted from the log
	}
	m.lsn = cut
	b := newBatch(o)
	b.table(pooled, o.garbage)
	b.forgetCopies(replaced)
	for _, f := range frozen {
		if err := b.group(f); err != nil {
			return err
		}
	}
	m.resident = o.chunks.Position(chunkstore.Resident)
	b.add([]kv{{[]byte{keyMark}, m.encode()}})
	for _, s := range []chunkstore.Stream{chunkstore.Resident, chunkstore.Pooled} {
		if err := o.chunks.Sync(s); err != nil {
			return err
		}
	}
	if err := b.commit(); err != nil {
		return err
	}
	o.finishFlush(frozen)
	flushed := wal.Record{Type: recFlush, Payload: binary.BigEndian.AppendUint64(nil, o.ts)}
	if _, err := o.wal.Append(flushed); err != nil {
		return err
	}
	o.garbage = b.freed
	if err := o.chunks.Free(b.freed); err != nil {
		o.log.Warn("space of removed chunks not given back yet", "err", err)
	}
	o.released = cut
	return o.wal.Release(cut)
}

// frozenGroup is a group with the layer that a flush writes down.
type frozenGroup struct {
	g *group
	l *layer
}

// freeze puts a fresh layer on top of every group that changed, and says from
// where on the log is still needed afterwards.
func (o *OSD) freeze(cut wal.LSN) ([]frozenGroup, wal.LSN) {
	var frozen []frozenGroup
	for _, g := range o.hosted() {
		g.mu.Lock()
		if g.err == nil && (g.st.active.last > 0 || g.hardDirty) {
			if g.st.active.last == 0 {
				g.st.active.last, g.st.active.term = g.hard.applied, g.hard.appliedTerm
			}
			g.st.frozen, g.st.active = g.st.active, &layer{}
			g.hardDirty = false
			frozen = append(frozen, frozenGroup{g, g.st.frozen})
			g.room.Broadcast()
		}
		// A follower's log is ahead of its state.
		for len(g.tail) > 0 && g.tail[0].index <= max(g.executed, g.hard.applied) {
			g.tail = g.tail[1:]
		}
		if len(g.tail) > 0 {
			cut = min(cut, g.tail[0].lsn)
		}
		g.mu.Unlock()
	}
	return frozen, cut
}

// commitTime is how long a flush waits for what it froze to be committed.
const commitTime = time.Second

// awaitFrozen waits until all that is frozen is committed. A group where that
// takes long, or whose leader undid it having lost the lead, is left out, and
// whole is false: other members may need this flush before they can commit.
func (o *OSD) awaitFrozen(ctx context.Context, frozen []frozenGroup) (kept []frozenGroup, whole bool, err error) {
	whole = true
	short, cancel := context.WithTimeout(ctx, commitTime)
	defer cancel()
	for _, f := range frozen {
		err := f.g.wait(short, f.l.last)
		f.g.mu.Lock()
		committed := f.g.committed >= f.l.last
		switch {
		case f.g.st.frozen != f.l:
			whole = false
		case err == nil || committed:
			kept = append(kept, f)
		case ctx.Err() == nil && (short.Err() != nil || errors.Is(err, objstore.Elsewhere)):
			f.g.thaw()
			whole = false
		default:
			f.g.mu.Unlock()
			return nil, false, err
		}
		f.g.mu.Unlock()
	}
	return kept, whole, nil
}

// thaw makes the frozen layer a part of the active one again. Called with mu held.
func (g *group) thaw() {
	under, over := g.st.frozen, g.st.active
	before := under.meta + under.bodies + over.meta + over.bodies
	over.keys.Scan(func(key string, value []byte) bool {
		under.put(volume.Write{Key: []byte(key), Value: value})
		return true
	})
	if over.last > 0 {
		under.last, under.term = over.last, over.term
	}
	g.st.active, g.st.frozen = under, nil
	g.hardDirty = true
	g.osd.unflushed.Add(int64(under.meta + under.bodies - before))
}

// freezeChunks takes what is new of pooled chunks, with the position it reaches to.
func (o *OSD) freezeChunks() (m mark, pooled [2]map[objstore.ChunkID]chunkstore.Loc, replaced []chunkstore.Loc) {
	t := &o.table
	t.moving.Lock()
	defer t.moving.Unlock()
	m.pooled = o.chunks.Position(chunkstore.Pooled)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writing = [2]map[objstore.ChunkID]chunkstore.Loc{t.recent, t.dropped}
	replaced = t.replaced
	t.init()
	return m, t.writing, replaced
}

// finishFlush makes the database as committed the base of all groups.
func (o *OSD) finishFlush(frozen []frozenGroup) {
	t := &o.table
	t.mu.Lock()
	t.base, t.writing = o.base, [2]map[objstore.ChunkID]chunkstore.Loc{}
	t.mu.Unlock()
	took := make(map[*group]*layer, len(frozen))
	for _, f := range frozen {
		took[f.g] = f.l
	}
	for _, g := range o.hosted() {
		g.mu.Lock()
		g.st.base = o.base
		if l := took[g]; l != nil {
			g.st.frozen = nil
			g.hard.applied, g.hard.appliedTerm = l.last, l.term
			o.unflushed.Add(-int64(l.meta + l.bodies))
			g.compact()
		}
		g.room.Broadcast()
		g.mu.Unlock()
	}
	o.holdTS(o.ts, 0)
}

// compact lets go of log entries that are in the database, but for some that
// members who are a little behind will want. Called with mu held.
func (g *group) compact() {
	to := g.hard.applied
	if to == 0 {
		return
	}
	if _, err := g.storage.CreateSnapshot(to, g.hard.members, nil); err != nil && !errors.Is(err, raft.ErrSnapOutOfDate) {
		g.osd.log.Warn("note the state's place in the log", "pg", g.id, "err", err)
		return
	}
	if !g.soleVoter() {
		g.rn.WithProgress(func(_ uint64, _ raft.ProgressType, p tracker.Progress) {
			if p.RecentActive && p.State == tracker.StateReplicate {
				to = min(to, max(p.Match, to-min(to, keepEntries)))
			}
		})
	}
	for p := range g.pinned {
		if p.index < to && to-p.index < maxPinned {
			to = p.index
		}
	}
	if first, err := g.storage.FirstIndex(); err != nil || to < first {
		return
	}
	if err := g.storage.Compact(to); err != nil {
		g.osd.log.Warn("compact the log", "pg", g.id, "err", err)
	}
}

// keepEntries bounds the entries kept in memory for members that are behind.
const keepEntries = 4096

// holdTS counts who reads the database as of a timestamp, and lets it forget
// what nobody can read any more.
func (o *OSD) holdTS(ts uint64, n int) {
	o.holdMu.Lock()
	defer o.holdMu.Unlock()
	if o.holds[ts] += n; o.holds[ts] == 0 {
		delete(o.holds, ts)
	}
	discard := o.discardTS
	if n == 0 {
		discard = ts
	}
	for held := range o.holds {
		discard = min(discard, held)
	}
	if discard > o.discardTS {
		o.discardTS = discard
		o.db.SetDiscardTs(discard)
	}
}

type kv struct{ key, value []byte } // a nil value deletes

// batch collects a flush and commits it in as few transactions as it fits.
// What add gets in one call stays in one transaction.
type batch struct {
	osd   *OSD
	txn   *badger.Txn
	count int64
	size  int64
	ts    uint64
	freed []chunkstore.Loc // to be punched once all is committed
	files map[uint32]int64 // inodes more, by group
	err   error
}

func newBatch(o *OSD) *batch {
	return &batch{osd: o, ts: o.ts, txn: o.db.NewTransactionAt(o.ts, true)}
}

func (b *batch) add(kvs []kv) {
	if b.err != nil {
		return
	}
	var size int64
	for _, e := range kvs {
		size += int64(len(e.key)+len(e.value)) + 32
	}
	n := int64(len(kvs))
	if b.count > 0 && (b.count+n > b.osd.db.MaxBatchCount()-16 || b.size+size > b.osd.db.MaxBatchSize()-4096) {
		b.next()
	}
	for _, e := range kvs {
		if b.err = b.countFiles(e); b.err != nil {
			return
		}
		if e.value == nil {
			b.err = b.txn.Delete(e.key)
		} else {
			b.err = b.txn.Set(e.key, e.value)
		}
		if b.err != nil {
			b.err = fmt.Errorf("write key %x: %w", e.key, b.err)
			return
		}
	}
	b.count += n
	b.size += size
}

func (b *batch) next() {
	if b.err != nil {
		return
	}
	// Named before anything in it: bodies and chunks must be durable first.
	for _, s := range []chunkstore.Stream{chunkstore.Resident, chunkstore.Pooled} {
		if b.err = b.osd.chunks.Sync(s); b.err != nil {
			return
		}
	}
	b.ts++
	if b.err = b.txn.CommitAt(b.ts, nil); b.err != nil {
		b.err = fmt.Errorf("commit to the database: %w", b.err)
		return
	}
	b.txn = b.osd.db.NewTransactionAt(b.ts, true)
	b.count, b.size = 0, 0
}

// commit ends the batch and moves the OSD's base to it.
func (b *batch) commit() error {
	b.next()
	b.txn.Discard()
	if b.err != nil {
		return b.err
	}
	b.osd.ts = b.ts - 1
	b.osd.advance()
	b.osd.counts.add(b.files)
	return nil
}

// countFiles notes how many inodes more a group has when one of its keys, which the batch
// has once, is written.
func (b *batch) countFiles(e kv) error {
	pg, ok := recordOf(e.key)
	if !ok {
		return nil
	}
	old, err := b.osd.base.get(e.key)
	if err != nil {
		return err
	}
	had, err := inodes(e.key, old)
	if err != nil {
		return err
	}
	has, err := inodes(e.key, e.value)
	if b.files == nil {
		b.files = map[uint32]int64{}
	}
	b.files[pg] += has - had
	return err
}

// table writes down pooled chunks stored and removed, and ends the notes of
// space given back by the flush before.
func (b *batch) table(pooled [2]map[objstore.ChunkID]chunkstore.Loc, garbage []chunkstore.Loc) {
	for id, loc := range pooled[0] {
		b.add([]kv{{chunkKey(id), encodeLoc(nil, loc)}})
	}
	for id, loc := range pooled[1] {
		b.forget(id, loc, b.add)
	}
	for _, loc := range garbage {
		b.add([]kv{{garbageKey(loc), nil}})
	}
}

func (b *batch) forget(id objstore.ChunkID, loc chunkstore.Loc, add func([]kv)) {
	add([]kv{{chunkKey(id), nil}, {garbageKey(loc), []byte{}}})
	b.freed = append(b.freed, loc)
}

// forgetCopies gives back the space of chunks that were stored again elsewhere.
func (b *batch) forgetCopies(replaced []chunkstore.Loc) {
	for _, loc := range replaced {
		b.add([]kv{{garbageKey(loc), []byte{}}})
		b.freed = append(b.freed, loc)
	}
}

// group writes down a group's frozen layer: bodies into a segment, the rest
// into the database. Deleting what the database never had is left out.
func (b *batch) group(f frozenGroup) error {
	g, l := f.g, f.l
	g.mu.RLock()
	rec := groupRecord{
		applied: l.last, appliedTerm: l.term, term: g.hard.term, vote: g.hard.vote,
		members: g.hard.members, membersIndex: g.hard.membersIndex, since: g.hard.since,
	}
	g.mu.RUnlock()
	kvs := make([]kv, 0, l.keys.Len()+1)
	collect := func(more []kv) { kvs = append(kvs, more...) }
	var err error
	l.keys.Scan(func(key string, value []byte) bool {
		err = b.put(g.id, volume.Write{Key: []byte(key), Value: value}, collect)
		return err == nil
	})
	if err != nil {
		return fmt.Errorf("group %d: %w", g.id, err)
	}
	// In several transactions if need be, the record in the last: what a crash
	// lets in of the others the log does again, to the same end.
	for len(kvs) > 0 {
		n := min(len(kvs), 1000)
		b.add(kvs[:n])
		kvs = kvs[n:]
	}
	b.add([]kv{{groupKey(g.id), rec.encode()}})
	return b.err
}

// put writes down one key of a group's state, or one body.
func (b *batch) put(group uint32, w volume.Write, collect func([]kv)) error {
	o := b.osd
	id, body := volume.ParseBodyKey(w.Key)
	switch {
	case body && w.Value != nil:
		loc, err := o.chunks.Append(chunkstore.Resident, id, w.Value)
		if err != nil {
			return err
		}
		collect([]kv{{chunkKey(id), encodeLoc(nil, loc)}})
	case body:
		loc, had, err := o.base.locate(id)
		if err != nil {
			return err
		}
		if had {
			b.forget(id, loc, collect)
		}
	case w.Value == nil:
		full := stateKey(group, w.Key)
		if _, gone := o.base.txn.Get(full); !errors.Is(gone, badger.ErrKeyNotFound) {
			collect([]kv{{full, nil}})
		}
	default:
		collect([]kv{{stateKey(group, w.Key), w.Value}})
	}
	return nil
}

// loadGarbage reads the notes of space that a crash kept from being given back.
func (o *OSD) loadGarbage() error {
	it := o.base.txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyGarbage}})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		loc, err := decodeLoc(it.Item().Key()[1:])
		if err != nil {
			return err
		}
		o.garbage = append(o.garbage, loc)
	}
	return o.chunks.Free(o.garbage)
}
