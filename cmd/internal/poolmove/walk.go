package poolmove

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
)

const (
	page = 1000
	span = 1 << 30 // bytes of a file that are looked at in one go
)

// file is one that may have bodies to move.
type file struct {
	ino  objstore.Ino
	path string
}

// entries calls fn for everything in a directory.
func (r *run) entries(ctx context.Context, dir objstore.Ino, path string, fn func(e *objstore.DirEntry, path string) error) error {
	for after := uint64(0); ; {
		list, err := r.opt.Store.ReadDir(ctx, dir, after, page, false)
		if objstore.Gone(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for i := range list {
			after = list[i].Cookie
			if err := fn(&list[i], strings.TrimSuffix(path, "/")+"/"+list[i].Name); err != nil {
				return err
			}
		}
		if len(list) < page {
			return nil
		}
	}
}

// elsewhere says whether another pool was chosen for a directory itself.
func (r *run) elsewhere(dir objstore.Ino) bool {
	return dir != r.opt.Dir && r.opt.Map.Rule(dir) != nil
}

// accounts calls fn for every account from a directory down that goes by its pool.
func (r *run) accounts(ctx context.Context, dir objstore.Ino, path string, fn func(vol objstore.VolumeID, path string) error) error {
	if r.elsewhere(dir) {
		return nil
	}
	if dir.Volume() != objstore.RootVolume {
		return fn(dir.Volume(), path)
	}
	return r.entries(ctx, dir, path, func(e *objstore.DirEntry, path string) error {
		if e.Type != objstore.ModeDir {
			return nil
		}
		return r.accounts(ctx, e.Ino, path, fn)
	})
}

// each calls fn for every file below the directory, several at a time.
func (r *run) each(ctx context.Context, fn func(ctx context.Context, f file) error) error {
	r.rep.Kept = []string{}
	g, ctx := errgroup.WithContext(ctx)
	files := make(chan file)
	g.Go(func() error {
		defer close(files)
		return r.walk(ctx, r.opt.Dir, r.opt.Path, files)
	})
	for range r.opt.Workers {
		g.Go(func() error {
			for f := range files {
				if err := fn(ctx, f); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (r *run) walk(ctx context.Context, dir objstore.Ino, path string, files chan<- file) error {
	if r.elsewhere(dir) {
		r.rep.Kept = append(r.rep.Kept, path)
		return nil
	}
	return r.entries(ctx, dir, path, func(e *objstore.DirEntry, path string) error {
		switch e.Type {
		case objstore.ModeDir:
			return r.walk(ctx, e.Ino, path, files)
		case objstore.ModeRegular:
			select {
			case files <- file{e.Ino, path}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
}

// count is how many bytes are still to be moved.
func (r *run) count(ctx context.Context) (int64, error) {
	var n atomic.Int64
	err := r.each(ctx, func(ctx context.Context, f file) error {
		return r.extents(ctx, f, func(list []objstore.Extent) error {
			for i := range list {
				n.Add(int64(list[i].Len))
			}
			return nil
		})
	})
	return n.Load(), err
}

// extents calls fn for those of a file that are in another pool, a span at a time.
func (r *run) extents(ctx context.Context, f file, fn func(list []objstore.Extent) error) error {
	for off := uint64(0); ; off += span {
		list, err := r.opt.Store.Extents(ctx, f.ino, off, span)
		if objstore.Gone(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		kept := list[:0:0]
		for _, e := range list {
			if e.Kind == objstore.Pooled && e.Chunk.Pool() != r.opt.Pool.ID {
				kept = append(kept, e)
			}
		}
		if len(kept) > 0 {
			if err := fn(kept); err != nil {
				return err
			}
		}
		a, err := r.opt.Store.GetAttr(ctx, f.ino)
		if objstore.Gone(err) || err == nil && off+span >= a.Size {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
}
