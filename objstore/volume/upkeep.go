package volume

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"pillarbox/objstore"
)

// References says whether any extent refers to the chunk: where it belongs, or
// elsewhere in the volume.
func References(v View, id objstore.ChunkID) (bool, error) {
	found, err := ownerNames(v, id)
	if err == nil && !found {
		var val []byte
		val, err = v.Get(appendChunkKey(nil, kShared, id))
		found = val != nil
	}
	if err != nil {
		return false, fmt.Errorf("find owner of chunk %v: %w", id, err)
	}
	return found, nil
}

// ownerNames says whether a chunk is named where it belongs. A missing owner does not.
func ownerNames(v View, id objstore.ChunkID) (bool, error) {
	found := false
	see := func(ext []objstore.Extent) {
		found = slices.ContainsFunc(ext, func(e objstore.Extent) bool { return e.Kind >= objstore.Resident && e.Chunk == id })
	}
	region := uint32(uint64(id.Index) * objstore.ChunkSize / regionSize)
	var err error
	if region == 0 {
		var in inode
		var ext []objstore.Extent
		if err = readInode(v, id.Ino, &in); err == nil {
			ext, err = in.extents()
		} else if err == objstore.Stale {
			return false, nil
		}
		see(ext)
	} else {
		key := appendRegionKey(nil, id.Ino, region)
		var val []byte
		var ext []objstore.Extent
		if val, err = v.Get(key); err == nil && val != nil {
			ext, err = decodeRegion(key, val)
		}
		see(ext)
	}
	return found, err
}

// FreedChunks returns up to max data-pool chunks that wait for removal, or
// all if max is negative. It answers for a dropped volume, too.
func FreedChunks(v View, vol objstore.VolumeID, max int) ([]objstore.ChunkID, error) {
	var out []objstore.ChunkID
	err := scanUpTo(v, appendPrefix(nil, vol, kFreed), max, func(key []byte) error {
		id, ok := parseChunkKey(key, kFreed)
		if !ok {
			return corrupt(key, "bad chunk key")
		}
		out = append(out, id)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list freed chunks of volume %d: %w", vol, err)
	}
	return out, nil
}

// Orphans returns up to max inodes without a name, or all if max is negative.
func Orphans(v View, vol objstore.VolumeID, max int) ([]objstore.Ino, error) {
	var out []objstore.Ino
	err := scanUpTo(v, appendPrefix(nil, vol, kOrphan), max, func(key []byte) error {
		ino, ok := keyIno(key)
		if !ok {
			return corrupt(key, "bad orphan key")
		}
		out = append(out, ino)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list orphans of volume %d: %w", vol, err)
	}
	return out, nil
}

// Pending returns the volumes that are noted, in the root volume, as being
// made or removed.
func Pending(v View) ([]objstore.VolumeID, error) {
	var out []objstore.VolumeID
	prefix := appendPrefix(nil, objstore.RootVolume, kPending)
	err := scanUpTo(v, prefix, -1, func(key []byte) error {
		if len(key) != prefixLen+4 {
			return corrupt(key, "bad pending key")
		}
		out = append(out, objstore.VolumeID(binary.BigEndian.Uint32(key[prefixLen:])))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list pending volumes: %w", err)
	}
	return out, nil
}

// scanUpTo calls fn for up to max keys with the prefix; a negative max is all.
func scanUpTo(v View, prefix []byte, max int, fn func(key []byte) error) error {
	if max == 0 {
		return nil
	}
	var bad error
	n := 0
	err := v.Scan(prefix, nil, func(key, _ []byte) bool {
		bad = fn(key)
		n++
		return bad == nil && n != max
	})
	if err == nil {
		err = bad
	}
	return err
}

// Volumes returns every volume with anything in this view, dropped ones with
// chunks still to free included. It takes one short scan per volume.
func Volumes(v View) ([]objstore.VolumeID, error) {
	var out []objstore.VolumeID
	var after []byte
	for {
		found := false
		var bad error
		err := v.Scan(nil, after, func(key, _ []byte) bool {
			if len(key) < prefixLen {
				bad = corrupt(key, "short key")
				return false
			}
			found = true
			vol := binary.BigEndian.Uint32(key)
			out = append(out, objstore.VolumeID(vol))
			after = append(binary.BigEndian.AppendUint32(after[:0], vol), 0xff)
			return false
		})
		if err == nil {
			err = bad
		}
		if err != nil {
			return nil, fmt.Errorf("list volumes: %w", err)
		}
		if !found {
			return out, nil
		}
	}
}

// Usage is how many inodes a volume has, orphans included, and how many bytes
// their extents take in whole blocks. NotFound.
func Usage(v View, vol objstore.VolumeID) (files, bytes uint64, err error) {
	rec, ok, err := loadVolume(v, vol, nil)
	if err == nil && !ok {
		err = objstore.NotFound
	}
	if err != nil {
		return 0, 0, fmt.Errorf("get usage of volume %d: %w", vol, err)
	}
	return rec.inodes, rec.bytes, nil
}

// RecordKey is the key of the record of the volume that a key is of, and a prefix behind
// all keys of that volume.
func RecordKey(key []byte) (record, next []byte, ok bool) {
	if len(key) < prefixLen {
		return nil, nil, false
	}
	return append(bytes.Clone(key[:prefixLen-1]), kVolume), append(bytes.Clone(key[:prefixLen-1]), 0xff), true
}

// IsRecordKey says whether a key is that of a volume's record.
func IsRecordKey(key []byte) bool { return len(key) == prefixLen && key[prefixLen-1] == kVolume }

// Inodes is how many inodes a volume has by its record, orphans included.
func Inodes(key, record []byte) (uint64, error) {
	rec, err := decodeVolume(key, record)
	return rec.inodes, err
}

// Chunks calls fn once for every chunk that the volume's extents refer to,
// until fn returns false. fn must not change the view. Corrupt if some extents
// cannot be read, for then no chunk may be taken for unwanted.
func Chunks(v View, vol objstore.VolumeID, fn func(id objstore.ChunkID) bool) error {
	goOn := true
	var bad error
	err := v.Scan(appendPrefix(nil, vol, kInode), nil, func(key, val []byte) bool {
		var in inode
		ino, ok := keyIno(key)
		if !ok || len(key) != inoKeyLen {
			bad = corrupt(key, "bad inode key")
			return false
		}
		if bad = decodeInode(&in, ino, key, val); bad != nil {
			return false
		}
		var ext []objstore.Extent
		if ext, bad = in.extents(); bad != nil {
			return false
		}
		goOn = eachChunk(ext, fn)
		return goOn
	})
	if err == nil && bad == nil && goOn {
		err = v.Scan(appendPrefix(nil, vol, kRegion), nil, func(key, val []byte) bool {
			var ext []objstore.Extent
			ext, bad = decodeRegion(key, val)
			return bad == nil && eachChunk(ext, fn)
		})
	}
	if err == nil {
		err = bad
	}
	if err != nil {
		return fmt.Errorf("list chunks of volume %d: %w", vol, err)
	}
	return nil
}
