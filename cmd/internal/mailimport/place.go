package mailimport

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Names of files being written: a dot keeps mail software away from them, and
// a run that goes on finds the ones left by a killed run.
const (
	tempPrefix = ".pbimport-"
	tempLen    = len(tempPrefix) + 16
)

func tempName(path string) string {
	sum := sha256.Sum256([]byte(filepath.Base(path)))
	return filepath.Join(filepath.Dir(path), fmt.Sprintf("%s%x", tempPrefix, sum[:8]))
}

// item is a file to be put in place, or a symlink.
type item struct {
	rel    string
	from   string // for errors: where it comes from
	size   int64
	mtime  int64
	target string // of a symlink; else empty
	attrs  attrs
	write  func(w io.Writer, buf []byte) error // its contents
}

// item makes one of a file or symlink of the source.
func (e *entry) item() (*item, error) {
	a, err := e.attrs()
	if err != nil {
		return nil, err
	}
	it := &item{rel: e.rel, from: e.src, size: e.st.Size, mtime: mtimeOf(&e.st), attrs: a}
	if e.kind == symlinkKind {
		if it.target, err = os.Readlink(e.src); err != nil {
			return nil, fmt.Errorf("read a symlink: %w", err)
		}
	}
	it.write = func(w io.Writer, buf []byte) error {
		f, err := os.Open(e.src)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.CopyBuffer(onlyWriter{w}, onlyReader{f}, buf)
		if err == nil && n != e.st.Size {
			err = fmt.Errorf("%s changed while it was read: it had %d bytes, now %d", e.src, e.st.Size, n)
		}
		return err
	}
	return it, nil
}

// They keep io.CopyBuffer from going around the buffer.
type onlyWriter struct{ io.Writer }
type onlyReader struct{ io.Reader }

func (r *run) copyEntry(e *entry, b *buffers, kind byte) error {
	it, err := e.item()
	if err != nil {
		return err
	}
	return r.place(it, b, kind)
}

// place brings an item to its path if it is not there, and notes it as kind. It
// never replaces what the import did not make.
func (r *run) place(it *item, b *buffers, kind byte) error {
	dst := r.dst(it.rel)
	rec, known := r.j.file(it.rel)
	same := known && rec.size == it.size && rec.mtime == it.mtime
	var st unix.Stat_t
	err := unix.Lstat(dst, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		if same && rec.durable {
			r.tally(&r.rep.Gone)
			return nil
		}
	case err != nil:
		return at("lstat", dst, err)
	case same:
		r.tally(&r.rep.Present)
		return nil
	case known && st.Size == rec.size && mtimeOf(&st) == rec.mtime:
		// Ours, and the source has changed since.
	default:
		return r.adopt(it, &st, b, kind)
	}
	if err := r.write(it, dst, b); err != nil {
		return err
	}
	r.tally(&r.rep.Copied)
	return r.j.add(kind, it.rel, filepath.Dir(dst), it.size, it.mtime, 0)
}

// adopt takes what a killed run did not come to note, which has the same
// contents, and refuses everything else.
func (r *run) adopt(it *item, st *unix.Stat_t, b *buffers, kind byte) error {
	dst := r.dst(it.rel)
	equal, err := it.equals(dst, st, b, false)
	if err != nil {
		return err
	}
	if !equal {
		return fmt.Errorf("%s exists and is not a copy of %s: left alone", dst, it.from)
	}
	if err := it.attrs.apply(dst, it.target != "", r.refused); err != nil {
		return err
	}
	r.tally(&r.rep.Present)
	return r.j.add(kind, it.rel, filepath.Dir(dst), it.size, it.mtime, 0)
}

// write puts the item in place by way of a temporary name.
func (r *run) write(it *item, dst string, b *buffers) (err error) {
	tmp := tempName(dst)
	defer func() {
		if err != nil {
			if e := os.Remove(tmp); e != nil && !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}()
	if it.target != "" {
		if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove what a killed run left: %w", err)
		}
		if err := os.Symlink(it.target, tmp); err != nil {
			return fmt.Errorf("copy %s: %w", it.from, err)
		}
		if err := it.attrs.apply(tmp, true, r.refused); err != nil {
			return err
		}
	} else if err := r.writeFile(it, tmp, b); err != nil {
		return fmt.Errorf("copy %s: %w", it.from, err)
	}
	if err := unix.Rename(tmp, dst); err != nil {
		return fmt.Errorf("rename %s to %s: %w", tmp, dst, err)
	}
	return nil
}

