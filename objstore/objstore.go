// Package objstore is the store as its clients see it: the core types, the
// changes a volume accepts, and the one interface a mount or gateway works
// against. It imports only the standard library and package crush; what
// implements it lives in subpackages, so that osd and mon share the types
// without the client.
//
//	crush    where data lies: CRUSH over the map's OSDs
//	volume   the semantics of a volume: a pure function from a key-value view and a Change to a Delta
//	client   a Store over a cluster map and the OSDs that serve it
//
// Ownership: byte slices handed to a Store must not be changed by the caller
// until the call returns; slices a Store returns belong to the caller and are
// read-only. Every Store method may be called from any goroutine.
package objstore

import (
	"context"
	"fmt"
)

// VolumeID names a volume: a subtree with its own inode space, kept as one
// linearizable state machine. Volume 0 is the root volume.
type VolumeID uint32

// RootVolume holds the directories above the accounts.
const RootVolume VolumeID = 0

// Ino is an inode number. Its upper 26 bits are the volume's id, so any inode
// finds its placement group by arithmetic alone. Numbers are never reused.
type Ino uint64

const localBits = 38

// Limits that the numbers' layout and the wire impose.
const (
	MaxVolume    VolumeID = 1<<26 - 1
	MaxLocal     uint64   = 1<<localBits - 1
	MaxName               = 255       // bytes in a directory entry's name
	MaxSymlink            = 4095      // bytes in a symlink's target
	MaxXattr              = 64 << 10  // bytes in an extended attribute's value
	MaxXattrName          = 255       // bytes in an extended attribute's name
	MaxLinks              = 1<<31 - 1 // hard links of one inode
	MaxFileSize           = 1<<62 - 1 // bytes
	ChunkSize             = 4 << 20   // file bytes one chunk can cover; extents never cross a multiple of it
	InlineMax             = 4 << 10   // bytes an extent may carry inside the inode record
	ResidentMax           = 64 << 10  // bytes a body may have to travel in the metadata commit
	SealRoom              = 4 << 10   // bytes that sealing may add to a body
	StoredMax             = ChunkSize + SealRoom
)

// MakeIno joins a volume's id and a number local to it.
func MakeIno(v VolumeID, local uint64) Ino { return Ino(uint64(v)<<localBits | local&MaxLocal) }

// VolumeRoot is the inode of a volume's top directory. The root volume's is 1,
// as FUSE wants it.
func VolumeRoot(v VolumeID) Ino { return MakeIno(v, 1) }

// Volume is the volume an inode lives in.
func (i Ino) Volume() VolumeID { return VolumeID(i >> localBits) }

// Local is an inode's number within its volume.
func (i Ino) Local() uint64 { return uint64(i) & MaxLocal }

// IsVolumeRoot says whether i is the top directory of its volume.
func (i Ino) IsVolumeRoot() bool { return i.Local() == 1 }

func (i Ino) String() string { return fmt.Sprintf("%d:%d", i.Volume(), i.Local()) }

// ChunkID names an immutable chunk. Ino says whose it is, so that scrub can ask
// the owner whether it is still wanted. Index is the file offset divided by
// ChunkSize. Version makes every rewrite a new chunk, and says where it lies:
// with ResidentVersion set beside its volume's replicas, under the volume's own
// count; else in a data pool, under the writing session's (PooledVersion). A
// sealed one has SealedVersion set besides.
type ChunkID struct {
	Ino     Ino
	Index   uint32
	Version uint64
}

// ResidentVersion is set in the version of chunks that live with their volume's
// replicas instead of in a data pool.
const ResidentVersion uint64 = 1 << 63

// A pooled chunk's version, from the top: resident (1 bit), sealed (1), upper
// bits of the pool (2), session (24), lower bits of the pool (4), count (32). The
// pool is its id less one, so that the chunks of a store's first data pool look
// as they did when there could be no other: the session then had 26 bits, and the
// count 36.
const (
	poolHighBits = 2
	sessionBits  = 24
	poolLowBits  = 4
	countBits    = 32

	sessionShift  = countBits + poolLowBits
	poolHighShift = sessionShift + sessionBits
	poolLowMask   = 1<<poolLowBits - 1
	poolHighMask  = 1<<poolHighBits - 1
)

