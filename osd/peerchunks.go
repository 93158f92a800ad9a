package osd

import (
	"context"
	"errors"
	"fmt"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// What an OSD answers its peers about chunks.
var _ Peer = (*OSD)(nil)

// HasChunks implements Peer.
func (o *OSD) HasChunks(_ context.Context, ids []objstore.ChunkID) ([]bool, error) {
	has := make([]bool, len(ids))
	for i, id := range ids {
		_, err := o.table.locate(id)
		if err != nil && !errors.Is(err, objstore.NotFound) {
			return nil, err
		}
		has[i] = err == nil
	}
	return has, nil
}

// FetchChunk implements Peer.
func (o *OSD) FetchChunk(_ context.Context, id objstore.ChunkID) ([]byte, error) {
	if id.Resident() {
		return o.fetchBody(id)
	}
	loc, err := o.table.locate(id)
	if err != nil {
		return nil, err
	}
	b := make([]byte, loc.Len)
	if err := o.chunks.Read(loc, id, 0, b); err != nil {
		return nil, err
	}
	return b, nil
}

// DropChunks implements Peer.
func (o *OSD) DropChunks(_ context.Context, ids []objstore.ChunkID) error {
	for _, id := range ids {
		if id.Resident() {
			return fmt.Errorf("drop chunk %v, a resident one: %w", id, objstore.Invalid)
		}
	}
	return o.table.drop(ids)
}

// WantedChunks implements Peer. A chunk is wanted while an extent names it; one
// that no change has named yet is not, so the caller has to know that its
// session is over.
func (o *OSD) WantedChunks(ctx context.Context, pg uint32, ids []objstore.ChunkID) ([]bool, error) {
	m := o.Map()
	for _, id := range ids {
		if m.Group(id.Ino.Volume()) != pg {
			return nil, fmt.Errorf("chunk %v is none of placement group %d: %w", id, pg, objstore.Invalid)
		}
	}
	return read(ctx, o, pg, objstore.RootVolume, func(v volume.View) ([]bool, error) {
		wanted := make([]bool, len(ids))
		for i, id := range ids {
			w, err := volume.References(v, id)
			if err != nil && !errors.Is(err, objstore.Stale) {
				return nil, err
			}
			wanted[i] = w
		}
		return wanted, nil
	})
}
