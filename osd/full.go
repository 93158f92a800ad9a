package osd

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

// statEvery is how old a look at the free space may be. What can be written in
// between is far below the smallest reserve.
const statEvery = 50 * time.Millisecond

// fullness watches the disk's free space, so that the store refuses to grow
// before the disk is full: the log, the database and expunge still need room.
type fullness struct {
	dir     string
	reserve uint64

	mu    sync.Mutex
	until time.Time
	avail uint64
	total uint64
	err   error
}

func (f *fullness) init(dir string, reserve uint64) error {
	f.dir = dir
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refresh()
	if f.err != nil {
		return f.err
	}
	f.reserve = reserve
	if reserve == 0 {
		f.reserve = min(max(f.total/16, 64<<20), 4<<30)
	}
	return nil
}

// refresh asks the kernel. Called with mu held.
func (f *fullness) refresh() {
	var st unix.Statfs_t
	if f.err = unix.Statfs(f.dir, &st); f.err != nil {
		f.err = fmt.Errorf("statfs %s: %w", f.dir, f.err)
		return
	}
	f.avail, f.total = st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	f.until = time.Now().Add(statEvery)
}

// check is nil while the store may grow.
func (f *fullness) check() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Now().After(f.until) {
		f.refresh()
	}
	if f.err != nil {
		return f.err
	}
	if f.avail < f.reserve {
		return fmt.Errorf("%d bytes free on the disk, %d are kept in reserve: %w", f.avail, f.reserve, objstore.NoSpace)
	}
	return nil
}

// Space is the disk's size and what the store may still use of it, in bytes.
func (o *OSD) Space() (total, free uint64, err error) {
	f := &o.full
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Now().After(f.until) {
		f.refresh()
	}
	if f.err != nil {
		return 0, 0, f.err
	}
	return f.total, f.avail - min(f.avail, f.reserve), nil
}
