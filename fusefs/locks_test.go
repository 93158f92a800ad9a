package fusefs

import (
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pillarbox/objstore/locks"
)

// TestLockOwners: a handle that is released late takes no lock from who came after.
func TestLockOwners(t *testing.T) {
	const node, other = 1, 2
	process, description := locks.Owner{ID: 10}, locks.Owner{ID: 11}
	var owners lockOwners
	ends := func(node, fh uint64, want ...locks.Owner) {
		t.Helper()
		if got := owners.remove(node, fh); !slices.Equal(got, want) {
			t.Errorf("with handle %d end the locks of %v, not %v", fh, got, want)
		}
	}
	// A process closes a file, opens and locks it anew, and then the first handle goes.
	owners.add(node, 1, process)
	owners.add(other, 2, process)
	owners.flushed(node, process)
	owners.add(node, 3, process)
	ends(node, 1)
	ends(node, 3, process)
	ends(other, 2, process)
	// A file description gets the address of one that was closed.
	owners.add(node, 4, description)
	owners.add(node, 5, description)
	ends(node, 4)
	ends(node, 5, description)
	ends(node, 6)
	if len(owners.m) > 0 {
		t.Errorf("left: %v", owners.m)
	}
}

// TestFlockOwner: an owner of flock(2) is the handle, for the kernel's own names of
// two of them may be the same.
func TestFlockOwner(t *testing.T) {
	in := &fuse.LkIn{Fh: 7, Owner: 99, LkFlags: fuse.FUSE_LK_FLOCK}
	if o := lockRequest(locks.Try, in).Lock.Owner; o != (locks.Owner{ID: 7, Flock: true}) {
		t.Errorf("%v", o)
	}
	in.LkFlags = 0
	if o := lockRequest(locks.Try, in).Lock.Owner; o != (locks.Owner{ID: 99}) {
		t.Errorf("%v", o)
	}
}
