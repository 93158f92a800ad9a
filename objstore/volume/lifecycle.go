package volume

import (
	"encoding/binary"

	"pillarbox/objstore"
)

// initVolume makes a volume's counters and root directory. The root volume is
// its own parent.
func initVolume(v View, c objstore.InitVolume, now int64) (*tx, objstore.Result, error) {
	root := objstore.VolumeRoot(c.Vol)
	typ := c.Mode & objstore.ModeType
	if c.Vol > objstore.MaxVolume || typ != 0 && typ != objstore.ModeDir {
		return nil, objstore.Result{}, objstore.Invalid
	}
	_, ok, err := loadVolume(v, c.Vol, nil)
	if err != nil {
		return nil, objstore.Result{}, err
	}
	if ok {
		a, err := GetAttr(v, root)
		return nil, objstore.Result{Attr: a}, err
	}
	t := &tx{v: v, now: now, id: c.Vol, volDirty: true}
	t.vol = volRecord{next: firstNumber, inodes: 1}
	if c.Vol == objstore.RootVolume {
		t.vol.nextVol = 1
		c.Parent = root
	}
	in := t.newSlot()
	*in = inode{dirty: true}
	in.Attr = objstore.Attr{
		Ino: root, Mode: objstore.ModeDir | c.Mode&0o7777, Nlink: 2, Uid: c.Uid, Gid: c.Gid,
		Atime: now, Mtime: now, Ctime: now, Parent: c.Parent,
	}
	return t, objstore.Result{Attr: in.Attr}, nil
}

// namePlace finds the directory that a volume is to be named in.
func (t *tx) namePlace(parent objstore.Ino, name string) (*inode, error) {
	if err := objstore.CheckName(name); err != nil {
		return nil, err
	}
	if parent.Volume() != objstore.RootVolume {
		return nil, objstore.Invalid
	}
	dir, err := t.openDir(parent)
	if err != nil {
		return nil, err
	}
	if dir.Nlink >= objstore.MaxLinks {
		return nil, objstore.TooManyLinks
	}
	return dir, t.free(parent, name)
}

func (t *tx) pendingKey(vol objstore.VolumeID) []byte {
	b := appendPrefix(t.grab(prefixLen+4), objstore.RootVolume, kPending)
	return binary.BigEndian.AppendUint32(b, uint32(vol))
}

func (t *tx) reserveVolume(c objstore.ReserveVolume) (res objstore.Result, err error) {
	if _, err = t.namePlace(c.Parent, c.Name); err != nil {
		return res, err
	}
	id := t.vol.nextVol
	if id > objstore.MaxVolume {
		return res, objstore.NoSpace
	}
	t.vol.nextVol++
	t.volDirty = true
	t.put(t.pendingKey(id), marker[:])
	res.Attr.Ino = objstore.VolumeRoot(id)
	return res, nil
}

// attachVolume is NotFound also for a volume that is not pending.
func (t *tx) attachVolume(c objstore.AttachVolume) (res objstore.Result, err error) {
	dir, err := t.namePlace(c.Parent, c.Name)
	if err != nil {
		return res, err
	}
	if c.Vol == objstore.RootVolume || c.Vol > objstore.MaxVolume {
		return res, objstore.Invalid
	}
	key := t.pendingKey(c.Vol)
	val, err := t.v.Get(key)
	if err != nil {
		return res, err
	}
	if val == nil {
		return res, objstore.NotFound
	}
	t.del(key)
	root := objstore.VolumeRoot(c.Vol)
	addLinks(dir, 1)
	t.addEntry(dir.Ino, c.Name, root, objstore.ModeDir)
	t.touch(dir)
	res.Attr = objstore.Attr{Ino: root, Mode: objstore.ModeDir, Parent: dir.Ino}
	return res, nil
}

func (t *tx) pendVolume(c objstore.PendVolume) (res objstore.Result, err error) {
	if c.Vol == objstore.RootVolume || c.Vol > objstore.MaxVolume {
		return res, objstore.Invalid
	}
	if c.Done {
		t.del(t.pendingKey(c.Vol))
	} else {
		t.put(t.pendingKey(c.Vol), marker[:])
	}
	return res, nil
}

func (t *tx) sealVolume(c objstore.SealVolume) (res objstore.Result, err error) {
	if c.Vol == objstore.RootVolume {
		return res, objstore.Invalid
	}
	// A sealed volume may be half dropped already, its root gone.
	if t.vol.sealed == !c.Undo {
		return res, nil
	}
	root, err := t.child(objstore.VolumeRoot(c.Vol))
	if err != nil {
		return res, err
	}
	res.Attr = root.Attr
	if !c.Undo {
		empty, err := t.emptyDir(root)
		if err != nil {
			return res, err
		}
		if !empty {
			return res, objstore.NotEmpty
		}
	}
	t.vol.sealed = !c.Undo
	t.volDirty = true
	return res, nil
}

