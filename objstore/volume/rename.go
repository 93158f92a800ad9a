package volume

import "pillarbox/objstore"

// maxDepth ends a walk up the tree that a corrupt parent made endless.
const maxDepth = 1 << 20

// moving is a rename that has found everything it needs.
type moving struct {
	c        objstore.Rename
	from, to *inode // the directories, maybe the same
	old, new dirent // what the names lead to
	over     bool   // the new name exists
}

func (t *tx) rename(c objstore.Rename) (res objstore.Result, err error) {
	m, err := t.findRename(c)
	if err != nil {
		return res, err
	}
	if m.over && m.old.ino == m.new.ino {
		if m.old.ino.Volume() == t.id {
			in, err := t.child(m.old.ino)
			if err != nil {
				return res, err
			}
			res.Attr = in.Attr
		}
		return res, nil
	}
	if c.Exchange {
		return t.exchange(m)
	}
	if m.over {
		switch {
		case m.old.isDir() && !m.new.isDir():
			return res, objstore.NotDir
		case !m.old.isDir() && m.new.isDir():
			return res, objstore.IsDir
		}
		gone, err := t.unname(m.new, c.Sealed)
		if err != nil {
			return res, err
		}
		res.Orphan, res.Over = gone.Orphan, m.new.ino
		if m.new.isDir() {
			addLinks(m.to, -1)
		}
	}
	t.del(appendNameKey(t.grab(inoKeyLen+len(c.OldName)), kDirent, c.OldParent, c.OldName))
	cookie := m.old.cookie
	if m.over {
		cookie = m.new.cookie
	} else if m.from != m.to {
		cookie = t.number()
	}
	if m.from != m.to || cookie != m.old.cookie {
		t.del(t.cookieKey(c.OldParent, m.old.cookie))
	}
	m.touch(t)
	res.Attr, err = t.move(m.old, m.from, m.to, c.NewName, cookie)
	return res, err
}

func (m *moving) touch(t *tx) {
	t.touch(m.from)
	if m.from != m.to {
		t.touch(m.to)
	}
}

// findRename makes the checks that do not depend on what is replaced, in the
// order of rename(2).
func (t *tx) findRename(c objstore.Rename) (m moving, err error) {
	m.c = c
	if err = objstore.CheckName(c.OldName); err != nil {
		return m, err
	}
	if err = objstore.CheckName(c.NewName); err != nil {
		return m, err
	}
	if c.NoReplace && c.Exchange {
		return m, objstore.Invalid
	}
	if c.OldParent.Volume() != c.NewParent.Volume() {
		return m, objstore.CrossVolume
	}
	if m.from, err = t.dir(c.OldParent); err != nil {
		return m, err
	}
	if m.to, err = t.openDir(c.NewParent); err != nil {
		return m, err
	}
	var ok bool
	if m.old, ok, err = t.entry(c.OldParent, c.OldName); err != nil {
		return m, err
	} else if !ok {
		return m, objstore.NotFound
	}
	if m.new, m.over, err = t.entry(c.NewParent, c.NewName); err != nil {
		return m, err
	}
	switch {
	case m.over && c.NoReplace:
		return m, objstore.Exist
	case !m.over && c.Exchange:
		return m, objstore.NotFound
	}
	if err = t.notBelow(m.old, m.from, m.to); err == nil && c.Exchange {
		err = t.notBelow(m.new, m.to, m.from)
	}
	return m, err
}

// notBelow says Invalid if to is the directory that e leads to, or below it.
func (t *tx) notBelow(e dirent, from, to *inode) error {
	if !e.isDir() || e.ino.Volume() != t.id || from == to {
		return nil
	}
	at, parent := to.Ino, to.Parent
	for range maxDepth {
		if at == e.ino {
			return objstore.Invalid
		}
		if at.IsVolumeRoot() {
			return nil
		}
		at = parent
		key := appendInoKey(t.scratch[:0], kInode, at)
		val, err := t.v.Get(key)
		if err != nil {
			return err
		}
		if val == nil {
			return corrupt(append([]byte(nil), key...), "a directory's parent is missing")
		}
		var in inode
		if err := decodeInode(&in, at, key, val); err != nil {
			return err
		}
		parent = in.Parent
	}
	return corrupt(appendInoKey(nil, kInode, to.Ino), "parents without end")
}

// move puts what e leads to under a name of to, and counts it out of from and
// into to. A cookie stays with a name that stays, and else, within a directory,
// with what is renamed, so that a listing under way shows each of them once.
func (t *tx) move(e dirent, from, to *inode, name string, cookie uint64) (objstore.Attr, error) {
	moved := e
	moved.cookie = cookie
	t.putName(to.Ino, name, moved)
	t.putListed(to.Ino, name, moved)
	if e.isDir() && from != to {
		addLinks(from, -1)
		if to.Nlink >= objstore.MaxLinks {
			return objstore.Attr{}, objstore.TooManyLinks
		}
		addLinks(to, 1)
	}
	if e.ino.Volume() != t.id {
		return objstore.Attr{Ino: e.ino, Mode: e.typ}, nil
	}
	in, err := t.child(e.ino)
	if err != nil {
		return objstore.Attr{}, err
	}
	if in.IsDir() {
		in.Parent = to.Ino
	}
	t.changed(in)
	return in.Attr, nil
}

// exchange swaps two names.
func (t *tx) exchange(m moving) (res objstore.Result, err error) {
	c := m.c
	if _, err = t.move(m.new, m.to, m.from, c.OldName, m.old.cookie); err != nil {
		return res, err
	}
	m.touch(t)
	res.Over = m.new.ino
	res.Attr, err = t.move(m.old, m.from, m.to, c.NewName, m.new.cookie)
	return res, err
}
