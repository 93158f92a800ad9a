package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	recordSize   = 100 // bytes of an index record
	recordsASync = 8
)

// indexRecord is record n of a worker's index.
func (w *worker) indexRecord(n int) []byte {
	w.scratch = fmt.Appendf(w.scratch[:0], "%08d %*d\n", n, recordSize-10, w.id)
	return w.scratch
}

// indexAppend works as Dovecot does on dovecot.index.log.
func (w *worker) indexAppend() (err error) {
	path := w.maildir + "/dovecot.index.log"
	fd, err := open(path, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer closeFd(fd, path, &err)
	lock := func(kind int16) error {
		l := unix.Flock_t{Type: kind, Whence: io.SeekStart}
		return failed("lock", path, unix.FcntlFlock(uintptr(fd), unix.F_SETLKW, &l))
	}
	first := w.record
	for range w.messages {
		t := time.Now()
		if err := lock(unix.F_WRLCK); err != nil {
			return err
		}
		if err := writeAll(fd, path, w.indexRecord(w.record)); err != nil {
			return err
		}
		w.record++
		if w.record%recordsASync == 0 {
			if err := unix.Fdatasync(fd); err != nil {
				return failed("fdatasync", path, err)
			}
		}
		if err := lock(unix.F_UNLCK); err != nil {
			return err
		}
		if err := w.done(t); err != nil {
			return err
		}
	}
	return w.checkIndex(fd, path, first)
}

// checkIndex reads back what a pass appended.
func (w *worker) checkIndex(fd int, path string, first int) error {
	for i := first; i < w.record; i++ {
		n, err := unix.Pread(fd, w.buf[:recordSize], int64(i)*recordSize)
		if err != nil {
			return failed("read", path, err)
		}
		if !bytes.Equal(w.buf[:n], w.indexRecord(i)) {
			return &MismatchError{path, "record " + strconv.Itoa(i) + " is not what was appended"}
		}
	}
	return nil
}

// dotlock takes and frees a lock file as Dovecot does for its uidlist.
func (w *worker) dotlock() error {
	path := w.maildir + "/dovecot-uidlist.lock"
	var st unix.Stat_t
	for range w.messages {
		t := time.Now()
		fd, err := open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return failed("close", path, err)
		}
		if err := unix.Lstat(path, &st); err != nil {
			return failed("lstat", path, err)
		}
		if err := unix.Unlink(path); err != nil {
			return failed("unlink", path, err)
		}
		if err := w.done(t); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) attachment(n uint64) string {
	return w.path("tmp", "attachment-"+strconv.FormatUint(n, 10))
}

// pieces calls f with each piece of an attachment and its place.
func (w *worker) pieces(n uint64, f func(off int, b []byte) error) error {
	size := w.site.opt.AttachSize
	for k, off := 0, 0; off < size; k, off = k+1, off+attachPiece {
		if err := f(off, w.site.content.piece(n, k, min(attachPiece, size-off))); err != nil {
			return err
		}
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
	}
	return nil
}

// attachWrite writes one attachment more.
func (w *worker) attachWrite() (err error) {
	if w.id >= attachers {
		return nil
	}
	n := w.next
	w.next++
	path := w.attachment(n)
	t := time.Now()
	fd, err := open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w.attached = append(w.attached, n)
	defer closeFd(fd, path, &err)
	if err := w.pieces(n, func(_ int, b []byte) error { return writeAll(fd, path, b) }); err != nil {
		return err
	}
	if err := unix.Fsync(fd); err != nil {
		return failed("fsync", path, err)
	}
	if w.lat != nil {
		w.bytes += int64(w.site.opt.AttachSize)
	}
	return w.done(t)
}

// attachRead reads the attachments back and compares them.
func (w *worker) attachRead() error {
	for _, n := range w.attached {
		if err := w.readAttachment(n); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) readAttachment(n uint64) (err error) {
	path := w.attachment(n)
	t := time.Now()
	fd, err := open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer closeFd(fd, path, &err)
	err = w.pieces(n, func(off int, want []byte) error {
		for len(want) > 0 {
			got, err := unix.Pread(fd, w.buf[:len(want)], int64(off))
			if err != nil {
				return failed("read", path, err)
			}
			if got == 0 || !bytes.Equal(w.buf[:got], want[:got]) {
				return &MismatchError{path, fmt.Sprintf("differs from what was written, at %d", off)}
			}
			off, want = off+got, want[got:]
		}
		return nil
	})
	if err != nil {
		return err
	}
	if w.lat != nil {
		w.bytes += int64(w.site.opt.AttachSize)
	}
	return w.done(t)
}
