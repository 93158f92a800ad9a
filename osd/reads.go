package osd

import (
	"context"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// read runs a question to a group's state.
func read[T any](o *OSD, pg uint32, ask func(volume.View) (T, error)) (answer T, err error) {
	err = o.View(pg, func(v volume.View) (err error) {
		answer, err = ask(v)
		return err
	})
	return answer, err
}

// Lookup finds a name in a directory; the entry has its Attr if it is of the same volume.
func (o *OSD) Lookup(_ context.Context, pg uint32, dir objstore.Ino, name string) (objstore.DirEntry, error) {
	return read(o, pg, func(v volume.View) (objstore.DirEntry, error) { return volume.Lookup(v, dir, name) })
}

// GetAttr is as in objstore.Store.
func (o *OSD) GetAttr(_ context.Context, pg uint32, ino objstore.Ino) (objstore.Attr, error) {
	return read(o, pg, func(v volume.View) (objstore.Attr, error) { return volume.GetAttr(v, ino) })
}

// ReadDir is as in objstore.Store.
func (o *OSD) ReadDir(_ context.Context, pg uint32, dir objstore.Ino, after uint64, max int, attrs bool) ([]objstore.DirEntry, error) {
	return read(o, pg, func(v volume.View) ([]objstore.DirEntry, error) { return volume.ReadDir(v, dir, after, max, attrs) })
}

// Readlink is as in objstore.Store.
func (o *OSD) Readlink(_ context.Context, pg uint32, ino objstore.Ino) (string, error) {
	return read(o, pg, func(v volume.View) (string, error) { return volume.Readlink(v, ino) })
}

// GetXattr is as in objstore.Store.
func (o *OSD) GetXattr(_ context.Context, pg uint32, ino objstore.Ino, name string) ([]byte, error) {
	return read(o, pg, func(v volume.View) ([]byte, error) { return volume.GetXattr(v, ino, name) })
}

// ListXattr is as in objstore.Store.
func (o *OSD) ListXattr(_ context.Context, pg uint32, ino objstore.Ino) ([]string, error) {
	return read(o, pg, func(v volume.View) ([]string, error) { return volume.ListXattr(v, ino) })
}

// Extents is as in objstore.Store.
func (o *OSD) Extents(_ context.Context, pg uint32, ino objstore.Ino, off, n uint64) ([]objstore.Extent, error) {
	return read(o, pg, func(v volume.View) ([]objstore.Extent, error) { return volume.Extents(v, ino, off, n) })
}

// Pending lists volumes whose making or removal was begun; asked of the root volume's group.
func (o *OSD) Pending(_ context.Context, pg uint32) ([]objstore.VolumeID, error) {
	return read(o, pg, volume.Pending)
}

// Orphans lists up to max inodes of a volume that have no name and are not purged yet.
func (o *OSD) Orphans(_ context.Context, pg uint32, vol objstore.VolumeID, max int) ([]objstore.Ino, error) {
	return read(o, pg, func(v volume.View) ([]objstore.Ino, error) { return volume.Orphans(v, vol, max) })
}