// Limits of what a pooled chunk's version can say.
const (
	MaxSession    uint64 = 1<<sessionBits - 1
	MaxChunkCount uint64 = 1<<countBits - 1                  // chunks of one session
	MaxDataPool          = 1 << (poolHighBits + poolLowBits) // highest id of a data pool; the lowest is 1
)

// PooledVersion is the version of a session's count-th chunk, in a data pool.
func PooledVersion(pool int, session, count uint64) uint64 {
	p := uint64(pool - 1)
	return p>>poolLowBits<<poolHighShift | session<<sessionShift | p&poolLowMask<<countBits | count
}

// SealedVersion is set in the version of chunks whose bytes are encrypted by
// those who hold the keys (package seal): how many are stored does not follow
// from the extents. Resident ones have versions of the writing session, too.
const SealedVersion uint64 = 1 << 62

// Sealed says whether the chunk's bytes are encrypted.
func (c ChunkID) Sealed() bool { return c.Version&SealedVersion != 0 }

// Resident says whether the chunk lives with its volume's replicas.
func (c ChunkID) Resident() bool { return c.Version&ResidentVersion != 0 }

// Pool is the id of the data pool of a chunk that is not resident.
func (c ChunkID) Pool() int {
	return int(c.Version>>poolHighShift&poolHighMask<<poolLowBits|c.Version>>countBits&poolLowMask) + 1
}

// Session is the id of the session that wrote a data-pool chunk.
func (c ChunkID) Session() uint64 { return c.Version >> sessionShift & MaxSession }

func (c ChunkID) String() string { return fmt.Sprintf("%v/%d.%x", c.Ino, c.Index, c.Version) }

// ExtentKind says where the bytes of an extent are.
type ExtentKind uint8

const (
	Hole     ExtentKind = iota // nowhere: reads as zeros. In a Write it punches a hole
	Inline                     // in Extent.Data, stored in the inode record
	Resident                   // in a chunk beside the volume's replicas. In a Write, Data holds the new body
	Pooled                     // in a chunk of the data pool, written by PutChunk before it is named here
)

// Extent maps Len file bytes at Off to their bytes. Off/ChunkSize equals
// (Off+Len-1)/ChunkSize: an extent never crosses a chunk boundary.
type Extent struct {
	Off      uint64
	Len      uint32
	Kind     ExtentKind
	Chunk    ChunkID // Resident, Pooled
	ChunkOff uint32  // where in the chunk the extent's bytes begin
	Data     []byte  // Inline bytes; the body of a Resident extent in a Write, as it is to be stored
}

// End is the first file offset behind the extent.
func (e Extent) End() uint64 { return e.Off + uint64(e.Len) }

// File type bits of Attr.Mode, as in stat(2).
const (
	ModeType    uint32 = 0o170000
	ModeSocket  uint32 = 0o140000
	ModeSymlink uint32 = 0o120000
	ModeRegular uint32 = 0o100000
	ModeBlock   uint32 = 0o060000
	ModeDir     uint32 = 0o040000
	ModeChar    uint32 = 0o020000
	ModeFifo    uint32 = 0o010000
	ModeSetgid  uint32 = 0o002000
)

// Attr is what stat(2) tells of an inode. Times are nanoseconds since 1970.
// Mode holds type and permission bits. Blocks counts 512-byte units in use.
type Attr struct {
	Ino                 Ino
	Mode                uint32
	Nlink               uint32
	Uid, Gid            uint32
	Rdev                uint32
	Size                uint64
	Blocks              uint64
	Atime, Mtime, Ctime int64
	Parent              Ino  // of a directory: what ".." means
	HasXattr            bool // false: the inode has no extended attribute at all
}

// IsDir says whether the inode is a directory.
func (a *Attr) IsDir() bool { return a.Mode&ModeType == ModeDir }

// DirEntry is one name of a directory. Cookie orders the entries by when they
// came into the directory; it survives a rename within the directory, so a
// listing under way sees a message exactly once while its flags change. Attr is
// filled only when asked for and only for inodes of the directory's own volume.
type DirEntry struct {
	Name   string
	Ino    Ino
	Type   uint32 // ModeType bits
	Cookie uint64
	Attr   *Attr
}

