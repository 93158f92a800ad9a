package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	writePiece  = 16 << 10  // as Dovecot and Postfix write
	readPiece   = 8 << 10   // as Dovecot reads
	attachPiece = 256 << 10 // as cp writes and reads
	attachers   = 8         // at most so many workers write attachments
	copies      = ".Copies" // the Maildir++ folder that copies go to
)

// message is one in a worker's mailbox.
type message struct {
	n    uint64 // see content.message
	size int
	dir  string // new or cur
	base string // the name before flags
	info string // flags, as ":2,S"
}

// worker does the work of one mail process in its own account. It is used by
// one goroutine at a time.
type worker struct {
	site     *site
	id       int
	maildir  string
	ctx      context.Context // of the round; system calls cannot be cancelled, so it is looked at between them
	messages int             // in a full mailbox
	next     uint64          // number of the next message
	box      []message
	copied   []string // paths of hard links
	attached []uint64 // numbers of the attachments that exist
	uidlist  int64    // bytes appended
	record   int      // records appended to the index
	buf      []byte
	scratch  []byte
	lat      *histogram // nil: not measured
	ops      int
	bytes    int64
}

// done notes one operation that began at t.
func (w *worker) done(t time.Time) error {
	if w.lat != nil {
		w.lat.add(time.Since(t))
		w.ops++
	}
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	return nil
}

func (w *worker) path(dir, name string) string { return w.maildir + "/" + dir + "/" + name }

func (w *worker) where(m *message) string { return w.path(m.dir, m.base+m.info) }

// newMessage picks the next message and its name.
func (w *worker) newMessage() (m message, head, body []byte) {
	m.n = w.next
	w.next++
	head, body = w.site.content.message(m.n, w.scratch)
	w.scratch = head
	m.size = len(head) + len(body)
	m.dir = "new"
	m.base = fmt.Sprintf("%d.M%dP%d.bench,S=%d", 1700000000+m.n&0xffffff, m.n, w.id, m.size)
	return m, head, body
}

// writeFile creates path exclusively, writes it as mail software does, and
// syncs it if asked.
func writeFile(path string, head, body []byte, sync bool) (err error) {
	fd, err := open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer closeFd(fd, path, &err)
	// Mail software fills its buffer before it writes: all pieces but the last
	// are full, the header is in the first.
	n := min(len(body), writePiece-len(head))
	if done, err := unix.Writev(fd, [][]byte{head, body[:n]}); err != nil || done != len(head)+n {
		return failed("write", path, cmp.Or(err, io.ErrShortWrite))
	}
	body = body[n:]
	for len(body) > 0 {
		n := min(len(body), writePiece)
		if err := writeAll(fd, path, body[:n]); err != nil {
			return err
		}
		body = body[n:]
	}
	if sync {
		return failed("fsync", path, unix.Fsync(fd))
	}
	return nil
}

// verify reads a message and compares it with what was written.
func (w *worker) verify(m *message) (err error) {
	path := w.where(m)
	head, body := w.site.content.message(m.n, w.scratch)
	w.scratch = head
	want := matcher{head: head, body: body}
	fd, err := open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer closeFd(fd, path, &err)
	for off := int64(0); ; {
		n, err := unix.Pread(fd, w.buf[:readPiece], off)
		if err != nil {
			return failed("read", path, err)
		}
		if n == 0 {
			break
		}
		if want.next(w.buf[:n]) != nil {
			return &MismatchError{path, fmt.Sprintf("differs from what was written, in the %d bytes at %d", n, off)}
		}
		off += int64(n)
	}
	if !want.whole() {
		return &MismatchError{path, fmt.Sprintf("ends after %d of %d bytes", want.off, m.size)}
	}
	return nil
}

// verifyBox reads all messages, unmeasured.
func (w *worker) verifyBox() error {
	for i := range w.box {
		if err := w.verify(&w.box[i]); err != nil {
			return err
		}
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
	}
	return nil
}

// prepare brings the mailbox into the state that a row wants.
func (w *worker) prepare(want wants) error {
	if want.room && len(w.box) > w.messages-w.half() {
		if err := w.empty(); err != nil {
			return err
		}
	}
	for want.full && len(w.box) < w.messages {
		m, head, body := w.newMessage()
		if err := writeFile(w.where(&m), head, body, false); err != nil {
			return err
		}
		w.box = append(w.box, m)
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
	}
	for i := range w.box {
		if m := &w.box[i]; want.in != "" && m.dir != want.in {
			info := ""
			if want.in == "cur" {
				info = ":2,S"
			}
			if err := w.move(m, want.in, info); err != nil {
				return err
			}
		}
	}
	if want.single {
		if err := w.dropCopies(); err != nil {
			return err
		}
	}
	if want.files && len(w.attached) == 0 {
		return w.attachWrite()
	}
	return nil
}

// half is what each of the two rows that deliver brings.
func (w *worker) half() int { return max(w.messages/2, 1) }

func (w *worker) move(m *message, dir, info string) error {
	from, to := w.where(m), w.path(dir, m.base+info)
	if err := unix.Rename(from, to); err != nil {
		return failed("rename", from, err)
	}
	m.dir, m.info = dir, info
	return nil
}

func (w *worker) dropCopies() error {
	for _, p := range w.copied {
		if err := unix.Unlink(p); err != nil {
			return failed("unlink", p, err)
		}
	}
	w.copied = w.copied[:0]
	return nil
}

// empty removes all that the rows left, unmeasured.
func (w *worker) empty() error {
	if err := w.dropCopies(); err != nil {
		return err
	}
	for i := range w.box {
		p := w.where(&w.box[i])
		if err := unix.Unlink(p); err != nil {
			return failed("unlink", p, err)
		}
	}
	w.box = w.box[:0]
	for _, n := range w.attached {
		if err := unix.Unlink(w.attachment(n)); err != nil {
			return failed("unlink", w.attachment(n), err)
		}
	}
	w.attached = w.attached[:0]
	return nil
}

// The helpers below add the path to the error and take up interrupted calls.

func failed(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", op, filepath.Clean(path), err)
}

func open(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
		if err == nil || !errors.Is(err, unix.EINTR) {
			return fd, failed("open", path, err)
		}
	}
}

func closeFd(fd int, path string, err *error) {
	if e := unix.Close(fd); e != nil && *err == nil {
		*err = failed("close", path, e)
	}
}

func writeAll(fd int, path string, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return failed("write", path, err)
		}
		if n == 0 && err == nil {
			return failed("write", path, io.ErrShortWrite)
		}
		b = b[max(n, 0):]
	}
	return nil
}
