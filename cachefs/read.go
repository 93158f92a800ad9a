package cachefs

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
)

const (
	smallBody   = 256 << 10 // a file up to this size is read whole and kept while open
	readWidth   = 8         // chunks of one read that are fetched at a time
	readRetries = 16
	readMax     = 16 << 20                // bytes read at a time; within a window wherever they begin
	windowSpan  = 16 * objstore.ChunkSize // file bytes whose extents are cached at a time
)

// window caches the committed extents of a part of the file.
type window struct {
	ok     bool
	lo, hi uint64
	list   []objstore.Extent
}

// fetch is a part of a read that must come from a chunk, which has size bytes or more.
type fetch struct {
	id   objstore.ChunkID
	off  uint32
	p    []byte
	size uint32
}

// Read fills p from off on, less only at the end of the file.
func (h *Handle) Read(ctx context.Context, p []byte, off uint64) (done int, err error) {
	if err := h.fenced(); err != nil {
		return 0, err
	}
	if off == 0 {
		h.f.fs.ahead.read(h.f.ino)
	}
	for done < len(p) {
		part := p[done:min(len(p), done+readMax)]
		n, err := h.f.read(ctx, part, off+uint64(done))
		done += n
		if err != nil || n < len(part) {
			return done, errors.Join(err, h.fenced())
		}
	}
	return done, h.fenced()
}

func (f *file) read(ctx context.Context, p []byte, off uint64) (int, error) {
	f.checkLease()
	again := false
	for try := 0; ; try++ {
		if err := f.refresh(ctx); err != nil {
			return 0, err
		}
		f.mu.Lock()
		gen := f.gen
		if off >= f.size {
			f.mu.Unlock()
			return 0, nil
		}
		n := int(min(uint64(len(p)), f.size-off))
		keep := try < 2 && f.body == nil && f.csize <= smallBody && f.csize > 0 && uint64(n) < f.csize && f.fs.bodies.Load() < f.fs.opt.BodyMax
		var jobs []fetch
		miss, need := uint64(0), false
		if !keep {
			jobs, miss, need = f.gather(p[:n], off)
		}
		f.mu.Unlock()
		var err error
		switch {
		case keep:
			err = f.loadBody(ctx)
		case need:
			err = f.loadWindow(ctx, miss)
		default:
			if err = f.fs.fetchAll(ctx, jobs); err == nil {
				return n, nil
			}
		}
		// A chunk may have been freed by a commit since it was looked up, here or on
		// another host, whose push may not have come yet.
		if err != nil && (try >= readRetries || !f.moved(ctx, gen)) {
			if !objstore.Gone(err) || again {
				return 0, err
			}
			again = true
			f.mu.Lock()
			f.invalidate()
			f.mu.Unlock()
		}
	}
}

// moved says whether the committed state is another than gen's. A commit under
// way frees chunks before gen tells; to wait for it is no way out (see refresh),
// so the extents are asked for again.
func (f *file) moved(ctx context.Context, gen uint64) bool {
	f.mu.Lock()
	was, same := f.win, f.gen == gen
	f.mu.Unlock()
	if !same || !was.ok {
		return !same
	}
	list, err := f.fs.store.Extents(ctx, f.ino, was.lo, was.hi-was.lo)
	if err != nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gen == gen && slices.EqualFunc(list, was.list, func(a, b objstore.Extent) bool {
		return a.Off == b.Off && a.Len == b.Len && a.Kind == b.Kind && a.Chunk == b.Chunk && a.ChunkOff == b.ChunkOff
	}) {
		return false
	}
	f.invalidate()
	return true
}

// gather copies what is in memory of the range to p and lists what must be
// fetched. need asks for the window at miss to be loaded first. Under mu.
func (f *file) gather(p []byte, off uint64) (jobs []fetch, miss uint64, need bool) {
	end := off + uint64(len(p))
	for pos := off; pos < end; {
		to := end
		var top *seg
		for _, l := range [...]segList{f.dirty, f.flushing} {
			i := l.find(pos)
			if i == len(l) {
				continue
			}
			if l[i].off > pos {
				to = min(to, l[i].off)
				continue
			}
			top, to = &l[i], min(to, l[i].end())
			break
		}
		part := p[pos-off : to-off]
		switch {
		case top == nil:
			if jobs, need = f.committed(jobs, part, pos); need {
				return nil, pos, true
			}
		case top.b.state == stored:
			jobs = append(jobs, fetch{top.b.chunk, top.bo + uint32(pos-top.off), part, top.bo + top.n})
		default:
			copy(part, top.bytes()[pos-top.off:])
		}
		pos = to
	}
	return jobs, 0, false
}

