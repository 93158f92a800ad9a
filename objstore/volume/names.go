package volume

import (
	"math"

	"pillarbox/objstore"
)

func (t *tx) create(c objstore.Create) (res objstore.Result, err error) {
	if err = checkCreate(c); err != nil {
		return res, err
	}
	parent, err := t.openDir(c.Parent)
	if err != nil {
		return res, err
	}
	isDir := c.Mode&objstore.ModeType == objstore.ModeDir
	if c.Name != "" {
		if err = t.free(c.Parent, c.Name); err != nil {
			return res, err
		}
		if isDir && parent.Nlink >= objstore.MaxLinks {
			return res, objstore.TooManyLinks
		}
	}
	in, err := t.newInode()
	if err != nil {
		return res, err
	}
	in.Mode, in.Uid, in.Gid, in.Rdev, in.Nlink = c.Mode, c.Uid, c.Gid, c.Rdev, 1
	if parent.Mode&objstore.ModeSetgid != 0 {
		in.Gid = parent.Gid
		if isDir {
			in.Mode |= objstore.ModeSetgid
		}
	}
	if c.Target != "" {
		in.target = []byte(c.Target)
		in.Size = uint64(len(c.Target))
	}
	switch {
	case c.Name == "":
		in.Nlink = 0
		t.put(t.inoKey(kOrphan, in.Ino), marker[:])
		return objstore.Result{Attr: in.Attr, Orphan: in.Ino}, nil
	case isDir:
		in.Nlink = 2
		in.Parent = parent.Ino
		parent.Nlink++
	}
	t.addEntry(parent.Ino, c.Name, in.Ino, c.Mode&objstore.ModeType)
	t.touch(parent)
	return objstore.Result{Attr: in.Attr}, nil
}

func checkCreate(c objstore.Create) error {
	typ := c.Mode & objstore.ModeType
	if c.Name != "" {
		if err := objstore.CheckName(c.Name); err != nil {
			return err
		}
	} else if typ != objstore.ModeRegular {
		return objstore.Invalid
	}
	if len(c.Target) > objstore.MaxSymlink {
		return objstore.NameTooLong
	}
	if !validType(c.Mode) || (typ == objstore.ModeSymlink) != (c.Target != "") {
		return objstore.Invalid
	}
	return nil
}

// free says Exist if the name is taken.
func (t *tx) free(dir objstore.Ino, name string) error {
	_, ok, err := t.entry(dir, name)
	if err == nil && ok {
		err = objstore.Exist
	}
	return err
}

func (t *tx) link(c objstore.Link) (res objstore.Result, err error) {
	if err = objstore.CheckName(c.Name); err != nil {
		return res, err
	}
	if c.Ino.Volume() != c.Parent.Volume() {
		return res, objstore.CrossVolume
	}
	parent, err := t.openDir(c.Parent)
	if err != nil {
		return res, err
	}
	old, err := t.over(c)
	if err != nil {
		return res, err
	}
	in, err := t.live(c.Ino)
	if err != nil {
		return res, err
	}
	switch {
	case in.IsDir():
		return res, objstore.NotPermitted
	case in.Nlink >= objstore.MaxLinks:
		return res, objstore.TooManyLinks
	case in.Nlink == 0:
		t.del(t.inoKey(kOrphan, in.Ino))
	}
	in.Nlink++
	t.changed(in)
	if c.Over == 0 {
		t.addEntry(parent.Ino, c.Name, in.Ino, in.Mode&objstore.ModeType)
	} else {
		if res, err = t.unname(old, 0); err != nil {
			return res, err
		}
		e := dirent{ino: in.Ino, typ: in.Mode & objstore.ModeType, cookie: old.cookie}
		t.putName(parent.Ino, c.Name, e)
		t.putListed(parent.Ino, c.Name, e)
	}
	t.touch(parent)
	res.Attr = in.Attr
	return res, nil
}

// over checks that a link's name is free, or Over's, and returns its entry then.
func (t *tx) over(c objstore.Link) (old dirent, err error) {
	if c.Over == 0 {
		return old, t.free(c.Parent, c.Name)
	}
	old, ok, err := t.entry(c.Parent, c.Name)
	switch {
	case err != nil:
		return old, err
	case !ok:
		return old, objstore.NotFound
	case old.ino != c.Over:
		return old, objstore.Exist
	case old.isDir():
		return old, objstore.IsDir
	case c.Over == c.Ino:
		return old, objstore.Invalid
	}
	return old, nil
}

func (t *tx) remove(c objstore.Remove) (res objstore.Result, err error) {
	if err = objstore.CheckName(c.Name); err != nil {
		return res, err
	}
	parent, err := t.dir(c.Parent)
	if err != nil {
		return res, err
	}
	e, ok, err := t.entry(c.Parent, c.Name)
	switch {
	case err != nil:
		return res, err
	case !ok:
		return res, objstore.NotFound
	case c.Dir && !e.isDir():
		return res, objstore.NotDir
	case !c.Dir && e.isDir():
		return res, objstore.IsDir
	case c.Only != 0 && c.Only != e.ino:
		return res, objstore.Exist
	}
	res, err = t.unname(e, c.Sealed)
	if err != nil {
		return res, err
	}
	if e.isDir() {
		addLinks(parent, -1)
	}
	t.delEntry(c.Parent, c.Name, e)
	t.touch(parent)
	return res, nil
}

// unname takes one name from what e leads to: NotEmpty if it is a directory
// with entries, or another volume's root other than sealed. The entry itself and
// the parent are the caller's to change.
func (t *tx) unname(e dirent, sealed objstore.Ino) (res objstore.Result, err error) {
	if e.ino.Volume() != t.id {
		if sealed != e.ino {
			return res, objstore.NotEmpty
		}
		return res, nil
	}
	in, err := t.child(e.ino)
	if err != nil {
		return res, err
	}
	if in.IsDir() {
		empty, err := t.emptyDir(in)
		if err != nil {
			return res, err
		}
		if !empty {
			return res, objstore.NotEmpty
		}
		in.Nlink = 0
	} else if in.Nlink > 0 {
		in.Nlink--
	}
	t.changed(in)
	if in.Nlink == 0 {
		t.put(t.inoKey(kOrphan, in.Ino), marker[:])
		res.Orphan = in.Ino
	}
	res.Attr = in.Attr
	return res, nil
}

func (t *tx) emptyDir(in *inode) (bool, error) {
	if in.Nlink > 2 {
		return false, nil
	}
	return noKeys(t.v, appendInoKey(t.scratch[:0], kCookie, in.Ino))
}

// noKeys says that nothing has the prefix.
func noKeys(v View, prefix []byte) (bool, error) {
	none := true
	err := v.Scan(prefix, nil, func(_, _ []byte) bool {
		none = false
		return false
	})
	return none, err
}

// addLinks changes a directory's link count, which stops at its ends rather
// than wrap round if it was wrong before.
func addLinks(in *inode, n int) {
	in.Nlink = uint32(min(max(int64(in.Nlink)+int64(n), 0), math.MaxUint32))
}
