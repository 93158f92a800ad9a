package fusefs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"pillarbox/cachefs"
	"pillarbox/objstore"
	"pillarbox/objstore/locks"
)

// openFlags: pages stay good unless another host changed the file. A reader's
// close has nothing to flush and need not tell us.
func (r *raw) openFlags(flags uint32, h *cachefs.Handle) (out uint32) {
	if h.Unchanged() {
		out = fuse.FOPEN_KEEP_CACHE
	}
	if flags&syscall.O_ACCMODE == syscall.O_RDONLY && !r.shared { // else it may have locks
		out |= fuse.FOPEN_NOFLUSH
	}
	return out
}

// Open implements fuse.RawFileSystem.
func (r *raw) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	h, err := r.fs.Open(r.ctx, objstore.Ino(in.NodeId))
	if err != nil {
		return r.status("open", in.NodeId, err)
	}
	out.Fh = r.handles.add(h)
	out.OpenFlags = r.openFlags(in.Flags, h)
	return fuse.OK
}

// Create implements fuse.RawFileSystem.
func (r *raw) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	defer r.dirs.change(in.NodeId, in.NodeId)()
	return r.create("create", in, name, out)
}

// Tmpfile implements fuse.RawFileSystem.
func (r *raw) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return r.create("tmpfile", in, "", out)
}

func (r *raw) create(op string, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	a, h, err := r.fs.Create(r.ctx, objstore.Create{
		Parent: objstore.Ino(in.NodeId), Name: name,
		Mode: objstore.ModeRegular | in.Mode&0o7777, Uid: in.Uid, Gid: in.Gid,
	})
	if err != nil {
		return r.status(op, in.NodeId, err)
	}
	r.fillEntry(&a, true, &out.EntryOut)
	out.Fh = r.handles.add(h)
	out.OpenFlags = r.openFlags(in.Flags, h)
	return fuse.OK
}

// Read implements fuse.RawFileSystem.
func (r *raw) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := r.handles.get(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	n, err := h.Read(r.ctx, buf, in.Offset)
	if err != nil {
		return nil, r.status("read", in.NodeId, err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write implements fuse.RawFileSystem. Pages that the kernel writes back go
// where they belong even if the handle they come by appends.
func (r *raw) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := r.handles.get(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	n, err := h.Write(r.ctx, data, in.Offset, cachefs.WriteOptions{
		Append:    in.Flags&syscall.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0,
		DropSetID: in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0,
		By:        cachefs.Caller{Uid: in.Uid, Gid: in.Gid},
	})
	return uint32(n), r.status("write", in.NodeId, err)
}

// Flush implements fuse.RawFileSystem.
func (r *raw) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h := r.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	err := h.Flush(r.ctx)
	owner := locks.Owner{ID: in.LockOwner}
	if h.Locked() { // close(2) frees the process's locks, whichever descriptor set them
		err = errors.Join(err, r.unlock(h, owner))
	}
	r.owners.flushed(in.NodeId, owner)
	return r.status("flush", in.NodeId, err)
}

// Fsync implements fuse.RawFileSystem.
func (r *raw) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := r.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	return r.status("fsync", in.NodeId, h.Fsync(r.ctx))
}

// Release implements fuse.RawFileSystem.
func (r *raw) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if h := r.handles.remove(in.Fh); h != nil {
		r.freeLocks(in, h)
		h.Release()
	}
}

// Lseek implements fuse.RawFileSystem.
func (r *raw) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := r.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	off, err := h.Seek(r.ctx, in.Offset, in.Whence == unix.SEEK_HOLE)
	out.Offset = off
	return r.status("lseek", in.NodeId, err)
}

// CopyFileRange implements fuse.RawFileSystem.
func (r *raw) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	src, dst := r.handles.get(in.FhIn), r.handles.get(in.FhOut)
	if src == nil || dst == nil {
		return 0, fuse.EBADF
	}
	n, err := src.CopyRange(r.ctx, dst, in.OffIn, in.OffOut, in.Len)
	return uint32(n), r.status("copy_file_range", in.NodeId, err)
}

// Fallocate implements fuse.RawFileSystem.
func (r *raw) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := r.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	var mode cachefs.AllocMode
	switch in.Mode {
	case 0:
		mode = cachefs.Reserve
	case unix.FALLOC_FL_KEEP_SIZE:
		mode = cachefs.KeepSize
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		mode = cachefs.PunchHole
	case unix.FALLOC_FL_ZERO_RANGE:
		mode = cachefs.ZeroRange
	case unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		mode = cachefs.ZeroKeep
	default:
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	return r.status("fallocate", in.NodeId, h.Allocate(r.ctx, in.Offset, in.Length, mode))
}
