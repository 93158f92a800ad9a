package osd

import (
	"context"
	"errors"
	"fmt"

	"pillarbox/objstore"
	"pillarbox/osd/chunkstore"
)

// Resident bodies lie beside their group's replica. One that is damaged is made
// again from another member's, byte for byte, for chunks never change.

// fetchBody returns a resident chunk whole, after checking it, from this OSD's
// replica of its group. NotFound, Corrupt.
func (o *OSD) fetchBody(id objstore.ChunkID) ([]byte, error) {
	g, err := o.group(o.Map().Group(id.Ino.Volume()))
	if err != nil {
		return nil, fmt.Errorf("chunk %v: %w: %w", id, objstore.NotFound, err)
	}
	body, loc, err := g.locateBody(id)
	switch {
	case errors.Is(err, objstore.Stale):
		return nil, fmt.Errorf("chunk %v: %w", id, objstore.NotFound)
	case err != nil || body != nil:
		return body, err
	}
	body = make([]byte, loc.Len)
	err = o.chunks.Read(loc, id, 0, body)
	if errors.Is(err, objstore.Corrupt) {
		// Freed while it was read is no damage.
		if _, now, gone := g.locateBody(id); gone != nil || now != loc {
			return nil, fmt.Errorf("chunk %v was removed: %w", id, objstore.NotFound)
		}
	}
	return body, err
}

// healBody replaces a damaged resident chunk by another member's copy, which it
// returns.
func (o *OSD) healBody(ctx context.Context, id objstore.ChunkID) ([]byte, error) {
	o.healing.Lock()
	defer o.healing.Unlock()
	b, err := o.fetchBody(id)
	if !errors.Is(err, objstore.Corrupt) || o.opt.Peers == nil {
		return b, err // somebody has healed it meanwhile, or nobody can
	}
	m := o.Map()
	b, osd, ok := o.goodCopy(ctx, id, m.Acting(m.Meta(), m.Group(id.Ino.Volume())))
	if !ok {
		return nil, fmt.Errorf("no other OSD has a good copy: %w", err)
	}
	if err := o.replaceBody(id, b); err != nil {
		return nil, fmt.Errorf("heal chunk %v: %w", id, err)
	}
	o.log.Warn("healed a damaged chunk", "chunk", id.String(), "from", osd)
	return b, nil
}

// replaceBody puts a resident chunk into a segment anew, and lets go of where it
// was. One that was removed meanwhile is left alone.
func (o *OSD) replaceBody(id objstore.ChunkID, body []byte) error {
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	if o.flushErr != nil {
		return o.flushErr
	}
	if err := o.roomToFlush(); err != nil {
		return err
	}
	old, ok, err := o.base.locate(id)
	if err != nil || !ok {
		return err
	}
	loc, err := o.chunks.Append(chunkstore.Resident, id, body)
	if err != nil {
		return err
	}
	b := newBatch(o)
	b.add([]kv{{chunkKey(id), encodeLoc(nil, loc)}, {garbageKey(old), []byte{}}})
	if err := b.commit(); err != nil {
		return err
	}
	o.finishFlush(nil)
	o.garbage = append(o.garbage, old)
	return o.chunks.Free([]chunkstore.Loc{old})
}
