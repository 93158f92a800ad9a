package volume

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"pillarbox/objstore"
)

// noteChunks takes in the chunks that a region's extents name.
func (a *auditor) noteChunks(ino objstore.Ino, region uint32, ext []objstore.Extent) {
	eachChunk(ext, func(id objstore.ChunkID) bool {
		if id.Resident() && !id.Sealed() {
			a.number(id.Version &^ objstore.ResidentVersion)
		}
		if !isNative(ino, region, id) {
			a.borrowed[id]++
			a.borrows[ino] = struct{}{}
		}
		return true
	})
}

func (a *auditor) readSharers() error {
	return a.each(kShared, func(key, val []byte) error {
		id, ok := parseChunkKey(key, kShared)
		if !ok {
			return a.problem(Problem{Kind: ProblemCorrupt, Detail: fmt.Sprintf("bad key %x", key)}, drop(key))
		}
		n, err := decodeSharers(val)
		if err != nil { // as 0 it is mended with the other counts
			a.report(Problem{Kind: ProblemCorrupt, Ino: id.Ino, Detail: err.Error()})
		}
		a.counted[id] = n
		return nil
	})
}

// isShared says whether others than a chunk's owner name it, or may.
func (a *auditor) isShared(id objstore.ChunkID) bool {
	_, counted := a.counted[id]
	return counted || a.borrowed[id] > 0
}

// sharers compares the counts of shared chunks with who names them.
func (a *auditor) sharers() error {
	marked := maps.Clone(a.borrows)
	all := slices.AppendSeq(slices.Collect(maps.Keys(a.counted)), maps.Keys(a.borrowed))
	slices.SortFunc(all, chunkOrder)
	for _, id := range slices.Compact(all) {
		owned, err := ownerNames(a.v, id)
		if errors.Is(err, objstore.Corrupt) {
			continue // reported with the inode
		}
		if err != nil {
			return err
		}
		want := a.borrowed[id]
		if owned {
			want++
			marked[id.Ino] = struct{}{}
		}
		if have, ok := a.counted[id]; ok && have == want && want > 0 {
			continue
		}
		var mend func(*fixer) error
		if !a.unread {
			mend = func(f *fixer) error { return f.setSharers(id, want) }
		}
		p := Problem{Kind: ProblemShared, Ino: id.Ino, Detail: fmt.Sprintf("chunk %v is named by %d, counted as %d", id, want, a.counted[id])}
		if err := a.problem(p, mend); err != nil {
			return err
		}
	}
	for _, ino := range sorted(marked) {
		if info, ok := a.inodes[ino]; !ok || info.typ == 0 || info.shared {
			continue
		}
		err := a.problem(Problem{Kind: ProblemShared, Ino: ino, Detail: "shares chunks, and is not marked"},
			func(f *fixer) error { return f.inode(ino, func(in *inode) { in.shared = true }) })
		if err != nil {
			return err
		}
	}
	return nil
}

// setSharers corrects a count; a chunk that nobody names goes.
func (f *fixer) setSharers(id objstore.ChunkID, n uint64) error {
	key := appendChunkKey(nil, kShared, id)
	if n > 0 {
		f.set(key, appendSharers(nil, n))
		return nil
	}
	f.set(key, nil)
	f.giveUp(id)
	return nil
}
