package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pillarbox/objstore"
)

// accountName says whether a directory of this name can be an account. The
// parts of a Maildir never are: where somebody keeps a Maildir one level higher
// than accounts are, links between tmp, new and cur must go on working.
func accountName(name string) bool {
	switch name {
	case "tmp", "new", "cur", "lost+found":
		return false
	}
	return !strings.HasPrefix(name, ".")
}

// isAccountPlace says whether a new directory parent/name is to be a volume.
func (c *Client) isAccountPlace(ctx context.Context, parent objstore.Ino, name string) (bool, error) {
	if !accountName(name) {
		return false, nil
	}
	depth, top := 1, c.now.Load().VolumeDepth
	for dir := parent; dir != objstore.VolumeRoot(objstore.RootVolume); depth++ {
		a, err := c.GetAttr(ctx, dir)
		if err != nil {
			return false, err
		}
		if a.Parent == dir || depth > top {
			return false, nil
		}
		dir = a.Parent
	}
	return depth == top, nil
}

// mkdirInRoot makes a directory of the root volume, or an account: the volume's
// id is noted as pending, the volume made, its name entered and the note ended.
func (c *Client) mkdirInRoot(ctx context.Context, ch objstore.Create, p objstore.Promise) (objstore.Result, error) {
	c.accounts.RLock()
	defer c.accounts.RUnlock()
	account, err := c.isAccountPlace(ctx, ch.Parent, ch.Name)
	if err != nil {
		return objstore.Result{}, err
	}
	if !account {
		return c.apply(ctx, ch, p)
	}
	return c.makeAccount(ctx, ch, p)
}

// MakeAccount makes a directory of the root volume that is a volume whatever its
// depth.
func (c *Client) MakeAccount(ctx context.Context, ch objstore.Create, p objstore.Promise) (objstore.Result, error) {
	if ch.Parent.Volume() != objstore.RootVolume || ch.Mode&objstore.ModeType != objstore.ModeDir {
		return objstore.Result{}, fmt.Errorf("make volume %q: %w", ch.Name, objstore.Invalid)
	}
	c.accounts.RLock()
	defer c.accounts.RUnlock()
	return c.makeAccount(ctx, ch, p)
}

func (c *Client) makeAccount(ctx context.Context, ch objstore.Create, p objstore.Promise) (objstore.Result, error) {
	parent, err := c.GetAttr(ctx, ch.Parent)
	if err != nil {
		return objstore.Result{}, err
	}
	if parent.Mode&objstore.ModeSetgid != 0 {
		ch.Gid = parent.Gid
		ch.Mode |= objstore.ModeSetgid
	}
	res, err := c.apply(ctx, objstore.ReserveVolume{Parent: ch.Parent, Name: ch.Name}, objstore.Committed)
	if err != nil {
		return objstore.Result{}, err
	}
	vol := res.Attr.Ino.Volume()
	_, err = c.apply(ctx, objstore.InitVolume{Vol: vol, Parent: ch.Parent, Mode: ch.Mode, Uid: ch.Uid, Gid: ch.Gid}, objstore.Committed)
	if err == nil && c.opt.Found != nil {
		err = c.found(ctx, vol, ch.Parent)
	}
	if err == nil {
		_, err = c.apply(ctx, objstore.AttachVolume{Vol: vol, Parent: ch.Parent, Name: ch.Name}, p)
	}
	if uncertain(err) {
		c.settleLater(c.opt.Timeout, []objstore.VolumeID{vol})
		return objstore.Result{}, err
	}
	if err != nil {
		return objstore.Result{}, errors.Join(err, c.discard(ctx, vol))
	}
	a, err := c.GetAttr(ctx, objstore.VolumeRoot(vol))
	return objstore.Result{Attr: a}, err
}

// found makes what Options.Found wants of a new volume.
func (c *Client) found(ctx context.Context, vol objstore.VolumeID, parent objstore.Ino) error {
	changes, err := c.opt.Found(ctx, vol, parent)
	for _, ch := range changes {
		if err == nil {
			_, err = c.apply(ctx, ch, objstore.Committed)
		}
	}
	return err
}

// uncertain says whether a change that failed may have been made all the same.
func uncertain(err error) bool { return errors.Is(err, objstore.Unavailable) }

// volumeAt returns the volume a name of the root volume leads to, 0 if none.
func (c *Client) volumeAt(ctx context.Context, dir objstore.Ino, name string) (objstore.VolumeID, error) {
	e, err := c.lookup(ctx, dir, name)
	if errors.Is(err, objstore.NotFound) {
		return 0, nil
	}
	return e.Ino.Volume(), err
}

