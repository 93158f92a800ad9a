package cachefs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
)

const (
	commitBytes   = 1 << 20 // bodies that travel in one change
	commitExtents = 512     // extents that travel in one change
	maxLayouts    = 8       // layouts kept per file
)

// snapshot is what a flush commits.
type snapshot struct {
	segs  segList
	size  uint64
	csize uint64
	mtime int64
}

// flush commits what is dirty.
func (f *file) flush(ctx context.Context, p objstore.Promise) error {
	f.commitMu.Lock()
	defer f.commitMu.Unlock()
	_, err := f.flushLocked(ctx, p)
	return err
}

// flushLocked commits what is dirty and says whether there was anything. After
// an error all of it is dirty again, unless that is Fenced: then it is given up.
// Under commitMu.
func (f *file) flushLocked(ctx context.Context, p objstore.Promise) (did bool, err error) {
	ctx = f.pin(ctx)
	if err := f.refresh(ctx); err != nil {
		return false, err
	}
	f.mu.Lock()
	if f.laidOut != f.fresh {
		f.layouts, f.laidOut = nil, f.fresh
	}
	// Whatever an upload failed with, its bytes are still here and go now.
	f.asyncErr = nil
	if len(f.dirty) == 0 {
		f.mu.Unlock()
		return false, nil
	}
	f.dirty.freeze()
	f.flushing, f.dirty = f.dirty, nil
	s, fences := snapshot{f.flushing, f.size, f.csize, f.mtime}, f.fences.Load()
	var wait []chan struct{}
	for _, g := range s.segs {
		if g.b.state == uploading {
			wait = append(wait, g.b.done)
		}
	}
	f.mu.Unlock()
	for _, c := range wait {
		<-c
	}
	csize, err := f.commit(ctx, s, p)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asyncErr = nil
	f.csize = csize
	f.invalidate()
	if err != nil {
		if errors.Is(err, objstore.Fenced) {
			f.giveUp(fences)
		} else {
			f.restore()
		}
		return true, fmt.Errorf("commit inode %v: %w", f.ino, err)
	}
	f.seen = s.mtime
	f.free(f.flushing.cutOut(0, ^uint64(0)))
	f.flushing = nil
	f.setPending(len(f.dirty) > 0)
	return true, nil
}

// invalidate voids what is cached of the committed state. Under mu.
func (f *file) invalidate() {
	f.gen++
	f.win = window{}
	f.setBody(nil)
	f.fs.clock.tick(f.ino)
}

// restore makes what could not be committed dirty again, below newer writes. Under mu.
func (f *file) restore() {
	merged := f.flushing
	for _, s := range f.dirty {
		s.b.refs--
		f.free(merged.put(s))
	}
	f.dirty, f.flushing = merged, nil
}

// giveUp forgets what a commit had that others had the right to overtake, and
// what was written since, unless that was after fence did. Under mu.
func (f *file) giveUp(fences uint64) {
	f.free(f.flushing.cutOut(0, ^uint64(0)))
	f.flushing = nil
	if f.fences.Load() == fences {
		f.fences.Add(1)
		f.free(f.dirty.cutOut(0, ^uint64(0)))
	}
	f.setPending(len(f.dirty) > 0)
	f.changes.Add(1) // for the size
	f.fs.dropPages(f.ino)
}

// piece is an extent to be committed, its bytes with it until they are stored.
type piece struct {
	objstore.Extent
	body []byte // bytes still to be placed; nil for chunks stored already
}

// commit names the snapshot's bytes in the metadata. It returns the committed
// size, which may have grown even when it fails. Under commitMu.
func (f *file) commit(ctx context.Context, s snapshot, p objstore.Promise) (uint64, error) {
	csize, err := f.tryCommit(ctx, s, p, true)
	if errors.Is(err, objstore.Invalid) {
		s.csize = csize
		csize, err = f.tryCommit(ctx, s, p, false)
	}
	return csize, err
}

