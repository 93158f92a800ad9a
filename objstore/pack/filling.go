package pack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

const (
	page     = 1000 // bodies that are listed at a time
	emptying = 4    // packs that are in memory while their bodies are packed anew
)

// errInside says that a volume's bodies do not go to an outside pool.
var errInside = errors.New("bodies of this volume stay inside")

// filling is a pack being made of a volume's bodies.
type filling struct {
	p     *Packer
	vol   objstore.VolumeID
	must  bool // it is stored however little there is: it makes room for a pack to go
	data  []byte
	moves []objstore.PackMove
	files map[objstore.Ino]bool
	at    map[part]uint32 // where bytes are in data, that files may share
}

// part is bytes of a chunk.
type part struct {
	id     objstore.ChunkID
	off, n uint32
}

// volume empties the packs of a volume that are low, and packs its small bodies.
func (p *Packer) volume(ctx context.Context, vol objstore.VolumeID, low []objstore.ChunkID) error {
	f := &filling{p: p, vol: vol}
	f.begin()
	switch _, err := f.name(ctx); {
	case errors.Is(err, errInside) || errors.Is(err, objstore.NoKey) || objstore.Gone(err):
		return nil
	case err != nil:
		return err
	}
	var errs []error
	for some := range slices.Chunk(low, emptying) {
		errs = append(errs, f.empty(ctx, some))
	}
	errs = append(errs, f.small(ctx))
	if err := errors.Join(errs...); errors.Is(err, objstore.Unavailable) || ctx.Err() != nil {
		return err
	}
	if len(f.files) >= p.opt.Least || f.must {
		errs = append(errs, f.store(ctx))
	}
	return errors.Join(errs...)
}

func (f *filling) begin() {
	f.must, f.data, f.moves = false, f.data[:0], nil
	f.files, f.at = map[objstore.Ino]bool{}, map[part]uint32{}
}

// name names the pack.
func (f *filling) name(ctx context.Context) (objstore.ChunkID, error) {
	index := objstore.PackIndex(max(len(f.files), 1), max(len(f.data), 1))
	id, err := f.p.opt.Store.NewChunk(ctx, objstore.PackIno(f.vol), index)
	if err == nil && !f.p.opt.Outside(id) {
		err = errInside
	}
	return id, err
}

// empty takes in what files still name of some packs. One that cannot be read
// is left as it is.
func (f *filling) empty(ctx context.Context, packs []objstore.ChunkID) error {
	whole := map[objstore.ChunkID][]byte{}
	var errs []error
	for _, id := range packs {
		_, size, _ := id.Pack()
		b := make([]byte, size)
		if err := f.p.opt.Store.ReadChunk(ctx, id, 0, b); err == nil {
			whole[id] = b
		} else {
			errs = append(errs, fmt.Errorf("pack anew: %w", err))
		}
	}
	wanted := func(id objstore.ChunkID) bool { return whole[id] != nil }
	err := f.p.src.Namers(ctx, f.vol, wanted, func(file volume.FileExtents) error {
		for _, e := range file.Extents {
			b := whole[e.Chunk]
			if uint64(e.ChunkOff)+uint64(e.Len) > uint64(len(b)) {
				return fmt.Errorf("inode %v names %d bytes at %d of chunk %v: %w", file.Ino, e.Len, e.ChunkOff, e.Chunk, objstore.Corrupt)
			}
			if err := f.add(ctx, file.Ino, e, b[e.ChunkOff:][:e.Len]); err != nil {
				return err
			}
			f.must = true
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// small takes in small bodies of files that nobody has written for long. Those that
// cannot be read stay where they are; the error is the first one's.
func (f *filling) small(ctx context.Context) error {
	var first error
	for after := objstore.Ino(0); ; {
		ids, err := f.p.src.SmallBodiesOf(ctx, f.vol, after, page)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if id.Ino == after {
				continue // another body of the same file
			}
			after = id.Ino
			err := f.file(ctx, id.Ino)
			if errors.Is(err, objstore.Unavailable) || errors.Is(err, objstore.NoSpace) || ctx.Err() != nil {
				return err
			}
			if err != nil && !objstore.Gone(err) && first == nil {
				first = err
			}
		}
		if len(ids) < page {
			return first
		}
	}
}

// file takes in a file's small bodies.
func (f *filling) file(ctx context.Context, ino objstore.Ino) error {
	a, err := f.p.opt.Store.GetAttr(ctx, ino)
	if err != nil || time.Since(time.Unix(0, a.Mtime)) < f.p.opt.After {
		return err
	}
	list, err := f.p.opt.Store.Extents(ctx, ino, 0, objstore.PackSpan)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Kind != objstore.Resident || !e.Chunk.Sealed() || e.Off >= objstore.PackSpan {
			continue
		}
		b := make([]byte, e.Len)
		if err := f.p.opt.Store.ReadChunk(ctx, e.Chunk, e.ChunkOff, b); err != nil {
			return err
		}
		if err := f.add(ctx, ino, e, b); err != nil {
			return err
		}
	}
	return nil
}

// add takes in the bytes of an extent. A pack that has no room is stored first.
func (f *filling) add(ctx context.Context, ino objstore.Ino, e objstore.Extent, b []byte) error {
	k := part{e.Chunk, e.ChunkOff, e.Len}
	off, again := f.at[k]
	full := !again && len(f.data)+len(b) > objstore.PackMax || !f.files[ino] && len(f.files) == objstore.PackFilesMax || len(f.moves) == objstore.PackMovesMax
	if full {
		if err := f.store(ctx); err != nil {
			return err
		}
	}
	if full || !again {
		off = uint32(len(f.data))
		f.data, f.at[k] = append(f.data, b...), off
	}
	f.files[ino] = true
	f.moves = append(f.moves, objstore.PackMove{Ino: ino, From: e.Chunk, FromOff: e.ChunkOff, Len: e.Len, Off: off})
	return nil
}

// store stores the pack and has the files name it, then begins another.
func (f *filling) store(ctx context.Context) error {
	id, err := f.name(ctx)
	if err != nil {
		return err
	}
	s := f.p.opt.Store
	if err := s.PutChunk(ctx, id, f.data); err != nil {
		return fmt.Errorf("store a pack of %d bodies: %w", len(f.files), err)
	}
	id.Version |= objstore.SealedVersion // as it is known by now
	if _, err := s.Apply(ctx, objstore.Pack{Vol: f.vol, To: id, Moves: f.moves}, objstore.Committed); err != nil {
		return err
	}
	f.p.mu.Lock()
	f.p.stats.Packs++
	f.p.stats.Files += int64(len(f.files))
	f.p.stats.Bytes += int64(len(f.data))
	f.p.mu.Unlock()
	f.begin()
	return nil
}
