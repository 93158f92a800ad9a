package cluster

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// post delivers, moves and removes messages while things break, and knows of each
// what has to be found in the end.
type post struct {
	t       *testing.T
	mu      sync.Mutex
	changed *sync.Cond // on mu: a delivery has ended
	letters []*letter
	tried   int            // deliveries
	acked   map[string]int // of them, by worker
	failed  map[syscall.Errno]int
	longest time.Duration // an acknowledged one took
	over    bool
	wg      sync.WaitGroup
}

// letter is a message. It is under one of its names, and under none only if it
// may be gone; what a failed call has done is not known.
type letter struct {
	sum   [32]byte
	names []string // below the mount; none: it was removed
	gone  bool     // it may be
}

func newPost(t *testing.T) *post {
	p := &post{t: t, acked: map[string]int{}, failed: map[syscall.Errno]int{}}
	p.changed = sync.NewCond(&p.mu)
	t.Cleanup(p.end)
	return p
}

// work begins some workers on a mount, each with a mailbox of its own.
func (p *post) work(mount, name string, workers int, seed uint64) {
	p.t.Helper()
	for w := range workers {
		user := filepath.Join("example.org", fmt.Sprint(name, "-", w))
		for _, sub := range []string{"tmp", "new", "cur"} {
			if err := os.MkdirAll(filepath.Join(mount, user, sub), 0o755); err != nil {
				p.t.Fatal(err)
			}
		}
		p.mu.Lock()
		p.acked[user] = 0
		p.mu.Unlock()
		p.wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for i := 0; !p.ended(); i++ {
				p.one(r, mount, user, fmt.Sprint(i))
			}
		})
	}
}

func (p *post) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over
}

func (p *post) end() {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	p.wg.Wait()
}

// one delivers a message, and reads, moves or removes it sometimes.
func (p *post) one(r *rand.Rand, mount, user, name string) {
	data := body(r)
	l := &letter{sum: sha256.Sum256(data)}
	start := time.Now()
	ok := p.deliver(l, mount, user, name, data)
	p.mu.Lock()
	p.tried++
	if ok {
		p.acked[user]++
		p.longest = max(p.longest, time.Since(start))
	}
	p.changed.Broadcast()
	p.mu.Unlock()
	if !ok {
		return
	}
	full := func(name string) string { return filepath.Join(mount, name) }
	switch was := l.names[0]; r.IntN(4) {
	case 0:
		to := filepath.Join(user, "cur", name+":2,S")
		p.note(func() { l.names = []string{was, to} })
		if p.did(os.Rename(full(was), full(to))) {
			p.note(func() { l.names = []string{to} })
		}
	case 1:
		p.note(func() { l.gone = true })
		if p.did(unix.Unlink(full(was))) {
			p.note(func() { l.names = nil })
		}
	case 2:
		if b, err := os.ReadFile(full(was)); p.did(err) && sha256.Sum256(b) != l.sum {
			p.t.Errorf("%s: read other content than was delivered", was)
		}
	}
}

// deliver does as Postfix does.
func (p *post) deliver(l *letter, mount, user, name string, data []byte) bool {
	tmp, path := filepath.Join(mount, user, "tmp", name), filepath.Join(user, "new", name)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if !p.did(err) {
		return false
	}
	_, err = f.Write(data)
	if !p.did(errors.Join(err, f.Sync(), f.Close())) {
		return false
	}
	p.note(func() {
		l.names, l.gone = []string{path}, true
		p.letters = append(p.letters, l)
	})
	if !p.did(os.Link(tmp, filepath.Join(mount, path))) {
		return false
	}
	p.note(func() { l.gone = false })
	p.did(unix.Unlink(tmp)) // os.Remove would try rmdir after a failure
	return true
}

func (p *post) note(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn()
}

// did says whether a call succeeded. It may fail for what is broken, and for
// nothing else.
func (p *post) did(err error) bool {
	if err == nil {
		return true
	}
	errno := syscall.Errno(0)
	if !errors.As(err, &errno) || errno != syscall.EIO && errno != syscall.EAGAIN && errno != syscall.ENOSPC {
		p.t.Error(err)
	}
	p.note(func() { p.failed[errno]++ })
	return false
}

// goesAbout waits until some deliveries have ended, well or not, but no longer
// than a time.
func (p *post) goesAbout(n int, limit time.Duration) {
	timer := time.AfterFunc(limit, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		n = 0
		p.changed.Broadcast()
	})
	defer timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for from := p.tried; p.tried-from < n; {
		p.changed.Wait()
	}
}

// goesOn waits until every worker has delivered more.
func (p *post) goesOn(c *cluster, what string) {
	p.t.Helper()
	p.mu.Lock()
	want := map[string]int{}
	for user, n := range p.acked {
		want[user] = n + 2
	}
	p.mu.Unlock()
	c.eventually("every mailbox gets mail "+what, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for user, n := range want {
			if p.acked[user] < n {
				return false
			}
		}
		return true
	})
}

func (p *post) String() string {
	acked := 0
	for _, n := range p.acked {
		acked += n
	}
	return fmt.Sprintf("%d of %d deliveries acknowledged, the longest after %v; failed calls: %v", acked, p.tried, p.longest.Round(time.Millisecond), p.failed)
}

// verify compares what a mount shows with what has to be there.
func (p *post) verify(mount string) {
	p.t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir(filepath.Join(mount, "example.org"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && filepath.Base(filepath.Dir(path)) != "tmp" {
			rel, _ := filepath.Rel(mount, path)
			found[rel] = true
		}
		return err
	})
	if err != nil {
		p.t.Errorf("look at all mail: %v", err)
	}
	for _, l := range p.letters {
		there := slices.DeleteFunc(slices.Clone(l.names), func(name string) bool { return !found[name] })
		if len(there) > 1 || len(there) == 0 && len(l.names) > 0 && !l.gone {
			p.t.Errorf("%s: a message of the names %q has %q", mount, l.names, there)
		}
		for _, name := range there {
			delete(found, name)
			if b, err := os.ReadFile(filepath.Join(mount, name)); err != nil || sha256.Sum256(b) != l.sum {
				p.t.Errorf("%s/%s: other content than was delivered, %v", mount, name, err)
			}
		}
	}
	for name := range found {
		p.t.Errorf("%s/%s is there, and should not be", mount, name)
	}
}