// reparent leaves the times alone: what it mends may be old.
func (t *tx) reparent(c objstore.Reparent) (res objstore.Result, err error) {
	if c.Vol == objstore.RootVolume || c.To.Volume() != objstore.RootVolume {
		return res, objstore.Invalid
	}
	root, err := t.live(objstore.VolumeRoot(c.Vol))
	if err != nil {
		return res, err
	}
	if root.Parent == c.From && root.Parent != c.To {
		root.Parent = c.To
		root.dirty = true
	}
	res.Attr = root.Attr
	return res, nil
}

// freeChunks works also when the volume was dropped meanwhile.
func freeChunks(v View, c objstore.FreeChunks, now int64) (*tx, objstore.Result, error) {
	t := &tx{v: v, now: now, id: c.Vol}
	done := make(map[objstore.ChunkID]bool, len(c.Chunks))
	for _, id := range c.Chunks {
		if id.Ino.Volume() != c.Vol {
			return nil, objstore.Result{}, objstore.Invalid
		}
		if !done[id] {
			done[id] = true
			t.del(appendChunkKey(t.grab(bodyKeyLen), kFreed, id))
		}
	}
	return t, objstore.Result{}, nil
}

// dropVolume removes inodes round by round, then what no inode owned, and last
// the volume's record. Notes of chunks to free stay until FreeChunks: they are
// all that still knows of these chunks.
func dropVolume(v View, c objstore.DropVolume, now int64) (*tx, objstore.Result, error) {
	t, err := newTx(v, c.Vol, now, objstore.NotFound)
	if err == objstore.NotFound {
		return nil, objstore.Result{}, nil
	}
	if err != nil {
		return nil, objstore.Result{}, err
	}
	if !t.vol.sealed || c.Vol == objstore.RootVolume {
		return nil, objstore.Result{}, objstore.NotPermitted
	}
	more := objstore.Result{Orphan: objstore.VolumeRoot(c.Vol)}
	any, err := t.dropInodes()
	if err != nil || any {
		return t, more, err
	}
	done, err := t.dropStrays()
	if err != nil || !done {
		return t, more, err
	}
	t.volDirty = false
	t.del(appendPrefix(t.grab(prefixLen), c.Vol, kVolume))
	return t, objstore.Result{}, nil
}

// dropInodes purges as many inodes as the budget allows, and says if there was any.
func (t *tx) dropInodes() (bool, error) {
	left := purgeBudget
	var inos []objstore.Ino
	err := t.v.Scan(appendPrefix(nil, t.id, kInode), nil, func(key, _ []byte) bool {
		ino, ok := keyIno(key)
		if !ok || len(key) != inoKeyLen {
			t.delCopy(key)
			return true
		}
		inos = append(inos, ino)
		return len(inos) < purgeBudget
	})
	if err != nil {
		return false, err
	}
	for _, ino := range inos {
		if left <= 0 {
			break
		}
		var in inode
		key := appendInoKey(t.scratch[:0], kInode, ino)
		val, err := t.v.Get(key)
		if err != nil {
			return false, err
		}
		if err := decodeInode(&in, ino, key, val); err != nil {
			return false, err
		}
		if _, err := t.purgeInode(&in, &left); err != nil {
			return false, err
		}
		if in.gone {
			t.del(t.inoKey(kInode, ino))
		} else {
			t.putInode(&in)
		}
	}
	return len(inos) > 0, nil
}

// dropStrays removes records that only a damaged volume has left when all its
// inodes are gone.
func (t *tx) dropStrays() (done bool, err error) {
	left := purgeBudget
	for _, typ := range []byte{kCookie, kDirent, kOrphan, kXattr, kRegion, kShared} {
		if typ == kShared && len(t.shares) > 0 {
			return false, nil // what these regions named is counted down first
		}
		err = t.v.Scan(appendPrefix(nil, t.id, typ), nil, func(key, val []byte) bool {
			if typ == kRegion {
				if ext, err := decodeRegion(key, val); err == nil {
					left -= t.account(&inode{shared: true}, keyRegion(key), ext, nil)
				}
			}
			if id, ok := parseChunkKey(key, kShared); ok {
				t.giveUp(id)
			}
			t.delCopy(key)
			left--
			return left > 0
		})
		if err != nil || left <= 0 {
			return false, err
		}
	}
	return true, nil
}
