// Package diskcache keeps the bytes of chunks as files of a local directory, so
// that a mail host reads again from its own disk what it read or delivered
// before. A chunk never changes, so nothing here is ever out of date, and a file
// outlives the process.
//
// The directory is the index: a chunk's name leads to its file, the file's mtime
// says when it was last used, and memory holds a few counters however much is
// cached. It may be damaged, wiped, read-only, full or gone at any time: then
// Get finds nothing and Put keeps nothing, and that is all. Every byte served was
// compared with its checksum; a file that does not match goes.
//
//	DIR/FSID/lock             locked by the process that uses it
//	DIR/FSID/3f/NAME          one chunk; docs/format.md has the bytes
//	DIR/FSID/3f/.NAME.SELF    one being written
//
// # Concurrency
//
// Every method may be called from any goroutine. Files appear whole, by rename.
// Cache.mu guards which directory is open; a shard's mu guards its count of bytes
// and the renames and removals that change it. Neither is taken under the other.
package diskcache

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

// Options of a cache.
type Options struct {
	Dir   string           // where; it must exist by the time of the first use
	Store string           // id of the store: each has its own directory below Dir
	Size  int64            // bytes on disk that it may use; 10 GiB
	Free  int64            // bytes of the disk that it leaves free; 1 GiB
	Queue int64            // bytes that may wait to be written, in memory; 32 MiB
	Log   *slog.Logger     // slog.Default()
	Now   func() time.Time // time.Now
}

func (o *Options) setDefaults() {
	o.Size = cmp.Or(o.Size, 10<<30)
	o.Free = cmp.Or(o.Free, 1<<30)
	o.Queue = cmp.Or(o.Queue, 32<<20)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Validate says what is wrong with the options, defaults filled in.
func (o Options) Validate() error {
	o.setDefaults()
	switch {
	case !filepath.IsAbs(o.Dir):
		return fmt.Errorf("cache directory %q: must be an absolute path", o.Dir)
	case o.Store == "" || filepath.Base(o.Store) != o.Store:
		return fmt.Errorf("store id %q cannot name a directory", o.Store)
	case o.Size < objstore.ChunkSize*2:
		return errors.New("cache size: smaller than two chunks")
	case o.Free < 0 || o.Queue < objstore.ChunkSize:
		return errors.New("cache limits: must not be negative, and let a chunk wait")
	}
	return nil
}

// Stats are counted since the cache was opened, but for the sizes.
type Stats struct {
	Used      int64  `json:"used_bytes"`    // on disk
	Size      int64  `json:"size_bytes"`    // how many there may be
	Waiting   int64  `json:"waiting_bytes"` // in memory, to be written
	Hits      uint64 `json:"hits"`
	HitBytes  uint64 `json:"hit_bytes"`
	Misses    uint64 `json:"misses"`
	MissBytes uint64 `json:"miss_bytes"`
	Stored    uint64 `json:"stored"`  // files
	Evicted   uint64 `json:"evicted"` // files
	Damaged   uint64 `json:"damaged"` // files
	Skipped   uint64 `json:"skipped"` // chunks not kept: too many were waiting, or the disk would not have them
	Away      string `json:"away"`    // why the directory cannot be used, if so
}

// Cache is a directory of chunks. See the package comment.
type Cache struct {
	opt    Options
	shards [shards]shard
	queue  queue
	self   string // in the names of files this process is writing
	hand   int    // the writer's: which shard is looked through next
	sick   bool   // the writer's: the last write failed

	mu    sync.RWMutex
	dir   *directory // nil: away
	away  error
	retry time.Time // when to try to open it again
	pause time.Time // until when nothing is written

	hits, hitBytes, misses, missBytes, stored, evicted, damaged, skipped atomic.Uint64
	quit                                                                 chan struct{}
	wg                                                                   sync.WaitGroup
}

// retryAfter is how long a directory that failed is left alone.
const retryAfter = 30 * time.Second

// directory is an open one, locked.
type directory struct {
	root *os.Root
	lock *os.File
}

func (d *directory) close() error { return errors.Join(d.root.Close(), d.lock.Close()) }

// Open starts a cache. A directory that cannot be used is no error: it is tried
// again from time to time.
func Open(o Options) (*Cache, error) {
	o.setDefaults()
	if err := o.Validate(); err != nil {
		return nil, err
	}
	c := &Cache{opt: o, self: strconv.FormatUint(rand.Uint64(), 36), quit: make(chan struct{})}
	c.queue.init(o.Queue)
	c.reopen()
	c.wg.Go(c.writeLoop)
	return c, nil
}

// Close writes what waits and ends the cache, which must not be used any more.
func (c *Cache) Close() error {
	close(c.quit)
	c.queue.close()
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dir == nil {
		return nil
	}
	d := c.dir
	c.dir = nil
	return d.close()
}

// Stats tells how the cache is doing.
func (c *Cache) Stats() Stats {
	s := Stats{
		Used: c.used(), Size: c.opt.Size,
		Hits: c.hits.Load(), HitBytes: c.hitBytes.Load(), Misses: c.misses.Load(), MissBytes: c.missBytes.Load(),
		Stored: c.stored.Load(), Evicted: c.evicted.Load(), Damaged: c.damaged.Load(), Skipped: c.skipped.Load(),
	}
	c.queue.mu.Lock()
	s.Waiting = c.queue.bytes
	c.queue.mu.Unlock()
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.away != nil {
		s.Away = c.away.Error()
	}
	return s
}

// root is the open directory, nil if there is none. It stays usable until release.
func (c *Cache) root() (root *os.Root, release func()) {
	c.mu.RLock()
	if c.dir == nil {
		c.mu.RUnlock()
		return nil, func() {}
	}
	return c.dir.root, c.mu.RUnlock
}

// reopen opens the directory and counts what is in it, in the background. It is
// called by one goroutine at a time.
func (c *Cache) reopen() {
	d, err := openDir(c.opt.Dir, c.opt.Store)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.away == nil {
			c.opt.Log.Warn("the cache directory cannot be used; trying again from time to time", "dir", c.opt.Dir, "err", err)
		}
		c.away, c.retry = err, c.opt.Now().Add(retryAfter)
		return
	}
	if c.away != nil {
		c.opt.Log.Info("the cache directory is in use", "dir", c.opt.Dir)
	}
	c.dir, c.away = d, nil
	c.wg.Go(c.countAll)
}

// lose gives the directory up because it failed.
func (c *Cache) lose(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dir == nil {
		return
	}
	c.opt.Log.Warn("the cache directory is given up for now", "dir", c.opt.Dir, "err", errors.Join(err, c.dir.close()))
	c.dir, c.away, c.retry = nil, err, c.opt.Now().Add(retryAfter)
}

func openDir(dir, store string) (*directory, error) {
	path := filepath.Join(dir, store)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	lock, err := lockIn(root)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &directory{root, lock}, nil
}

// lockIn takes the lock of a directory, which may be read-only: then nobody can
// do any harm there.
func lockIn(root *os.Root) (*os.File, error) {
	f, err := root.OpenFile("lock", os.O_RDONLY|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) || errors.Is(err, os.ErrPermission) {
		return root.Open(".")
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("another process uses it")
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
