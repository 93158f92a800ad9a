package diskcache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

// shard is one directory of files.
type shard struct {
	mu   sync.Mutex // held while files come and go
	used atomic.Int64
}

// job is a chunk that waits to be written.
type job struct {
	id   objstore.ChunkID
	data []byte
}

// queue holds what waits to be written, up to so many bytes.
type queue struct {
	mu     sync.Mutex // a leaf
	cond   sync.Cond
	jobs   []job
	bytes  int64 // of jobs, and of the one being written
	max    int64
	closed bool
}

func (q *queue) init(max int64) { q.max, q.cond.L = max, &q.mu }

func (q *queue) put(j job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.bytes+int64(len(j.data)) > q.max {
		return false
	}
	q.bytes += int64(len(j.data))
	q.jobs = append(q.jobs, j)
	q.cond.Broadcast()
	return true
}

// next waits for a job; false: the queue is closed and empty.
func (q *queue) next() (job, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.jobs) == 0 {
		if q.closed {
			return job{}, false
		}
		q.cond.Wait()
	}
	j := q.jobs[0]
	q.jobs = slices.Delete(q.jobs, 0, 1)
	return j, true
}

func (q *queue) done(j job) {
	q.mu.Lock()
	q.bytes -= int64(len(j.data))
	q.cond.Broadcast()
	q.mu.Unlock()
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.cond.Broadcast()
	q.mu.Unlock()
}

// Wait returns when all that was put is written, or was given up.
func (c *Cache) Wait() {
	q := &c.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.bytes > 0 {
		q.cond.Wait()
	}
}

// Room waits until at most half of what may wait to be written does.
func (c *Cache) Room() {
	q := &c.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.bytes > q.max/2 && !q.closed {
		q.cond.Wait()
	}
}

// Spare is how many bytes can be put now without files having to go for them: none
// when many wait to be written already, or the directory cannot be used.
func (c *Cache) Spare() int64 {
	c.mu.RLock()
	paused := c.opt.Now().Before(c.pause)
	c.mu.RUnlock()
	q := &c.queue
	q.mu.Lock()
	waiting := q.bytes
	q.mu.Unlock()
	root, release := c.root()
	defer release()
	if root == nil || paused || waiting > q.max/2 {
		return 0
	}
	over, err := c.over(root, waiting)
	if err != nil {
		return 0
	}
	return max(-over, 0)
}

// Put keeps a chunk's first bytes, in the background. data must not be changed
// any more. It never waits: when too much is on its way already, nothing is kept.
func (c *Cache) Put(id objstore.ChunkID, data []byte) {
	if len(data) == 0 || len(data) > objstore.StoredMax {
		return
	}
	if !c.queue.put(job{id, data}) {
		c.skipped.Add(1)
	}
}

func (c *Cache) writeLoop() {
	for {
		j, ok := c.queue.next()
		if !ok {
			return
		}
		switch err := c.write(j); {
		case err == nil:
			c.sick = false
		case errors.Is(err, errPaused):
			c.skipped.Add(1)
		default:
			c.skipped.Add(1)
			c.trouble(err)
		}
		c.queue.done(j)
	}
}

// trouble takes in why a file could not be written: what will not get better at
// once is left alone for a while.
func (c *Cache) trouble(err error) {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESTALE) || errors.Is(err, unix.EIO) {
		c.lose(err) // the directory itself is gone
		return
	}
	if !c.sick {
		c.opt.Log.Warn("nothing is added to the cache for now", "dir", c.opt.Dir, "err", err)
	}
	c.sick = true
	c.mu.Lock()
	c.pause = c.opt.Now().Add(retryAfter)
	c.mu.Unlock()
}

var errPaused = errors.New("the cache directory is left alone for now")

// ready says whether files can be written, and opens the directory again if it is time.
func (c *Cache) ready() bool {
	now := c.opt.Now()
	c.mu.RLock()
	open, again, paused := c.dir != nil, !now.Before(c.retry), now.Before(c.pause)
	c.mu.RUnlock()
	if !open && again {
		c.reopen()
		c.mu.RLock()
		open = c.dir != nil
		c.mu.RUnlock()
	}
	return open && !paused
}

