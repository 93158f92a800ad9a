package mailimport

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// makeMaildir makes the Maildir of an mbox, for the mbox's owner.
func (r *run) makeMaildir(e *entry) error {
	root := r.dst(e.rel)
	dirs := []string{"cur", "new", "tmp"}
	if _, err := os.Lstat(root); errors.Is(err, fs.ErrNotExist) || e.kind == mboxKind && e.rel != "." {
		dirs = append([]string{""}, dirs...)
	}
	for _, d := range dirs {
		path := filepath.Join(root, d)
		r.j.touch(filepath.Dir(path))
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make a Maildir: %w", err)
		}
		if err := r.chown(path, e); err != nil {
			return err
		}
		if err := r.sweep(path); err != nil {
			return err
		}
	}
	if !strings.HasPrefix(filepath.Base(e.rel), ".") || e.rel == "." {
		return nil
	}
	mark := filepath.Join(root, "maildirfolder") // tells Courier that it is a folder
	f, err := os.OpenFile(mark, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return fmt.Errorf("make a Maildir: %w", err)
	}
	return r.chown(mark, e)
}

func (r *run) chown(path string, e *entry) error {
	err := unix.Lchown(path, int(e.st.Uid), int(e.st.Gid))
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
		return nil
	}
	return at("chown", path, err)
}

// sharedFile is an mbox that several jobs read; the last one closes it. If jobs
// are dropped, as a run ends early, the garbage collector does.
type sharedFile struct {
	*os.File
	users atomic.Int32
}

func (f *sharedFile) release() error {
	if f.users.Add(-1) > 0 {
		return nil
	}
	return f.Close()
}

// messages calls job, in a worker, for each message of an mbox.
func (r *run) messages(e *entry, p *pool, job func(it *item, b *buffers) error) error {
	file, err := os.Open(e.src)
	if err != nil {
		return r.soft(fmt.Errorf("open an mbox: %w", err))
	}
	f := &sharedFile{File: file}
	f.users.Add(1)
	var stop error // of the workers
	err = indexMbox(f, e.st.Size, func(seg segment) error {
		if seg.Internal {
			return nil
		}
		f.users.Add(1)
		stop = p.do(func(b *buffers) error {
			it, err := r.message(e, f, &seg)
			if err == nil {
				err = job(it, b)
			}
			return r.count(seg.Next-seg.From, errors.Join(err, f.release()))
		})
		if stop != nil {
			err := f.release()
			return errors.Join(stop, err)
		}
		return nil
	})
	err = errors.Join(err, f.release())
	if stop != nil {
		return stop
	}
	return r.soft(at("mbox", e.src, err))
}

// message makes an item of a message. Its name follows from where it was and
// what it holds, so that no run makes it twice.
func (r *run) message(e *entry, f io.ReaderAt, seg *segment) (*item, error) {
	from := fmt.Sprintf("the message at offset %d of %s", seg.From, e.src)
	sum := sha256.New()
	n := &counter{w: sum}
	if err := seg.writeMessage(n, f); err != nil {
		return nil, fmt.Errorf("read %s: %w", from, err)
	}
	date := seg.Date
	if date.Unix() < 0 || date.After(time.Now().AddDate(0, 0, 1)) {
		date = time.Unix(0, mtimeOf(&e.st))
	}
	box := sha256.Sum256([]byte(e.rel))
	dir, name := "new", fmt.Sprintf("%d.M%xO%dH%x.mbox", max(date.Unix(), 0), box[:4], seg.From, sum.Sum(nil)[:8])
	if seg.Old {
		dir, name = "cur", name+":2,"+seg.Flags
	}
	ns := date.UnixNano()
	return &item{
		rel: filepath.Join(e.rel, dir, name), from: from, size: n.n, mtime: ns,
		attrs: attrs{uid: e.st.Uid, gid: e.st.Gid, mode: 0o600, atime: ns, mtime: ns},
		write: func(w io.Writer, _ []byte) error { return seg.writeMessage(w, f) },
	}, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// copyMbox makes a Maildir of an mbox.
func (r *run) copyMbox(e *entry, p *pool) error {
	err := r.noteMbox(e)
	if err == nil {
		err = r.makeMaildir(e)
	}
	if err != nil {
		return r.soft(err)
	}
	return r.messages(e, p, func(it *item, b *buffers) error { return r.place(it, b, 'F') })
}

// noteMbox refuses an mbox whose old part has changed since an earlier run: its
// messages would come a second time, under other names.
func (r *run) noteMbox(e *entry) error {
	f, err := os.Open(e.src)
	if err != nil {
		return fmt.Errorf("open an mbox: %w", err)
	}
	defer f.Close()
	sum := crc32.New(castagnoli)
	rec, known := r.j.mbox(e.rel)
	if known {
		if _, err := io.CopyN(sum, f, rec.size); err != nil && err != io.EOF {
			return fmt.Errorf("read an mbox: %w", err)
		}
		if e.st.Size < rec.size || sum.Sum32() != rec.crc {
			return fmt.Errorf("mbox %s was changed since an earlier run imported from it: remove the Maildir %s and the journal %s, then run again",
				e.src, r.dst(e.rel), r.opt.State)
		}
		if e.st.Size == rec.size {
			return nil
		}
	}
	if _, err := io.CopyN(sum, f, e.st.Size-rec.size); err != nil {
		return fmt.Errorf("read an mbox: %w", err)
	}
	return r.j.add('B', e.rel, "", e.st.Size, mtimeOf(&e.st), sum.Sum32())
}
