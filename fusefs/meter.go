package fusefs

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// op is a kind of request.
type op uint8

const (
	opLookup op = iota
	opGetAttr
	opSetAttr
	opMknod
	opMkdir
	opSymlink
	opReadlink
	opLink
	opUnlink
	opRmdir
	opRename
	opOpen
	opCreate
	opTmpfile
	opRead
	opWrite
	opFlush
	opFsync
	opRelease
	opLseek
	opCopy
	opFallocate
	opOpenDir
	opReadDir
	opReadDirPlus
	opFsyncDir
	opGetXattr
	opListXattr
	opSetXattr
	opRemoveXattr
	opGetLk
	opSetLk
	opSetLkw
	opStatFs
	ops
)

var opNames = [ops]string{
	"lookup", "getattr", "setattr", "mknod", "mkdir", "symlink", "readlink", "link", "unlink", "rmdir", "rename",
	"open", "create", "tmpfile", "read", "write", "flush", "fsync", "release", "lseek", "copy_file_range", "fallocate",
	"opendir", "readdir", "readdirplus", "fsyncdir", "getxattr", "listxattr", "setxattr", "removexattr",
	"getlk", "setlk", "setlkw", "statfs",
}

// Times are counted in steps of a quarter of a power of two: from one step to the
// next it is at most a quarter more.
const (
	shortest = 10                 // the power of two, in nanoseconds, below which times are not told apart
	timeLog  = 27                 // powers of two that are
	timeStep = 1 + 4*timeLog      // how many steps there are
	eternity = shortest + timeLog // the power of two from which on they are not told apart either
)

// stepOf is the step that a time is in.
func stepOf(d time.Duration) int {
	n := uint64(max(d, 0))
	log := bits.Len64(n) - 1
	switch {
	case log < shortest:
		return 0
	case log >= eternity:
		return timeStep - 1
	}
	return 1 + 4*(log-shortest) + int(n>>(log-2)&3)
}

// StepEnd is the time that those counted in a step of Times are below.
func StepEnd(step int) time.Duration {
	if step == 0 {
		return 1 << shortest
	}
	log, quarter := shortest+(step-1)/4, (step-1)%4
	return time.Duration(1)<<log + time.Duration(quarter+1)<<(log-2)
}

// Times are how long some requests took.
type Times struct {
	Count  uint64        `json:"count"`
	Failed uint64        `json:"failed"` // of them, with EIO, or EAGAIN in its place
	Total  time.Duration `json:"total"`
	Steps  []uint64      `json:"steps"` // how many took less than StepEnd of their index and no less than that before; the last has all that took longer, too
}

// Below is a time that a part of the requests, such as 0.99, stayed below: the end
// of a step. 0: there were none.
func (t *Times) Below(part float64) time.Duration {
	want, sum := part*float64(t.Count), uint64(0)
	for i, n := range t.Steps {
		if sum += n; sum > 0 && float64(sum) >= want {
			return StepEnd(i)
		}
	}
	return 0
}

// Since is what came after an earlier state of the same counts.
func (t Times) Since(before Times) Times {
	d := Times{t.Count - before.Count, t.Failed - before.Failed, t.Total - before.Total, make([]uint64, len(t.Steps))}
	for i, n := range t.Steps {
		if d.Steps[i] = n; i < len(before.Steps) {
			d.Steps[i] -= before.Steps[i]
		}
	}
	return d
}

// Add counts others together with t's.
func (t *Times) Add(o Times) {
	t.Count += o.Count
	t.Failed += o.Failed
	t.Total += o.Total
	for len(t.Steps) < len(o.Steps) {
		t.Steps = append(t.Steps, 0)
	}
	for i, n := range o.Steps {
		t.Steps[i] += n
	}
}

// counter counts the times of one op. There is no lock.
type counter struct {
	failed atomic.Uint64
	total  atomic.Int64
	steps  [timeStep]atomic.Uint64
}

func (c *counter) add(d time.Duration, failed bool) {
	if failed {
		c.failed.Add(1)
	}
	c.total.Add(int64(d))
	c.steps[stepOf(d)].Add(1)
}

func (c *counter) times() Times {
	t := Times{Failed: c.failed.Load(), Total: time.Duration(c.total.Load()), Steps: make([]uint64, timeStep)}
	for i := range c.steps {
		t.Steps[i] = c.steps[i].Load()
		t.Count += t.Steps[i]
	}
	return t
}

// meter counts what a mount is asked.
type meter struct {
	ops           [ops]counter
	read, written atomic.Uint64 // bytes

	mu       sync.Mutex // held while profiles come and go
	profiles atomic.Pointer[[]*Profile]
}

// Stats are what a mount was asked since it is up.
type Stats struct {
	Ops          map[string]Times `json:"ops"` // by kind of request; those that there were
	ReadBytes    uint64           `json:"read_bytes"`
	WrittenBytes uint64           `json:"written_bytes"`
}

// Stats tells what the mount was asked so far. What the kernel answers from its
// own caches it does not ask.
func (m *Mounted) Stats() Stats {
	me := &m.raw.meter
	s := Stats{Ops: map[string]Times{}, ReadBytes: me.read.Load(), WrittenBytes: me.written.Load()}
	for i := range me.ops {
		if t := me.ops[i].times(); t.Count > 0 {
			s.Ops[opNames[i]] = t
		}
	}
	return s
}

// done counts a request that began at some time, and passes its answer on.
func (m *meter) done(o op, in *fuse.InHeader, began time.Time, st fuse.Status) fuse.Status {
	d := time.Since(began)
	failed := st == fuse.EIO || st == fuse.EAGAIN && (o == opFsync || o == opFlush)
	m.ops[o].add(d, failed)
	if list := m.profiles.Load(); list != nil {
		for _, p := range *list {
			p.add(o, in, d, failed)
		}
	}
	return st
}
