package osd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
	"pillarbox/osd/chunkstore"
	"pillarbox/osd/wal"
)

const (
	flushEvery = 5 * time.Second // a change reaches the database within this
	flushSoft  = 16 << 20        // unflushed bytes that start a flush early
	flushHard  = 48 << 20        // unflushed bytes at which changes wait for a flush

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

// waitRoom waits until the group's layer can take another change. Called with
// mu held; it gives mu up while it waits.
func (g *group) waitRoom() error {
	for g.err == nil && (g.st.active.keys.Len() > layerKeys || g.st.active.meta > layerMeta || g.osd.unflushed.Load() > flushHard) {
		if err := g.osd.roomToFlush(); err != nil {
			return err
		}
		kick(g.osd.flushNow)
		g.room.Wait()
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
		for _, g := range o.groups { // who waits for room in a layer must not wait for this
			g.mu.Lock()
			g.room.Broadcast()
			g.mu.Unlock()
		}
		return err
	}
	if err := o.flushLocked(ctx); err != nil {
		o.flushErr = fmt.Errorf("flush: %w", err)
		for _, g := range o.groups {
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
	// logs and applies under one hold of its lock.
	cut := o.wal.End()
	frozen := o.freeze()
	m, pooled := o.freezeChunks()
	m.lsn = cut
	if len(frozen) == 0 && len(pooled[0])+len(pooled[1])+len(o.garbage) == 0 {
		return nil
	}
	for _, g := range frozen {
		if err := g.wait(ctx, g.st.frozen.last); err != nil {
			return err
		}
	}
	b := newBatch(o)
	b.table(pooled, o.garbage)
	for _, g := range frozen {
		if err := b.group(g); err != nil {
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
	return o.wal.Release(cut)
}

// freeze puts a fresh layer on top of every group that changed. Only flush,
// under flushMu, sets or clears frozen, so it may read it without the lock.
func (o *OSD) freeze() []*group {
	var frozen []*group
	for _, g := range o.groups {
		g.mu.Lock()
		if g.st.active.last > 0 || g.hardDirty {
			if g.st.active.last == 0 {
				g.st.active.last, g.st.active.term = g.hard.applied, g.hard.appliedTerm
			}
			g.st.frozen, g.st.active = g.st.active, &layer{}
			g.hardDirty = false
			frozen = append(frozen, g)
			g.room.Broadcast()
		}
		g.mu.Unlock()
	}
	return frozen
}

// freezeChunks takes what is new of pooled chunks, with the position it reaches to.
func (o *OSD) freezeChunks() (mark, [2]map[objstore.ChunkID]chunkstore.Loc) {
	t := &o.table
	t.moving.Lock()
	defer t.moving.Unlock()
	m := mark{pooled: o.chunks.Position(chunkstore.Pooled)}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writing = [2]map[objstore.ChunkID]chunkstore.Loc{t.recent, t.dropped}
	t.init()
	return m, t.writing
}

// finishFlush makes the database as committed the base of all groups.
func (o *OSD) finishFlush(frozen []*group) {
	t := &o.table
	t.mu.Lock()
	t.base, t.writing = o.base, [2]map[objstore.ChunkID]chunkstore.Loc{}
	t.mu.Unlock()
	took := make(map[*group]bool, len(frozen))
	for _, g := range frozen {
		took[g] = true
	}
	for _, g := range o.groups {
		g.mu.Lock()
		g.st.base = o.base
		if took[g] {
			l := g.st.frozen
			g.st.frozen = nil
			g.hard.applied, g.hard.appliedTerm = l.last, l.term
			o.unflushed.Add(-int64(l.meta + l.bodies))
			if err := g.storage.Compact(l.last); err != nil && l.last > 0 {
				o.log.Debug("compact", "group", g.id, "err", err)
			}
		}
		g.room.Broadcast()
		g.mu.Unlock()
	}
	o.db.SetDiscardTs(o.ts)
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
	return nil
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

// group writes down a group's frozen layer: bodies into a segment, the rest
// into the database. Deleting what the database never had is left out.
func (b *batch) group(g *group) error {
	o, l := b.osd, g.st.frozen
	g.mu.RLock()
	rec := groupRecord{applied: l.last, appliedTerm: l.term, term: g.hard.term, vote: g.hard.vote}
	g.mu.RUnlock()
	kvs := make([]kv, 0, l.keys.Len()+1)
	collect := func(more []kv) { kvs = append(kvs, more...) }
	var err error
	l.keys.Scan(func(key string, value []byte) bool {
		id, body := volume.ParseBodyKey([]byte(key))
		switch {
		case body && value != nil:
			var loc chunkstore.Loc
			if loc, err = o.chunks.Append(chunkstore.Resident, id, value); err == nil {
				collect([]kv{{chunkKey(id), encodeLoc(nil, loc)}})
			}
		case body:
			var loc chunkstore.Loc
			var had bool
			if loc, had, err = o.base.locate(id); had {
				b.forget(id, loc, collect)
			}
		case value == nil:
			full := stateKey(g.id, []byte(key))
			if _, gone := o.base.txn.Get(full); !errors.Is(gone, badger.ErrKeyNotFound) {
				collect([]kv{{full, nil}})
			}
		default:
			collect([]kv{{stateKey(g.id, []byte(key)), value}})
		}
		return err == nil
	})
	if err != nil {
		return fmt.Errorf("group %d: %w", g.id, err)
	}
	b.add(append(kvs, kv{groupKey(g.id), rec.encode()}))
	return b.err
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
