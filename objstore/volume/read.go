package volume

import (
	"encoding/binary"
	"fmt"
	"slices"

	"pillarbox/objstore"
)

// readInode is Stale if there is no such inode.
func readInode(v View, ino objstore.Ino, in *inode) error {
	var buf [inoKeyLen]byte
	key := appendInoKey(buf[:0], kInode, ino)
	val, err := v.Get(key)
	if err != nil {
		return err
	}
	if val == nil {
		return objstore.Stale
	}
	return decodeInode(in, ino, key, val)
}

// Lookup finds a name in a directory. Attr is filled if the child is of the
// same volume. NotFound, NotDir, Stale, and what CheckName says of the name.
func Lookup(v View, dir objstore.Ino, name string) (objstore.DirEntry, error) {
	e, err := lookup(v, dir, name)
	if err != nil {
		return objstore.DirEntry{}, fmt.Errorf("look up %q in %v: %w", name, dir, err)
	}
	return e, nil
}

func lookup(v View, dir objstore.Ino, name string) (objstore.DirEntry, error) {
	if err := objstore.CheckName(name); err != nil {
		return objstore.DirEntry{}, err
	}
	e, ok, err := getEntry(v, make([]byte, 0, inoKeyLen+len(name)), dir, name)
	if err != nil {
		return objstore.DirEntry{}, err
	}
	var in inode
	if !ok {
		if err := readInode(v, dir, &in); err != nil {
			return objstore.DirEntry{}, err
		}
		if !in.IsDir() {
			return objstore.DirEntry{}, objstore.NotDir
		}
		return objstore.DirEntry{}, objstore.NotFound
	}
	out := objstore.DirEntry{Name: name, Ino: e.ino, Type: e.typ, Cookie: e.cookie}
	return out, fillAttr(v, dir, &out)
}

func fillAttr(v View, dir objstore.Ino, e *objstore.DirEntry) error {
	if e.Ino.Volume() != dir.Volume() {
		return nil
	}
	var in inode
	err := readInode(v, e.Ino, &in)
	if err == objstore.Stale {
		err = corrupt(appendInoKey(nil, kInode, e.Ino), "a name leads to an inode that is missing")
	}
	if err != nil {
		return err
	}
	a := in.Attr
	e.Attr = &a
	return nil
}

// GetAttr answers also for an orphan. Stale.
func GetAttr(v View, ino objstore.Ino) (objstore.Attr, error) {
	var in inode
	if err := readInode(v, ino, &in); err != nil {
		return objstore.Attr{}, fmt.Errorf("get attributes of %v: %w", ino, err)
	}
	return in.Attr, nil
}

