package fusefs

import (
	"context"
	"errors"
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
		got, done := owners.remove(node, fh)
		defer done()
		if !slices.Equal(got, want) {
			t.Errorf("with handle %d end the locks of %v, not %v", fh, got, want)
		}
	}
	add := func(node, fh uint64, o locks.Owner) {
		t.Helper()
		if err := owners.add(t.Context(), node, fh, o); err != nil {
			t.Fatal(err)
		}
	}
	// A process closes a file, opens and locks it anew, and then the first handle goes.
	add(node, 1, process)
	add(other, 2, process)
	owners.flushed(node, process)
	add(node, 3, process)
	ends(node, 1)
	ends(node, 3, process)
	ends(other, 2, process)
	// A file description gets the address of one that was closed.
	add(node, 4, description)
	add(node, 5, description)
	ends(node, 4)
	ends(node, 5, description)
	ends(node, 6)
	if len(owners.nodes) > 0 {
		t.Errorf("left: %v", owners.nodes)
	}
}

// TestLockOwnerComesAgain: who has the name of an owner whose locks are being
// cleared waits for that, for else the clearing would take his.
func TestLockOwnerComesAgain(t *testing.T) {
	const node = 1
	o := locks.Owner{ID: 10}
	var owners lockOwners
	if err := owners.add(t.Context(), node, 1, o); err != nil {
		t.Fatal(err)
	}
	ended, done := owners.remove(node, 1)
	if !slices.Equal(ended, []locks.Owner{o}) {
		t.Fatalf("ended: %v", ended)
	}
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	if err := owners.add(interrupted, node, 2, o); !errors.Is(err, context.Canceled) {
		t.Errorf("it does not wait: %v", err)
	}
	if err := owners.add(interrupted, node, 3, locks.Owner{ID: 11}); err != nil {
		t.Errorf("another owner: %v", err)
	}
	added := make(chan error)
	go func() { added <- owners.add(t.Context(), node, 4, o) }()
	done()
	if err := <-added; err != nil {
		t.Error(err)
	}
	if ended, _ := owners.remove(node, 4); !slices.Equal(ended, []locks.Owner{o}) {
		t.Errorf("ended: %v", ended)
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