// Promise is what must hold when Apply returns.
type Promise uint8

const (
	// Ordered: the change has its place in the volume's log, everybody sees it,
	// and the death of processes cannot lose it; a power cut may, until a later
	// Committed change or Sync of the same volume has returned.
	Ordered Promise = iota
	// Committed: the change, and every earlier one of the same volume, is on
	// stable storage on a majority of the volume's replicas.
	Committed
)

// Result is what a change brought about.
type Result struct {
	Attr   Attr // of the inode created, linked, changed or renamed
	Orphan Ino  // not 0: this inode lost its last name; purge it when no handle is open
	Over   Ino  // of a Rename, where the OSD tells: what had the new name before, 0 if nothing
	// Dirs are the directories that names changed in, as the change left them, where
	// the OSD tells: an Ino of 0 is none.
	Dirs [2]Attr
	// Index orders the changes of a volume by what they saw of one another, where the
	// OSD tells; 0: it does not.
	Index uint64
	// Chunks are what a Write's Resident extents became, in their order, where the
	// OSD tells. They name these bytes for good once the change is Committed.
	Chunks []ChunkID
}

// StatFS is the store's size and use, in bytes and inodes.
type StatFS struct {
	Total, Free, Avail uint64
	Files, FilesFree   uint64
}

// Disk is what an OSD says of its own: bytes, and how many inodes there are in the groups
// that it leads.
type Disk struct{ Total, Free, Files uint64 }

// Session identifies one run of one client. Versions of the chunks that it
// writes carry the id.
type Session struct{ ID uint64 }

// Store is the whole store as one client sees it. It owns retries and routing;
// an error it returns is final for that call.
type Store interface {
	// Session is this client's.
	Session() Session

	// Lookup finds a name in a directory. NotFound, NotDir, Stale.
	Lookup(ctx context.Context, dir Ino, name string) (Attr, error)
	// GetAttr answers also for an inode that lost its last name but is not purged. Stale.
	GetAttr(ctx context.Context, ino Ino) (Attr, error)
	// ReadDir returns up to max entries whose cookie is greater than after, in
	// cookie order, without "." and ".."; fewer than max means the end. With
	// attrs set each entry of the same volume comes with its Attr. NotDir, Stale.
	ReadDir(ctx context.Context, dir Ino, after uint64, max int, attrs bool) ([]DirEntry, error)
	// Readlink returns a symlink's target. Invalid if it is none.
	Readlink(ctx context.Context, ino Ino) (string, error)
	// GetXattr returns one extended attribute. NoAttr.
	GetXattr(ctx context.Context, ino Ino, name string) ([]byte, error)
	// ListXattr returns the names of all extended attributes.
	ListXattr(ctx context.Context, ino Ino) ([]string, error)
	// Extents returns the extents that overlap [off, off+n), in order, without
	// the holes between them; they may reach beyond the range.
	Extents(ctx context.Context, ino Ino, off, n uint64) ([]Extent, error)

	// Apply makes a change, or none of it. See the Change types for their errors.
	Apply(ctx context.Context, c Change, p Promise) (Result, error)
	// Sync returns when every earlier change of the volume is Committed.
	Sync(ctx context.Context, v VolumeID) error

	// ReadChunk fills p with the chunk's bytes from off on. Corrupt when no
	// replica has the bytes with the right checksum.
	ReadChunk(ctx context.Context, id ChunkID, off uint32, p []byte) error
	// NewChunk names a chunk that the session has not used yet, for the bytes of a
	// file from index times ChunkSize on: in the data pool that new bodies of the
	// inode's volume go to.
	NewChunk(ctx context.Context, ino Ino, index uint32) (ChunkID, error)
	// PutChunk stores a chunk in its data pool; it is durable on return. A
	// chunk that no Write names by the end of the session is removed. NoSpace.
	PutChunk(ctx context.Context, id ChunkID, data []byte) error

	// StatFS reports the true size and free space.
	StatFS(ctx context.Context) (StatFS, error)
}
