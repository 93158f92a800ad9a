package volume

import (
	"math"

	"pillarbox/objstore"
)

// tx is one change under way: the records it has read, and the writes it will
// make. Nothing is written until finish, so an error simply drops the tx.
type tx struct {
	v   View
	now int64
	id  objstore.VolumeID

	vol      volRecord
	volDirty bool

	buf    [4]inode // a rename needs no more
	nbuf   int
	inodes []*inode // read or made so far; each inode once
	ibuf   [4]*inode

	shares map[objstore.ChunkID]*sharers // counts looked at; see share.go
	err    error                         // of a read among them

	delta   Delta
	arena   []byte // what keys and values of delta are cut from
	scratch [maxKeyLen]byte
}

const arenaSize = 640 // enough for a create, link or rename with short names

// newTx begins a change of a volume. missing is the error if there is none.
func newTx(v View, id objstore.VolumeID, now int64, missing objstore.Kind) (*tx, error) {
	t := &tx{v: v, now: now, id: id}
	t.inodes = t.ibuf[:0]
	rec, ok, err := loadVolume(v, id, t.scratch[:0])
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, missing
	}
	t.vol = rec
	return t, nil
}

func loadVolume(v View, id objstore.VolumeID, scratch []byte) (volRecord, bool, error) {
	key := appendPrefix(scratch, id, kVolume)
	val, err := v.Get(key)
	if err != nil || val == nil {
		return volRecord{}, false, err
	}
	rec, err := decodeVolume(key, val)
	return rec, err == nil, err
}

// grab cuts an empty slice of capacity n from the arena.
func (t *tx) grab(n int) []byte {
	if cap(t.arena)-len(t.arena) < n {
		t.arena = make([]byte, 0, max(n, arenaSize))
	}
	at := len(t.arena)
	t.arena = t.arena[:at+n]
	return t.arena[at : at : at+n]
}

// giveBack returns what b, the last slice grabbed, did not use.
func (t *tx) giveBack(b []byte) []byte {
	t.arena = t.arena[:len(t.arena)-(cap(b)-len(b))]
	return b[:len(b):len(b)]
}

func (t *tx) put(key, val []byte) {
	if t.delta == nil {
		t.delta = make(Delta, 0, 8)
	}
	t.delta = append(t.delta, Write{key, val})
}

func (t *tx) del(key []byte) { t.put(key, nil) }

// delCopy deletes a key that is only lent.
func (t *tx) delCopy(key []byte) { t.del(append(t.grab(len(key)), key...)) }

func (t *tx) inoKey(typ byte, ino objstore.Ino) []byte {
	return appendInoKey(t.grab(inoKeyLen), typ, ino)
}

// number takes the next number of the volume.
func (t *tx) number() uint64 {
	n := t.vol.next
	t.vol.next++
	t.volDirty = true
	return n
}

func (t *tx) newSlot() *inode {
	var in *inode
	if t.nbuf < len(t.buf) {
		in = &t.buf[t.nbuf]
		t.nbuf++
	} else {
		in = new(inode)
	}
	t.inodes = append(t.inodes, in)
	return in
}

// inode returns the inode's one copy in this change, or nil if there is none.
func (t *tx) inode(ino objstore.Ino) (*inode, error) {
	for _, in := range t.inodes {
		if in.Ino == ino {
			return in, nil
		}
	}
	key := appendInoKey(t.scratch[:0], kInode, ino)
	val, err := t.v.Get(key)
	if err != nil || val == nil {
		return nil, err
	}
	in := t.newSlot()
	return in, decodeInode(in, ino, key, val)
}

// live is inode for one that must be there: Stale if not.
func (t *tx) live(ino objstore.Ino) (*inode, error) {
	in, err := t.inode(ino)
	if err == nil && in == nil {
		err = objstore.Stale
	}
	return in, err
}

// child is inode for one that an entry names.
func (t *tx) child(ino objstore.Ino) (*inode, error) {
	in, err := t.inode(ino)
	if err == nil && in == nil {
		err = corrupt(appendInoKey(nil, kInode, ino), "a name leads to an inode that is missing")
	}
	return in, err
}

