package cachefs

import (
	"context"
	"errors"
	"fmt"

	"pillarbox/objstore"
)

// SetAttr changes attributes after committing what is dirty, so that a time
// that was set wins over the writes before it. A change of size is a change of
// contents: mtime moves, file capabilities go. dropSetID says that the caller
// may not keep set-ID bits; a change of owner drops them anyway.
func (fs *FS) SetAttr(ctx context.Context, c objstore.SetAttr, dropSetID bool, by Caller) (objstore.Attr, error) {
	f, err := fs.acquire(c.Ino)
	if err != nil {
		return objstore.Attr{}, err
	}
	defer fs.release(f)
	f.commitMu.Lock()
	defer f.commitMu.Unlock()
	if _, err := f.flushLocked(ctx, objstore.Ordered); err != nil {
		return objstore.Attr{}, err
	}
	if dropSetID || c.Set&(objstore.SetUid|objstore.SetGid|objstore.SetSize) != 0 {
		if err := fs.prepareSetAttr(ctx, &c, dropSetID, by); err != nil {
			return objstore.Attr{}, err
		}
	}
	r, err := fs.store.Apply(ctx, c, fs.promise())
	if err != nil {
		return objstore.Attr{}, err
	}
	if c.Set&objstore.SetSize != 0 {
		f.resized(c.Size)
	}
	f.overlay(&r.Attr)
	return r.Attr, nil
}

// prepareSetAttr adds to a change of owner or size what comes with it.
func (fs *FS) prepareSetAttr(ctx context.Context, c *objstore.SetAttr, dropSetID bool, by Caller) error {
	if c.Set&objstore.SetSize != 0 && c.Set&objstore.SetMtime == 0 {
		c.Set |= objstore.SetMtime
		c.Mtime = now()
	}
	a, err := fs.store.GetAttr(ctx, c.Ino)
	if err != nil || a.IsDir() {
		return err
	}
	chown := c.Set&(objstore.SetUid|objstore.SetGid) != 0
	if mode := by.withoutSetID(&a); c.Set&objstore.SetMode == 0 && (chown || dropSetID) && mode != a.Mode {
		c.Set |= objstore.SetMode
		c.Mode = mode & permBits
	}
	if a.HasXattr {
		return fs.dropCapability(ctx, c.Ino)
	}
	return nil
}

// resized takes over a size that was committed past the dirty ranges.
func (f *file) resized(size uint64) {
	f.layouts = nil
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loaded, f.csize, f.size = true, size, size
	if n := len(f.dirty); n > 0 {
		f.size = max(size, f.dirty[n-1].end())
	}
	f.invalidate()
}

// AllocMode is what Allocate does.
type AllocMode uint8

// The ways to allocate. Bytes are never set aside: a store has no reservations,
// so Reserve only checks that there is room now.
const (
	Reserve   AllocMode = iota // grow the file to the range's end
	KeepSize                   // do not grow the file
	PunchHole                  // zero the range and free it; the size stays
	ZeroRange                  // the same; the file grows to the range's end
	ZeroKeep                   // the same; the size stays
)

// Allocate changes the range [off, off+n) as mode says. NoSpace, TooBig.
func (h *Handle) Allocate(ctx context.Context, off, n uint64, mode AllocMode) error {
	f := h.f
	if n == 0 {
		return fmt.Errorf("allocate nothing: %w", objstore.Invalid)
	}
	if off > objstore.MaxFileSize || n > objstore.MaxFileSize-off {
		return fmt.Errorf("allocate up to %d: %w", off+n, objstore.TooBig)
	}
	f.commitMu.Lock()
	defer f.commitMu.Unlock()
	if _, err := f.flushLocked(ctx, objstore.Ordered); err != nil {
		return err
	}
	if mode == Reserve || mode == KeepSize {
		st, err := f.fs.store.StatFS(ctx)
		if err != nil {
			return err
		}
		if n > st.Avail {
			return fmt.Errorf("allocate %d bytes: %w", n, objstore.NoSpace)
		}
	} else if err := f.punch(ctx, off, off+n); err != nil {
		return err
	}
	f.mu.Lock()
	grow := f.csize < off+n && (mode == Reserve || mode == ZeroRange)
	f.mu.Unlock()
	if !grow {
		return nil
	}
	c := objstore.SetAttr{Ino: f.ino, Set: objstore.SetSize | objstore.SetMtime, Size: off + n, Mtime: now()}
	if _, err := f.fs.store.Apply(ctx, c, f.fs.promise()); err != nil {
		return err
	}
	f.resized(off + n)
	return nil
}

