package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// site is one of the directories measured, with the accounts made in it.
type site struct {
	dir     string
	domain  string // DIR/bench-<random>.test: everything made lies below it
	opt     *Options
	content *content
	workers []*worker
}

func newSite(dir string, o *Options, c *content) (*site, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", dir, err)
	}
	s := &site{dir: dir, domain: filepath.Join(abs, "bench-"+rand.Text()[:10]+".test"), opt: o, content: c}
	if err := os.Mkdir(s.domain, 0o700); err != nil {
		return nil, fmt.Errorf("make a domain for the benchmark: %w", err)
	}
	return s, nil
}

// accounts makes the accounts of n workers and drops those of the phase before.
func (s *site) accounts(ctx context.Context, n int) error {
	if err := s.dropAccounts(); err != nil {
		return err
	}
	for i := range n {
		w := &worker{site: s, id: i, maildir: filepath.Join(s.domain, fmt.Sprintf("user%d", i), "Maildir"), buf: make([]byte, attachPiece)}
		s.workers = append(s.workers, w)
		for _, d := range []string{"tmp", "new", "cur", copies + "/tmp", copies + "/new", copies + "/cur"} {
			if err := os.MkdirAll(filepath.Join(w.maildir, d), 0o700); err != nil {
				return fmt.Errorf("make an account: %w", err)
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func (s *site) dropAccounts() error {
	for _, w := range s.workers {
		if err := os.RemoveAll(filepath.Dir(w.maildir)); err != nil {
			return fmt.Errorf("remove the benchmark's account: %w", err)
		}
	}
	s.workers = nil
	return nil
}

// remove takes away everything the site made.
func (s *site) remove() error {
	if err := os.RemoveAll(s.domain); err != nil {
		return fmt.Errorf("remove the benchmark's files, please remove %s by hand: %w", s.domain, err)
	}
	return nil
}

// start sets what the workers need for one round of a phase.
func (s *site) start(ctx context.Context, round, messages int) {
	for _, w := range s.workers {
		w.ctx, w.messages = ctx, messages
		w.next = uint64(round)<<40 | uint64(w.id)<<24
	}
}

// each runs f for all workers at once, each on an OS thread of its own, and
// returns the time from the common start to the last one's end.
func (s *site) each(f func(*worker) error) (time.Duration, error) {
	var ready, done sync.WaitGroup
	begin := make(chan struct{})
	errs := make([]error, len(s.workers))
	for i, w := range s.workers {
		ready.Add(1)
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			<-begin
			errs[i] = f(w)
		})
	}
	ready.Wait()
	t := time.Now()
	close(begin)
	done.Wait()
	d := time.Since(t)
	for _, err := range errs { // a mismatch counts more than what came of it
		var bad *MismatchError
		if errors.As(err, &bad) {
			return d, err
		}
	}
	return d, errors.Join(errs...)
}

// settle brings to disk what was left behind, so that the next pass pays for
// itself only.
func (s *site) settle() error {
	f, err := os.Open(s.domain)
	if err != nil {
		return fmt.Errorf("sync before a pass: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync before a pass: syncfs %s: %w", s.domain, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync before a pass: %w", err)
	}
	return nil
}

// dropCaches empties the kernel's caches of data, names and inodes.
func dropCaches() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil {
		return fmt.Errorf("drop the kernel's caches: %w", err)
	}
	return nil
}

// checkSpace refuses a run that would fill a disk.
func checkSpace(o *Options, mean int) error {
	most := 0
	for _, w := range o.Workers {
		most = max(most, w)
	}
	perDir := float64(most*o.Messages)*float64(mean+4096)*1.2 + float64(min(most, attachers)*o.AttachSize)
	inodes := uint64(most * (o.Messages + 20))
	devs := map[uint64]float64{}
	for _, d := range o.dirs() {
		var fsStat unix.Statfs_t
		var st unix.Stat_t
		if err := errors.Join(unix.Statfs(d, &fsStat), unix.Stat(d, &st)); err != nil {
			return &fs.PathError{Op: "free space of", Path: d, Err: err}
		}
		devs[st.Dev] += perDir
		free := float64(fsStat.Bavail) * float64(fsStat.Frsize)
		if fsStat.Blocks > 0 && devs[st.Dev] > free {
			return fmt.Errorf("%s has %.1f GiB free, the benchmark needs %.1f GiB: use fewer workers or messages",
				d, free/(1<<30), devs[st.Dev]/(1<<30))
		}
		if fsStat.Files > 0 && fsStat.Ffree < inodes {
			return fmt.Errorf("%s has %d inodes free, the benchmark needs %d", d, fsStat.Ffree, inodes)
		}
	}
	return nil
}
