package objstore

// Change is one atomic change of one volume: it happens whole or not at all.
// Whoever applies it stamps it with the time; names are checked with CheckName.
type Change interface{ Volume() VolumeID }

// Create makes an inode under a free name. Mode carries the type; Target is a
// symlink's. A set-group-ID parent hands its group down (and the bit, to
// directories). An empty Name makes a file without a name (O_TMPFILE): it is an
// orphan until linked. Exist, NotFound or Stale (parent gone), NotDir, NameTooLong.
type Create struct {
	Parent   Ino
	Name     string
	Mode     uint32
	Uid, Gid uint32
	Rdev     uint32
	Target   string
}

// Link gives an inode another name. With Over set the name is that file's now,
// and changes hands in one step: NotFound if nobody has it, Exist if another has.
// Exist, NotPermitted (a directory), TooManyLinks, CrossVolume, Stale.
type Link struct {
	Ino    Ino
	Parent Ino
	Name   string
	Over   Ino
}

// Remove takes a name away: of a directory, which must be empty, when Dir is
// set, else of anything else. An inode that loses its last name becomes an
// orphan (Result.Orphan) and keeps its body until Purge. A name that leads to
// another volume's root goes only when Sealed is that root. With Only set
// nothing but that inode loses the name: Exist if another has it. NotFound,
// NotDir, IsDir, NotEmpty.
type Remove struct {
	Parent Ino
	Name   string
	Dir    bool
	Sealed Ino
	Only   Ino
}

// Rename moves a name, replacing what the new name meant before if that may be
// replaced. Exchange swaps the two; NoReplace fails with Exist instead.
// Renaming to another name of the same inode does nothing, as rename(2) has it.
// NotFound, NotDir, IsDir, NotEmpty, Invalid (a directory into itself),
// CrossVolume.
type Rename struct {
	OldParent Ino
	OldName   string
	NewParent Ino
	NewName   string
	NoReplace bool
	Exchange  bool
	Sealed    Ino // as in Remove, for the name replaced
}

// AttrMask says which fields of a SetAttr count.
type AttrMask uint8

const (
	SetMode AttrMask = 1 << iota
	SetUid
	SetGid
	SetSize
	SetAtime
	SetMtime
	SetCtime
)

// SetAttr changes attributes. A zero time with its mask bit set is that time,
// 1970; the caller fills in "now". Shrinking frees extents beyond Size,
// growing leaves a hole. ctime becomes now unless SetCtime says otherwise.
// Stale, IsDir (size of a directory), Invalid, TooBig.
type SetAttr struct {
	Ino                 Ino
	Set                 AttrMask
	Mode                uint32 // permission bits only
	Uid, Gid            uint32
	Size                uint64
	Atime, Mtime, Ctime int64
}

// Write puts extents over whatever the file had there, and grows it to Size if
// that is larger. Chunks no longer referenced are freed once the change is
// durable. A Resident extent brings its body in Data and gets its chunk id in
// the commit; a Pooled one names a chunk that PutChunk stored; so does a Resident one whose
// body is sealed, by a version of the session that no other chunk has. Mtime (and
// ctime) become Mtime. Stale, Invalid, TooBig, NoSpace.
type Write struct {
	Ino     Ino
	Size    uint64
	Extents []Extent
	Mtime   int64
}

// MaxShare bounds the bytes of one Share.
const MaxShare = 1 << 30

// Share lays Len bytes of a file, from SrcOff on, over another of the same volume
// at Off, holes included, and grows that to Off+Len if it is shorter. No body is
// copied: both files name the same chunks from then on, and a chunk goes with the
// last that names it. Mtime (and ctime) become Mtime. Stale, CrossVolume, TooBig,
// Invalid (no files, the same file, bytes behind Src's end, more than MaxShare).
type Share struct {
	Ino    Ino
	Off    uint64
	Src    Ino
	SrcOff uint64
	Len    uint64
	Mtime  int64
}

// MoveChunk lets a file name the pooled chunk To instead of From in the extents
// around Off: within 64 MiB from a multiple of that on. Both begin with the same
// Len bytes, all that To has, and To was stored by PutChunk, or with Again set is what
// another file moved to; so nothing that stat tells changes. Files that share From move one by one:
// Result.Chunks names From as long as others still name it. NotFound (the file does
// not name From there, or by now more of it), Stale, Invalid (Again, and nobody names To any more).
type MoveChunk struct {
	Ino      Ino
	Off      uint64
	From, To ChunkID
	Len      uint32
	Again    bool
}

// Pack lets files name parts of the pack To, which PutChunk has stored and no
// change has named before, instead of other chunks that hold the same bytes. Files
// that were removed, or name From there no longer, are passed over; so nothing that stat
// tells changes. A pack that nobody names then is given up. Only the first
// PackSpan bytes of files are looked at. Stale (no such volume), Invalid (To is no
// pack, was named before, or is not sealed as what it takes the place of).
type Pack struct {
	Vol   VolumeID
	To    ChunkID
	Moves []PackMove
}