// rmdirInRoot removes a directory of the root volume, or an empty account.
func (c *Client) rmdirInRoot(ctx context.Context, ch objstore.Remove, p objstore.Promise) (objstore.Result, error) {
	vol, err := c.volumeAt(ctx, ch.Parent, ch.Name)
	if err != nil {
		return objstore.Result{}, err
	}
	return c.replacing(ctx, vol, func(sealed objstore.Ino) (objstore.Result, error) {
		ch.Sealed = sealed
		return c.apply(ctx, ch, p)
	})
}

// renameInRoot renames within the root volume; what is replaced may be an empty account.
func (c *Client) renameInRoot(ctx context.Context, ch objstore.Rename, p objstore.Promise) (objstore.Result, error) {
	if ch.NewParent.Volume() != objstore.RootVolume || ch.Exchange || ch.NoReplace {
		return c.apply(ctx, ch, p)
	}
	from, err := c.lookup(ctx, ch.OldParent, ch.OldName)
	if err != nil {
		return objstore.Result{}, err
	}
	vol, err := c.volumeAt(ctx, ch.NewParent, ch.NewName)
	if err != nil {
		return objstore.Result{}, err
	}
	if from.Type != objstore.ModeDir || from.Ino == objstore.VolumeRoot(vol) {
		vol = 0 // fails, or does nothing, without anybody's volume being sealed
	}
	return c.replacing(ctx, vol, func(sealed objstore.Ino) (objstore.Result, error) {
		ch.Sealed = sealed
		return c.apply(ctx, ch, p)
	})
}

// replacing runs a change that takes the name of volume vol away (0: of none):
// the volume is noted as pending and sealed, which it must be empty for; then
// the change, then what is left of the volume is dropped.
func (c *Client) replacing(ctx context.Context, vol objstore.VolumeID, change func(sealed objstore.Ino) (objstore.Result, error)) (objstore.Result, error) {
	c.accounts.RLock()
	defer c.accounts.RUnlock()
	if vol == objstore.RootVolume {
		return change(0)
	}
	if _, err := c.apply(ctx, objstore.PendVolume{Vol: vol}, objstore.Committed); err != nil {
		return objstore.Result{}, err
	}
	_, err := c.apply(ctx, objstore.SealVolume{Vol: vol}, objstore.Committed)
	var res objstore.Result
	if err == nil {
		res, err = change(objstore.VolumeRoot(vol))
	}
	if uncertain(err) {
		c.settleLater(c.opt.Timeout, []objstore.VolumeID{vol})
		return objstore.Result{}, err
	}
	if err != nil {
		return objstore.Result{}, errors.Join(err, c.keep(ctx, vol))
	}
	// The name must be gone for good before the volume is.
	if err := c.Sync(ctx, objstore.RootVolume); err != nil {
		return objstore.Result{}, err
	}
	return res, c.doom(ctx, vol)
}

// doom drops a volume without a name as soon as none of its files is open.
func (c *Client) doom(ctx context.Context, vol objstore.VolumeID) error {
	c.mu.Lock()
	c.doomed[vol] = struct{}{}
	c.mu.Unlock()
	return c.dropIfDoomed(ctx, vol)
}

// dropIfDoomed drops a doomed volume that has no orphans left: those are its
// open files, and what a purge is still to come for.
func (c *Client) dropIfDoomed(ctx context.Context, vol objstore.VolumeID) error {
	c.mu.Lock()
	_, doomed := c.doomed[vol]
	c.mu.Unlock()
	if !doomed {
		return nil
	}
	open, err := c.orphans(ctx, vol)
	if err != nil || len(open) > 0 {
		return err
	}
	c.mu.Lock()
	_, doomed = c.doomed[vol]
	delete(c.doomed, vol)
	c.mu.Unlock()
	if !doomed {
		return nil // somebody else just does it
	}
	return c.discard(ctx, vol)
}

// keep undoes the beginning of a removal.
func (c *Client) keep(ctx context.Context, vol objstore.VolumeID) error {
	_, err := c.apply(ctx, objstore.SealVolume{Vol: vol, Undo: true}, objstore.Ordered)
	if err == nil {
		_, err = c.apply(ctx, objstore.PendVolume{Vol: vol, Done: true}, objstore.Ordered)
	}
	if err != nil {
		return fmt.Errorf("keep volume %d: %w", vol, err)
	}
	return nil
}

