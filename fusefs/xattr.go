package fusefs

import (
	"errors"
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pillarbox/objstore"
)

// xattrName refuses what is not just a value to keep: access control lists
// would have to be enforced.
func xattrName(name string) fuse.Status {
	space, rest, _ := strings.Cut(name, ".")
	switch {
	case space != "user" && space != "trusted" && space != "security":
		return fuse.Status(syscall.EOPNOTSUPP)
	case rest == "":
		return fuse.EINVAL
	}
	return fuse.OK
}

// xattrStatus is status with the errno that attributes use for "too big".
func (r *raw) xattrStatus(op string, node uint64, err error) fuse.Status {
	if errors.Is(err, objstore.TooBig) {
		return fuse.Status(syscall.E2BIG)
	}
	return r.status(op, node, err)
}

// GetXAttr implements fuse.RawFileSystem.
func (r *raw) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if s := xattrName(name); !s.Ok() {
		return 0, s
	}
	v, err := r.fs.GetXattr(r.ctx, objstore.Ino(in.NodeId), name)
	if err != nil {
		return 0, r.status("getxattr", in.NodeId, err)
	}
	return reply(dest, v)
}

// ListXAttr implements fuse.RawFileSystem. Who may not read trusted attributes
// is not told their names either.
func (r *raw) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	names, err := r.fs.ListXattr(r.ctx, objstore.Ino(in.NodeId))
	if err != nil {
		return 0, r.status("listxattr", in.NodeId, err)
	}
	var v []byte
	for _, n := range names {
		if in.Uid == 0 || !strings.HasPrefix(n, "trusted.") {
			v = append(append(v, n...), 0)
		}
	}
	return reply(dest, v)
}

// reply copies a value out, or says how large the buffer should have been.
func reply(dest, v []byte) (uint32, fuse.Status) {
	if len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

// SetXAttr implements fuse.RawFileSystem.
func (r *raw) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	const createOnly, replaceOnly = 1, 2 // XATTR_CREATE, XATTR_REPLACE
	if s := xattrName(name); !s.Ok() {
		return s
	}
	return r.xattrStatus("setxattr", in.NodeId, r.fs.SetXattr(r.ctx, objstore.SetXattr{
		Ino: objstore.Ino(in.NodeId), Name: name, Value: slices.Clone(data),
		CreateOnly: in.Flags&createOnly != 0, ReplaceOnly: in.Flags&replaceOnly != 0,
	}))
}

// RemoveXAttr implements fuse.RawFileSystem.
func (r *raw) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if s := xattrName(name); !s.Ok() {
		return s
	}
	return r.status("removexattr", in.NodeId, r.fs.RemoveXattr(r.ctx, objstore.RemoveXattr{Ino: objstore.Ino(in.NodeId), Name: name}))
}