// punch puts holes over the committed extents in [lo, hi). Under commitMu.
func (f *file) punch(ctx context.Context, lo, hi uint64) error {
	f.mu.Lock()
	csize := f.csize
	f.mu.Unlock()
	defer func() {
		f.layouts = nil
		f.mu.Lock()
		f.invalidate()
		f.mu.Unlock()
	}()
	for hi = min(hi, csize); lo < hi; {
		to := min(hi, lo+windowSpan)
		list, err := f.fs.store.Extents(ctx, f.ino, lo, to-lo)
		if err != nil {
			return err
		}
		w := objstore.Write{Ino: f.ino, Size: csize, Mtime: now()}
		for _, e := range list {
			from, end := max(e.Off, lo), min(e.End(), to)
			if from < end && e.Kind != objstore.Hole {
				w.Extents = append(w.Extents, objstore.Extent{Off: from, Len: uint32(end - from), Kind: objstore.Hole})
			}
		}
		if len(w.Extents) > 0 {
			if _, err := f.fs.store.Apply(ctx, w, f.fs.promise()); err != nil {
				return err
			}
		}
		lo = to
	}
	return nil
}

// ErrNoData says that Seek found nothing behind the offset.
var ErrNoData = errors.New("no data behind the offset")

// Seek finds the next data at or behind off, or with hole set the next hole;
// the end of the file is one. ErrNoData.
func (h *Handle) Seek(ctx context.Context, off uint64, hole bool) (uint64, error) {
	f := h.f
	f.commitMu.Lock()
	defer f.commitMu.Unlock()
	f.mu.Lock()
	size, csize := f.size, f.csize
	f.mu.Unlock()
	if off >= size {
		return 0, ErrNoData
	}
	if !hole {
		at, err := f.nextData(ctx, off, csize)
		if err == nil && at >= size {
			err = ErrNoData
		}
		return at, err
	}
	for off < size {
		f.mu.Lock()
		to := f.dirty.coverEnd(off)
		f.mu.Unlock()
		to, err := f.committedEnd(ctx, to, csize)
		if err != nil {
			return 0, err
		}
		if to == off {
			return off, nil
		}
		off = to
	}
	return size, nil
}

// nextData is the first byte at or behind off that is dirty or has an extent.
func (f *file) nextData(ctx context.Context, off, csize uint64) (uint64, error) {
	f.mu.Lock()
	best, ok := f.dirty.nextData(off)
	f.mu.Unlock()
	if !ok {
		best = ^uint64(0)
	}
	for span := uint64(windowSpan); off < min(csize, best); span *= 4 {
		list, err := f.fs.store.Extents(ctx, f.ino, off, min(span, csize-off))
		if err != nil {
			return 0, err
		}
		for _, e := range list {
			if e.Kind != objstore.Hole && e.End() > off {
				return min(best, max(off, e.Off)), nil
			}
		}
		off += min(span, csize-off)
	}
	return best, nil
}

// committedEnd is where the run of extents that covers off ends; off if none does.
func (f *file) committedEnd(ctx context.Context, off, csize uint64) (uint64, error) {
	if off >= csize {
		return off, nil
	}
	list, err := f.fs.store.Extents(ctx, f.ino, off, min(windowSpan, csize-off))
	if err != nil {
		return 0, err
	}
	for _, e := range list {
		if e.Kind == objstore.Hole || e.Off > off {
			break
		}
		off = max(off, e.End())
	}
	return min(off, csize), nil
}

const (
	copyPiece = 1 << 20 // bytes read and written at a time
	copyMax   = 8 << 20 // bytes one call copies at most
)

// CopyRange copies up to n bytes from h to dst and returns how many it copied.
func (h *Handle) CopyRange(ctx context.Context, dst *Handle, from, to, n uint64) (int, error) {
	n = min(n, copyMax)
	buf := make([]byte, min(n, copyPiece))
	done := 0
	for uint64(done) < n {
		got, err := h.Read(ctx, buf[:min(uint64(len(buf)), n-uint64(done))], from+uint64(done))
		if err == nil && got > 0 {
			_, err = dst.Write(ctx, buf[:got], to+uint64(done), WriteOptions{})
		}
		if err != nil {
			if done > 0 {
				return done, nil
			}
			return 0, err
		}
		if got == 0 {
			break
		}
		done += got
	}
	return done, nil
}
