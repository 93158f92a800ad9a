package volume

import (
	"fmt"
	"slices"

	"pillarbox/objstore"
)

// pack names parts of a pack in the first regions of files, and leaves everything
// else of the inodes as it is.
func (t *tx) pack(c objstore.Pack) (res objstore.Result, err error) {
	if !canPack(c) {
		return res, objstore.Invalid
	}
	// A chunk once given up may be gone from the pool already, note and all; so
	// nothing names one that was named before.
	val, err := t.v.Get(appendChunkKey(t.scratch[:0], kFreed, c.To))
	if err != nil {
		return res, err
	}
	to := t.sharersOf(c.To)
	if val != nil || to.was > 0 {
		return res, objstore.Invalid
	}
	to.moved, to.now = true, 0
	for _, m := range c.Moves {
		if err := t.packOne(c.To, m); err != nil {
			return res, err
		}
	}
	return res, t.err
}

func (t *tx) packOne(to objstore.ChunkID, m objstore.PackMove) error {
	in, err := t.inode(m.Ino)
	if err != nil || in == nil || in.Mode&objstore.ModeType != objstore.ModeRegular {
		return err
	}
	old, err := t.region(in, 0)
	if err != nil {
		return err
	}
	now, found := slices.Clone(old), false
	for i := range now {
		e := &now[i]
		if e.Kind < objstore.Resident || e.Chunk != m.From || e.ChunkOff < m.FromOff || e.ChunkOff-m.FromOff+e.Len > m.Len {
			continue
		}
		e.Kind, e.Chunk, e.ChunkOff, found = objstore.Pooled, to, m.Off+e.ChunkOff-m.FromOff, true
	}
	if found {
		in.shared = true
		t.replaceFirst(in, old, now)
	}
	return nil
}

// canPack makes the checks that need no look at the files.
func canPack(c objstore.Pack) bool {
	_, size, ok := c.To.Pack()
	if !ok || c.To.Ino.Volume() != c.Vol || len(c.Moves) == 0 || len(c.Moves) > objstore.PackMovesMax {
		return false
	}
	return !slices.ContainsFunc(c.Moves, func(m objstore.PackMove) bool {
		return m.Ino.Volume() != c.Vol || m.From.Ino.Volume() != c.Vol || m.From == c.To || m.From.Sealed() != c.To.Sealed() ||
			m.Len == 0 || m.Len > objstore.ChunkSize || m.FromOff > objstore.ChunkSize || uint64(m.Off)+uint64(m.Len) > uint64(size)
	})
}

// PackUse is how many files name a pack.
type PackUse struct {
	ID    objstore.ChunkID
	Files int
}

// Packs lists a volume's packs that are named.
func Packs(v View, vol objstore.VolumeID) ([]PackUse, error) {
	var out []PackUse
	var bad error
	err := v.Scan(appendInoKey(nil, kShared, objstore.PackIno(vol)), nil, func(key, val []byte) bool {
		id, ok := parseChunkKey(key, kShared)
		if !ok {
			bad = corrupt(key, "bad chunk key")
			return false
		}
		n, err := decodeSharers(val)
		if err != nil {
			bad = corrupt(key, err.Error())
			return false
		}
		out = append(out, PackUse{id, int(n)})
		return true
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, fmt.Errorf("list packs of volume %d: %w", vol, err)
	}
	return out, nil
}

// FileExtents are some extents of a file.
type FileExtents struct {
	Ino     objstore.Ino
	Extents []objstore.Extent
}

// Namers looks through up to max inodes of a volume behind after for extents that
// lie in the chunks wanted says, in the files' first PackSpan bytes, and returns
// where to go on: 0 is the end.
func Namers(v View, vol objstore.VolumeID, after objstore.Ino, max int, wanted func(objstore.ChunkID) bool) (out []FileExtents, next objstore.Ino, err error) {
	var from []byte
	if after != 0 {
		from = appendInoKey(nil, kInode, after)
	}
	var bad error
	err = v.Scan(appendPrefix(nil, vol, kInode), from, func(key, val []byte) bool {
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
		ext = slices.DeleteFunc(slices.Clone(ext), func(e objstore.Extent) bool { return e.Kind < objstore.Resident || !wanted(e.Chunk) })
		if len(ext) > 0 {
			out = append(out, FileExtents{ino, ext})
		}
		next = ino
		max--
		return max > 0
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return nil, 0, fmt.Errorf("look for files with some chunks in volume %d: %w", vol, err)
	}
	if max > 0 {
		next = 0
	}
	return out, next, nil
}