func (r *run) writeFile(it *item, tmp string, b *buffers) (err error) {
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b.w.Reset(f)
	if err := it.write(b.w, b.copy); err != nil {
		return err
	}
	if err := b.w.Flush(); err != nil {
		return err
	}
	if err := it.attrs.apply(tmp, false, r.refused); err != nil {
		return err
	}
	return f.Sync()
}

// equals says whether path holds what the item does. With cold, what the kernel
// keeps of it in memory is dropped first, so that the filesystem answers.
func (it *item) equals(path string, st *unix.Stat_t, b *buffers, cold bool) (bool, error) {
	if it.target != "" {
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return false, nil
		}
		target, err := os.Readlink(path)
		return target == it.target, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != it.size {
		return false, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if cold {
		// Advice: a filesystem may do without.
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	c := &comparer{r: bufio.NewReaderSize(f, 64<<10), buf: b.compare}
	b.w.Reset(c)
	err = it.write(b.w, b.copy)
	if err == nil {
		err = b.w.Flush()
	}
	if errors.Is(err, errUnequal) {
		return false, nil
	}
	return err == nil && c.end(), err
}

var errUnequal = errors.New("contents differ")

// comparer is a writer that wants to be given what it reads elsewhere.
type comparer struct {
	r   io.Reader
	buf []byte
}

func (c *comparer) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		part := c.buf[:min(len(c.buf), len(p)-n)]
		if _, err := io.ReadFull(c.r, part); err == io.EOF || err == io.ErrUnexpectedEOF {
			return n, errUnequal
		} else if err != nil {
			return n, err
		}
		if !bytes.Equal(part, p[n:n+len(part)]) {
			return n, errUnequal
		}
		n += len(part)
	}
	return len(p), nil
}

// end says whether all was compared.
func (c *comparer) end() bool {
	n, err := c.r.Read(c.buf[:1])
	return n == 0 && err == io.EOF
}

// copyLink gives a file another name.
func (r *run) copyLink(e *entry, b *buffers) error {
	first, dst := r.dst(e.first), r.dst(e.rel)
	rec, known := r.j.file(e.rel)
	var want, st unix.Stat_t
	if err := unix.Lstat(first, &want); errors.Is(err, unix.ENOENT) {
		return r.splitLink(e, b) // it failed, or was removed since
	} else if err != nil {
		return at("lstat", first, err)
	}
	err := unix.Lstat(dst, &st)
	ours := known && st.Size == rec.size && mtimeOf(&st) == rec.mtime
	switch {
	case errors.Is(err, unix.ENOENT):
		if known && rec.durable && rec.size == e.st.Size && rec.mtime == mtimeOf(&e.st) {
			r.tally(&r.rep.Gone)
			return nil
		}
	case err != nil:
		return at("lstat", dst, err)
	case inodeOf(&st) == inodeOf(&want):
		r.tally(&r.rep.Present)
		return r.noteLink(e, dst)
	case ours && rec.kind == 'X' || !ours:
		return r.splitLink(e, b)
	}
	tmp := tempName(dst)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove what a killed run left: %w", err)
	}
	switch err := unix.Link(first, tmp); {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EMLINK), errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOTSUP):
		return r.splitLink(e, b)
	case err != nil:
		return fmt.Errorf("link %s to %s: %w", first, tmp, err)
	}
	if err := unix.Rename(tmp, dst); err != nil {
		return fmt.Errorf("rename %s to %s: %w", tmp, dst, err)
	}
	r.tally(&r.rep.Copied)
	return r.noteLink(e, dst)
}

func (r *run) noteLink(e *entry, dst string) error {
	return r.j.add('F', e.rel, filepath.Dir(dst), e.st.Size, mtimeOf(&e.st), 0)
}

// splitLink makes a copy where there can be no link.
func (r *run) splitLink(e *entry, b *buffers) error {
	r.tally(&r.rep.SplitLinks)
	r.split[e.rel] = true
	return r.copyEntry(e, b, 'X')
}
