package cachefs

import (
	"cmp"
	"context"
	"fmt"

	"pillarbox/objstore"
)

// Lookup finds a name. The attributes include what open files have not committed.
func (fs *FS) Lookup(ctx context.Context, dir objstore.Ino, name string) (objstore.Attr, error) {
	fs.touch(dir.Volume())
	before := fs.clock.any.Load()
	a, err := fs.store.Lookup(ctx, dir, name)
	if err != nil || a.Mode&objstore.ModeType != objstore.ModeRegular {
		return a, err
	}
	f := fs.table.get(a.Ino)
	if f != nil {
		f.overlay(&a)
	}
	if fs.clock.any.Load() == before {
		return a, nil
	}
	return fs.GetAttr(ctx, a.Ino)
}

// GetAttr returns an inode's attributes, what its open file has not committed included.
func (fs *FS) GetAttr(ctx context.Context, ino objstore.Ino) (objstore.Attr, error) {
	fs.touch(ino.Volume())
	tick := fs.clock.at(ino)
	for {
		before := tick.Load()
		f := fs.table.get(ino)
		a, err := fs.store.GetAttr(ctx, ino)
		if err != nil {
			return a, err
		}
		if f == nil {
			f = fs.table.get(ino)
		}
		if f != nil {
			f.overlay(&a)
		}
		// A commit in between made the pending values vanish after the store
		// was asked and before they could be laid over.
		if tick.Load() == before {
			return a, nil
		}
	}
}

// ReadDir lists a directory as objstore.Store has it, with up-to-date attributes.
func (fs *FS) ReadDir(ctx context.Context, dir objstore.Ino, after uint64, max int, attrs bool) ([]objstore.DirEntry, error) {
	fs.touch(dir.Volume())
	if !attrs {
		return fs.store.ReadDir(ctx, dir, after, max, false)
	}
	var before [clockSlots]uint64
	any := fs.clock.any.Load()
	for i := range before {
		before[i] = fs.clock.slot[i].Load()
	}
	list, err := fs.store.ReadDir(ctx, dir, after, max, true)
	if err != nil {
		return nil, err
	}
	for i := range list {
		a := list[i].Attr
		if a == nil || a.Mode&objstore.ModeType != objstore.ModeRegular {
			continue
		}
		if f := fs.table.get(a.Ino); f != nil {
			f.overlay(a)
		}
	}
	if fs.clock.any.Load() == any {
		return list, nil
	}
	for i := range list {
		a := list[i].Attr
		if a == nil || fs.clock.at(a.Ino).Load() == before[mix(a.Ino)%clockSlots] {
			continue
		}
		fresh, err := fs.GetAttr(ctx, a.Ino)
		if err != nil {
			list[i].Attr = nil // removed meanwhile; whoever lists asks again or shows the bare name
			continue
		}
		list[i].Attr = &fresh
	}
	return list, nil
}

// Make creates anything that is not opened with it: a directory, symlink,
// device, socket, FIFO or file.
func (fs *FS) Make(ctx context.Context, c objstore.Create) (objstore.Attr, error) {
	r, err := fs.store.Apply(ctx, c, fs.promise())
	return r.Attr, err
}

// MakeAccount makes a directory that is a volume of its own.
func (fs *FS) MakeAccount(ctx context.Context, c objstore.Create) (objstore.Attr, error) {
	s, ok := fs.store.(interface {
		MakeAccount(ctx context.Context, c objstore.Create, p objstore.Promise) (objstore.Result, error)
	})
	if !ok {
		return fs.Make(ctx, c)
	}
	r, err := s.MakeAccount(ctx, c, fs.promise())
	return r.Attr, err
}

// Create makes a regular file and opens it. Without a name it is purged at its
// last release, unless linked before.
func (fs *FS) Create(ctx context.Context, c objstore.Create) (objstore.Attr, *Handle, error) {
	r, err := fs.store.Apply(ctx, c, fs.promise())
	if err != nil {
		return objstore.Attr{}, nil, err
	}
	h, err := fs.open(ctx, r.Attr.Ino, &r.Attr)
	if err != nil {
		return objstore.Attr{}, nil, err
	}
	if c.Name == "" {
		fs.table.setOrphan(r.Attr.Ino, true)
	}
	return r.Attr, h, nil
}

