package volume

import (
	"errors"
	"fmt"

	"pillarbox/objstore"
)

// repairWrites is about how many writes one Repair makes.
const repairWrites = 10000

// Repair mends what can be mended of what Check finds, and returns the writes
// and the problems it met. It makes about 10,000 writes per call, and mending
// one thing may bring another to light: call it again, with the Delta applied,
// until the Delta is empty; problems it returns then are beyond mending (records
// that cannot be read). An inode that lost its name is named lost-NUMBER in the
// volume's root.
func Repair(v View, vol objstore.VolumeID) (Delta, []Problem, error) {
	var found []Problem
	a := newAuditor(v, vol, func(p Problem) { found = append(found, p) })
	f := &fixer{v: v, id: vol, at: map[string]int{}}
	rec, known, err := loadVolume(v, vol, nil)
	if err == nil || errors.Is(err, objstore.Corrupt) {
		f.vol = rec
		f.vol.next = max(f.vol.next, firstNumber)
		a.fix = f
		if err = a.run(); errors.Is(err, errFull) {
			err = nil
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("repair volume %d: %w", vol, err)
	}
	// Which volume ids were ever allotted is not to be guessed.
	if f.volDirty && (known || vol != objstore.RootVolume) {
		f.set(appendPrefix(nil, vol, kVolume), f.vol.appendTo(nil))
	}
	return f.delta, found, nil
}

// fixer collects the writes of a repair.
type fixer struct {
	v        View
	id       objstore.VolumeID
	vol      volRecord
	volDirty bool
	delta    Delta
	at       map[string]int // where in delta a key is
}

func (f *fixer) full() bool { return len(f.delta) >= repairWrites }

func (f *fixer) touched(key []byte) bool {
	_, ok := f.at[string(key)]
	return ok
}

func (f *fixer) set(key, val []byte) {
	if i, ok := f.at[string(key)]; ok {
		f.delta[i].Value = val
		return
	}
	f.at[string(key)] = len(f.delta)
	f.delta = append(f.delta, Write{key, val})
}

func (f *fixer) get(key []byte) ([]byte, error) {
	if i, ok := f.at[string(key)]; ok {
		return f.delta[i].Value, nil
	}
	return f.v.Get(key)
}

func (f *fixer) putInode(in *inode) { f.set(appendInoKey(nil, kInode, in.Ino), in.appendTo(nil)) }

// inode changes an inode; one that is missing stays so.
func (f *fixer) inode(ino objstore.Ino, change func(*inode)) error {
	key := appendInoKey(nil, kInode, ino)
	val, err := f.get(key)
	if err != nil || val == nil {
		return err
	}
	var in inode
	if err := decodeInode(&in, ino, key, val); err != nil {
		return err
	}
	change(&in)
	f.putInode(&in)
	return nil
}

func (f *fixer) putEntry(dir objstore.Ino, name string, e dirent) {
	f.set(appendNameKey(nil, kDirent, dir, name), appendDirent(nil, e))
	f.set(appendCookieKey(nil, dir, e.cookie), appendCookieRecord(nil, e, name))
}

// dropEntry leaves alone a listing entry that is another name's.
func (f *fixer) dropEntry(dir objstore.Ino, name string, e dirent) {
	f.set(appendNameKey(nil, kDirent, dir, name), nil)
	key := appendCookieKey(nil, dir, e.cookie)
	if val, err := f.get(key); err == nil && val != nil {
		if _, n, err := decodeCookieRecord(key, val); err != nil || string(n) == name {
			f.set(key, nil)
		}
	}
}

// dropNamesOf takes every name of ino from a directory.
func (f *fixer) dropNamesOf(dir, ino objstore.Ino) error {
	return f.v.Scan(appendInoKey(nil, kDirent, dir), nil, func(key, val []byte) bool {
		if e, err := decodeDirent(key, val); err == nil && e.ino == ino {
			f.dropEntry(dir, string(key[inoKeyLen:]), e)
		}
		return true
	})
}

func (f *fixer) dropPrefix(prefix []byte) error {
	return f.v.Scan(prefix, nil, func(key, _ []byte) bool {
		f.set(append([]byte(nil), key...), nil)
		return !f.full()
	})
}

func (f *fixer) giveUp(id objstore.ChunkID) {
	if id.Resident() {
		f.set(BodyKey(id), nil)
	} else {
		f.set(appendChunkKey(nil, kFreed, id), marker[:])
	}
}

// dropRegions gives up the extents of a file that is gone, and their chunks but
// those that others may name.
func (f *fixer) dropRegions(ino objstore.Ino, shared func(objstore.ChunkID) bool) error {
	return f.v.Scan(appendInoKey(nil, kRegion, ino), nil, func(key, val []byte) bool {
		ext, err := decodeRegion(key, val)
		if err != nil {
			return true
		}
		eachChunk(ext, func(id objstore.ChunkID) bool {
			if !shared(id) {
				f.giveUp(id)
			}
			return true
		})
		f.set(append([]byte(nil), key...), nil)
		return !f.full()
	})
}

// startNumbers makes the counter fit to be used.
func (f *fixer) startNumbers(highest uint64) { f.vol.next = max(f.vol.next, highest+1) }

func (f *fixer) number() uint64 {
	f.vol.next++
	f.volDirty = true
	return f.vol.next - 1
}

// recookie gives an entry a cookie of its own.
func (f *fixer) recookie(p place) error {
	key := appendNameKey(nil, kDirent, p.dir, p.name)
	val, err := f.get(key)
	if err != nil || val == nil {
		return err
	}
	e, err := decodeDirent(key, val)
	if err != nil {
		return err
	}
	e.cookie = f.number()
	f.putEntry(p.dir, p.name, e)
	return nil
}

// nameLost gives an inode a name in the root directory.
func (f *fixer) nameLost(root, ino objstore.Ino, typ uint32) error {
	name := fmt.Sprintf("lost-%d", ino.Local())
	for n := 1; ; n++ {
		val, err := f.get(appendNameKey(nil, kDirent, root, name))
		if err != nil {
			return err
		}
		if val == nil {
			break
		}
		name = fmt.Sprintf("lost-%d-%d", ino.Local(), n)
	}
	f.putEntry(root, name, dirent{ino: ino, typ: typ, cookie: f.number()})
	return nil
}
