package volume

import (
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
