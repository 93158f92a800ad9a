package fusefs

import (
	"maps"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pillarbox/objstore"
)

// kernel tells the kernel what other hosts did.
type kernel struct {
	server *fuse.Server
	events *events // may be nil
	shown  *shownDirs
}

// Drop implements cachefs.Kernel. An inode that the kernel does not know is no
// failure; anything else is the end of the mount.
func (k kernel) Drop(ino objstore.Ino) { k.server.InodeNotify(uint64(ino), 0, 0) }

// Stale implements cachefs.Kernel.
func (k kernel) Stale(e objstore.Event) (until time.Time) {
	changed := []objstore.Ino{e.Dir, e.NewDir}
	if e.Type != objstore.ModeRegular {
		changed = append(changed, e.Ino)
	}
	for _, ino := range changed {
		if ino != 0 {
			k.server.InodeNotify(uint64(ino), -1, 0)
		}
	}
	if e.Kind != objstore.Removed && e.Kind != objstore.Moved || e.Type != objstore.ModeDir && e.Type != 0 {
		return until
	}
	until = k.shown.until(e.Dir, e.Name)
	if t := k.shown.until(e.NewDir, e.NewName); t.After(until) {
		until = t
	}
	return until
}

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

// shownDirs notes until when the kernel may show the names of directories that it
// was told to keep for a time. To void a name the kernel waits for the directory it
// is in, which may be busy with a request that waits for another host, which waits
// for the name: so names end by themselves, and who takes one away waits for that.
// It happens when somebody renames or removes a mailbox that is in use elsewhere.
type shownDirs struct {
	mu    sync.Mutex // a leaf
	names map[dirName]time.Time
	prune int // at how many names those that are over are dropped
}

type dirName struct {
	dir  objstore.Ino
	name string
}

// onTheWay is how long a reply may take from being made to being kept.
const onTheWay = time.Second

func (s *shownDirs) add(dir objstore.Ino, name string, keep time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if len(s.names) >= s.prune {
		maps.DeleteFunc(s.names, func(_ dirName, until time.Time) bool { return until.Before(now) })
		s.prune = max(1024, 2*len(s.names))
	}
	if s.names == nil {
		s.names = map[dirName]time.Time{}
	}
	s.names[dirName{dir, name}] = now.Add(keep + onTheWay)
}

// renamed notes that what the kernel may show under one name it may show under
// another. It is called before the name changes and after, since it may be asked
// for meanwhile.
func (s *shownDirs) renamed(from, to dirName, keep time.Duration) {
	if !s.until(from.dir, from.name).IsZero() {
		s.add(to.dir, to.name, keep)
	}
}

// until is when the kernel does not show a name any more; zero: it never did.
func (s *shownDirs) until(dir objstore.Ino, name string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[dirName{dir, name}]
}