// Link gives an inode one more name. It returns once that is Committed: Postfix
// acknowledges mail after link(2). What is dirty in a file without a name is
// committed with it.
func (fs *FS) Link(ctx context.Context, c objstore.Link) (objstore.Attr, error) {
	if err := fs.order(ctx, c.Parent.Volume()); err != nil {
		return objstore.Attr{}, err
	}
	f, err := fs.acquire(c.Ino)
	if err != nil {
		return objstore.Attr{}, err
	}
	defer fs.release(f)
	if f.isOrphan() {
		if err := f.flush(ctx, objstore.Ordered); err != nil {
			return objstore.Attr{}, err
		}
	}
	r, err := fs.store.Apply(ctx, c, objstore.Committed)
	if err != nil {
		return objstore.Attr{}, err
	}
	fs.table.setOrphan(c.Ino, false)
	fs.orphaned(r.Orphan, objstore.ModeRegular)
	f.overlay(&r.Attr)
	return r.Attr, nil
}

// Remove takes a name away. An inode without further names goes with its last handle.
func (fs *FS) Remove(ctx context.Context, c objstore.Remove) error {
	if err := fs.order(ctx, c.Parent.Volume()); err != nil {
		return err
	}
	r, err := fs.store.Apply(ctx, c, fs.promise())
	fs.orphaned(r.Orphan, r.Attr.Mode)
	return err
}

// Rename moves a name. Open handles of what it replaced stay good.
func (fs *FS) Rename(ctx context.Context, c objstore.Rename) error {
	if err := fs.order(ctx, c.OldParent.Volume()); err != nil {
		return err
	}
	r, err := fs.store.Apply(ctx, c, fs.promise())
	if r.Orphan == 0 {
		return err
	}
	// The result is about what was renamed. Who cannot be asked goes at once.
	gone, gerr := fs.store.GetAttr(ctx, r.Orphan)
	if gerr != nil {
		gone.Mode = objstore.ModeRegular
	}
	fs.orphaned(r.Orphan, gone.Mode)
	return err
}

// orphaned deals with an inode that lost its last name; 0 is none.
func (fs *FS) orphaned(ino objstore.Ino, mode uint32) {
	switch {
	case ino == 0:
	case fs.forgets.Load() && mode&objstore.ModeType != objstore.ModeRegular:
		fs.table.hold(ino)
	case !fs.table.setOrphan(ino, true):
		fs.purger.add(ino)
	}
}

// ExpectForget says that from now on Forget tells when nobody can ask for an
// inode any more. What no handle keeps alive, a directory that is somebody's
// working directory or a FIFO that is open, then outlives its last name until that.
func (fs *FS) ExpectForget() { fs.forgets.Store(true) }

// Forget ends what ExpectForget promised to one inode.
func (fs *FS) Forget(ino objstore.Ino) {
	if fs.table.forget(ino) {
		fs.purger.add(ino)
	}
}

// noteXattr lets an open file know that its inode may have extended attributes.
func (fs *FS) noteXattr(ino objstore.Ino) {
	if f := fs.table.get(ino); f != nil {
		f.xattr.Store(1)
	}
}

// pathPage is how many names are looked through at a time.
const pathPage = 1000

// PathOf is the path of a directory, from the top. NotFound when it has none any more.
func (fs *FS) PathOf(ctx context.Context, dir objstore.Ino) (string, error) {
	path := ""
	for dir != objstore.VolumeRoot(objstore.RootVolume) {
		a, err := fs.GetAttr(ctx, dir)
		if err != nil {
			return "", err
		}
		name, err := fs.nameIn(ctx, a.Parent, dir)
		if err != nil {
			return "", err
		}
		path, dir = "/"+name+path, a.Parent
	}
	return cmp.Or(path, "/"), nil
}

// nameIn is an inode's name in a directory.
func (fs *FS) nameIn(ctx context.Context, dir, ino objstore.Ino) (string, error) {
	for after := uint64(0); ; {
		list, err := fs.ReadDir(ctx, dir, after, pathPage, false)
		if err != nil {
			return "", err
		}
		for _, e := range list {
			if e.Ino == ino {
				return e.Name, nil
			}
		}
		if len(list) < pathPage {
			return "", fmt.Errorf("name of inode %v: %w", ino, objstore.NotFound)
		}
		after = list[len(list)-1].Cookie
	}
}
