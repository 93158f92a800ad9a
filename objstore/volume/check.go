package volume

import (
	"errors"
	"fmt"
	"slices"

	"pillarbox/objstore"
)

// Problem is something fsck found wrong.
type Problem struct {
	Kind   string       // one of the Problem constants
	Ino    objstore.Ino // the inode, or the directory when Name is set
	Name   string
	Detail string
}

// The kinds of problems.
const (
	ProblemCorrupt     = "corrupt"     // a record that cannot be read
	ProblemDangling    = "dangling"    // a name that leads to no inode
	ProblemType        = "type"        // a name whose type is not its inode's
	ProblemUnlisted    = "unlisted"    // a name that no listing shows
	ProblemUnnamed     = "unnamed"     // a listing entry that no lookup finds
	ProblemDirNames    = "dirnames"    // a directory with a second name
	ProblemNlink       = "nlink"       // a wrong link count
	ProblemUnreachable = "unreachable" // an inode with links that no name leads to
	ProblemOrphan      = "orphan"      // an orphan not noted, or a note of something else
	ProblemParent      = "parent"      // a directory whose ".." is wrong
	ProblemLoop        = "loop"        // a directory that is its own ancestor
	ProblemExtents     = "extents"     // extents behind the end, or a wrong block count
	ProblemXattr       = "xattr"       // attributes and the inode's mark of them differ
	ProblemStray       = "stray"       // a record whose inode is missing
	ProblemShared      = "shared"      // a wrong count of those who name a chunk
	ProblemFreed       = "freed"       // a chunk in use is noted for removal
	ProblemRoot        = "root"        // the root directory is missing
	ProblemCounter     = "counter"     // the volume's counters are wrong
)

func (p Problem) String() string {
	s := p.Kind + " " + p.Ino.String()
	if p.Name != "" {
		s += fmt.Sprintf(" %q", p.Name)
	}
	if p.Detail != "" {
		s += ": " + p.Detail
	}
	return s
}

// Check looks for everything that can be wrong with a volume's keys and
// reports each Problem. It keeps some tens of bytes per inode in memory. Bodies
// are not looked at: compare Chunks with what there is. A volume that is not
// there has no problems. The error is the view's.
func Check(v View, vol objstore.VolumeID, report func(Problem)) error {
	a := newAuditor(v, vol, report)
	if err := a.run(); err != nil {
		return fmt.Errorf("check volume %d: %w", vol, err)
	}
	return nil
}

// inodeInfo is what the auditor remembers of every inode.
type inodeInfo struct {
	nlink  uint32
	names  uint32
	typ    uint8 // Mode >> 12; 0 if the record cannot be read
	shared bool
}

// dirInfo is what it remembers of every directory besides.
type dirInfo struct {
	parent  objstore.Ino // as its inode says
	in      objstore.Ino // where its name was found
	subdirs uint32
	entries bool
	walk    uint8
}

// regions is what a file's records of regions >= 1 add up to.
type regions struct{ blocks, end uint64 }

// place is an entry to be dealt with at the end.
type place struct {
	dir  objstore.Ino
	name string
}

type auditor struct {
	v      View
	vol    objstore.VolumeID
	report func(Problem)
	fix    *fixer // nil: only look

	inodes   map[objstore.Ino]inodeInfo
	dirs     map[objstore.Ino]*dirInfo
	regions  map[objstore.Ino]regions
	xattrs   map[objstore.Ino]struct{}
	orphans  map[objstore.Ino]struct{}
	borrowed map[objstore.ChunkID]uint64 // how many records name it that it does not belong to
	borrows  map[objstore.Ino]struct{}   // whose records these are
	counted  map[objstore.ChunkID]uint64 // as the counts of sharers have it
	recookie []place

	count, blocks, highest uint64
	unread                 bool // some record could not be read, so blocks is not to be trusted
}

func newAuditor(v View, vol objstore.VolumeID, report func(Problem)) *auditor {
	return &auditor{
		v: v, vol: vol, report: report,
		inodes: map[objstore.Ino]inodeInfo{}, dirs: map[objstore.Ino]*dirInfo{}, regions: map[objstore.Ino]regions{},
		xattrs: map[objstore.Ino]struct{}{}, orphans: map[objstore.Ino]struct{}{},
		borrowed: map[objstore.ChunkID]uint64{}, borrows: map[objstore.Ino]struct{}{}, counted: map[objstore.ChunkID]uint64{},
	}
}

// errFull ends a repair whose Delta is long enough.
var errFull = errors.New("enough writes for one repair")