// discard drops a volume without a name and ends the note about it.
func (c *Client) discard(ctx context.Context, vol objstore.VolumeID) error {
	_, err := c.apply(ctx, objstore.SealVolume{Vol: vol}, objstore.Committed)
	for more := err == nil; more; {
		var res objstore.Result
		res, err = c.apply(ctx, objstore.DropVolume{Vol: vol}, objstore.Committed)
		more = err == nil && res.Orphan != 0
	}
	if err != nil && !errors.Is(err, objstore.NotFound) && !errors.Is(err, objstore.Stale) { // those: it was never made
		return fmt.Errorf("drop volume %d: %w", vol, err)
	}
	if _, err := c.apply(ctx, objstore.PendVolume{Vol: vol, Done: true}, objstore.Ordered); err != nil {
		return fmt.Errorf("drop volume %d: %w", vol, err)
	}
	return nil
}

// orphans lists some inode without a name that a volume has, if any.
func (c *Client) orphans(ctx context.Context, vol objstore.VolumeID) ([]objstore.Ino, error) {
	pg := c.now.Load().Group(vol)
	return ask(ctx, c, pg, func(ctx context.Context, osd OSD) ([]objstore.Ino, error) { return osd.Orphans(ctx, pg, vol, 1) })
}

func (c *Client) pending(ctx context.Context) ([]objstore.VolumeID, error) {
	pg := c.now.Load().Group(objstore.RootVolume)
	return ask(ctx, c, pg, func(ctx context.Context, osd OSD) ([]objstore.VolumeID, error) { return osd.Pending(ctx, pg) })
}

// settlePending ends what a crash interrupted. In a cluster a note may be of
// another client that is alive: it counts as left by a dead one when it is still
// there after a while.
func (c *Client) settlePending(ctx context.Context) error {
	pending, err := c.pending(ctx)
	if err != nil || len(pending) == 0 {
		return err
	}
	if c.now.Load().only != nil {
		return c.settle(ctx, pending)
	}
	c.settleLater(c.opt.Settle, pending)
	return nil
}

// settleLater settles volumes after a delay, and again until that works.
func (c *Client) settleLater(delay time.Duration, vols []objstore.VolumeID) {
	c.start(func() {
		for {
			t := time.NewTimer(delay)
			select {
			case <-t.C:
			case <-c.life.Done():
				t.Stop()
				return
			}
			err := c.settleOld(c.life, vols)
			if err == nil || c.life.Err() != nil {
				return
			}
			c.opt.Log.Warn("unfinished accounts are not settled yet", "err", err)
		}
	})
}

// settleOld settles those of some pending volumes that still are pending, but
// for removed ones that somebody has files open of.
func (c *Client) settleOld(ctx context.Context, old []objstore.VolumeID) error {
	c.accounts.Lock()
	defer c.accounts.Unlock()
	now, err := c.pending(ctx)
	if err != nil {
		return err
	}
	var left []objstore.VolumeID
	for _, vol := range old {
		if !slices.Contains(now, vol) {
			continue
		}
		open, err := c.orphans(ctx, vol)
		if err != nil && !errors.Is(err, objstore.NotFound) && !errors.Is(err, objstore.Stale) { // those: it was never made
			return err
		}
		if len(open) == 0 {
			left = append(left, vol)
		}
	}
	return c.settle(ctx, left)
}

// settle ends notes of pending volumes: one that has a name stays, one that has
// none goes.
func (c *Client) settle(ctx context.Context, pending []objstore.VolumeID) error {
	if len(pending) == 0 {
		return nil
	}
	named := make(map[objstore.VolumeID]bool)
	if err := c.walkRoot(ctx, objstore.VolumeRoot(objstore.RootVolume), named); err != nil {
		return err
	}
	for _, vol := range pending {
		var err error
		if named[vol] {
			err = c.keep(ctx, vol)
		} else {
			err = c.discard(ctx, vol)
		}
		if err != nil {
			return err
		}
		c.opt.Log.Info("settled an account that a crash left unfinished", "volume", vol, "kept", named[vol])
	}
	return nil
}

// walkRoot notes every volume that a directory of the root volume leads to.
func (c *Client) walkRoot(ctx context.Context, dir objstore.Ino, named map[objstore.VolumeID]bool) error {
	const page = 1000
	var after uint64
	for {
		entries, err := c.ReadDir(ctx, dir, after, page, false)
		if err != nil {
			return err
		}
		for _, e := range entries {
			after = e.Cookie
			if e.Ino.Volume() != objstore.RootVolume {
				named[e.Ino.Volume()] = true
			} else if e.Type == objstore.ModeDir {
				if err := c.walkRoot(ctx, e.Ino, named); err != nil {
					return err
				}
			}
		}
		if len(entries) < page {
			return nil
		}
	}
}
