package client

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"pillarbox/objstore"
)

func newCache(max int64) (*cache, *stream) {
	c := &cache{max: max}
	c.on.Store(true)
	s := &stream{begun: make(chan struct{}), ended: make(chan struct{})}
	s.beat(time.Now().Add(time.Hour))
	return c, s
}

// mailName is as long as those of messages are.
func mailName(i int) string {
	return fmt.Sprintf("1732826400.M%06dP1234.mx1.example.org,S=12345,W=12543:2,S", i)
}

// look puts what a look at one message leaves into the cache.
func look(c *cache, s *stream, vol objstore.VolumeID, i int) {
	dir, ino := objstore.VolumeRoot(vol), objstore.MakeIno(vol, uint64(i+2))
	q := c.ask(vol)
	c.looked(q, s, dir, mailName(i), objstore.DirEntry{Ino: ino, Attr: &objstore.Attr{Ino: ino}}, false)
	c.gotExtents(q, s, ino, span{0, 1 << 20, []objstore.Extent{{Kind: objstore.Resident}}})
	c.looked(q, s, dir, mailName(i)+"T", objstore.DirEntry{}, true)
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestCacheMemory looks at more than may be kept, in few accounts and in many:
// memory stays below the bound.
func TestCacheMemory(t *testing.T) {
	const max = 8 << 20
	for _, perVolume := range []int{1, 20, 10_000} {
		c, s := newCache(max)
		before := heapInUse()
		for i := range 100_000 {
			look(c, s, objstore.VolumeID(1+i/perVolume), i)
		}
		used := heapInUse() - before
		if used > 2*max { // other tests' memory is in it
			t.Errorf("%d messages an account: %d bytes in use", perVolume, used)
		}
		if c.size > max || c.size <= 0 {
			t.Errorf("%d messages an account: %d bytes are counted", perVolume, c.size)
		}
		sum := int64(0)
		for _, vc := range c.vols {
			sum += vc.size
		}
		if sum != c.size {
			t.Errorf("the volumes have %d bytes, all have %d", sum, c.size)
		}
		t.Logf("%d messages an account: %d bytes are counted, %d in use", perVolume, c.size, used)
		runtime.KeepAlive(c)
	}
}

// TestForgottenDuringChange: an account is forgotten while a change in it is under
// way, and an answer from before the change comes since.
func TestForgottenDuringChange(t *testing.T) {
	const vol = 7
	c, s := newCache(1 << 20)
	dir, ino := objstore.VolumeRoot(vol), objstore.MakeIno(vol, 2)
	change := c.begin(vol)
	c.void(func(objstore.VolumeID) bool { return true })
	q := c.ask(vol)
	c.looked(q, s, dir, "mail", objstore.DirEntry{Ino: ino, Attr: &objstore.Attr{Ino: ino}}, false)
	c.changed(change, s, objstore.Remove{Parent: dir, Name: "mail"}, objstore.Result{Attr: objstore.Attr{Ino: ino}}, nil)
	if e, _, ok := c.lookup(dir, "mail"); ok && e.Ino == ino {
		t.Error("a name that was removed is known")
	}
}

// TestRefusedRemoval: a directory that is not empty keeps its name.
func TestRefusedRemoval(t *testing.T) {
	const vol = 7
	c, s := newCache(1 << 20)
	dir, ino := objstore.VolumeRoot(vol), objstore.MakeIno(vol, 2)
	entry := objstore.DirEntry{Name: "box", Ino: ino, Type: objstore.ModeDir, Attr: &objstore.Attr{Ino: ino, Mode: objstore.ModeDir}}
	c.listed(c.ask(vol), s, dir, listing{names: []objstore.DirEntry{entry}, ends: true})
	if _, absent, ok := c.lookup(dir, "none"); !absent || !ok {
		t.Fatalf("a name that is not in a whole listing: absent %v, known %v", absent, ok)
	}
	change := objstore.Remove{Parent: dir, Name: "box", Dir: true}
	c.changed(c.begin(vol), s, change, objstore.Result{}, objstore.NotEmpty)
	if _, absent, _ := c.lookup(dir, "box"); absent {
		t.Error("a directory that could not be removed is taken to be gone")
	}
}
