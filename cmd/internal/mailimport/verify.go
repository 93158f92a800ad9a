package mailimport

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// verify compares everything with the source again.
func (r *run) verify(ctx context.Context) error {
	r.begin("verify")
	p := r.workers(ctx)
	return p.wait(walk(p.ctx, &r.opt, r.failed, func(e *entry) error {
		switch e.kind {
		case dirKind:
			return r.soft(r.checkDir(e))
		case fileKind, symlinkKind, linkKind:
			return p.do(func(b *buffers) error { return r.count(e.bytes(), r.checkEntry(e, b)) })
		case mboxKind:
			return r.messages(e, p, r.check)
		}
		return nil
	}))
}

func (r *run) checkDir(e *entry) error {
	if e.rel == "." && r.isMount {
		return nil
	}
	a, err := e.attrs()
	if err != nil {
		return err
	}
	r.tally(&r.rep.Verified)
	return r.compare(&a, e.src, r.dst(e.rel), false)
}

func (r *run) checkEntry(e *entry, b *buffers) error {
	it, err := e.item()
	if err != nil {
		return err
	}
	if e.kind == linkKind {
		if err := r.checkLink(e); err != nil {
			return err
		}
	}
	return r.check(it, b)
}

// checkLink says when two names of one file have become two files.
func (r *run) checkLink(e *entry) error {
	if rec, ok := r.j.file(e.rel); ok && rec.kind == 'X' || r.split[e.rel] {
		return nil
	}
	var first, st unix.Stat_t
	if unix.Lstat(r.dst(e.first), &first) != nil || unix.Lstat(r.dst(e.rel), &st) != nil {
		return nil // missing: check tells
	}
	if inodeOf(&first) != inodeOf(&st) {
		r.mismatch(r.dst(e.rel), "is no hard link of "+filepath.Join(r.opt.Dst, e.first))
	}
	return nil
}

// check compares a file or symlink.
func (r *run) check(it *item, b *buffers) error {
	r.tally(&r.rep.Verified)
	dst := r.dst(it.rel)
	var st unix.Stat_t
	if err := unix.Lstat(dst, &st); errors.Is(err, unix.ENOENT) {
		r.mismatch(dst, "is missing")
		return nil
	} else if err != nil {
		return at("lstat", dst, err)
	}
	equal, err := it.equals(dst, &st, b, true)
	if err != nil {
		return fmt.Errorf("compare %s with %s: %w", dst, it.from, err)
	}
	if !equal {
		r.mismatch(dst, "differs from "+it.from)
		return nil
	}
	return r.compare(&it.attrs, it.from, dst, it.target != "")
}

// compare compares all but contents.
func (r *run) compare(a *attrs, from, dst string, symlink bool) error {
	diff, err := a.differs(dst, symlink, func(name string) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.rep.Refused[name] > 0 || r.j.refused(name)
	})
	if errors.Is(err, unix.ENOENT) {
		diff, err = "is missing", nil
	}
	if err == nil && diff != "" {
		r.mismatch(dst, "compared with "+from+": "+diff)
	}
	return err
}

func (r *run) mismatch(path, what string) {
	r.tally(&r.rep.Mismatches)
	r.tell(path + ": " + what)
}
