package volume

import (
	"encoding/binary"
	"fmt"

	"pillarbox/objstore"
)

// The types of keys, the byte behind the volume's id.
const (
	kXattr   = 'a'
	kBody    = 'b'
	kCookie  = 'c'
	kDirent  = 'd'
	kFreed   = 'f'
	kInode   = 'i'
	kOrphan  = 'o'
	kPending = 'p'
	kVolume  = 'v'
	kShared  = 's'
	kRegion  = 'x'
)

const (
	prefixLen  = 5               // volume and type
	inoKeyLen  = prefixLen + 8   // ... and an inode
	maxKeyLen  = inoKeyLen + 256 // ... and the longest name
	chunkIDLen = 20              // inode, index, version
	bodyKeyLen = prefixLen + chunkIDLen
)

func appendPrefix(b []byte, v objstore.VolumeID, typ byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(v))
	return append(b, typ)
}

// appendInoKey makes the key, or prefix, of something that belongs to an inode.
func appendInoKey(b []byte, typ byte, ino objstore.Ino) []byte {
	b = appendPrefix(b, ino.Volume(), typ)
	return binary.BigEndian.AppendUint64(b, uint64(ino))
}

func appendNameKey(b []byte, typ byte, ino objstore.Ino, name string) []byte {
	return append(appendInoKey(b, typ, ino), name...)
}

func appendCookieKey(b []byte, dir objstore.Ino, cookie uint64) []byte {
	return binary.BigEndian.AppendUint64(appendInoKey(b, kCookie, dir), cookie)
}

func appendRegionKey(b []byte, ino objstore.Ino, region uint32) []byte {
	return binary.BigEndian.AppendUint32(appendInoKey(b, kRegion, ino), region)
}

func appendChunkKey(b []byte, typ byte, id objstore.ChunkID) []byte {
	b = appendInoKey(b, typ, id.Ino)
	b = binary.BigEndian.AppendUint32(b, id.Index)
	return binary.BigEndian.AppendUint64(b, id.Version)
}

// keyIno is the inode in a key made by appendInoKey and its kin.
func keyIno(key []byte) (objstore.Ino, bool) {
	if len(key) < inoKeyLen {
		return 0, false
	}
	ino := objstore.Ino(binary.BigEndian.Uint64(key[prefixLen:]))
	return ino, uint32(ino.Volume()) == binary.BigEndian.Uint32(key)
}

// keyRegion is the region in a key made by appendRegionKey.
func keyRegion(key []byte) uint32 { return binary.BigEndian.Uint32(key[inoKeyLen:]) }

func parseChunkKey(key []byte, typ byte) (objstore.ChunkID, bool) {
	ino, ok := keyIno(key)
	if !ok || len(key) != bodyKeyLen || key[4] != typ {
		return objstore.ChunkID{}, false
	}
	return objstore.ChunkID{
		Ino:     ino,
		Index:   binary.BigEndian.Uint32(key[inoKeyLen:]),
		Version: binary.BigEndian.Uint64(key[inoKeyLen+4:]),
	}, true
}

// BodyKey is the key under which a resident chunk's body is written.
func BodyKey(id objstore.ChunkID) []byte {
	return appendChunkKey(make([]byte, 0, bodyKeyLen), kBody, id)
}

// ParseBodyKey says whether key is a body's, and whose.
func ParseBodyKey(key []byte) (objstore.ChunkID, bool) { return parseChunkKey(key, kBody) }

// corrupt is the error of a record that is not what it must be.
func corrupt(key []byte, what string) error {
	return fmt.Errorf("record %x: %s: %w", key, what, objstore.Corrupt)
}

// ParseFreedKey says whether key notes a data-pool chunk waiting for removal,
// and of which volume.
func ParseFreedKey(key []byte) (objstore.VolumeID, bool) {
	id, ok := parseChunkKey(key, kFreed)
	return id.Ino.Volume(), ok
}
