package volume

import (
	"encoding/binary"

	"pillarbox/objstore"
)

// recordV1 starts every record of the first format.
const recordV1 = 1

// marker is the value of keys that say everything themselves.
var marker = [1]byte{recordV1}

// volRecord is a volume's counters.
type volRecord struct {
	next    uint64 // next number for an inode, cookie or resident chunk
	inodes  uint64 // orphans included
	bytes   uint64 // mapped bytes of all inodes, in whole blocks
	sealed  bool
	nextVol objstore.VolumeID // root volume: the next volume to allot
}

// firstNumber keeps real cookies above those of "." and "..", and real inodes
// behind the volume's root.
const firstNumber = 3

const volRecordMax = 2 + 4*binary.MaxVarintLen64

func (r *volRecord) appendTo(b []byte) []byte {
	flags := byte(0)
	if r.sealed {
		flags = 1
	}
	b = append(b, recordV1, flags)
	b = binary.AppendUvarint(b, r.next)
	b = binary.AppendUvarint(b, r.inodes)
	b = binary.AppendUvarint(b, r.bytes)
	return binary.AppendUvarint(b, uint64(r.nextVol))
}

func decodeVolume(key, val []byte) (volRecord, error) {
	r := reader{b: val}
	ver, flags := r.byte(), r.byte()
	rec := volRecord{sealed: flags&1 != 0, next: r.uvarint(), inodes: r.uvarint(), bytes: r.uvarint()}
	rec.nextVol = objstore.VolumeID(r.uvarint32())
	if r.bad || ver != recordV1 || flags > 1 || len(r.b) != 0 || rec.next < firstNumber {
		return volRecord{}, corrupt(key, "bad volume record")
	}
	return rec, nil
}

// inode is a decoded inode record. Extents stay encoded until somebody asks.
type inode struct {
	objstore.Attr
	target []byte            // symlink's; read-only
	raw    []byte            // encoded extents of region 0, when !loaded; read-only
	ext    []objstore.Extent // decoded ones, when loaded
	loaded bool
	shared bool // some of its chunks may have a count of sharers
	dirty  bool
	gone   bool // to be deleted instead of written
}

const (
	inodeFixedMax = 2 + 5*binary.MaxVarintLen32 + 3*binary.MaxVarintLen64 + 3*8 + binary.MaxVarintLen32
	flagXattr     = 1
	flagShared    = 2
)

func (in *inode) maxLen() int {
	n := inodeFixedMax + len(in.target) + len(in.raw)
	if in.loaded {
		n += extentsMaxLen(in.ext)
	}
	return n
}

func (in *inode) appendTo(b []byte) []byte {
	flags := byte(0)
	if in.HasXattr {
		flags = flagXattr
	}
	if in.shared {
		flags |= flagShared
	}
	b = append(b, recordV1, flags)
	b = binary.AppendUvarint(b, uint64(in.Mode))
	b = binary.AppendUvarint(b, uint64(in.Nlink))
	b = binary.AppendUvarint(b, uint64(in.Uid))
	b = binary.AppendUvarint(b, uint64(in.Gid))
	b = binary.AppendUvarint(b, uint64(in.Rdev))
	b = binary.AppendUvarint(b, in.Size)
	b = binary.AppendUvarint(b, in.Blocks)
	b = binary.BigEndian.AppendUint64(b, uint64(in.Atime))
	b = binary.BigEndian.AppendUint64(b, uint64(in.Mtime))
	b = binary.BigEndian.AppendUint64(b, uint64(in.Ctime))
	switch in.Mode & objstore.ModeType {
	case objstore.ModeDir:
		b = binary.AppendUvarint(b, uint64(in.Parent))
	case objstore.ModeSymlink:
		b = append(b, in.target...)
	case objstore.ModeRegular:
		if in.loaded {
			return appendExtents(b, in.Ino, 0, in.ext)
		}
		b = append(b, in.raw...)
	}
	return b
}

