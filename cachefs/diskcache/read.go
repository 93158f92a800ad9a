package diskcache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"pillarbox/objstore"
)

// touchAfter is how old the note of a file's last use gets before it is renewed.
const touchAfter = time.Minute

// Get fills p with a chunk's bytes from off on and says whether it has them.
func (c *Cache) Get(id objstore.ChunkID, off uint32, p []byte) bool {
	ok := c.get(id, off, p)
	if ok {
		c.hits.Add(1)
		c.hitBytes.Add(uint64(len(p)))
	} else {
		c.misses.Add(1)
		c.missBytes.Add(uint64(len(p)))
	}
	return ok
}

func (c *Cache) get(id objstore.ChunkID, off uint32, p []byte) bool {
	root, release := c.root()
	defer release()
	if root == nil {
		return false
	}
	name := shardDir(shardOf(id.Ino)) + "/" + nameOf(id)
	f, err := root.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return false
	}
	switch err := read(f, st.Size(), id, int64(off), p); {
	case err == nil:
	case errors.Is(err, errShort): // a shorter part of the chunk is what was asked for before
		return false
	default:
		c.opt.Log.Warn("a file of the cache is damaged and goes", "file", name, "err", err)
		c.damaged.Add(1)
		c.remove(root, shardOf(id.Ino), nameOf(id), st.Size())
		return false
	}
	if now := c.opt.Now(); now.Sub(st.ModTime()) > touchAfter {
		// On a read-only disk the order of use is not kept.
		_ = root.Chtimes(name, now, now)
	}
	return true
}

var errShort = errors.New("the file has less of the chunk")

// read reads bytes of a chunk from its file of the given size, and checks them.
func read(f *os.File, size int64, id objstore.ChunkID, off int64, p []byte) error {
	var buf [maxHead]byte
	n, err := f.ReadAt(buf[:min(size, maxHead)], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	length, sums, err := parseHead(id, buf[:n])
	if err != nil {
		return err
	}
	if size != int64(headLen(length)+length) {
		return fmt.Errorf("%d bytes for a chunk of %d", size, length)
	}
	end := off + int64(len(p))
	if end > int64(length) {
		return errShort
	}
	lo := off &^ (blockSize - 1)
	hi := min(int64(length), (end+blockSize-1)&^(blockSize-1))
	whole := p
	if lo != off || hi != end {
		whole = make([]byte, hi-lo)
	}
	if _, err := f.ReadAt(whole, int64(headLen(length))+lo); err != nil {
		return err
	}
	if !check(sums, int(lo/blockSize), whole) {
		return errors.New("bad checksum")
	}
	if lo != off || hi != end {
		copy(p, whole[off-lo:])
	}
	return nil
}

// Has says whether bytes of a chunk seem to be there; nothing is read.
func (c *Cache) Has(id objstore.ChunkID, n uint32) bool {
	root, release := c.root()
	defer release()
	if root == nil {
		return false
	}
	st, err := root.Lstat(shardDir(shardOf(id.Ino)) + "/" + nameOf(id))
	return err == nil && st.Size() >= int64(headLen(int(n)))+int64(n)
}

// Remove removes a chunk.
func (c *Cache) Remove(id objstore.ChunkID) {
	root, release := c.root()
	defer release()
	if root == nil {
		return
	}
	name := nameOf(id)
	st, err := root.Lstat(shardDir(shardOf(id.Ino)) + "/" + name)
	if err == nil {
		err = c.remove(root, shardOf(id.Ino), name, st.Size())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.opt.Log.Warn("remove a file of the cache", "file", name, "err", err)
	}
}

// Drop removes what is cached of the inodes that in says.
func (c *Cache) Drop(in func(objstore.Ino) bool) (files int, bytes int64, err error) {
	for i := range shards {
		n, size, serr := c.dropShard(i, in)
		files, bytes, err = files+n, bytes+size, errors.Join(err, serr)
	}
	return files, bytes, err
}

func (c *Cache) dropShard(i int, in func(objstore.Ino) bool) (files int, bytes int64, err error) {
	root, release := c.root()
	defer release()
	if root == nil {
		return 0, 0, nil
	}
	list, err := c.count(root, i)
	if err != nil {
		return 0, 0, fmt.Errorf("list the cache: %w", err)
	}
	for _, e := range list {
		if ino, ok := inoOf(e.name); !ok || !in(ino) {
			continue
		}
		if rerr := c.remove(root, i, e.name, e.size); rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		files++
		bytes += onDisk(e.size)
	}
	return files, bytes, err
}

// remove takes a file away. That it is gone already is no error.
func (c *Cache) remove(root *os.Root, shard int, name string, size int64) error {
	s := &c.shards[shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	err := root.Remove(shardDir(shard) + "/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove from the cache: %w", err)
	}
	s.used.Add(-onDisk(size))
	return nil
}
