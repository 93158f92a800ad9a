package osd

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// What package pack asks of a store of one host: where small bodies lie that could
// be packed, and which packs have lost many of theirs.

// SmallBodies counts the sealed resident bodies of each volume that has any, those
// left out that came within the last seconds.
func (o *OSD) SmallBodies(ctx context.Context) (map[objstore.VolumeID]int, error) {
	n := map[objstore.VolumeID]int{}
	err := o.eachChunk(ctx, func(id objstore.ChunkID) bool {
		if id.Resident() && id.Sealed() {
			n[id.Ino.Volume()]++
		}
		return false
	}, func([]objstore.ChunkID) error { return nil })
	return n, err
}

// SmallBodiesOf lists up to max of a volume's, in the order of their inodes,
// beginning behind an inode. Some may be gone since.
func (o *OSD) SmallBodiesOf(ctx context.Context, vol objstore.VolumeID, after objstore.Ino, max int) ([]objstore.ChunkID, error) {
	o.files.RLock()
	defer o.files.RUnlock()
	if o.filesClosed {
		return nil, ErrClosed
	}
	base, release := o.holdBase()
	defer release()
	from := objstore.MakeIno(vol, 0)
	if after != 0 {
		from = after + 1
	}
	// The first three bytes of an inode number are its volume's.
	prefix := append([]byte{keyChunk}, binary.BigEndian.AppendUint64(nil, uint64(from))[:3]...)
	it := base.txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
	defer it.Close()
	var out []objstore.ChunkID
	for it.Seek(chunkKey(objstore.ChunkID{Ino: from})); it.Valid() && len(out) < max && ctx.Err() == nil; it.Next() {
		id, ok := parseChunkKey(it.Item().Key())
		if !ok {
			return nil, fmt.Errorf("chunk key %x: %w", it.Item().Key(), objstore.Corrupt)
		}
		if id.Ino.Volume() != vol {
			break
		}
		if id.Resident() && id.Sealed() {
			out = append(out, id)
		}
	}
	return out, ctx.Err()
}

// Packs lists the packs of all volumes that files name.
func (o *OSD) Packs(ctx context.Context) ([]volume.PackUse, error) {
	var out []volume.PackUse
	for pg := range o.groups {
		vols, err := view(o, uint32(pg), volume.Volumes)
		if err != nil {
			return nil, err
		}
		for _, vol := range vols {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			packs, err := view(o, uint32(pg), func(v volume.View) ([]volume.PackUse, error) { return volume.Packs(v, vol) })
			if err != nil {
				return nil, err
			}
			out = append(out, packs...)
		}
	}
	return out, nil
}

// namersPage is how many inodes are looked at under one hold of the group's lock.
const namersPage = 1000

// Namers calls fn with the files of a volume that name chunks which wanted says,
// and where in them. They may change meanwhile.
func (o *OSD) Namers(ctx context.Context, vol objstore.VolumeID, wanted func(objstore.ChunkID) bool, fn func(volume.FileExtents) error) error {
	pg := o.Map().Group(vol)
	for after := objstore.Ino(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var next objstore.Ino
		list, err := view(o, pg, func(v volume.View) (list []volume.FileExtents, err error) {
			list, next, err = volume.Namers(v, vol, after, namersPage, wanted)
			return list, err
		})
		if err != nil {
			return err
		}
		for _, f := range list {
			if err := fn(f); err != nil {
				return err
			}
		}
		if after = next; next == 0 {
			return nil
		}
	}
}
