package fusefs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

// Lookup implements fuse.RawFileSystem. The kernel keeps that a name is absent, too.
func (r *raw) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if ev := r.events.repeated(in); ev != nil {
		if st, ok := r.lookupAgain(ev, in, name, out); ok {
			return st
		}
	}
	if name == "." || name == ".." {
		return r.lookupDot(in, name, out)
	}
	before := r.dirs.any.now()
	dir := objstore.Ino(in.NodeId)
	a, err := r.fs.Lookup(r.ctx, dir, name)
	keep := r.shared && err == nil && a.IsDir()
	if keep {
		// Who takes the name away after this waits for it, and who did before is seen.
		r.shown.add(dir, name, r.dirTimeout)
		a, err = r.fs.Lookup(r.ctx, dir, name)
	}
	if errors.Is(err, objstore.NotFound) {
		out.SetEntryTimeout(r.timeout)
		return fuse.OK
	}
	if err != nil {
		return r.status("lookup", in.NodeId, err)
	}
	r.fillEntry(&a, before.unchanged(), out)
	if keep && a.IsDir() && r.fs.Leased(dir.Volume()) {
		out.SetEntryTimeout(r.dirTimeout)
	}
	return fuse.OK
}

// Mknod implements fuse.RawFileSystem.
func (r *raw) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return r.make("mknod", &in.InHeader, objstore.Create{Name: name, Mode: in.Mode, Rdev: in.Rdev}, out)
}

// Mkdir implements fuse.RawFileSystem.
func (r *raw) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return r.make("mkdir", &in.InHeader, objstore.Create{Name: name, Mode: objstore.ModeDir | in.Mode&0o7777}, out)
}

// Symlink implements fuse.RawFileSystem.
func (r *raw) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return r.make("symlink", in, objstore.Create{Name: name, Mode: objstore.ModeSymlink | 0o777, Target: target}, out)
}

func (r *raw) make(op string, in *fuse.InHeader, c objstore.Create, out *fuse.EntryOut) fuse.Status {
	if ev := r.events.repeated(in); ev != nil {
		return r.entryAgain(ev, out)
	}
	defer r.dirs.change(in.NodeId, in.NodeId)()
	c.Parent = objstore.Ino(in.NodeId)
	c.Uid, c.Gid = in.Uid, in.Gid
	a, err := r.fs.Make(r.ctx, c)
	if err != nil {
		return r.status(op, in.NodeId, err)
	}
	r.fillEntry(&a, true, out)
	return fuse.OK
}

// Readlink implements fuse.RawFileSystem.
func (r *raw) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	s, err := r.fs.Readlink(r.ctx, objstore.Ino(in.NodeId))
	return []byte(s), r.status("readlink", in.NodeId, err)
}

// Link implements fuse.RawFileSystem.
func (r *raw) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	defer r.dirs.change(in.NodeId, in.NodeId)()
	a, err := r.fs.Link(r.ctx, objstore.Link{Ino: objstore.Ino(in.Oldnodeid), Parent: objstore.Ino(in.NodeId), Name: name})
	if err != nil {
		return r.status("link", in.NodeId, err)
	}
	r.fillEntry(&a, true, out)
	return fuse.OK
}

// Unlink implements fuse.RawFileSystem.
func (r *raw) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if r.events.repeated(in) != nil {
		return fuse.OK
	}
	defer r.dirs.change(in.NodeId, in.NodeId)()
	return r.status("unlink", in.NodeId, r.fs.Remove(r.ctx, objstore.Remove{Parent: objstore.Ino(in.NodeId), Name: name}))
}

// Rmdir implements fuse.RawFileSystem.
func (r *raw) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if r.events.repeated(in) != nil {
		return fuse.OK
	}
	defer r.dirs.change(in.NodeId, in.NodeId)()
	return r.status("rmdir", in.NodeId, r.fs.Remove(r.ctx, objstore.Remove{Parent: objstore.Ino(in.NodeId), Name: name, Dir: true}))
}

// Rename implements fuse.RawFileSystem.
func (r *raw) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	if ev := r.events.repeated(&in.InHeader); ev != nil {
		return r.renameAgain(ev)
	}
	defer r.dirs.change(in.NodeId, in.Newdir)()
	if r.shared {
		from, to := dirName{objstore.Ino(in.NodeId), oldName}, dirName{objstore.Ino(in.Newdir), newName}
		note := func() {
			r.shown.renamed(from, to, r.dirTimeout)
			if in.Flags&unix.RENAME_EXCHANGE != 0 {
				r.shown.renamed(to, from, r.dirTimeout)
			}
		}
		note()
		defer note()
	}
	return r.status("rename", in.NodeId, r.fs.Rename(r.ctx, objstore.Rename{
		OldParent: objstore.Ino(in.NodeId), OldName: oldName,
		NewParent: objstore.Ino(in.Newdir), NewName: newName,
		NoReplace: in.Flags&unix.RENAME_NOREPLACE != 0,
		Exchange:  in.Flags&unix.RENAME_EXCHANGE != 0,
	}))
}