func (a *auditor) run() error {
	steps := []func() error{
		a.readSharers, a.readRegions, a.readXattrs, a.readOrphans, a.readInodes, a.strays,
		a.readNames, a.readListing, a.links, a.loops, a.sharers, a.freedNotes, a.counters,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// problem reports one, and mends it if that is wanted and possible.
func (a *auditor) problem(p Problem, mend func(f *fixer) error) error {
	a.report(p)
	if a.fix == nil || mend == nil {
		return nil
	}
	if a.fix.full() {
		return errFull
	}
	return mend(a.fix)
}

const pageKeys = 512

// each calls fn for every key of a type. It reads page by page, so that fn may
// use the view, and keep what it is handed.
func (a *auditor) each(typ byte, fn func(key, val []byte) error) error {
	prefix := appendPrefix(nil, a.vol, typ)
	var after []byte
	for {
		page := make([]Write, 0, pageKeys)
		err := a.v.Scan(prefix, after, func(key, val []byte) bool {
			page = append(page, Write{slices.Clone(key), slices.Clone(val)})
			return len(page) < pageKeys
		})
		if err != nil {
			return err
		}
		for _, w := range page {
			if err := fn(w.Key, w.Value); err != nil {
				return err
			}
		}
		if len(page) < pageKeys {
			return nil
		}
		after = page[len(page)-1].Key
	}
}

// eachOf is each for keys that begin with an inode.
func (a *auditor) eachOf(typ byte, fn func(ino objstore.Ino, key, val []byte) error) error {
	return a.each(typ, func(key, val []byte) error {
		ino, ok := keyIno(key)
		if !ok {
			return a.problem(Problem{Kind: ProblemCorrupt, Detail: fmt.Sprintf("bad key %x", key)}, drop(key))
		}
		return fn(ino, key, val)
	})
}

func drop(key []byte) func(*fixer) error {
	return func(f *fixer) error {
		f.set(key, nil)
		return nil
	}
}

func (a *auditor) number(n uint64) { a.highest = max(a.highest, n) }

func (a *auditor) readRegions() error {
	return a.eachOf(kRegion, func(ino objstore.Ino, key, val []byte) error {
		ext, err := decodeRegion(key, val)
		if err != nil {
			a.unread = true
			return a.problem(Problem{Kind: ProblemCorrupt, Ino: ino, Detail: err.Error()}, nil)
		}
		a.noteChunks(ino, keyRegion(key), ext)
		r := a.regions[ino]
		r.blocks += blocksOf(ext)
		r.end = ext[len(ext)-1].End()
		a.regions[ino] = r
		return nil
	})
}

func (a *auditor) readXattrs() error {
	return a.eachOf(kXattr, func(ino objstore.Ino, key, val []byte) error {
		if len(val) == 0 || val[0] != recordV1 {
			if err := a.problem(Problem{Kind: ProblemCorrupt, Ino: ino, Detail: fmt.Sprintf("record %x", key)}, nil); err != nil {
				return err
			}
		}
		a.xattrs[ino] = struct{}{}
		return nil
	})
}

func (a *auditor) readOrphans() error {
	return a.eachOf(kOrphan, func(ino objstore.Ino, _, _ []byte) error {
		a.orphans[ino] = struct{}{}
		return nil
	})
}

func (a *auditor) readInodes() error {
	return a.eachOf(kInode, func(ino objstore.Ino, key, val []byte) error {
		a.count++
		a.number(ino.Local())
		var in inode
		err := decodeInode(&in, ino, key, val)
		if err == nil {
			_, err = in.extents()
		}
		if err != nil {
			a.unread = true
			a.inodes[ino] = inodeInfo{}
			return a.problem(Problem{Kind: ProblemCorrupt, Ino: ino, Detail: err.Error()}, nil)
		}
		a.inodes[ino] = inodeInfo{nlink: in.Nlink, typ: uint8(in.Mode >> 12), shared: in.shared}
		if in.IsDir() {
			a.dirs[ino] = &dirInfo{parent: in.Parent}
		}
		if err := a.extents(&in); err != nil {
			return err
		}
		if _, has := a.xattrs[ino]; has != in.HasXattr {
			return a.problem(Problem{Kind: ProblemXattr, Ino: ino, Detail: fmt.Sprintf("mark is %v", in.HasXattr)},
				func(f *fixer) error { return f.inode(ino, func(in *inode) { in.HasXattr = has }) })
		}
		return nil
	})
}

// extents compares an inode's size and blocks with its extents.
func (a *auditor) extents(in *inode) error {
	ino := in.Ino
	a.noteChunks(ino, 0, in.ext)
	blocks, end := blocksOf(in.ext), uint64(0)
	if n := len(in.ext); n > 0 {
		end = in.ext[n-1].End()
	}
	if in.Mode&objstore.ModeType == objstore.ModeRegular {
		if r, ok := a.regions[ino]; ok {
			blocks += r.blocks
			end = r.end
		}
		if end > in.Size {
			err := a.problem(Problem{Kind: ProblemExtents, Ino: ino, Detail: fmt.Sprintf("extents to %d in a file of %d bytes", end, in.Size)},
				func(f *fixer) error { return f.inode(ino, func(in *inode) { in.Size = end }) })
			if err != nil {
				return err
			}
		}
	}
	a.blocks += blocks
	if blocks != in.Blocks && !a.unread {
		return a.problem(Problem{Kind: ProblemExtents, Ino: ino, Detail: fmt.Sprintf("%d blocks counted as %d", blocks, in.Blocks)},
			func(f *fixer) error { return f.inode(ino, func(in *inode) { in.Blocks = blocks }) })
	}
	return nil
}

// strays finds records of inodes that are not there.
func (a *auditor) strays() error {
	for _, ino := range sorted(a.regions) {
		if info, ok := a.inodes[ino]; ok && (info.typ == 0 || uint32(info.typ)<<12 == objstore.ModeRegular) {
			continue
		}
		err := a.problem(Problem{Kind: ProblemStray, Ino: ino, Detail: "extents without a file"},
			func(f *fixer) error { return f.dropRegions(ino, a.isShared) })
		if err != nil {
			return err
		}
	}
	for _, ino := range sorted(a.xattrs) {
		if _, ok := a.inodes[ino]; !ok {
			err := a.problem(Problem{Kind: ProblemStray, Ino: ino, Detail: "extended attributes without an inode"},
				func(f *fixer) error { return f.dropPrefix(appendInoKey(nil, kXattr, ino)) })
			if err != nil {
				return err
			}
		}
	}
	for _, ino := range sorted(a.orphans) {
		if _, ok := a.inodes[ino]; !ok {
			err := a.problem(Problem{Kind: ProblemOrphan, Ino: ino, Detail: "noted, but missing"}, drop(appendInoKey(nil, kOrphan, ino)))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func sorted[T any](m map[objstore.Ino]T) []objstore.Ino {
	out := make([]objstore.Ino, 0, len(m))
	for ino := range m {
		out = append(out, ino)
	}
	slices.Sort(out)
	return out
}

// freedNotes finds chunks in use that would be removed.
func (a *auditor) freedNotes() error {
	return a.each(kFreed, func(key, _ []byte) error {
		id, ok := parseChunkKey(key, kFreed)
		if !ok {
			return a.problem(Problem{Kind: ProblemCorrupt, Detail: fmt.Sprintf("bad key %x", key)}, drop(key))
		}
		used, err := References(a.v, id)
		if err != nil {
			if errors.Is(err, objstore.Corrupt) {
				return nil // reported with the inode
			}
			return err
		}
		if used {
			return a.problem(Problem{Kind: ProblemFreed, Ino: id.Ino, Detail: "chunk " + id.String()}, drop(key))
		}
		return nil
	})
}

func (a *auditor) counters() error {
	rec, ok, err := loadVolume(a.v, a.vol, nil)
	if err != nil && !errors.Is(err, objstore.Corrupt) {
		return err
	}
	if !ok && err == nil && a.count == 0 {
		return nil // dropped, or never made
	}
	bytes := a.blocks * blockSize
	if a.unread {
		bytes = rec.bytes
	}
	if a.fix != nil {
		rec.next = a.fix.vol.next // numbers the repair took are in highest, too
	}
	next := max(rec.next, a.highest+1, firstNumber)
	if ok && rec.inodes == a.count && rec.bytes == bytes && rec.next == next {
		return nil
	}
	detail := fmt.Sprintf("%d inodes counted as %d, %d bytes as %d, next number %d is %d", a.count, rec.inodes, bytes, rec.bytes, next, rec.next)
	return a.problem(Problem{Kind: ProblemCounter, Ino: objstore.VolumeRoot(a.vol), Detail: detail}, func(f *fixer) error {
		f.vol.inodes, f.vol.bytes, f.vol.next, f.volDirty = a.count, bytes, next, true
		return nil
	})
}