// dir is a directory: Stale, NotDir.
func (t *tx) dir(ino objstore.Ino) (*inode, error) {
	in, err := t.live(ino)
	if err == nil && !in.IsDir() {
		err = objstore.NotDir
	}
	return in, err
}

// openDir is a directory that takes new names: NotFound if it was removed or
// its volume is sealed.
func (t *tx) openDir(ino objstore.Ino) (*inode, error) {
	in, err := t.dir(ino)
	if err == nil && (in.Nlink == 0 || t.vol.sealed) {
		err = objstore.NotFound
	}
	return in, err
}

// newInode makes an inode that has a number and times.
func (t *tx) newInode() (*inode, error) {
	n := t.number()
	if n > objstore.MaxLocal {
		return nil, objstore.NoSpace
	}
	in := t.newSlot()
	*in = inode{dirty: true, loaded: true}
	in.Ino = objstore.MakeIno(t.id, n)
	in.Atime, in.Mtime, in.Ctime = t.now, t.now, t.now
	t.vol.inodes++
	return in, nil
}

func (t *tx) entry(dir objstore.Ino, name string) (dirent, bool, error) {
	return getEntry(t.v, t.scratch[:0], dir, name)
}

func getEntry(v View, scratch []byte, dir objstore.Ino, name string) (dirent, bool, error) {
	key := appendNameKey(scratch, kDirent, dir, name)
	val, err := v.Get(key)
	if err != nil || val == nil {
		return dirent{}, false, err
	}
	e, err := decodeDirent(key, val)
	return e, err == nil, err
}

// putName writes what a name leads to.
func (t *tx) putName(dir objstore.Ino, name string, e dirent) {
	t.put(appendNameKey(t.grab(inoKeyLen+len(name)), kDirent, dir, name), appendDirent(t.grab(direntLen), e))
}

// putListed writes an entry's place in the listing.
func (t *tx) putListed(dir objstore.Ino, name string, e dirent) {
	t.put(t.cookieKey(dir, e.cookie), appendCookieRecord(t.grab(cookieHead+len(name)), e, name))
}

func (t *tx) cookieKey(dir objstore.Ino, cookie uint64) []byte {
	return appendCookieKey(t.grab(inoKeyLen+8), dir, cookie)
}

// addEntry puts a new name into a directory, at the end of its listing.
func (t *tx) addEntry(dir objstore.Ino, name string, ino objstore.Ino, typ uint32) {
	e := dirent{ino: ino, typ: typ, cookie: t.number()}
	t.putName(dir, name, e)
	t.putListed(dir, name, e)
}

func (t *tx) delEntry(dir objstore.Ino, name string, e dirent) {
	t.del(appendNameKey(t.grab(inoKeyLen+len(name)), kDirent, dir, name))
	t.del(t.cookieKey(dir, e.cookie))
}

// later is the time of a change that must be seen to differ from old.
func later(old, now int64) int64 {
	if old < now || old == math.MaxInt64 {
		return now
	}
	return old + 1
}

// touch notes that a directory's names changed.
func (t *tx) touch(in *inode) {
	in.Mtime = later(in.Mtime, t.now)
	t.changed(in)
}

// changed notes that an inode changed.
func (t *tx) changed(in *inode) {
	in.Ctime = later(in.Ctime, t.now)
	in.dirty = true
}

func (t *tx) putInode(in *inode) {
	b := in.appendTo(t.grab(in.maxLen()))
	b = t.giveBack(b)
	t.put(t.inoKey(kInode, in.Ino), b)
}

// finish turns the changed records into writes.
func (t *tx) finish() (Delta, error) {
	if t.err != nil {
		return nil, t.err
	}
	t.finishShares()
	for _, in := range t.inodes {
		switch {
		case in.gone:
			t.del(t.inoKey(kInode, in.Ino))
		case in.dirty:
			t.putInode(in)
		}
	}
	if t.volDirty {
		t.put(appendPrefix(t.grab(prefixLen), t.id, kVolume), t.vol.appendTo(t.grab(volRecordMax)))
	}
	return t.delta, nil
}
