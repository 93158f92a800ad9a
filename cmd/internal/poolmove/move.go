package poolmove

import (
	"context"
	"errors"
	"fmt"

	"pillarbox/objstore"
)

// part is what a file has of one chunk.
type part struct {
	off   uint64 // of an extent in it
	chunk objstore.ChunkID
	n     uint32 // bytes of the chunk that the file may need
	bytes int64  // of the file
}

// moveSpan is how many bytes of a file one objstore.MoveChunk is about.
const moveSpan = 64 << 20

// parts gathers extents by their chunks, and by the changes that can move them.
func parts(list []objstore.Extent) (out []part) {
	type key struct {
		region uint64
		chunk  objstore.ChunkID
	}
	at := map[key]int{}
	for _, e := range list {
		k := key{e.Off / moveSpan, e.Chunk}
		i, ok := at[k]
		if !ok {
			i = len(out)
			_, size, _ := e.Chunk.Pack() // is moved whole, for all who name it
			at[k], out = i, append(out, part{off: e.Off, chunk: e.Chunk, n: uint32(size)})
		}
		out[i].n = max(out[i].n, e.ChunkOff+e.Len)
		out[i].bytes += int64(e.Len)
	}
	return out
}

// file moves the bodies of one file.
func (r *run) file(ctx context.Context, f file) error {
	return r.extents(ctx, f, func(list []objstore.Extent) error {
		for _, p := range parts(list) {
			if err := r.part(ctx, f, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// part moves a chunk, as far as one change can.
func (r *run) part(ctx context.Context, f file, p part) error {
	lock := &r.locks[p.chunk.Version%uint64(len(r.locks))]
	lock.Lock()
	defer lock.Unlock()
	r.mu.Lock()
	c, again := r.moved[p.chunk]
	r.mu.Unlock()
	if again && c.n >= p.n {
		if err := r.name(ctx, f, p, c, true); !errors.Is(err, objstore.Invalid) { // as when it was given up since
			return err
		}
	}
	buf := make([]byte, p.n)
	if err := r.opt.Store.ReadChunk(ctx, p.chunk, 0, buf); err != nil {
		r.lookAgain(objstore.Gone(err))
		return r.fail(f.path, err)
	}
	c, err := r.put(ctx, p, buf)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	return r.name(ctx, f, p, c, false)
}

// put stores a chunk in the pool.
func (r *run) put(ctx context.Context, p part, data []byte) (copied, error) {
	to, err := r.opt.Store.NewChunk(ctx, p.chunk.Ino, p.chunk.Index)
	if err == nil && to.Pool() != r.opt.Pool.ID {
		err = fmt.Errorf("new bodies do not go to pool %q: was another chosen meanwhile? %w", r.opt.Pool.Name, objstore.Invalid)
	}
	if err != nil {
		return copied{}, err
	}
	return copied{to, p.n}, r.opt.Store.PutChunk(ctx, to, data)
}

// name puts a chunk in the place of another in a file, and remembers it for the
// others that name that. If the file does not name that any more, what was stored
// is removed as a dead client's is.
func (r *run) name(ctx context.Context, f file, p part, c copied, again bool) error {
	res, err := r.opt.Store.Apply(ctx, objstore.MoveChunk{Ino: f.ino, Off: p.off, From: p.chunk, To: c.to, Len: c.n, Again: again}, objstore.Committed)
	if objstore.Gone(err) {
		r.lookAgain(true)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rep.Chunks++
	r.rep.Bytes += p.bytes
	r.opt.Progress(min(r.rep.Bytes, r.total), r.total)
	if len(res.Chunks) == 0 {
		delete(r.moved, p.chunk)
	} else {
		if r.moved == nil {
			r.moved = map[objstore.ChunkID]copied{}
		}
		r.moved[p.chunk] = c
	}
	return nil
}

// lookAgain notes that something changed while it was being moved.
func (r *run) lookAgain(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.again = r.again || yes
}
