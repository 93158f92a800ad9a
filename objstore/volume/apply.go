package volume

import (
	"fmt"

	"pillarbox/objstore"
)

// Apply works out what a change does: the writes it makes and what to tell its
// caller. On an error, of the kinds that package objstore lists with each
// change, nothing is to be written. now is nanoseconds since 1970. The Delta is
// the caller's; only values that are bodies alias the Change.
func Apply(v View, c objstore.Change, now int64) (Delta, objstore.Result, error) {
	if c == nil {
		return nil, objstore.Result{}, describe(c, objstore.Invalid)
	}
	t, res, err := apply(v, c, now)
	if err != nil {
		return nil, objstore.Result{}, describe(c, err)
	}
	if t == nil {
		return nil, res, nil
	}
	d, err := t.finish()
	if err != nil {
		return nil, objstore.Result{}, describe(c, err)
	}
	return d, res, nil
}

// apply returns a nil tx when there is nothing to write.
func apply(v View, c objstore.Change, now int64) (*tx, objstore.Result, error) {
	missing := objstore.Stale
	switch c := c.(type) {
	case objstore.InitVolume:
		return initVolume(v, c, now)
	case objstore.FreeChunks:
		return freeChunks(v, c, now)
	case objstore.DropVolume:
		return dropVolume(v, c, now)
	case objstore.SealVolume:
		missing = objstore.NotFound
	}
	t, err := newTx(v, c.Volume(), now, missing)
	if err != nil {
		return nil, objstore.Result{}, err
	}
	var res objstore.Result
	switch c := c.(type) {
	case objstore.Create:
		res, err = t.create(c)
	case objstore.Link:
		res, err = t.link(c)
	case objstore.Remove:
		res, err = t.remove(c)
	case objstore.Rename:
		res, err = t.rename(c)
	case objstore.SetAttr:
		res, err = t.setAttr(c)
	case objstore.Write:
		res, err = t.write(c)
	case objstore.Share:
		res, err = t.share(c)
	case objstore.MoveChunk:
		res, err = t.moveChunk(c)
	case objstore.Pack:
		res, err = t.pack(c)
	case objstore.SetXattr:
		res, err = t.setXattr(c)
	case objstore.RemoveXattr:
		res, err = t.removeXattr(c)
	case objstore.Purge:
		res, err = t.purge(c)
	case objstore.ReserveVolume:
		res, err = t.reserveVolume(c)
	case objstore.AttachVolume:
		res, err = t.attachVolume(c)
	case objstore.PendVolume:
		res, err = t.pendVolume(c)
	case objstore.SealVolume:
		res, err = t.sealVolume(c)
	case objstore.Reparent:
		res, err = t.reparent(c)
	default:
		err = objstore.Unsupported
	}
	return t, res, err
}

// describe says which change failed. The Kind stays findable by errors.Is.
func describe(c objstore.Change, err error) error {
	switch c := c.(type) {
	case objstore.Create:
		return fmt.Errorf("create %q in %v: %w", c.Name, c.Parent, err)
	case objstore.Link:
		return fmt.Errorf("link %v as %q in %v: %w", c.Ino, c.Name, c.Parent, err)
	case objstore.Remove:
		return fmt.Errorf("remove %q from %v: %w", c.Name, c.Parent, err)
	case objstore.Rename:
		return fmt.Errorf("rename %q in %v to %q in %v: %w", c.OldName, c.OldParent, c.NewName, c.NewParent, err)
	case objstore.SetAttr:
		return fmt.Errorf("set attributes of %v: %w", c.Ino, err)
	case objstore.Write:
		return fmt.Errorf("write %v: %w", c.Ino, err)
	case objstore.Share:
		return fmt.Errorf("share %d bytes at %d of %v with %v at %d: %w", c.Len, c.SrcOff, c.Src, c.Ino, c.Off, err)
	case objstore.MoveChunk:
		return fmt.Errorf("move chunk %v of %v to %v: %w", c.From, c.Ino, c.To, err)
	case objstore.Pack:
		return fmt.Errorf("pack bodies into chunk %v: %w", c.To, err)
	case objstore.SetXattr:
		return fmt.Errorf("set attribute %q of %v: %w", c.Name, c.Ino, err)
	case objstore.RemoveXattr:
		return fmt.Errorf("remove attribute %q of %v: %w", c.Name, c.Ino, err)
	case nil:
		return fmt.Errorf("apply no change: %w", err)
	}
	return fmt.Errorf("apply %T to volume %d: %w", c, c.Volume(), err)
}
