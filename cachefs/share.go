package cachefs

import (
	"context"
	"fmt"

	"pillarbox/objstore"
)

// Share lays bytes of one file over another of the same volume without copying
// them; see objstore.Share, whose Mtime is filled in here, and whose length is not
// bounded here: a long one is made in pieces. What was written to either file
// before is committed first.
func (fs *FS) Share(ctx context.Context, c objstore.Share) error {
	if c.Ino == c.Src {
		return fmt.Errorf("share inode %v with itself: %w", c.Ino, objstore.Invalid)
	}
	src, err := fs.acquire(c.Src)
	if err != nil {
		return err
	}
	defer fs.release(src)
	if err := src.flush(ctx, fs.promise()); err != nil {
		return err
	}
	f, err := fs.acquire(c.Ino)
	if err != nil {
		return err
	}
	defer fs.release(f)
	f.commitMu.Lock()
	defer f.commitMu.Unlock()
	if _, err := f.flushLocked(ctx, objstore.Ordered); err != nil {
		return err
	}
	for left := c.Len; ; {
		c.Len, c.Mtime = min(left, objstore.MaxShare), now()
		r, err := fs.store.Apply(ctx, c, fs.promise())
		if err != nil {
			return err
		}
		f.learn(&r.Attr)
		if left -= c.Len; left == 0 {
			return nil
		}
		c.Off, c.SrcOff = c.Off+c.Len, c.SrcOff+c.Len
	}
}
