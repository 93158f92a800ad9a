package fusefs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pillarbox/cachefs"
	"pillarbox/objstore"
)

const blockSize = 4096

// generation of every inode: numbers are never reused.
const generation = 1

// fillAttr copies attributes to their wire form.
func fillAttr(a *objstore.Attr, out *fuse.Attr) {
	out.Ino = uint64(a.Ino)
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid, out.Gid = a.Uid, a.Gid
	out.Rdev = a.Rdev
	out.Size = a.Size
	out.Blocks = a.Blocks
	out.Blksize = blockSize
	out.Atime, out.Atimensec = splitTime(a.Atime)
	out.Mtime, out.Mtimensec = splitTime(a.Mtime)
	out.Ctime, out.Ctimensec = splitTime(a.Ctime)
}

// splitTime gives the kernel's two fields; before 1970 the seconds are negative.
func splitTime(ns int64) (sec uint64, nsec uint32) {
	t := time.Unix(0, ns)
	return uint64(t.Unix()), uint32(t.Nanosecond())
}

// fillEntry is the reply that makes the kernel know a name and its attributes.
// keep says that a directory's attributes may be kept.
func (r *raw) fillEntry(a *objstore.Attr, keep bool, out *fuse.EntryOut) {
	out.NodeId = uint64(a.Ino)
	out.Generation = generation
	fillAttr(a, &out.Attr)
	out.SetEntryTimeout(r.timeout)
	out.SetAttrTimeout(r.attrTimeout(a, keep))
}

func (r *raw) attrTimeout(a *objstore.Attr, keep bool) time.Duration {
	switch {
	case !a.IsDir():
		return r.timeout
	case keep && !r.shared:
		return r.dirTimeout
	}
	return 0
}

// GetAttr implements fuse.RawFileSystem.
func (r *raw) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	before := r.dirs.slot(in.NodeId).now()
	a, err := r.fs.GetAttr(r.ctx, objstore.Ino(in.NodeId))
	if err != nil {
		return r.status("getattr", in.NodeId, err)
	}
	fillAttr(&a, &out.Attr)
	out.SetTimeout(r.attrTimeout(&a, before.unchanged()))
	if r.shared && a.IsDir() && before.unchanged() && r.fs.Leased(a.Ino.Volume()) {
		out.SetTimeout(r.dirTimeout)
	}
	return fuse.OK
}

// SetAttr implements fuse.RawFileSystem.
func (r *raw) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if r.events.repeated(&in.InHeader) != nil {
		return r.GetAttr(cancel, &fuse.GetAttrIn{InHeader: in.InHeader}, out)
	}
	before := r.dirs.slot(in.NodeId).now()
	c := objstore.SetAttr{Ino: objstore.Ino(in.NodeId)}
	if m, ok := in.GetMode(); ok {
		c.Set, c.Mode = c.Set|objstore.SetMode, m
	}
	if u, ok := in.GetUID(); ok {
		c.Set, c.Uid = c.Set|objstore.SetUid, u
	}
	if g, ok := in.GetGID(); ok {
		c.Set, c.Gid = c.Set|objstore.SetGid, g
	}
	if n, ok := in.GetSize(); ok {
		c.Set, c.Size = c.Set|objstore.SetSize, n
	}
	if t, ok := in.GetATime(); ok {
		c.Set, c.Atime = c.Set|objstore.SetAtime, t.UnixNano()
	}
	if t, ok := in.GetMTime(); ok {
		c.Set, c.Mtime = c.Set|objstore.SetMtime, t.UnixNano()
	}
	if t, ok := in.GetCTime(); ok {
		c.Set, c.Ctime = c.Set|objstore.SetCtime, t.UnixNano()
	}
	// Changing nothing is how the kernel passes on that set-ID bits must go, of
	// which it has no flag to tell: before fallocate and copy_file_range by who
	// may not keep them, and for a chown that names neither owner nor group.
	drop := in.Valid&fuse.FATTR_KILL_SUIDGID != 0 || c.Set == 0
	a, err := r.fs.SetAttr(r.ctx, c, drop, cachefs.Caller{Uid: in.Caller.Uid, Gid: in.Caller.Gid})
	if err != nil {
		return r.status("setattr", in.NodeId, err)
	}
	fillAttr(&a, &out.Attr)
	out.SetTimeout(r.attrTimeout(&a, before.unchanged()))
	return fuse.OK
}

// StatFs implements fuse.RawFileSystem.
func (r *raw) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	st, err := r.fs.StatFS(r.ctx)
	if err != nil {
		return r.status("statfs", in.NodeId, err)
	}
	*out = fuse.StatfsOut{
		Bsize: blockSize, Frsize: blockSize, NameLen: objstore.MaxName,
		Blocks: st.Total / blockSize, Bfree: st.Free / blockSize, Bavail: st.Avail / blockSize,
		Files: st.Files, Ffree: st.FilesFree,
	}
	return fuse.OK
}
