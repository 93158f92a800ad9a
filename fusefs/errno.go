package fusefs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pillarbox/cachefs"
	"pillarbox/objstore"
)

// errnos is the one place where a kind of failure becomes an errno.
var errnos = [...]syscall.Errno{
	objstore.NotFound:     syscall.ENOENT,
	objstore.Exist:        syscall.EEXIST,
	objstore.NotDir:       syscall.ENOTDIR,
	objstore.IsDir:        syscall.EISDIR,
	objstore.NotEmpty:     syscall.ENOTEMPTY,
	objstore.CrossVolume:  syscall.EXDEV,
	objstore.NoSpace:      syscall.ENOSPC,
	objstore.Quota:        syscall.EDQUOT,
	objstore.Stale:        syscall.ESTALE,
	objstore.NameTooLong:  syscall.ENAMETOOLONG,
	objstore.Invalid:      syscall.EINVAL,
	objstore.NoAttr:       syscall.ENODATA,
	objstore.TooManyLinks: syscall.EMLINK,
	objstore.TooBig:       syscall.EFBIG,
	objstore.NotPermitted: syscall.EPERM,
	objstore.Corrupt:      syscall.EIO,
	objstore.Unavailable:  syscall.EIO,
	objstore.Unsupported:  syscall.EOPNOTSUPP,
	objstore.Fenced:       syscall.EIO,
	objstore.Deadlock:     syscall.EDEADLK,
	objstore.NoKey:        syscall.EACCES,
}

// status turns an error into what the kernel is told. What ends as EIO, or as EAGAIN in
// its place, is logged with the operation and the inode, for the kernel's answer says
// nothing.
func (r *raw) status(op string, node uint64, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	errno := syscall.EIO
	var k objstore.Kind
	switch {
	case errors.As(err, &k) && int(k) < len(errnos) && errnos[k] != 0:
		errno = errnos[k]
	case errors.Is(err, cachefs.ErrNoData):
		errno = syscall.ENXIO
	}
	later := k == objstore.Unavailable && (op == "fsync" || op == "flush")
	if errno == syscall.EIO {
		r.log.Error("input/output error", "op", op, "inode", objstore.Ino(node).String(), "err", err)
	}
	if later {
		// Postfix returns a message to its sender when fsync or close fails with EIO, and
		// keeps it for later at EAGAIN. Not so where data are read or written: there
		// programs take EAGAIN for a descriptor that does not block.
		errno = syscall.EAGAIN
	}
	return fuse.Status(errno)
}
