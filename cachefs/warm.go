package cachefs

import (
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
)

// warmWidth is how many files are brought near at a time. What they bring fits into
// what may wait to be written (diskcache): warming alone leaves nothing out.
const warmWidth = 4

// Warming counts what a Warm has done so far.
type Warming struct{ dirs, files, near, bytes, failed atomic.Uint64 }

// Warmed is what a Warm has done.
type Warmed struct {
	Dirs   uint64 `json:"dirs"`
	Files  uint64 `json:"files"`
	Near   uint64 `json:"near_bytes"` // bytes of bodies that were near already
	Bytes  uint64 `json:"bytes"`      // bytes of bodies that were brought
	Failed uint64 `json:"failed"`     // files that could not be read
	Full   bool   `json:"full"`       // bodies were left out, for there were too many
}

// So tells what was done so far, of at most max bytes.
func (w *Warming) So(max uint64) Warmed {
	n := w.bytes.Load()
	return Warmed{w.dirs.Load(), w.files.Load(), w.near.Load(), n, w.failed.Load(), n >= max}
}

// Warm brings near what lies at and below some inodes: names and attributes, where
// the bytes of files are, and up to about max bytes of bodies. A file that cannot be
// read is counted and passed over; the first such error is returned at the end.
func (fs *FS) Warm(ctx context.Context, w *Warming, max uint64, top ...objstore.Ino) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(warmWidth)
	var failed atomic.Pointer[error]
	err := fs.Walk(gctx, top, func(a *objstore.Attr) error {
		if a.IsDir() {
			w.dirs.Add(1)
			return nil
		}
		ino, size := a.Ino, a.Size
		regular := a.Mode&objstore.ModeType == objstore.ModeRegular
		g.Go(func() error {
			var err error
			if regular && size > 0 {
				err = fs.warmFile(gctx, w, max, ino, size)
			}
			switch {
			case err == nil:
				w.files.Add(1)
			case gctx.Err() != nil:
				return err
			case !objstore.Gone(err): // else it was removed meanwhile
				w.failed.Add(1)
				failed.CompareAndSwap(nil, &err)
			}
			return nil
		})
		return nil
	})
	if err = errors.Join(err, g.Wait()); err == nil && failed.Load() != nil {
		err = *failed.Load()
	}
	return err
}

// warmFile brings the bodies of one file near, a window at a time.
func (fs *FS) warmFile(ctx context.Context, w *Warming, max uint64, ino objstore.Ino, size uint64) error {
	for off := uint64(0); off < size; off += windowSpan {
		list, err := fs.store.Extents(ctx, ino, off, windowSpan) // as reading asks, so that it finds the answer
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.Kind != objstore.Resident && e.Kind != objstore.Pooled {
				continue
			}
			b := fs.opt.Bodies
			if b != nil && (fs.opt.Local(e.Chunk) || b.Has(e.Chunk, e.ChunkOff+e.Len)) {
				w.near.Add(uint64(e.Len))
				continue
			}
			if w.bytes.Load() >= max {
				continue
			}
			if b != nil {
				b.Room()
			}
			if err := fs.fetch(ctx, fetch{e.Chunk, e.ChunkOff, make([]byte, e.Len), e.ChunkOff + e.Len}); err != nil {
				return err
			}
			w.bytes.Add(uint64(e.Len))
		}
	}
	return nil
}

// walkPage is how many names are listed at a time.
const walkPage = 1000

// Walk calls visit with the attributes of some inodes and of all that lies below
// them, in no order. What is removed meanwhile may be passed over.
func (fs *FS) Walk(ctx context.Context, top []objstore.Ino, visit func(*objstore.Attr) error) error {
	var dirs []objstore.Ino
	see := func(a *objstore.Attr) error {
		if a.IsDir() {
			dirs = append(dirs, a.Ino)
		}
		return visit(a)
	}
	for _, ino := range top {
		a, err := fs.GetAttr(ctx, ino)
		if err == nil {
			err = see(&a)
		}
		if err != nil {
			return err
		}
	}
	for len(dirs) > 0 {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		if err := fs.walkDir(ctx, dir, see); err != nil && !objstore.Gone(err) {
			return err
		}
	}
	return nil
}

func (fs *FS) walkDir(ctx context.Context, dir objstore.Ino, see func(*objstore.Attr) error) error {
	for after := uint64(0); ; {
		list, err := fs.ReadDir(ctx, dir, after, walkPage, true)
		if err != nil {
			return err
		}
		for i := range list {
			a := list[i].Attr
			if a == nil { // another volume's top, or removed just now
				b, err := fs.GetAttr(ctx, list[i].Ino)
				if objstore.Gone(err) {
					continue
				}
				if err != nil {
					return err
				}
				a = &b
			}
			if err := see(a); err != nil {
				return err
			}
		}
		if len(list) < walkPage {
			return ctx.Err()
		}
		after = list[len(list)-1].Cookie
	}
}

// DropPages makes the kernel forget the pages of a file, where others change the
// store, too. What was written through a map and not synced is written first.
func (fs *FS) DropPages(ino objstore.Ino) {
	if k := fs.shared.kernel; k != nil {
		k.Drop(ino)
	}
}
