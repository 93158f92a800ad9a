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
// another handle of the file was used by since are not the first one's any more,
// and who comes while an owner's locks are being cleared waits for that.
type lockOwners struct {
	mu    sync.Mutex // a leaf
	nodes map[uint64]*nodeOwners
}

// nodeOwners are those of an inode.
type nodeOwners struct {
	of     map[uint64]map[locks.Owner]struct{} // by handle
	ending map[locks.Owner]chan struct{}       // whose locks are being cleared; closed when they are
}

// node under mu.
func (t *lockOwners) node(id uint64) *nodeOwners {
	n := t.nodes[id]
	if n == nil {
		if t.nodes == nil {
			t.nodes = map[uint64]*nodeOwners{}
		}
		n = &nodeOwners{map[uint64]map[locks.Owner]struct{}{}, map[locks.Owner]chan struct{}{}}
		t.nodes[id] = n
	}
	return n
}

// tidy under mu.
func (t *lockOwners) tidy(id uint64) {
	if n := t.nodes[id]; n != nil && len(n.of)+len(n.ending) == 0 {
		delete(t.nodes, id)
	}
}

// add notes that an owner is about to lock through a handle.
func (t *lockOwners) add(ctx context.Context, node, fh uint64, o locks.Owner) error {
	for {
		t.mu.Lock()
		n := t.node(node)
		ending := n.ending[o]
		if ending == nil {
			if n.of[fh] == nil {
				n.of[fh] = map[locks.Owner]struct{}{}
			}
			n.of[fh][o] = struct{}{}
		}
		t.mu.Unlock()
		if ending == nil {
			return nil
		}
		select {
		case <-ending:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// flushed forgets an owner whose locks of an inode went with close(2), whichever
// handle set them. It may lock anew before the handle is released.
func (t *lockOwners) flushed(node uint64, o locks.Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[node]
	if n == nil {
		return
	}
	for fh, owners := range n.of {
		if delete(owners, o); len(owners) == 0 {
			delete(n.of, fh)
		}
	}
	t.tidy(node)
}

// remove forgets a handle and lists the owners whose locks end with it, and must
// be cleared before done is called. What an owner had that another handle has now
// goes when that one does.
func (t *lockOwners) remove(node, fh uint64) (ended []locks.Owner, done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[node]
	if n == nil {
		return nil, func() {}
	}
	owners := n.of[fh]
	delete(n.of, fh)
	for o := range owners {
		if !n.uses(o) {
			ended = append(ended, o)
			n.ending[o] = make(chan struct{})
		}
	}
	t.tidy(node)
	return ended, func() { t.ended(node, ended) }
}

func (t *lockOwners) ended(node uint64, owners []locks.Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range owners {
		n := t.nodes[node]
		close(n.ending[o])
		delete(n.ending, o)
		t.tidy(node)
	}
}

// uses says whether an owner locked through any handle. Under lockOwners.mu.
func (n *nodeOwners) uses(o locks.Owner) bool {
	for _, owners := range n.of {
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
		if err := r.owners.add(ctx, in.NodeId, in.Fh, req.Lock.Owner); err != nil {
			return fuse.EINTR
		}
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
	owners, done := r.owners.remove(in.NodeId, in.Fh)
	defer done()
	if !h.Locked() {
		return
	}
	for _, o := range owners {
		if err := r.unlock(h, o); err != nil {
			r.status("release", in.NodeId, err)
		}
	}
}
