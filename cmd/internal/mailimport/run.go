package mailimport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// run is one import.
type run struct {
	opt     Options
	j       *journal
	isMount bool            // the destination is a mount point: its attributes are not ours
	split   map[string]bool // rel of hard links that became copies; written between the pools

	mu          sync.Mutex // guards what follows
	rep         Report
	stage       string
	done, total int64 // bytes
}

// Run imports and reports. The report is there, with what was done so far, also
// with an error; nil only if the import could not begin. ErrFailed and
// ErrMismatch tell that the report's Errors say more.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	r := &run{opt: o, split: map[string]bool{}}
	r.rep = Report{Source: o.Src, Destination: o.Dst, Refused: map[string]int{}, Errors: []string{}}
	err := r.all(ctx)
	if err == nil && r.rep.Failed > 0 {
		err = ErrFailed
	}
	if err == nil && r.rep.Mismatches > 0 {
		err = ErrMismatch
	}
	return &r.rep, err
}

func (r *run) all(ctx context.Context) error {
	if err := r.scan(ctx); err != nil {
		return err
	}
	if r.opt.DryRun {
		return nil
	}
	j, err := openJournal(r.opt.State, r.opt.Src, r.opt.Dst)
	if err != nil {
		return err
	}
	r.j, r.rep.Journal, r.rep.Resumed = j, r.opt.State, j.resumed
	err = r.checkSpace()
	if err == nil {
		err = r.copy(ctx)
	}
	if err = errors.Join(err, j.sync(), j.close()); err != nil {
		return err
	}
	if r.opt.NoVerify || r.rep.Failed > 0 {
		return nil
	}
	return r.verify(ctx)
}

// scan counts, and finds out whether the source can be read as what it is.
func (r *run) scan(ctx context.Context) error {
	fail := func(err error) {
		if r.opt.DryRun { // else copying meets it again
			r.failed(err)
		}
	}
	return walk(ctx, &r.opt, fail, func(e *entry) error {
		c := &r.rep
		switch e.kind {
		case dirKind:
			c.Directories++
		case fileKind:
			c.Files++
			c.Bytes += e.bytes()
		case linkKind:
			c.HardLinks++
		case symlinkKind:
			c.Symlinks++
		case lockKind:
			c.LocksLeft++
		case specialKind:
			c.Special++
		case mboxKind:
			c.Mboxes++
			c.Bytes += e.bytes()
			err := r.countMessages(e)
			if err != nil && e.rel == "." {
				return err
			}
			if err != nil {
				fail(err)
			}
		}
		return nil
	})
}

func (r *run) countMessages(e *entry) error {
	f, err := os.Open(e.src)
	if err != nil {
		return fmt.Errorf("count messages: %w", err)
	}
	defer f.Close()
	return at("mbox", e.src, indexMbox(f, e.st.Size, func(seg segment) error {
		if seg.Internal {
			r.rep.Internal++
		} else {
			r.rep.Messages++
		}
		return nil
	}))
}

func (r *run) checkSpace() error {
	if r.j.resumed {
		return nil // what is there already was not counted
	}
	var st unix.Statfs_t
	dir := r.opt.Dst
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		dir = filepath.Dir(dir)
	}
	if err := unix.Statfs(dir, &st); err != nil {
		return at("free space of", dir, err)
	}
	if free := int64(st.Bavail) * st.Frsize; st.Blocks > 0 && r.rep.Bytes > free {
		return fmt.Errorf("the source has %d bytes, %s has %d free: %w", r.rep.Bytes, dir, free, unix.ENOSPC)
	}
	return nil
}

// buffers are one worker's.
type buffers struct {
	w             *bufio.Writer
	copy, compare []byte
}

func newBuffers() *buffers {
	const size = 256 << 10
	return &buffers{w: bufio.NewWriterSize(nil, size), copy: make([]byte, size), compare: make([]byte, size)}
}

// pool hands jobs to workers.
type pool struct {
	g    *errgroup.Group
	ctx  context.Context
	jobs chan func(*buffers) error
}

