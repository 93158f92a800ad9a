package osd

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/dgraph-io/badger/v4"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
	"pillarbox/osd/chunkstore"
)

// chunkTable is what the database does not know yet of pooled chunks.
type chunkTable struct {
	// moving is held shared while a chunk goes into a segment and the table, so
	// that a flush, which takes it alone, sees both or neither.
	moving sync.RWMutex

	mu       sync.RWMutex
	recent   map[objstore.ChunkID]chunkstore.Loc    // stored since the last flush
	dropped  map[objstore.ChunkID]chunkstore.Loc    // removed since the last flush
	writing  [2]map[objstore.ChunkID]chunkstore.Loc // recent and dropped of the flush under way
	unnamed  map[objstore.ChunkID]struct{}          // stored in this run, and no change has named them yet; nil where an OSD has peers, whose groups name its chunks
	base     snapshot
	replaced []chunkstore.Loc              // of copies that another took the place of since the last flush
	use      [objstore.MaxDataPool]PoolUse // by pool, less one; as of the start only where it is reported, by an OSD with peers
}

// PoolUse is what an OSD holds of a data pool.
type PoolUse struct{ Chunks, Bytes int64 }

// note counts a chunk that came (1) or went (-1). Called with mu held.
func (t *chunkTable) note(id objstore.ChunkID, loc chunkstore.Loc, n int64) {
	u := &t.use[id.Pool()-1]
	u.Chunks += n
	u.Bytes += n * int64(loc.Len)
}

// PoolUse is what the OSD holds of each data pool that it holds anything of.
func (o *OSD) PoolUse() map[int]PoolUse {
	o.table.mu.RLock()
	defer o.table.mu.RUnlock()
	use := map[int]PoolUse{}
	for i, u := range o.table.use {
		if u.Chunks > 0 {
			use[i+1] = u
		}
	}
	return use
}

// count begins the account of what the OSD holds.
func (t *chunkTable) count() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, loc := range t.recent {
		t.note(id, loc, 1)
	}
	it := t.base.txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyChunk}, PrefetchValues: true, PrefetchSize: 1000})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		id, ok := parseChunkKey(it.Item().Key())
		if !ok {
			return fmt.Errorf("chunk key %x: %w", it.Item().Key(), objstore.Corrupt)
		}
		if _, again := t.recent[id]; again || id.Resident() {
			continue
		}
		err := it.Item().Value(func(v []byte) error {
			loc, err := decodeLoc(v)
			t.note(id, loc, 1)
			return err
		})
		if err != nil {
			return fmt.Errorf("where chunk %v lies: %w", id, err)
		}
	}
	return nil
}

func (t *chunkTable) init() {
	t.recent = make(map[objstore.ChunkID]chunkstore.Loc)
	t.dropped = make(map[objstore.ChunkID]chunkstore.Loc)
	t.replaced = nil
}

// locate finds a pooled chunk. NotFound.
func (t *chunkTable) locate(id objstore.ChunkID) (chunkstore.Loc, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.locateLocked(id)
}

func (t *chunkTable) locateLocked(id objstore.ChunkID) (chunkstore.Loc, error) {
	if _, gone := t.dropped[id]; gone {
		return chunkstore.Loc{}, fmt.Errorf("chunk %v was removed: %w", id, objstore.NotFound)
	}
	if loc, ok := t.recent[id]; ok {
		return loc, nil
	}
	if _, gone := t.writing[1][id]; gone {
		return chunkstore.Loc{}, fmt.Errorf("chunk %v was removed: %w", id, objstore.NotFound)
	}
	if loc, ok := t.writing[0][id]; ok {
		return loc, nil
	}
	loc, ok, err := t.base.locate(id)
	if err == nil && !ok {
		err = fmt.Errorf("chunk %v: %w", id, objstore.NotFound)
	}
	return loc, err
}

