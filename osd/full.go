package osd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

// statEvery is how old a look at the free space may be. What can be written in
// between is far below the smallest reserve.
const statEvery = 50 * time.Millisecond

const (
	minReserve = 96 << 20

	// dbRoom is what has to be free before anything goes into the database: it
	// writes tables of this size through memory maps, where a full disk does not
	// fail a call but kills the process.
	dbRoom = 40 << 20

	// openRoom is what has to be free to open the database, for the same reason.
	openRoom = 8 << 20
)

// errNoRoom says that a flush has to wait until there is room on the disk.
var errNoRoom = errors.New("the disk is full, and not with this store's data")

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
		f.reserve = min(max(f.total/16, minReserve), 4<<30)
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
	// What is reserved for root counts neither as used nor as the disk's, as in df(1).
	f.avail, f.total = st.Bavail*uint64(st.Bsize), (st.Blocks-st.Bfree+st.Bavail)*uint64(st.Bsize)
	f.until = time.Now().Add(statEvery)
}

// check is nil while the store may grow; pending is how much of what it took in
// a flush has yet to write, in bytes.
func (f *fullness) check(pending int64, ratios objstore.Ratios) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Now().After(f.until) {
		f.refresh()
	}
	if f.err != nil {
		return f.err
	}
	if f.avail < f.reserve+uint64(max(pending, 0)) {
		return fmt.Errorf("%d bytes free on the disk, %d are kept in reserve: %w", f.avail, f.reserve, objstore.NoSpace)
	}
	if ratios.Fullness(f.total, f.avail-f.reserve, "") == objstore.Full {
		return fmt.Errorf("%d of %d bytes free on the disk, which is full by the map: %w", f.avail, f.total, objstore.NoSpace)
	}
	return nil
}

// roomToGrow is nil while the OSD may take what makes it grow. One host's store
// goes by the reserve alone, and by what waits to be shipped.
func (o *OSD) roomToGrow() error {
	if o.opt.Grow != nil {
		if err := o.opt.Grow(); err != nil {
			return err
		}
	}
	ratios := objstore.Ratios{NearFull: 1, Full: 1}
	if o.opt.Peers != nil {
		ratios = o.Map().Ratios
	}
	return o.full.check(o.unflushed.Load(), ratios)
}

// roomFor is nil when n bytes are free on the disk at this moment; the reserve
// is there to be used. Else the error wraps errNoRoom and objstore.NoSpace.
func (f *fullness) roomFor(n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refresh(); f.err != nil {
		return f.err
	}
	if f.avail < uint64(n) {
		return fmt.Errorf("%d bytes free on the disk of %s, %d are needed: %w: %w", f.avail, f.dir, n, errNoRoom, objstore.NoSpace)
	}
	return nil
}

// roomToFlush is nil when a flush can be written down.
func (o *OSD) roomToFlush() error { return o.full.roomFor(o.unflushed.Load() + dbRoom) }

// Space is the disk's size and what the store may still use of it.
func (o *OSD) Space(context.Context) (objstore.Disk, error) {
	d := objstore.Disk{Files: o.counts.led(o.hosted())}
	f := &o.full
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Now().After(f.until) {
		f.refresh()
	}
	d.Total, d.Free = f.total, f.avail-min(f.avail, f.reserve)
	return d, f.err
}
