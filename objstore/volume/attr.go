package volume

import (
	"strings"

	"pillarbox/objstore"
)

func (t *tx) setAttr(c objstore.SetAttr) (res objstore.Result, err error) {
	in, err := t.live(c.Ino)
	if err != nil {
		return res, err
	}
	if c.Set&objstore.SetSize != 0 {
		if err = t.setSize(in, c.Size); err != nil {
			return res, err
		}
	}
	if c.Set&objstore.SetMode != 0 {
		in.Mode = in.Mode&objstore.ModeType | c.Mode&0o7777
	}
	if c.Set&objstore.SetUid != 0 {
		in.Uid = c.Uid
	}
	if c.Set&objstore.SetGid != 0 {
		in.Gid = c.Gid
	}
	if c.Set&objstore.SetAtime != 0 {
		in.Atime = c.Atime
	}
	if c.Set&objstore.SetMtime != 0 {
		in.Mtime = c.Mtime
	}
	t.changed(in)
	if c.Set&objstore.SetCtime != 0 {
		in.Ctime = c.Ctime
	}
	return objstore.Result{Attr: in.Attr}, nil
}

// setSize also sets mtime, as truncate(2) does.
func (t *tx) setSize(in *inode, size uint64) error {
	switch {
	case in.IsDir():
		return objstore.IsDir
	case in.Mode&objstore.ModeType != objstore.ModeRegular:
		return objstore.Invalid
	case size > objstore.MaxFileSize:
		return objstore.TooBig
	}
	if size < in.Size {
		if err := t.shrink(in, size); err != nil {
			return err
		}
	}
	in.Size = size
	in.Mtime = t.now
	return nil
}

// shrink takes away every extent from size on.
func (t *tx) shrink(in *inode, size uint64) error {
	first := regionOf(min(size, maxMapped-1))
	old, err := in.extents()
	if err != nil {
		return err
	}
	if first == 0 {
		t.replaceFirst(in, old, truncate(old, size))
	}
	if in.Size <= regionSize {
		return nil
	}
	var after []byte
	if first > 0 {
		// The last region that keeps something is in the scan, too.
		after = appendRegionKey(nil, in.Ino, first-1)
	}
	return t.eachRegion(in.Ino, after, func(region uint32, key []byte, old []objstore.Extent) bool {
		t.replaceRegion(in, region, old, truncate(old, size))
		return true
	})
}

func checkXattrName(name string) error {
	switch {
	case len(name) > objstore.MaxXattrName:
		return objstore.NameTooLong
	case name == "" || strings.IndexByte(name, 0) >= 0:
		return objstore.Invalid
	}
	return nil
}

func (t *tx) setXattr(c objstore.SetXattr) (res objstore.Result, err error) {
	if err = checkXattrName(c.Name); err != nil {
		return res, err
	}
	if len(c.Value) > objstore.MaxXattr {
		return res, objstore.TooBig
	}
	if c.CreateOnly && c.ReplaceOnly {
		return res, objstore.Invalid
	}
	in, err := t.live(c.Ino)
	if err != nil {
		return res, err
	}
	if c.CreateOnly || c.ReplaceOnly {
		val, err := t.v.Get(appendNameKey(t.scratch[:0], kXattr, c.Ino, c.Name))
		switch {
		case err != nil:
			return res, err
		case val != nil && c.CreateOnly:
			return res, objstore.Exist
		case val == nil && c.ReplaceOnly:
			return res, objstore.NoAttr
		}
	}
	val := append(append(t.grab(1+len(c.Value)), recordV1), c.Value...)
	t.put(appendNameKey(t.grab(inoKeyLen+len(c.Name)), kXattr, c.Ino, c.Name), val)
	in.HasXattr = true
	t.changed(in)
	return objstore.Result{Attr: in.Attr}, nil
}

func (t *tx) removeXattr(c objstore.RemoveXattr) (res objstore.Result, err error) {
	if err = checkXattrName(c.Name); err != nil {
		return res, err
	}
	in, err := t.live(c.Ino)
	if err != nil {
		return res, err
	}
	key := appendNameKey(t.grab(inoKeyLen+len(c.Name)), kXattr, c.Ino, c.Name)
	val, err := t.v.Get(key)
	if err != nil {
		return res, err
	}
	if val == nil {
		return res, objstore.NoAttr
	}
	t.del(key)
	in.HasXattr = false
	err = t.v.Scan(appendInoKey(t.scratch[:0], kXattr, c.Ino), nil, func(k, _ []byte) bool {
		in.HasXattr = string(k) != string(key)
		return !in.HasXattr
	})
	t.changed(in)
	return objstore.Result{Attr: in.Attr}, err
}