// workers starts the workers. An error of a job ends all.
func (r *run) workers(ctx context.Context) *pool {
	g, ctx := errgroup.WithContext(ctx)
	p := &pool{g: g, ctx: ctx, jobs: make(chan func(*buffers) error)}
	for range r.opt.Workers {
		g.Go(func() error {
			b := newBuffers()
			for job := range p.jobs {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := job(b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return p
}

func (p *pool) do(job func(*buffers) error) error {
	select {
	case p.jobs <- job:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
}

// wait ends the workers; err is what the caller met itself.
func (p *pool) wait(err error) error {
	close(p.jobs)
	if e := p.g.Wait(); e != nil {
		return e
	}
	return err
}

// copy brings everything over that is not there.
func (r *run) copy(ctx context.Context) error {
	if err := r.makeDst(); err != nil {
		return err
	}
	r.begin("copy")
	var dirs, links []*entry
	p := r.workers(ctx)
	err := p.wait(walk(p.ctx, &r.opt, r.failed, func(e *entry) error {
		switch e.kind {
		case dirKind:
			dirs = append(dirs, e)
			return r.makeDir(e)
		case fileKind, symlinkKind:
			return p.do(func(b *buffers) error { return r.count(e.bytes(), r.copyEntry(e, b, 'F')) })
		case linkKind:
			links = append(links, e)
		case inboxKind:
			return r.soft(r.makeMaildir(e))
		case mboxKind:
			return r.copyMbox(e, p)
		}
		return nil
	}))
	if err != nil {
		return err
	}
	b := newBuffers()
	for _, e := range links {
		if err := r.count(0, r.copyLink(e, b)); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	slices.Reverse(dirs)
	for _, e := range dirs {
		if err := r.soft(r.finishDir(e)); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) makeDst() error {
	if err := os.Mkdir(r.opt.Dst, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the destination: %w", err)
	}
	var dst, up unix.Stat_t
	if err := errors.Join(unix.Stat(r.opt.Dst, &dst), unix.Stat(filepath.Dir(r.opt.Dst), &up)); err != nil {
		return at("stat", r.opt.Dst, err)
	}
	r.isMount = dst.Dev != up.Dev
	return nil
}

// makeDir makes a directory; an error concerns all in it, so it ends the run.
func (r *run) makeDir(e *entry) error {
	dst := r.dst(e.rel)
	r.j.touch(filepath.Dir(dst))
	if err := unix.Mkdir(dst, 0o700); err != nil {
		var st unix.Stat_t
		if !errors.Is(err, unix.EEXIST) || unix.Lstat(dst, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return at("make directory", dst, err)
		}
		return r.sweep(dst)
	}
	return nil
}

// sweep removes files that a killed run was writing.
func (r *run) sweep(dir string) error {
	if !r.j.resumed {
		return nil
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for what a killed run left: %w", err)
	}
	for _, d := range list {
		if strings.HasPrefix(d.Name(), tempPrefix) && len(d.Name()) == tempLen {
			if err := os.Remove(filepath.Join(dir, d.Name())); err != nil {
				return fmt.Errorf("remove what a killed run left: %w", err)
			}
		}
	}
	return nil
}

func (r *run) finishDir(e *entry) error {
	if e.rel == "." && r.isMount {
		return nil
	}
	a, err := e.attrs()
	if err != nil {
		return err
	}
	r.j.touch(r.dst(e.rel))
	return a.apply(r.dst(e.rel), false, r.refused)
}

func (r *run) dst(rel string) string { return filepath.Join(r.opt.Dst, rel) }

// soft notes an error and goes on, unless it is hopeless.
func (r *run) soft(err error) error {
	if err == nil || hopeless(err) || errors.Is(err, context.Canceled) {
		return err
	}
	r.failed(err)
	return nil
}

// count is soft, and moves the progress on.
func (r *run) count(bytes int64, err error) error {
	r.mu.Lock()
	r.done += bytes
	if r.opt.Progress != nil {
		r.opt.Progress(r.stage, r.done, r.total)
	}
	r.mu.Unlock()
	return r.soft(err)
}

func (r *run) begin(stage string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stage, r.done, r.total = stage, 0, r.rep.Bytes
}

func (r *run) failed(err error) {
	r.tally(&r.rep.Failed)
	r.tell(err.Error())
}

func (r *run) tell(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rep.Errors) < maxErrors {
		r.rep.Errors = append(r.rep.Errors, s)
	}
}

// tally adds one to a count of the report.
func (r *run) tally(n *int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*n++
}

// refused counts an attribute that the destination does not take.
func (r *run) refused(name string) {
	r.mu.Lock()
	r.rep.Refused[name]++
	first := r.rep.Refused[name] == 1
	r.mu.Unlock()
	if first && !r.j.refused(name) {
		if err := r.j.add('R', name, "", 0, 0, 0); err != nil {
			r.failed(err)
		}
	}
}
