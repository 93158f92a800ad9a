package fusefs

import (
	"context"
	"errors"
	"math"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pillarbox/cachefs"
	"pillarbox/objstore/locks"
)

// Locks come here only in a store that several hosts share; else the kernel has them.

// lockOwners remembers who locked through which handle: locks of flock(2), and
// fcntl's of an open file description, end with the handle.
type lockOwners struct {
	mu sync.Mutex // a leaf
	m  map[uint64]map[locks.Owner]struct{}
}

func (t *lockOwners) add(fh uint64, o locks.Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[uint64]map[locks.Owner]struct{}{}
	}
	if t.m[fh] == nil {
		t.m[fh] = map[locks.Owner]struct{}{}
	}
	t.m[fh][o] = struct{}{}
}

func (t *lockOwners) remove(fh uint64) map[locks.Owner]struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer delete(t.m, fh)
	return t.m[fh]
}

func lockRequest(op locks.Op, in *fuse.LkIn) locks.Request {
	r := locks.Request{Op: op, Lock: locks.Lock{
		Owner: locks.Owner{ID: in.Owner, Flock: in.LkFlags&fuse.FUSE_LK_FLOCK != 0},
		Pid:   in.Lk.Pid, Write: in.Lk.Typ == syscall.F_WRLCK, Start: in.Lk.Start, End: in.Lk.End,
	}}
	if op != locks.Test && in.Lk.Typ == syscall.F_UNLCK {
		r.Op = locks.Unlock
	}
	return r
}

// GetLk implements fuse.RawFileSystem.
func (r *raw) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	h := r.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	a, err := h.Lock(r.ctx, lockRequest(locks.Test, in))
	if err != nil {
		return r.status("getlk", in.NodeId, err)
	}
	out.Lk = in.Lk
	out.Lk.Typ = syscall.F_UNLCK
	if !a.Granted {
		out.Lk = fuse.FileLock{Start: a.Holder.Start, End: a.Holder.End, Typ: syscall.F_RDLCK, Pid: a.Holder.Pid}
		if a.Holder.Write {
			out.Lk.Typ = syscall.F_WRLCK
		}
	}
	return fuse.OK
}

// SetLk implements fuse.RawFileSystem.
func (r *raw) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return r.setLk(cancel, locks.Try, in)
}

// SetLkw implements fuse.RawFileSystem.
func (r *raw) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return r.setLk(cancel, locks.Wait, in)
}

func (r *raw) setLk(cancel <-chan struct{}, op locks.Op, in *fuse.LkIn) fuse.Status {
	h := r.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	ctx, stop := context.WithCancel(r.ctx)
	defer stop()
	if op == locks.Wait {
		go func() { // a signal ends the wait
			select {
			case <-cancel:
				stop()
			case <-ctx.Done():
			}
		}()
	}
	req := lockRequest(op, in)
	r.owners.add(in.Fh, req.Lock.Owner)
	a, err := h.Lock(ctx, req)
	switch {
	case errors.Is(err, context.Canceled):
		return fuse.EINTR
	case err != nil:
		return r.status("setlk", in.NodeId, err)
	case !a.Granted:
		return fuse.EAGAIN
	}
	return fuse.OK
}

// unlock clears all that an owner has of a file.
func (r *raw) unlock(h *cachefs.Handle, o locks.Owner) error {
	_, err := h.Lock(r.ctx, locks.Request{Op: locks.Unlock, Lock: locks.Lock{Owner: o, End: math.MaxUint64}})
	return err
}

// freeLocks clears what ends with a handle.
func (r *raw) freeLocks(in *fuse.ReleaseIn, h *cachefs.Handle) {
	owners := r.owners.remove(in.Fh)
	if !h.Locked() {
		return
	}
	for o := range owners {
		if err := r.unlock(h, o); err != nil {
			r.status("release", in.NodeId, err)
		}
	}
}
