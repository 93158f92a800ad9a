package fusefs

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pillarbox/cachefs"
	"pillarbox/objstore"
)

// raw serves the kernel's requests.
type raw struct {
	fuse.RawFileSystem // ENOSYS for everything not offered
	fs                 *cachefs.FS
	ctx                context.Context // of all requests; not cancelled
	log                *slog.Logger
	timeout            time.Duration
	dirTimeout         time.Duration
	shared             bool
	skipOpenDir        atomic.Bool // the kernel can do without OPENDIR
	handles            handles
	dirs               dirClock
	shown              shownDirs
	owners             lockOwners
	events             *events // nil: nobody else changes the store
	meter              meter
}

var _ fuse.RawFileSystem = (*raw)(nil)

func (r *raw) String() string { return fsType }

// Init implements fuse.RawFileSystem.
func (r *raw) Init(s *fuse.Server) {
	r.skipOpenDir.Store(s.KernelSettings().Flags64()&fuse.CAP_NO_OPENDIR_SUPPORT != 0)
}

// Forget passes on that the kernel has nothing left of a node. There is nothing
// to count: it gives back all its lookups at once.
func (r *raw) Forget(nodeid, _ uint64) { r.fs.Forget(objstore.Ino(nodeid)) }

// handles maps the kernel's handle numbers to open files.
type handles struct {
	mu   sync.RWMutex // a leaf
	m    map[uint64]*cachefs.Handle
	last uint64
}

func (t *handles) add(h *cachefs.Handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[uint64]*cachefs.Handle{}
	}
	t.last++
	t.m[t.last] = h
	return t.last
}

func (t *handles) get(fh uint64) *cachefs.Handle {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[fh]
}

func (t *handles) remove(fh uint64) *cachefs.Handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.m[fh]
	delete(t.m, fh)
	return h
}

// dirClock tells whether the names of a directory changed while its attributes
// were being read. Directories share slots; a collision costs a little caching.
type dirClock struct {
	any   dirSlot // changes of every directory
	slots [256]dirSlot
}

type dirSlot struct{ begun, ended atomic.Uint64 }

func (c *dirClock) slot(node uint64) *dirSlot {
	const spread = 0x9e3779b97f4a7c15
	return &c.slots[node*spread>>56]
}

// change marks the directories as changing until the returned function is called.
func (c *dirClock) change(a, b uint64) func() {
	slots := [...]*dirSlot{&c.any, c.slot(a), c.slot(b)}
	for _, s := range slots {
		s.begun.Add(1)
	}
	return func() {
		for _, s := range slots {
			s.ended.Add(1)
		}
	}
}

// dirMoment is what a slot showed before attributes were read.
type dirMoment struct {
	slot  *dirSlot
	begun uint64
	quiet bool
}

func (s *dirSlot) now() dirMoment {
	ended := s.ended.Load()
	begun := s.begun.Load()
	return dirMoment{s, begun, begun == ended}
}

// unchanged says that nothing has changed since.
func (m dirMoment) unchanged() bool { return m.quiet && m.slot.begun.Load() == m.begun }