func (f *file) tryCommit(ctx context.Context, s snapshot, p objstore.Promise, inline bool) (csize uint64, err error) {
	pl := planner{f: f, ctx: ctx, s: s, inline: inline, spans: map[uint64]*layout{}}
	if err := pl.plan(); err != nil {
		return s.csize, err
	}
	if err := f.storePooled(ctx, pl.pieces); err != nil {
		return s.csize, err
	}
	csize = s.csize
	for len(pl.pieces) > 0 {
		w := objstore.Write{Ino: f.ino, Mtime: s.mtime, Size: s.size}
		n := batch(pl.pieces)
		for _, q := range pl.pieces[:n] {
			w.Extents = append(w.Extents, q.Extent)
		}
		promise := p
		if pl.pieces = pl.pieces[n:]; len(pl.pieces) > 0 {
			w.Size, promise = max(csize, w.Extents[n-1].End()), objstore.Ordered
		}
		r, err := f.fs.store.Apply(ctx, w, promise)
		if err != nil {
			f.layouts = nil
			return csize, err
		}
		csize = r.Attr.Size
		f.fs.committed(w)
		f.fs.keepResident(w, promise, r)
	}
	f.remember(pl.spans)
	return csize, nil
}

// batch is how many pieces one change takes.
func batch(ps []piece) int {
	bytes := 0
	for i, q := range ps {
		bytes += len(q.Data)
		if i > 0 && (bytes > commitBytes || i >= commitExtents) {
			return i
		}
	}
	return len(ps)
}

// storePooled stores the bodies of Pooled pieces in the data pool.
func (f *file) storePooled(ctx context.Context, ps []piece) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range ps {
		q := &ps[i]
		if q.Kind != objstore.Pooled || q.body == nil {
			continue
		}
		g.Go(func() (err error) {
			q.Chunk, err = f.fs.putChunk(ctx, f.ino, q.Off, q.body)
			return err
		})
	}
	return g.Wait()
}

// remember keeps the layouts that a commit brought about.
func (f *file) remember(spans map[uint64]*layout) {
	if f.layouts == nil || len(f.layouts)+len(spans) > maxLayouts {
		f.layouts = map[uint64]layout{}
	}
	for at, l := range spans {
		if len(f.layouts) < maxLayouts {
			f.layouts[at] = *l
		}
	}
}

// planner decides what a commit of a snapshot carries.
type planner struct {
	f      *file
	ctx    context.Context
	s      snapshot
	inline bool               // Inline extents may be used
	spans  map[uint64]*layout // as they will be, by layoutSpan
	pieces []piece            // ascending, without overlap
}

func (pl *planner) plan() error {
	if pl.s.size <= tinyFile && pl.inline {
		return pl.planTiny()
	}
	for i := 0; i < len(pl.s.segs); {
		n, err := pl.addRun(pl.s.segs[i:])
		if err != nil {
			return err
		}
		i += n
	}
	return pl.mergeBlocks()
}

// planTiny makes the whole file one Inline extent.
func (pl *planner) planTiny() error {
	data, err := pl.read(0, pl.s.size)
	if err != nil {
		return err
	}
	pl.pieces = []piece{pl.piece(0, data, objstore.Inline)}
	pl.spans[0] = &layout{{0, uint32(len(data)), objstore.Inline}}
	return nil
}

// addRun plans the first run of touching segs and returns how many that are.
func (pl *planner) addRun(segs segList) (int, error) {
	s := segs[0]
	l, err := pl.layout(s.off)
	if err != nil {
		return 0, err
	}
	if s.b.state == stored {
		q := piece{Extent: objstore.Extent{Off: s.off, Len: s.n, Kind: objstore.Pooled, Chunk: s.b.chunk, ChunkOff: s.bo}}
		pl.add(l, q)
		return 1, nil
	}
	n, end := 1, s.end()
	for n < len(segs) && segs[n].off == end && segs[n].b.state != stored && end%objstore.ChunkSize != 0 {
		end = segs[n].end()
		n++
	}
	data := s.bytes()
	if n > 1 {
		data = make([]byte, 0, end-s.off)
		for _, g := range segs[:n] {
			data = append(data, g.bytes()...)
		}
	}
	if len(data) <= smallPiece && pl.inline {
		after := layout(slices.Clone(*l))
		after.put(spanExtent{s.off, uint32(len(data)), objstore.Inline})
		if after.inline() <= inlineSoft {
			pl.add(l, pl.piece(s.off, data, objstore.Inline))
			return n, nil
		}
		// The inode record is full enough: this piece and the Inline
		// neighbours that it continues become one body.
		if lo, hi := after.inlineRun(s.off, end); hi-lo > uint64(len(data)) {
			return n, pl.merge(l, lo, hi)
		}
	}
	pl.add(l, pl.piece(s.off, data, kindOf(len(data))))
	return n, nil
}

