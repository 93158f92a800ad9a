package cluster

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sys/unix"
)

var historyRounds = flag.Int("histories", 3, "how many things TestHistories breaks, one after the other")

const (
	historyHosts   = 3
	historyClients = 6 // on all of them
	historyDirs    = 6 // of each round
)

var (
	errExists  = errors.New("exists")
	errAbsent  = errors.New("absent")
	errUnclear = errors.New("unclear")
)

// histories are what the clients of TestHistories did, by directory or register.
type histories struct {
	t     *testing.T
	began time.Time
	dirs  atomic.Pointer[[]string] // below a mount; of the present round
	over  atomic.Bool

	mu    sync.Mutex
	done  map[string][]porcupine.Operation
	inos  map[uint64]string                           // what files hold
	clear [historyClients + historyHosts]atomic.Int64 // replies, by client
}

// host is a mount that clients work on.
type host struct {
	id    int
	point string
	dead  atomic.Bool
	use   sync.RWMutex // held shared by who works on it
}

// historian is a client.
type historian struct {
	*histories
	id   int
	on   *host
	r    *rand.Rand
	made int
}

// classify makes a reply of what a system call said.
func (h *histories) classify(what string, ino uint64, err error) reply {
	switch {
	case err == nil:
		return reply{nil, ino}
	case errors.Is(err, unix.EEXIST):
		return reply{err: errExists}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODATA):
		return reply{err: errAbsent}
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED):
	default:
		h.t.Errorf("%s: %v", what, err)
	}
	return reply{err: errUnclear}
}

// all is how many clear replies the clients got.
func (h *histories) all() (n int64) {
	for id := range historyClients {
		n += h.clear[id].Load()
	}
	return n
}

// do takes down what a client did and was told.
func (c *historian) do(key string, a act, call func() (uint64, error)) {
	from := time.Since(c.began)
	ino, err := call()
	to := time.Since(c.began)
	r := c.classify(fmt.Sprint(key, " ", a), ino, err)
	c.note(key, a, r, int64(from), int64(to))
}