// drop forgets chunks; unknown ones are passed over.
func (t *chunkTable) drop(ids []objstore.ChunkID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range ids {
		loc, err := t.locateLocked(id)
		if errors.Is(err, objstore.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		t.dropped[id] = loc
		delete(t.recent, id)
		t.note(id, loc, -1)
	}
	return nil
}

// PutChunk stores a pooled chunk, durable on return; see objstore.Store.
func (o *OSD) PutChunk(_ context.Context, id objstore.ChunkID, data []byte) error {
	if id.Resident() {
		return fmt.Errorf("put chunk %v, a resident one: %w", id, objstore.Invalid)
	}
	if err := o.roomToGrow(); err != nil {
		return err
	}
	tag, err := o.tagFor(id, data)
	if err != nil {
		return err
	}
	if err := o.storeChunk(id, data, tag); err != nil {
		return err
	}
	return o.chunks.Sync(chunkstore.Pooled)
}

// storeChunk takes a chunk in; the tag is that of its place.
func (o *OSD) storeChunk(id objstore.ChunkID, data []byte, tag uint8) error {
	t := &o.table
	t.moving.RLock()
	defer t.moving.RUnlock()
	loc, err := o.chunks.Append(chunkstore.Pooled, id, data)
	if err != nil {
		return err
	}
	loc.Tag = tag
	t.mu.Lock()
	defer t.mu.Unlock()
	was, err := t.locateLocked(id)
	gone, dropped := t.dropped[id]
	switch {
	case err == nil:
		t.note(id, was, -1)
		t.replaced = append(t.replaced, was)
	case dropped:
		t.replaced = append(t.replaced, gone)
	case !errors.Is(err, objstore.NotFound):
		return err
	}
	t.note(id, loc, 1)
	t.recent[id] = loc
	if t.unnamed != nil {
		t.unnamed[id] = struct{}{}
	}
	delete(t.dropped, id)
	return nil
}

// named notes that a change made names chunks.
func (t *chunkTable) named(c objstore.Change) {
	named := func(id objstore.ChunkID) {
		t.mu.Lock()
		delete(t.unnamed, id) // of a nil map, too
		t.mu.Unlock()
	}
	switch c := c.(type) {
	case objstore.Write:
		for _, e := range c.Extents {
			if e.Kind == objstore.Pooled {
				named(e.Chunk)
			}
		}
	case objstore.MoveChunk:
		named(c.To)
	case objstore.Pack:
		named(c.To)
	}
}

// ReadChunk fills p from a chunk; pg is the placement group of the chunk's
// volume. Stale when the chunk is no longer there, Corrupt when its checksum
// does not match.
func (o *OSD) ReadChunk(ctx context.Context, pg uint32, id objstore.ChunkID, off uint32, p []byte) error {
	find := func() (chunkstore.Loc, error) { return o.table.locate(id) }
	if id.Resident() {
		g, err := o.group(pg)
		if err != nil {
			return err
		}
		body, loc, err := g.locateBody(id)
		if err != nil {
			return err
		}
		if body != nil {
			if uint64(off)+uint64(len(p)) > uint64(len(body)) {
				return fmt.Errorf("read %d bytes at %d of chunk %v, which has %d: %w", len(p), off, id, len(body), objstore.Invalid)
			}
			copy(p, body[off:])
			return nil
		}
		find = func() (chunkstore.Loc, error) { return loc, nil }
	}
	loc, err := find()
	if err != nil {
		return o.missing(pg, id, stale(err))
	}
	err = o.chunks.Read(loc, id, off, p)
	if errors.Is(err, objstore.Corrupt) {
		if now, lost := find(); lost == nil && now != loc { // replaced meanwhile
			err = o.chunks.Read(now, id, off, p)
		}
	}
	if !errors.Is(err, objstore.Corrupt) {
		return err
	}
	// A chunk freed while it was read is no damage.
	if o.chunkGone(pg, id) {
		return fmt.Errorf("chunk %v was removed: %w", id, objstore.Stale)
	}
	if id.Resident() && o.opt.Peers != nil { // only the leader is asked for it
		if body, herr := o.healBody(ctx, id); herr == nil {
			copy(p, body[off:])
			return nil
		}
	}
	o.log.Error("damaged chunk", "chunk", id.String(), "err", err)
	return err
}

// missing tells a chunk that a newer change replaced, which is Stale, from one
// that an extent still names, which is damage.
func (o *OSD) missing(pg uint32, id objstore.ChunkID, err error) error {
	if !errors.Is(err, objstore.Stale) || !id.Resident() && o.opt.Peers != nil {
		return err // other OSDs may have it
	}
	wanted, ask := view(o, pg, func(v volume.View) (bool, error) { return volume.References(v, id) })
	if ask != nil || !wanted {
		return err
	}
	// It may have come in the meantime.
	if !id.Resident() {
		if _, now := o.table.locate(id); now == nil {
			return err
		}
	} else if _, _, now := o.groups[pg].Load().locateBody(id); now == nil {
		return err
	}
	o.log.Error("missing chunk", "chunk", id.String(), "err", err)
	return fmt.Errorf("chunk %v is named and nowhere: %w", id, objstore.Corrupt)
}

func stale(err error) error {
	if errors.Is(err, objstore.NotFound) {
		return fmt.Errorf("%w: %w", objstore.Stale, err)
	}
	return err
}

func (o *OSD) chunkGone(pg uint32, id objstore.ChunkID) bool {
	var err error
	if id.Resident() {
		_, _, err = o.groups[pg].Load().locateBody(id)
	} else {
		_, err = o.table.locate(id)
	}
	return objstore.Gone(err)
}

// locateBody finds a resident chunk: its bytes if they are in memory, else its place. Stale.
func (g *group) locateBody(id objstore.ChunkID) ([]byte, chunkstore.Loc, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.st.locateBody(id)
}

func (s *state) locateBody(id objstore.ChunkID) ([]byte, chunkstore.Loc, error) {
	key := string(volume.BodyKey(id))
	for _, l := range []*layer{s.active, s.frozen} {
		if l == nil {
			continue
		}
		if v, ok := l.keys.Get(key); ok {
			if v == nil {
				return nil, chunkstore.Loc{}, fmt.Errorf("chunk %v was removed: %w", id, objstore.Stale)
			}
			return v, chunkstore.Loc{}, nil
		}
	}
	loc, ok, err := s.base.locate(id)
	if err == nil && !ok {
		err = fmt.Errorf("chunk %v: %w", id, objstore.Stale)
	}
	return nil, loc, err
}

// findRecent looks through the segments behind the flush mark. Pooled chunks
// there are taken in; resident ones are in the log too, so their copies go.
func (o *OSD) findRecent(m mark) error {
	o.table.base = o.base
	err := o.chunks.Scan(chunkstore.Pooled, m.pooled, func(id objstore.ChunkID, loc chunkstore.Loc) error {
		known, ok, err := o.base.locate(id)
		if loc.Tag = known.Tag; err == nil && (!ok || known != loc) {
			loc.Tag = 0 // shardOf will read it
			o.table.recent[id] = loc
		}
		return err
	})
	if err != nil || o.opt.ReadOnly {
		return err
	}
	var leftover []chunkstore.Loc
	err = o.chunks.Scan(chunkstore.Resident, m.resident, func(id objstore.ChunkID, loc chunkstore.Loc) error {
		known, ok, err := o.base.locate(id)
		if err == nil && (!ok || known != loc) {
			leftover = append(leftover, loc)
		}
		return err
	})
	if err != nil {
		return err
	}
	return o.chunks.Free(leftover)
}