// decodeInode fills in from a record. target and raw alias val.
func decodeInode(in *inode, ino objstore.Ino, key, val []byte) error {
	r := reader{b: val}
	ver, flags := r.byte(), r.byte()
	*in = inode{}
	in.Ino = ino
	in.HasXattr, in.shared = flags&flagXattr != 0, flags&flagShared != 0
	in.Mode, in.Nlink = r.uvarint32(), r.uvarint32()
	in.Uid, in.Gid, in.Rdev = r.uvarint32(), r.uvarint32(), r.uvarint32()
	in.Size, in.Blocks = r.uvarint(), r.uvarint()
	in.Atime, in.Mtime, in.Ctime = int64(r.u64()), int64(r.u64()), int64(r.u64())
	switch in.Mode & objstore.ModeType {
	case objstore.ModeDir:
		in.Parent = objstore.Ino(r.uvarint())
	case objstore.ModeSymlink:
		in.target, r.b = r.b, nil
	case objstore.ModeRegular:
		in.raw, r.b = r.b, nil
	}
	if r.bad || ver != recordV1 || flags > flagXattr|flagShared || len(r.b) != 0 || !validType(in.Mode) || in.Size > objstore.MaxFileSize {
		return corrupt(key, "bad inode record")
	}
	return nil
}

// extents decodes the extents of region 0 if that was not done yet.
func (in *inode) extents() ([]objstore.Extent, error) {
	if in.loaded || in.Mode&objstore.ModeType != objstore.ModeRegular {
		return in.ext, nil
	}
	ext, err := decodeExtents(in.Ino, 0, in.raw)
	if err != nil {
		return nil, corrupt(appendInoKey(nil, kInode, in.Ino), err.Error())
	}
	in.setExtents(ext)
	return ext, nil
}

func (in *inode) setExtents(ext []objstore.Extent) {
	in.ext, in.loaded, in.raw = ext, true, nil
}

func validType(mode uint32) bool {
	switch mode & objstore.ModeType {
	case objstore.ModeSocket, objstore.ModeSymlink, objstore.ModeRegular, objstore.ModeBlock,
		objstore.ModeDir, objstore.ModeChar, objstore.ModeFifo:
		return mode&^(objstore.ModeType|0o7777) == 0
	}
	return false
}

// dirent is what a name leads to.
type dirent struct {
	ino    objstore.Ino
	typ    uint32 // ModeType bits
	cookie uint64
}

func (e dirent) isDir() bool { return e.typ == objstore.ModeDir }

const (
	direntLen  = 1 + 8 + 1 + 8 // 'd' record
	cookieHead = 1 + 8 + 1     // 'c' record, before the name
)

func appendDirent(b []byte, e dirent) []byte {
	b = append(b, recordV1)
	b = binary.BigEndian.AppendUint64(b, uint64(e.ino))
	b = append(b, byte(e.typ>>12))
	return binary.BigEndian.AppendUint64(b, e.cookie)
}

func decodeDirent(key, val []byte) (dirent, error) {
	if len(val) != direntLen || val[0] != recordV1 || !validType(uint32(val[9])<<12) {
		return dirent{}, corrupt(key, "bad directory entry")
	}
	return dirent{
		ino:    objstore.Ino(binary.BigEndian.Uint64(val[1:])),
		typ:    uint32(val[9]) << 12,
		cookie: binary.BigEndian.Uint64(val[10:]),
	}, nil
}

func appendCookieRecord(b []byte, e dirent, name string) []byte {
	b = append(b, recordV1)
	b = binary.BigEndian.AppendUint64(b, uint64(e.ino))
	b = append(b, byte(e.typ>>12))
	return append(b, name...)
}

// decodeCookieRecord returns the entry and its name, which aliases val.
func decodeCookieRecord(key, val []byte) (dirent, []byte, error) {
	if len(key) != inoKeyLen+8 || len(val) <= cookieHead || len(val) > cookieHead+objstore.MaxName ||
		val[0] != recordV1 || !validType(uint32(val[9])<<12) {
		return dirent{}, nil, corrupt(key, "bad listing entry")
	}
	return dirent{
		ino:    objstore.Ino(binary.BigEndian.Uint64(val[1:])),
		typ:    uint32(val[9]) << 12,
		cookie: binary.BigEndian.Uint64(key[inoKeyLen:]),
	}, val[cookieHead:], nil
}