// committed adds what the metadata says of the range at off. Under mu.
func (f *file) committed(jobs []fetch, p []byte, off uint64) (_ []fetch, need bool) {
	if off >= f.csize {
		clear(p)
		return jobs, false
	}
	if rest := f.csize - off; uint64(len(p)) > rest {
		clear(p[rest:])
		p = p[:rest]
	}
	if f.body != nil {
		copy(p, f.body[off:])
		return jobs, false
	}
	end := off + uint64(len(p))
	if !f.win.ok || off < f.win.lo || off >= f.win.hi {
		return nil, true
	}
	if end > f.win.hi {
		// Reads are smaller than a window, but may lie across two: widen it.
		return nil, true
	}
	pos := off
	for i := range f.win.list {
		e := &f.win.list[i]
		if e.End() <= pos || e.Off >= end {
			continue
		}
		lo, hi := max(pos, e.Off), min(end, e.End())
		clear(p[pos-off : lo-off])
		part := p[lo-off : hi-off]
		switch e.Kind {
		case objstore.Inline:
			copy(part, e.Data[lo-e.Off:])
		case objstore.Hole:
			clear(part)
		default:
			jobs = append(jobs, fetch{e.Chunk, e.ChunkOff + uint32(lo-e.Off), part, e.ChunkOff + e.Len})
		}
		pos = hi
	}
	clear(p[pos-off:])
	return jobs, false
}

// loadWindow reads the extents around off.
func (f *file) loadWindow(ctx context.Context, off uint64) error {
	f.mu.Lock()
	gen := f.gen
	f.mu.Unlock()
	lo := off - off%objstore.ChunkSize
	list, err := f.fs.store.Extents(ctx, f.ino, lo, windowSpan)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gen == gen {
		f.win = window{true, lo, lo + windowSpan, list}
	}
	return nil
}

// loadBody reads the whole committed body of a small file.
func (f *file) loadBody(ctx context.Context) error {
	f.mu.Lock()
	gen, size := f.gen, f.csize
	f.mu.Unlock()
	buf := make([]byte, size)
	if err := f.readCommitted(ctx, buf, 0); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gen == gen {
		f.setBody(buf)
	}
	return nil
}

// setBody keeps a small file's committed body; nil drops it. There may be a little
// more of all files than BodyMax: as much as was being read when it was reached. Under mu.
func (f *file) setBody(b []byte) {
	f.fs.bodies.Add(int64(len(b) - len(f.body)))
	f.body = b
}

// readCommitted reads the committed bytes at off, below everything dirty.
func (f *file) readCommitted(ctx context.Context, p []byte, off uint64) error {
	for {
		f.mu.Lock()
		jobs, need := f.committed(nil, p, off)
		f.mu.Unlock()
		if !need {
			return f.fs.fetchAll(ctx, jobs)
		}
		if err := f.loadWindow(ctx, off); err != nil {
			return err
		}
	}
}

// readSettled is readCommitted that looks again where bytes have moved to another
// chunk since it was known where they are.
func (f *file) readSettled(ctx context.Context, p []byte, off uint64) error {
	for try := 0; ; try++ {
		f.mu.Lock()
		gen := f.gen
		f.mu.Unlock()
		err := f.readCommitted(ctx, p, off)
		if err == nil || try >= readRetries || !f.moved(ctx, gen) {
			return err
		}
	}
}

// fetchAll reads chunks, several at a time.
func (fs *FS) fetchAll(ctx context.Context, jobs []fetch) error {
	if a := fs.ahead; a != nil {
		a.reading.Add(int64(len(jobs)))
		defer a.reading.Add(-int64(len(jobs)))
	}
	switch len(jobs) {
	case 0:
		return nil
	case 1:
		return fs.fetch(ctx, jobs[0])
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readWidth)
	for _, j := range jobs {
		g.Go(func() error { return fs.fetch(ctx, j) })
	}
	return g.Wait()
}
