package volume

import (
	"slices"
	"testing"

	"pillarbox/objstore"
)

func TestMoveChunk(t *testing.T) {
	s := newStore(t, 1)
	f := s.file(objstore.VolumeRoot(1), "f")
	far := uint64(3 * regionSize)
	s.must(objstore.Write{Ino: f, Size: far + 100, Mtime: 5, Extents: []objstore.Extent{
		pooled(f, 0, 100, 1), pooled(f, objstore.ChunkSize, 100, 2), pooled(f, far, 100, 3),
	}})
	before := s.attr(f)
	id := func(off uint64, version uint64) objstore.ChunkID {
		return objstore.ChunkID{Ino: f, Index: uint32(off / objstore.ChunkSize), Version: version}
	}
	s.must(objstore.MoveChunk{Ino: f, Off: 0, From: id(0, 1), To: id(0, 11), Len: 100})
	s.must(objstore.MoveChunk{Ino: f, Off: far, From: id(far, 3), To: id(far, 13), Len: 100})
	if after := s.attr(f); after != before {
		t.Errorf("the file was %+v, is %+v", before, after)
	}
	freed, err := FreedChunks(&s.v, 1, -1)
	if err != nil || !slices.Equal(freed, []objstore.ChunkID{id(0, 1), id(far, 3)}) {
		t.Errorf("freed: %v, %v", freed, err)
	}
	var have []objstore.ChunkID
	Chunks(&s.v, 1, func(id objstore.ChunkID) bool { have = append(have, id); return true })
	if !slices.Equal(have, []objstore.ChunkID{id(0, 11), id(objstore.ChunkSize, 2), id(far, 13)}) {
		t.Errorf("the file names %v", have)
	}
	for _, c := range []struct {
		c    objstore.MoveChunk
		want error
	}{
		{objstore.MoveChunk{Ino: f, Off: 0, From: id(0, 1), To: id(0, 12), Len: 100}, objstore.NotFound},
		{objstore.MoveChunk{Ino: f, Off: far, From: id(0, 11), To: id(0, 12), Len: 100}, objstore.NotFound},
		{objstore.MoveChunk{Ino: f, Off: 0, From: id(0, 11), To: id(0, 12), Len: 99}, objstore.NotFound}, // the file needs more
		{objstore.MoveChunk{Ino: f, Off: 0, From: id(0, 11), To: id(0, 1), Len: 100}, objstore.Invalid},  // given up
		{objstore.MoveChunk{Ino: f, Off: 0, From: id(0, 11), To: id(0, 11), Len: 100}, objstore.Invalid},
		{objstore.MoveChunk{Ino: f, Off: 0, From: id(0, 11), To: id(far, 12), Len: 100}, objstore.Invalid},
		{objstore.MoveChunk{Ino: f, Off: 0, From: id(0, 11), To: id(0, 12|objstore.ResidentVersion), Len: 100}, objstore.Invalid},
		{objstore.MoveChunk{Ino: f, Off: 0, From: id(0, 11), To: id(0, 12|objstore.SealedVersion), Len: 100}, objstore.Invalid},
		{objstore.MoveChunk{Ino: objstore.VolumeRoot(1), Off: 0, From: id(0, 11), To: id(0, 12), Len: 100}, objstore.Invalid},
		{objstore.MoveChunk{Ino: f + 9, Off: 0, From: id(0, 11), To: id(0, 12), Len: 100}, objstore.Stale},
		{objstore.MoveChunk{Ino: f, Off: ^uint64(0), From: id(0, 11), To: id(0, 12), Len: 100}, objstore.Invalid},
	} {
		s.fails(c.c, c.want)
	}
	s.check(1)
	s.replay()
}
