package cachefs

import (
	"bytes"
	"context"
	"errors"

	"pillarbox/objstore"
)

// What is kept on the host (Options.Bodies) is keyed by chunk, so it is never out
// of date. It is filled by what is read, whole chunks at a time, and by what is
// written once that has its id for good. Sealed bodies are left out: the keys are
// there so that no disk has their plain text. They are kept sealed, below (package seal).

// keep offers a copy of a chunk's first bytes to what keeps them near.
func (fs *FS) keep(id objstore.ChunkID, data []byte) {
	if fs.opt.Bodies != nil && !id.Sealed() && !fs.opt.Local(id) {
		fs.opt.Bodies.Put(id, bytes.Clone(data))
	}
}

// fetch fills a part of a read from near, or else from the store.
func (fs *FS) fetch(ctx context.Context, j fetch) error {
	near := fs.opt.Bodies
	if near == nil || j.id.Sealed() || fs.opt.Local(j.id) {
		return fs.store.ReadChunk(ctx, j.id, j.off, j.p)
	}
	if near.Get(j.id, j.off, j.p) {
		return nil
	}
	// Others read it, or other parts of it, at the same time.
	b, err := fs.fill(ctx, j.id, j.size)
	if err != nil {
		return err
	}
	if int(j.off)+len(j.p) <= len(b) {
		copy(j.p, b[j.off:])
		return nil
	}
	return fs.store.ReadChunk(ctx, j.id, j.off, j.p) // another extent showed less of the chunk
}

// fill reads a chunk's first size bytes from the store and keeps them near. Others may
// be doing so, for no more bytes perhaps.
func (fs *FS) fill(ctx context.Context, id objstore.ChunkID, size uint32) ([]byte, error) {
	for {
		whole, err, _ := fs.fills.Do(id.String(), func() (any, error) {
			b := make([]byte, size)
			if err := fs.store.ReadChunk(ctx, id, 0, b); err != nil {
				return nil, err
			}
			fs.opt.Bodies.Put(id, b)
			return b, nil
		})
		if err == nil {
			return whole.([]byte), nil
		}
		if !errors.Is(err, context.Canceled) || ctx.Err() != nil {
			return nil, err
		}
		// It was somebody else who did not want it any more.
	}
}

// keepResident keeps the bodies that a change brought, by the ids that it gave them.
func (fs *FS) keepResident(w objstore.Write, p objstore.Promise, r objstore.Result) {
	if fs.opt.Bodies == nil || p != objstore.Committed {
		return // the id may still become that of other bytes
	}
	ids := r.Chunks
	for _, e := range w.Extents {
		if e.Kind != objstore.Resident {
			continue
		}
		if len(ids) == 0 {
			return
		}
		fs.keep(ids[0], e.Data)
		ids = ids[1:]
	}
}