func kindOf(n int) objstore.ExtentKind {
	if n <= objstore.ResidentMax {
		return objstore.Resident
	}
	return objstore.Pooled
}

func (pl *planner) piece(off uint64, data []byte, kind objstore.ExtentKind) piece {
	q := piece{Extent: objstore.Extent{Off: off, Len: uint32(len(data)), Kind: kind}, body: data}
	if kind != objstore.Pooled {
		q.Data = data
	}
	return q
}

// add plans a piece over what is planned already.
func (pl *planner) add(l *layout, q piece) {
	l.put(spanExtent{q.Off, q.Len, q.Kind})
	i, _ := slices.BinarySearchFunc(pl.pieces, q.Off, func(p piece, off uint64) int {
		if p.Off < off {
			return -1
		}
		return 1
	})
	j := i
	for j < len(pl.pieces) && pl.pieces[j].Off < q.End() {
		j++
	}
	pl.pieces = slices.Replace(pl.pieces, i, j, q)
}

// merge plans [lo, hi), the new bytes in it included, as one extent. Its
// borders are those of extents, so no planned piece lies across them.
func (pl *planner) merge(l *layout, lo, hi uint64) error {
	data, err := pl.read(lo, hi)
	if err != nil {
		return err
	}
	pl.add(l, pl.piece(lo, data, kindOf(len(data))))
	return nil
}

// mergeBlocks merges extents of every block that the commit touches: those of
// like size, and then whatever is needed to stay within maxExtents.
func (pl *planner) mergeBlocks() error {
	last := ^uint64(0)
	for i := 0; i < len(pl.pieces); i++ {
		at := pl.pieces[i].Off - pl.pieces[i].Off%objstore.ChunkSize
		if at == last {
			continue
		}
		last = at
		l, err := pl.layout(at)
		if err != nil {
			return err
		}
		for {
			b := l.block(at)
			lo, hi, ok := b.likes()
			if !ok && len(b) > maxExtents {
				lo, hi = b.cheapest()
				ok = true
			}
			if !ok {
				break
			}
			if err := pl.merge(l, lo, hi); err != nil {
				return err
			}
		}
		// Merging may have replaced this piece and others of the block.
		for i = 0; i < len(pl.pieces) && pl.pieces[i].Off < at; i++ {
		}
	}
	return nil
}

// layout is the span's layout as planned so far.
func (pl *planner) layout(off uint64) (*layout, error) {
	at := off - off%layoutSpan
	if l := pl.spans[at]; l != nil {
		return l, nil
	}
	var l layout
	if known, ok := pl.f.layouts[at]; ok {
		l = slices.Clone(known)
	} else if at < pl.s.csize {
		list, err := pl.f.fs.store.Extents(pl.ctx, pl.f.ino, at, layoutSpan)
		if err != nil {
			return nil, err
		}
		l = layoutOf(list)
	}
	pl.spans[at] = &l
	return &l, nil
}

// read returns the bytes of [lo, hi) as they will be after the commit.
func (pl *planner) read(lo, hi uint64) ([]byte, error) {
	buf := make([]byte, hi-lo)
	segs := pl.s.segs.overlap(lo, hi)
	if lo < pl.s.csize && segs.coverEnd(lo) < min(hi, pl.s.csize) {
		if err := pl.f.readSettled(pl.ctx, buf, lo); err != nil {
			return nil, err
		}
	}
	var jobs []fetch
	for _, s := range segs {
		s = s.cut(lo, hi)
		part := buf[s.off-lo : s.end()-lo]
		if s.b.state == stored {
			jobs = append(jobs, fetch{s.b.chunk, s.bo, part, s.bo + s.n})
			continue
		}
		copy(part, s.bytes())
	}
	return buf, pl.f.fs.fetchAll(pl.ctx, jobs)
}
