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

// Change begins a change of names in directories a and b that does not come by
// the mount. What it returns is called with what happened when it is made, or with
// nothing: from then on the mount shows it.
func (m *Mounted) Change(a, b objstore.Ino) func(...objstore.Event) {
	end := m.raw.dirs.change(uint64(a), uint64(b))
	return func(list ...objstore.Event) {
		end()
		for _, e := range list {
			// Names and inodes that the kernel does not know are no failure.
			m.server.EntryNotify(uint64(e.Dir), e.Name)
			m.server.InodeNotify(uint64(e.Dir), 0, 0)
			if e.NewDir != 0 {
				m.server.EntryNotify(uint64(e.NewDir), e.NewName)
				m.server.InodeNotify(uint64(e.NewDir), 0, 0)
			}
			if e.Ino != 0 {
				m.server.InodeNotify(uint64(e.Ino), -1, 0)
			}
			if m.events != nil {
				m.events.add(e)
			}
		}
	}
}

// Happened implements cachefs.Kernel.
func (k kernel) Happened(e objstore.Event) {
	if k.events != nil {
		k.events.add(e)
	}
}