// ReadDir returns up to max entries with cookies greater than after, in cookie
// order; fewer than max means the end. NotDir, Stale, Invalid (max < 1).
func ReadDir(v View, dir objstore.Ino, after uint64, max int, attrs bool) ([]objstore.DirEntry, error) {
	out, err := readDir(v, dir, after, max)
	for i := range out {
		if err == nil && attrs {
			err = fillAttr(v, dir, &out[i])
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list %v: %w", dir, err)
	}
	return out, nil
}

func readDir(v View, dir objstore.Ino, after uint64, max int) ([]objstore.DirEntry, error) {
	if max < 1 {
		return nil, objstore.Invalid
	}
	var in inode
	if err := readInode(v, dir, &in); err != nil {
		return nil, err
	}
	if !in.IsDir() {
		return nil, objstore.NotDir
	}
	var out []objstore.DirEntry
	var bad error
	key := appendCookieKey(make([]byte, 0, inoKeyLen+8), dir, after)
	err := v.Scan(key[:inoKeyLen], key, func(k, val []byte) bool {
		e, name, err := decodeCookieRecord(k, val)
		if err != nil {
			bad = err
			return false
		}
		out = append(out, objstore.DirEntry{Name: string(name), Ino: e.ino, Type: e.typ, Cookie: e.cookie})
		return len(out) < max
	})
	if err == nil {
		err = bad
	}
	return out, err
}

// Readlink returns a symlink's target. Invalid if it is none, Stale.
func Readlink(v View, ino objstore.Ino) (string, error) {
	var in inode
	err := readInode(v, ino, &in)
	if err == nil && in.Mode&objstore.ModeType != objstore.ModeSymlink {
		err = objstore.Invalid
	}
	if err != nil {
		return "", fmt.Errorf("read link %v: %w", ino, err)
	}
	return string(in.target), nil
}

// GetXattr returns one extended attribute. NoAttr, Stale.
func GetXattr(v View, ino objstore.Ino, name string) ([]byte, error) {
	val, err := getXattr(v, ino, name)
	if err != nil {
		return nil, fmt.Errorf("get attribute %q of %v: %w", name, ino, err)
	}
	return slices.Clone(val), nil
}

func getXattr(v View, ino objstore.Ino, name string) ([]byte, error) {
	if err := checkXattrName(name); err != nil {
		return nil, err
	}
	key := appendNameKey(nil, kXattr, ino, name)
	val, err := v.Get(key)
	if err != nil {
		return nil, err
	}
	if val == nil {
		var in inode
		if err := readInode(v, ino, &in); err != nil {
			return nil, err
		}
		return nil, objstore.NoAttr
	}
	if len(val) == 0 || val[0] != recordV1 {
		return nil, corrupt(key, "bad extended attribute")
	}
	return val[1:], nil
}

// ListXattr returns the names of all extended attributes, sorted. Stale.
func ListXattr(v View, ino objstore.Ino) ([]string, error) {
	var in inode
	err := readInode(v, ino, &in)
	var out []string
	if err == nil && in.HasXattr {
		err = v.Scan(appendInoKey(nil, kXattr, ino), nil, func(key, _ []byte) bool {
			out = append(out, string(key[inoKeyLen:]))
			return true
		})
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes of %v: %w", ino, err)
	}
	return out, nil
}

// Extents returns the extents that overlap [off, off+n), in order, without the
// holes between them; they may reach beyond the range. Stale.
func Extents(v View, ino objstore.Ino, off, n uint64) ([]objstore.Extent, error) {
	out, err := extents(v, ino, off, n)
	if err != nil {
		return nil, fmt.Errorf("get extents of %v: %w", ino, err)
	}
	return out, nil
}

func extents(v View, ino objstore.Ino, off, n uint64) ([]objstore.Extent, error) {
	var in inode
	if err := readInode(v, ino, &in); err != nil {
		return nil, err
	}
	end := in.Size
	if n < end-min(off, end) {
		end = off + n
	}
	if off >= end {
		return nil, nil
	}
	var out []objstore.Extent
	add := func(ext []objstore.Extent) {
		for _, e := range ext {
			if e.End() > off && e.Off < end {
				e.Data = slices.Clone(e.Data)
				out = append(out, e)
			}
		}
	}
	if off < regionSize {
		ext, err := in.extents()
		if err != nil {
			return nil, err
		}
		add(ext)
	}
	if end <= regionSize || off >= maxMapped {
		return out, nil
	}
	var after []byte
	if first := regionOf(off); first > 0 {
		after = appendRegionKey(nil, ino, first-1)
	}
	var bad error
	err := v.Scan(appendInoKey(nil, kRegion, ino), after, func(key, val []byte) bool {
		var ext []objstore.Extent
		if ext, bad = decodeRegion(key, val); bad != nil || ext[0].Off >= end {
			return false
		}
		add(ext)
		return true
	})
	if err == nil {
		err = bad
	}
	return out, err
}

// References says whether the chunk's owner still refers to it. A missing owner
// does not.
func References(v View, id objstore.ChunkID) (bool, error) {
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
	if err != nil {
		return false, fmt.Errorf("find owner of chunk %v: %w", id, err)
	}
	return found, nil
}

// FreedChunks returns up to max data-pool chunks that wait for removal. It
// answers for a dropped volume, too.
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

// Orphans returns up to max inodes without a name.
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
