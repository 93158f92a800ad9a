package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"pillarbox/objstore"
)

// kernel tells the kernel what other hosts did.
type kernel struct {
	server *fuse.Server
	events *events // may be nil
}

// Drop implements cachefs.Kernel. An inode that the kernel does not know is no
// failure; anything else is the end of the mount.
func (k kernel) Drop(ino objstore.Ino) { k.server.InodeNotify(uint64(ino), 0, 0) }

// Happened implements cachefs.Kernel.
func (k kernel) Happened(e objstore.Event) {
	if k.events != nil {
		k.events.add(e)
	}
}