// PackMove says that Len bytes of a file's chunk From, from FromOff on, are in
// the pack from Off on.
type PackMove struct {
	Ino     Ino
	From    ChunkID
	FromOff uint32
	Len     uint32
	Off     uint32
}

// SetXattr sets an extended attribute. With CreateOnly it must be new (Exist),
// with ReplaceOnly it must be there (NoAttr). TooBig.
type SetXattr struct {
	Ino                     Ino
	Name                    string
	Value                   []byte
	CreateOnly, ReplaceOnly bool
}

// RemoveXattr removes an extended attribute. NoAttr.
type RemoveXattr struct {
	Ino  Ino
	Name string
}

// Purge frees orphans of one volume. Inodes that are gone, or have a name
// again, are passed over. A large file may need several rounds: Result.Orphan
// names an inode that still has something to free.
type Purge struct {
	Vol  VolumeID
	Inos []Ino
}

// ReserveVolume, in the root volume, allots a volume id and notes it as
// pending; the result's Attr.Ino is the new volume's root. Exist, NotFound, NotDir.
type ReserveVolume struct {
	Parent Ino
	Name   string
}

// InitVolume makes the root directory of a reserved volume. Doing it again
// changes nothing.
type InitVolume struct {
	Vol      VolumeID
	Parent   Ino
	Mode     uint32
	Uid, Gid uint32
}

// AttachVolume, in the root volume, gives a reserved volume its name and ends
// the pending note. Exist, NotFound, NotDir.
type AttachVolume struct {
	Vol    VolumeID
	Parent Ino
	Name   string
}

// SealVolume refuses every later change of an empty volume, so that its name
// can be removed. Undo lifts the seal. NotEmpty.
type SealVolume struct {
	Vol  VolumeID
	Undo bool
}

// DropVolume removes what is left of a sealed volume.
type DropVolume struct{ Vol VolumeID }

// PendVolume, in the root volume, notes that a volume is about to be removed,
// or with Done set that its making or removal is over.
type PendVolume struct {
	Vol  VolumeID
	Done bool
}

// Reparent tells a volume which directory of the root volume its name is in, since
// the name can move there and the volume not hear of it. Nothing happens if it takes
// another than From for its parent by now; the result says which.
type Reparent struct {
	Vol      VolumeID
	From, To Ino
}

// FreeChunks ends the note of data-pool chunks that were removed from the pool.
type FreeChunks struct {
	Vol    VolumeID
	Chunks []ChunkID
}

func (c Create) Volume() VolumeID      { return c.Parent.Volume() }
func (c Link) Volume() VolumeID        { return c.Parent.Volume() }
func (c Remove) Volume() VolumeID      { return c.Parent.Volume() }
func (c Rename) Volume() VolumeID      { return c.OldParent.Volume() }
func (c SetAttr) Volume() VolumeID     { return c.Ino.Volume() }
func (c Write) Volume() VolumeID       { return c.Ino.Volume() }
func (c Share) Volume() VolumeID       { return c.Ino.Volume() }
func (c MoveChunk) Volume() VolumeID   { return c.Ino.Volume() }
func (c Pack) Volume() VolumeID        { return c.Vol }
func (c SetXattr) Volume() VolumeID    { return c.Ino.Volume() }
func (c RemoveXattr) Volume() VolumeID { return c.Ino.Volume() }
func (c Purge) Volume() VolumeID       { return c.Vol }
func (ReserveVolume) Volume() VolumeID { return RootVolume }
func (c InitVolume) Volume() VolumeID  { return c.Vol }
func (AttachVolume) Volume() VolumeID  { return RootVolume }
func (c SealVolume) Volume() VolumeID  { return c.Vol }
func (c DropVolume) Volume() VolumeID  { return c.Vol }
func (PendVolume) Volume() VolumeID    { return RootVolume }
func (c Reparent) Volume() VolumeID    { return c.Vol }
func (c FreeChunks) Volume() VolumeID  { return c.Vol }

// CheckName refuses names no directory can hold: empty, ".", "..", with a
// slash or NUL, or longer than MaxName bytes.
func CheckName(name string) error {
	switch {
	case len(name) > MaxName:
		return NameTooLong
	case name == "" || name == "." || name == "..":
		return Invalid
	}
	for i := 0; i < len(name); i++ {
		if name[i] == '/' || name[i] == 0 {
			return Invalid
		}
	}
	return nil
}

// Request identifies a change among all of a session's, so that one sent twice
// is made once. The zero value asks for no such care: it never leaves the process.
type Request struct {
	Session uint64
	Seq     uint64 // grows with every change of the session
	Ack     uint64 // the session has the answers to all changes below
}