// OpenDir implements fuse.RawFileSystem. Listings need no handle; a kernel that
// can do without is told once, and then keeps listings as the flags here say.
func (r *raw) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if r.shared {
		return fuse.OK // the kernel keeps no listing
	}
	if r.skipOpenDir.Load() {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (r *raw) ReleaseDir(*fuse.ReleaseIn) {}

// FsyncDir implements fuse.RawFileSystem.
func (r *raw) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return r.status("fsyncdir", in.NodeId, r.fs.Sync(r.ctx, objstore.Ino(in.NodeId)))
}

// A listing's offsets are the entries' cookies; these two come before them all.
const (
	offsetDot    = 1
	offsetDotDot = 2
)

// What an entry takes in a reply, with a name as mail software makes them:
// guesses that decide how many entries are asked for at a time.
const (
	entryGuess     = 88
	entryPlusGuess = 240
)

// ReadDir implements fuse.RawFileSystem.
func (r *raw) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	err := r.list(in, out, entryGuess, false, func(e *objstore.DirEntry) (bool, error) {
		return out.AddDirEntry(fuse.DirEntry{Name: e.Name, Ino: uint64(e.Ino), Mode: e.Type, Off: e.Cookie}), nil
	})
	return r.status("readdir", in.NodeId, err)
}

// ReadDirPlus implements fuse.RawFileSystem.
func (r *raw) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	before := r.dirs.any.now()
	err := r.list(in, out, entryPlusGuess, true, func(e *objstore.DirEntry) (bool, error) {
		if e.Cookie > offsetDotDot && e.Attr == nil {
			// Another volume's root, or removed just now: then the bare name goes out.
			if a, err := r.fs.GetAttr(r.ctx, e.Ino); err == nil {
				e.Attr = &a
			} else if !errors.Is(err, objstore.Stale) {
				return false, err
			}
		}
		reply := out.AddDirLookupEntry(fuse.DirEntry{Name: e.Name, Ino: uint64(e.Ino), Mode: e.Type, Off: e.Cookie})
		if reply != nil && e.Attr != nil {
			r.fillEntry(e.Attr, before.unchanged(), reply)
		}
		return reply != nil, nil
	})
	return r.status("readdirplus", in.NodeId, err)
}

// list feeds add with the entries behind the request's offset until the reply is full.
func (r *raw) list(in *fuse.ReadIn, out *fuse.DirEntryList, guess int, attrs bool, add func(*objstore.DirEntry) (bool, error)) error {
	dir, after := objstore.Ino(in.NodeId), in.Offset
	if after < offsetDotDot {
		a, err := r.fs.GetAttr(r.ctx, dir)
		if err != nil {
			return err
		}
		dots := [...]objstore.DirEntry{
			{Name: ".", Ino: dir, Type: objstore.ModeDir, Cookie: offsetDot},
			{Name: "..", Ino: a.Parent, Type: objstore.ModeDir, Cookie: offsetDotDot},
		}
		for i := after; i < offsetDotDot; i++ {
			if ok, err := add(&dots[i]); !ok || err != nil {
				return err
			}
		}
	}
	after = max(after, offsetDotDot)
	for {
		n := (int(in.Size)-len(out.Bytes()))/guess + 1
		entries, err := r.fs.ReadDir(r.ctx, dir, after, n, attrs)
		if err != nil {
			return err
		}
		added := 0
		for i := range entries {
			ok, err := add(&entries[i])
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			added++
		}
		ends := len(entries) < n && added == len(entries)
		if attrs {
			r.fs.Listed(dir, after == offsetDotDot, ends, entries[:added])
		}
		if ends || added < len(entries) {
			return nil
		}
		after = entries[n-1].Cookie
	}
}

// lookupDot is how the kernel finds its way from a file handle (exportfs).
func (r *raw) lookupDot(in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	a, err := r.fs.GetAttr(r.ctx, objstore.Ino(in.NodeId))
	if err == nil && name == ".." {
		a, err = r.fs.GetAttr(r.ctx, a.Parent)
	}
	if err != nil {
		return r.status("lookup", in.NodeId, err)
	}
	r.fillEntry(&a, false, out)
	return fuse.OK
}
