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

// lockOwners remembers who locked through which handle: fcntl's locks of an open
// file description end with the handle. The kernel sends RELEASE some time after
// close(2), when it may have given the same owner to somebody else: those that
// another handle of the file was used by since are not the first one's any more.
type lockOwners struct {
	mu sync.Mutex                                     // a leaf
	m  map[uint64]map[uint64]map[locks.Owner]struct{} // by inode and handle
}

func (t *lockOwners) add(node, fh uint64, o locks.Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[uint64]map[uint64]map[locks.Owner]struct{}{}
	}
	if t.m[node] == nil {
		t.m[node] = map[uint64]map[locks.Owner]struct{}{}
	}
	if t.m[node][fh] == nil {
		t.m[node][fh] = map[locks.Owner]struct{}{}
	}
	t.m[node][fh][o] = struct{}{}
}

// flushed forgets an owner whose locks of an inode went with close(2), whichever
// handle set them. It may lock anew before the handle is released.
func (t *lockOwners) flushed(node uint64, o locks.Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, owners := range t.m[node] {
		delete(owners, o)
	}
}

// remove forgets a handle and lists the owners whose locks end with it. What an
// owner had that another handle has now goes when that one does.
func (t *lockOwners) remove(node, fh uint64) (ended []locks.Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	owners := t.m[node][fh]
	delete(t.m[node], fh)
	for o := range owners {
		if !t.uses(node, o) {
			ended = append(ended, o)
		}
	}
	if len(t.m[node]) == 0 {
		delete(t.m, node)
	}
	return ended
}

// uses says whether an owner locked through any handle. Under mu.
func (t *lockOwners) uses(node uint64, o locks.Owner) bool {
	for _, owners := range t.m[node] {
		if _, ok := owners[o]; ok {
			return true
		}
	}
	return false
}

func lockRequest(op locks.Op, in *fuse.LkIn) locks.Request {
	r := locks.Request{Op: op, Lock: locks.Lock{
		Owner: locks.Owner{ID: in.Owner},
		Pid:   in.Lk.Pid, Write: in.Lk.Typ == syscall.F_WRLCK, Start: in.Lk.Start, End: in.Lk.End,
	}}
	if in.LkFlags&fuse.FUSE_LK_FLOCK != 0 {
		r.Lock.Owner = locks.Owner{ID: in.Fh, Flock: true} // no handle has the number of another, as the kernel's owners do
	}
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
	if req.Op != locks.Unlock {
		r.owners.add(in.NodeId, in.Fh, req.Lock.Owner)
	}
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
	owners := r.owners.remove(in.NodeId, in.Fh)
	if !h.Locked() {
		return
	}
	for _, o := range owners {
		if err := r.unlock(h, o); err != nil {
			r.status("release", in.NodeId, err)
		}
	}
}