// write stores a chunk and makes room for it. Only the writer calls it.
func (c *Cache) write(j job) error {
	if !c.ready() {
		return errPaused
	}
	root, release := c.root()
	defer release()
	if root == nil {
		return errPaused
	}
	shard := shardOf(j.id.Ino)
	dir, name := shardDir(shard), nameOf(j.id)
	h := head(j.id, j.data)
	size := int64(len(h) + len(j.data))
	old, err := root.Lstat(dir + "/" + name)
	if err == nil && old.Size() >= size {
		return nil
	}
	if err := c.makeRoom(root, onDisk(size)); err != nil {
		return err
	}
	temp := fmt.Sprintf("%s/.%s.%s", dir, name, c.self)
	if err := writeFile(root, dir, temp, h, j.data); err != nil {
		rerr := root.Remove(temp)
		if errors.Is(rerr, fs.ErrNotExist) {
			rerr = nil
		}
		return errors.Join(err, rerr)
	}
	s := &c.shards[shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err = root.Lstat(dir + "/" + name)
	if rerr := root.Rename(temp, dir+"/"+name); rerr != nil {
		return rerr
	}
	s.used.Add(onDisk(size))
	if err == nil {
		s.used.Add(-onDisk(old.Size()))
	}
	c.stored.Add(1)
	return nil
}

// writeFile writes a new file, unsynced: what a power cut leaves of it does not
// pass its checksums.
func writeFile(root *os.Root, dir, name string, parts ...[]byte) error {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := root.OpenFile(name, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		f, err = root.OpenFile(name, flags, 0o600)
	}
	if err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := f.Write(p); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

func (c *Cache) used() (n int64) {
	for i := range c.shards {
		n += c.shards[i].used.Load()
	}
	return n
}

// errNoRoom: nothing more can be evicted, and the disk is too full all the same.
var errNoRoom = errors.New("the disk has less free than must stay free")

// makeRoom evicts files until n more bytes fit.
func (c *Cache) makeRoom(root *os.Root, n int64) error {
	over, err := c.over(root, n)
	if err != nil || over <= 0 {
		return err
	}
	// More than need be, so that not every file has to make room for itself.
	c.evict(root, over+min(c.opt.Size/20, 64<<20))
	if over, err = c.over(root, n); err == nil && over > 0 {
		err = errNoRoom
	}
	return err
}

// over is by how much n more bytes are too many.
func (c *Cache) over(root *os.Root, n int64) (int64, error) {
	d, err := root.Open(".")
	if err != nil {
		return 0, err
	}
	defer d.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &st); err != nil {
		return 0, fmt.Errorf("free space of the cache's disk: %w", err)
	}
	return max(c.used()+n-c.opt.Size, c.opt.Free+n-int64(st.Bavail)*st.Bsize), nil
}

// entry is a file that may be evicted.
type entry struct {
	shard int
	name  string
	size  int64
	used  time.Time
}

// sample is how many files are compared, at least, to find the least recently used.
const sample = 4096

// evict removes the files that were not used for longest until n bytes are free.
// Of a large cache it looks through a part at a time and removes the older half.
func (c *Cache) evict(root *os.Root, n int64) {
	for looked := 0; looked < shards && n > 0; {
		var list []entry
		for ; looked < shards && len(list) < sample; looked++ {
			found, err := c.count(root, c.hand)
			if err != nil {
				c.opt.Log.Warn("look through the cache", "err", err)
			}
			list = append(list, found...)
			c.hand = (c.hand + 1) % shards
		}
		slices.SortFunc(list, func(a, b entry) int { return a.used.Compare(b.used) })
		if len(list) >= sample {
			list = list[:len(list)/2]
		}
		for _, e := range list {
			if n <= 0 {
				return
			}
			if err := c.remove(root, e.shard, e.name, e.size); err != nil {
				c.opt.Log.Warn("make room in the cache", "err", err)
				continue
			}
			c.evicted.Add(1)
			n -= onDisk(e.size)
		}
	}
}

// countAll counts what the directory holds.
func (c *Cache) countAll() {
	for i := range shards {
		select {
		case <-c.quit:
			return
		default:
		}
		root, release := c.root()
		if root == nil {
			return
		}
		if _, err := c.count(root, i); err != nil {
			c.opt.Log.Warn("count what is in the cache", "err", err)
		}
		release()
	}
}

// count lists a shard's files, and sets right what is known of their size. What a
// killed process left half-written goes.
func (c *Cache) count(root *os.Root, i int) ([]entry, error) {
	s := &c.shards[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := root.Open(shardDir(i))
	if errors.Is(err, fs.ErrNotExist) {
		s.used.Store(0)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	infos, err := d.Readdir(-1)
	if err != nil {
		return nil, err
	}
	var list []entry
	used := int64(0)
	for _, st := range infos {
		if strings.HasPrefix(st.Name(), ".") {
			if !strings.HasSuffix(st.Name(), "."+c.self) {
				_ = root.Remove(shardDir(i) + "/" + st.Name()) // else the next time
			}
			continue
		}
		used += onDisk(st.Size())
		list = append(list, entry{i, st.Name(), st.Size(), st.ModTime()})
	}
	s.used.Store(used)
	return list, nil
}