func (c *historian) note(key string, a act, r reply, from, to int64) {
	if r.err == errUnclear {
		if a.verb == lookAt {
			return // it says nothing
		}
		to = math.MaxInt64
	} else {
		c.clear[c.id].Add(1)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done[key] = append(c.done[key], porcupine.Operation{ClientId: c.id, Input: a, Call: from, Output: r, Return: to})
}

// run acts at random until it is over.
func (c *historian) run() {
	for !c.over.Load() {
		if c.on.dead.Load() {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		c.on.use.RLock()
		dirs := *c.dirs.Load()
		c.act(c.r.IntN(len(dirs)), dirs)
		c.on.use.RUnlock()
	}
}

func (c *historian) act(i int, dirs []string) {
	key := dirs[i]
	dir := filepath.Join(c.on.point, key)
	n := c.r.IntN(shared)
	switch v := verb(c.r.IntN(12)); v {
	case createIt, linkIt, replaceIt:
		c.enter(key, dir, v, n)
	case takeIt, removeIt, moveIt:
		c.leave(key, dir, v, n)
	case lookAt, lookAt + 1:
		c.look(key, dir, n)
	case lookAt + 2:
		c.list(key, dir)
	case lookAt + 3:
		c.attribute(dir)
	default:
		c.write(dir, i%historyHosts == c.on.id)
	}
}

func name(dir string, n int) string { return filepath.Join(dir, fmt.Sprint("n", n)) }

// private is a name that nobody else uses.
func (c *historian) private(dir string) string {
	c.made++
	return filepath.Join(dir, fmt.Sprintf("private.%d.%d", c.id, c.made))
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return st.Ino, err
}

// enter gives a shared name to a file.
func (c *historian) enter(key, dir string, v verb, n int) {
	if v == createIt {
		c.do(key, act{verb: v, name: n}, func() (uint64, error) {
			f, err := os.OpenFile(name(dir, n), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return 0, err
			}
			defer f.Close()
			var st unix.Stat_t
			if unix.Fstat(int(f.Fd()), &st) != nil {
				st.Ino = anyone
			}
			return st.Ino, nil
		})
		return
	}
	file := c.private(dir)
	if os.WriteFile(file, []byte(filepath.Base(file)), 0o600) != nil {
		return
	}
	ino, err := inode(file)
	if err != nil {
		return
	}
	c.mu.Lock()
	c.inos[ino] = filepath.Base(file)
	c.mu.Unlock()
	c.do(key, act{verb: v, name: n, ino: ino}, func() (uint64, error) {
		if v == replaceIt {
			return 0, unix.Rename(file, name(dir, n))
		}
		return 0, unix.Link(file, name(dir, n))
	})
	if v == linkIt {
		unix.Unlink(file) // nobody asks for it any more
	}
}

// leave takes a shared name from a file.
func (c *historian) leave(key, dir string, v verb, n int) {
	a := act{verb: v, name: n, to: (n + 1) % shared}
	c.do(key, a, func() (uint64, error) {
		switch v {
		case removeIt:
			return 0, unix.Unlink(name(dir, n))
		case moveIt:
			return 0, unix.Rename(name(dir, n), name(dir, a.to))
		}
		file := c.private(dir)
		if err := unix.Rename(name(dir, n), file); err != nil {
			return 0, err
		}
		defer unix.Unlink(file)
		ino, err := inode(file)
		if err != nil {
			ino = anyone
		}
		return ino, nil
	})
}

// look asks for a name, or opens it and reads what the file holds.
func (c *historian) look(key, dir string, n int) {
	c.do(key, act{verb: lookAt, name: n}, func() (uint64, error) {
		if c.r.IntN(2) == 0 {
			return inode(name(dir, n))
		}
		f, err := os.Open(name(dir, n))
		if err != nil {
			return 0, err
		}
		defer f.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return 0, err
		}
		data, err := io.ReadAll(f)
		c.mu.Lock()
		want := c.inos[st.Ino]
		c.mu.Unlock()
		if err == nil && string(data) != want || errors.Is(err, unix.ESTALE) {
			c.t.Errorf("%s: inode %d holds %q, not %q, %v", key, st.Ino, data, want, err)
		}
		return st.Ino, nil
	})
}

// list reads the directory. Of each name it says whether it was there at some
// moment, not that all were at the same.
func (c *historian) list(key, dir string) {
	from := time.Since(c.began)
	list, err := os.ReadDir(dir)
	to := time.Since(c.began)
	if err != nil {
		c.classify("list "+key, 0, err)
		return
	}
	for n := range shared {
		r := reply{err: errAbsent}
		if slices.ContainsFunc(list, func(e os.DirEntry) bool { return e.Name() == filepath.Base(name(dir, n)) }) {
			r = reply{ino: anyone}
		}
		c.note(key, act{verb: lookAt, name: n}, r, int64(from), int64(to))
	}
}

// register is what histories call a file that has a value.
func (c *historian) register(file string) string { return strings.TrimPrefix(file, c.on.point+"/") }

var lastValue atomic.Uint64

// attribute sets or gets an extended attribute.
func (c *historian) attribute(dir string) {
	const attr = "user.value"
	file := filepath.Join(dir, "attribute")
	if c.r.IntN(2) == 0 {
		v := lastValue.Add(1)
		c.do(c.register(file), act{verb: setIt, ino: v}, func() (uint64, error) {
			return 0, unix.Setxattr(file, attr, fmt.Append(nil, v), 0)
		})
		return
	}
	c.do(c.register(file), act{verb: lookAt}, func() (uint64, error) {
		buf := make([]byte, 30)
		n, err := unix.Getxattr(file, attr, buf)
		if err != nil {
			return 0, err
		}
		return strconv.ParseUint(string(buf[:n]), 10, 64)
	})
}

// write puts a value into a file, if it is the host that does, or reads it. What a
// host has written others see when it has closed the file, its own processes at once.
func (c *historian) write(dir string, writes bool) {
	file := filepath.Join(dir, "value")
	if writes {
		v := lastValue.Add(1)
		c.do(c.register(file), act{verb: setIt, ino: v}, func() (uint64, error) {
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				return 0, err
			}
			_, err = f.WriteAt(fmt.Appendf(nil, "%20d", v), 0)
			return 0, errors.Join(err, f.Close())
		})
		return
	}
	c.do(c.register(file), act{verb: lookAt}, func() (uint64, error) {
		b, err := os.ReadFile(file)
		if err == nil && len(b) == 0 {
			err = unix.ENOENT
		}
		if err != nil {
			return 0, err
		}
		return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	})
}
