package bench

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// deliverLink delivers as Postfix virtual(8) does.
func (w *worker) deliverLink() error {
	for range w.half() {
		m, head, body := w.newMessage()
		t := time.Now()
		tmp, to := w.path("tmp", m.base), w.where(&m)
		if err := writeFile(tmp, head, body, true); err != nil {
			return err
		}
		if err := unix.Link(tmp, to); err != nil {
			return failed("link", tmp, err)
		}
		if err := unix.Unlink(tmp); err != nil {
			return failed("unlink", tmp, err)
		}
		w.box = append(w.box, m)
		if err := w.done(t); err != nil {
			return err
		}
	}
	return nil
}

// uidlistLine is what Dovecot appends per message.
const uidlistLine = "1 W75000 :1700000000.M0P0.bench,S=75000,W=76000\n"

// deliverRename delivers as Dovecot's LMTP server does.
func (w *worker) deliverRename() (err error) {
	list, dir := w.maildir+"/dovecot-uidlist", w.maildir+"/new"
	fd, err := open(list, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer closeFd(fd, list, &err)
	for range w.half() {
		m, head, body := w.newMessage()
		t := time.Now()
		tmp := w.path("tmp", m.base)
		if err := writeFile(tmp, head, body, true); err != nil {
			return err
		}
		if err := unix.Rename(tmp, w.where(&m)); err != nil {
			return failed("rename", tmp, err)
		}
		w.box = append(w.box, m)
		if err := syncDir(dir); err != nil {
			return err
		}
		if err := writeAll(fd, list, []byte(uidlistLine)); err != nil {
			return err
		}
		if err := unix.Fdatasync(fd); err != nil {
			return failed("fdatasync", list, err)
		}
		w.uidlist += int64(len(uidlistLine))
		if err := w.done(t); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("stat", list, err)
	}
	if st.Size != w.uidlist {
		return &MismatchError{list, fmt.Sprintf("has %d bytes, %d were appended", st.Size, w.uidlist)}
	}
	return nil
}

func syncDir(dir string) (err error) {
	fd, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer closeFd(fd, dir, &err)
	return failed("fdatasync", dir, unix.Fdatasync(fd))
}

// warmOpens is how often a worker opens its mailbox in a pass of open-warm.
const warmOpens = 8

func (w *worker) openMany() error {
	for range warmOpens {
		if err := w.openOnce(); err != nil {
			return err
		}
	}
	return nil
}

// openOnce lists the mailbox as an IMAP server does that has no index of it.
func (w *worker) openOnce() error {
	t := time.Now()
	count, size := 0, int64(0)
	for _, dir := range []string{"new", "cur"} {
		n, s, err := w.list(w.maildir + "/" + dir)
		if err != nil {
			return err
		}
		count, size = count+n, size+s
	}
	if err := w.done(t); err != nil {
		return err
	}
	want := int64(0)
	for i := range w.box {
		want += int64(w.box[i].size)
	}
	if count != len(w.box) || size != want {
		return &MismatchError{w.maildir, fmt.Sprintf("lists %d messages of %d bytes, should be %d of %d", count, size, len(w.box), want)}
	}
	return nil
}

// list reads a directory and stats every file of it.
func (w *worker) list(dir string) (count int, size int64, err error) {
	fd, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0, 0, err
	}
	defer closeFd(fd, dir, &err)
	var names []string
	var st unix.Stat_t
	for {
		n, err := unix.ReadDirent(fd, w.buf[:32<<10])
		if err != nil {
			return 0, 0, failed("readdir", dir, err)
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(w.buf[:n], -1, names)
	}
	for _, name := range names {
		if err := unix.Lstat(dir+"/"+name, &st); err != nil {
			return 0, 0, failed("lstat", dir+"/"+name, err)
		}
		size += st.Size
	}
	return len(names), size, nil
}

func (w *worker) newToCur() error {
	return w.all(func(m *message) error { return w.move(m, "cur", ":2,S") })
}

// readAll reads every message; comparing is part of the time, a few
// microseconds of each.
func (w *worker) readAll() error { return w.all(w.verify) }

func (w *worker) flag() error {
	return w.all(func(m *message) error {
		info := ":2,FS"
		if m.info == info {
			info = ":2,S"
		}
		return w.move(m, "cur", info)
	})
}

func (w *worker) copyAll() error {
	return w.all(func(m *message) error {
		from, to := w.where(m), w.path(copies+"/cur", m.base+m.info)
		if err := unix.Link(from, to); err != nil {
			return failed("link", from, err)
		}
		w.copied = append(w.copied, to)
		return nil
	})
}

func (w *worker) expunge() error {
	err := w.all(func(m *message) error { return failed("unlink", w.where(m), unix.Unlink(w.where(m))) })
	if err == nil {
		w.box = w.box[:0]
	}
	return err
}

// all measures f on each message.
func (w *worker) all(f func(*message) error) error {
	for i := range w.box {
		t := time.Now()
		if err := f(&w.box[i]); err != nil {
			return err
		}
		if err := w.done(t); err != nil {
			return err
		}
	}
	return nil
}
