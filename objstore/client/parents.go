package client

import (
	"context"
	"time"

	"pillarbox/objstore"
)

// An account notes the directory that its name is in: what ".." means there, which pool
// rules hold for it, and how the kernel finds its path from a file handle. The name itself
// is the root volume's, and moves in one change of that. So the note is right only a
// moment later, or, when a client died between or is of before, not at all; whoever finds
// an account by its name compares, and mends it.

// reparentTime bounds how long a rename or lookup waits for a group that has nothing to
// do with it: the kernel lets nobody else rename meanwhile.
const reparentTime = 2 * time.Second

// moved tells accounts that a rename in the root volume moved where they are now.
func (c *Client) moved(ctx context.Context, ch objstore.Rename, res objstore.Result) {
	if ch.OldParent == ch.NewParent {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reparentTime)
	defer cancel()
	find := func(dir objstore.Ino, name string) {
		if _, err := c.Lookup(ctx, dir, name); err != nil {
			c.opt.Log.Debug("could not tell an account that it was moved", "name", name, "err", err)
		}
	}
	if ch.Exchange || res.Attr.Ino.Volume() != objstore.RootVolume {
		find(ch.NewParent, ch.NewName)
	}
	if ch.Exchange {
		find(ch.OldParent, ch.OldName)
	}
}

// reparent tells the account that was found as name in dir, with attributes a, that it is
// there, and returns its attributes. If it was moved away just then, who did that may
// have told it already, and been overruled: then what it said before holds again.
func (c *Client) reparent(ctx context.Context, dir objstore.Ino, name string, a objstore.Attr) objstore.Attr {
	ctx, cancel := context.WithTimeout(ctx, reparentTime)
	defer cancel()
	tell := func(from, to objstore.Ino) bool {
		_, err := c.apply(ctx, objstore.Reparent{Vol: a.Ino.Volume(), From: from, To: to}, objstore.Ordered)
		if err != nil {
			c.opt.Log.Debug("could not tell an account where it is", "name", name, "err", err)
		}
		return err == nil
	}
	if tell(a.Parent, dir) {
		if e, err := c.lookup(ctx, dir, name); err != nil || e.Ino != a.Ino {
			tell(dir, a.Parent)
			return a
		}
	}
	a.Parent = dir
	return a
}
