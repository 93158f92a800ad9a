package objstore

// A pack is a pooled chunk with the bodies of many files of one volume, which
// share it (Share): each names its part. It goes with the last of them. Its id
// says how many files there were and how many bytes, so that how much of it is
// still wanted follows from the count of those who name it.

// Limits of a pack, which its id imposes.
const (
	packSizeBits = 22

	PackMax      = 1 << packSizeBits        // bytes
	PackFilesMax = 1 << (32 - packSizeBits) // files
	packIno      = 2                        // of every volume; no inode has the number
)

// PackIno is whose a volume's packs are: no inode's.
func PackIno(v VolumeID) Ino { return MakeIno(v, packIno) }

// PackIndex is the index of a pack with the bodies of so many files.
func PackIndex(files, size int) uint32 { return uint32(files-1)<<packSizeBits | uint32(size-1) }

// Pack says whether the chunk is a pack, and how many files and bytes it was
// made of.
func (c ChunkID) Pack() (files, size int, ok bool) {
	if c.Ino.Local() != packIno || c.Resident() {
		return 0, 0, false
	}
	return int(c.Index>>packSizeBits) + 1, int(c.Index&(PackMax-1)) + 1, true
}

// Limits of a Pack.
const (
	PackSpan     = 64 << 20 // bytes of a file whose extents are in its first record
	PackMovesMax = 4 * PackFilesMax
)
