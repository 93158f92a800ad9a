package posix

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFcntlLocks has processes lock ranges of one file.
func TestFcntlLocks(t *testing.T) {
	p := newPlace(t)
	p.sub(t, "conflicts", func(t *testing.T, dir string) {
		a, b := spawn(t, nil), spawn(t, nil)
		fa, fb := a.open(dir+"/f", unix.O_CREAT|unix.O_RDWR), b.open(dir+"/f", unix.O_RDWR)
		for _, c := range []struct {
			held, asked    int16
			start, n       int64 // of what is asked for; held is [100, 200)
			free, conflict bool
		}{
			{unix.F_RDLCK, unix.F_RDLCK, 100, 100, true, false},
			{unix.F_RDLCK, unix.F_WRLCK, 100, 100, false, true},
			{unix.F_WRLCK, unix.F_RDLCK, 100, 100, false, true},
			{unix.F_WRLCK, unix.F_WRLCK, 0, 100, true, false},
			{unix.F_WRLCK, unix.F_WRLCK, 0, 101, false, true},
			{unix.F_WRLCK, unix.F_WRLCK, 200, 0, true, false},
			{unix.F_WRLCK, unix.F_WRLCK, 199, 0, false, true},
			{unix.F_WRLCK, unix.F_WRLCK, 0, 0, false, true},
			{unix.F_WRLCK, unix.F_WRLCK, 120, -10, false, true},
			{unix.F_WRLCK, unix.F_WRLCK, 100, -100, true, false},
			{unix.F_WRLCK, unix.F_WRLCK, 1 << 40, 1, true, false},
		} {
			what := fmt.Sprintf("held %d, asked %d of %d+%d", c.held, c.asked, c.start, c.n)
			wantErr(t, what+": hold", a.lock(unix.F_SETLK, fa, c.held, 100, 100).err())
			g := b.lock(unix.F_GETLK, fb, c.asked, c.start, c.n)
			wantErr(t, what+": F_GETLK", g.err())
			if c.conflict {
				want(t, what+": F_GETLK", fmt.Sprint(g.Lock.Type, g.Lock.Start, g.Lock.Len, g.Lock.Pid), fmt.Sprint(c.held, 100, 100, a.cmd.Process.Pid))
			} else {
				want(t, what+": F_GETLK", g.Lock.Type, unix.F_UNLCK)
			}
			var errno []unix.Errno
			if c.conflict {
				errno = []unix.Errno{unix.EAGAIN, unix.EACCES}
			}
			wantErr(t, what, b.lock(unix.F_SETLK, fb, c.asked, c.start, c.n).err(), errno...)
			a.lock(unix.F_SETLK, fa, unix.F_UNLCK, 0, 0)
			b.lock(unix.F_SETLK, fb, unix.F_UNLCK, 0, 0)
		}
	})
	p.sub(t, "split and upgrade", func(t *testing.T, dir string) {
		a, b := spawn(t, nil), spawn(t, nil)
		fa, fb := a.open(dir+"/f", unix.O_CREAT|unix.O_RDWR), b.open(dir+"/f", unix.O_RDWR)
		wantErr(t, "hold", a.lock(unix.F_SETLK, fa, unix.F_WRLCK, 0, 100).err())
		wantErr(t, "free the middle", a.lock(unix.F_SETLK, fa, unix.F_UNLCK, 40, 20).err())
		wantErr(t, "the middle", b.lock(unix.F_SETLK, fb, unix.F_WRLCK, 40, 20).err())
		wantErr(t, "a byte more", b.lock(unix.F_SETLK, fb, unix.F_WRLCK, 39, 21).err(), unix.EAGAIN)
		wantErr(t, "downgrade", a.lock(unix.F_SETLK, fa, unix.F_RDLCK, 0, 10).err())
		wantErr(t, "read with a reader", b.lock(unix.F_SETLK, fb, unix.F_RDLCK, 0, 10).err())
		wantErr(t, "upgrade with another reader", a.lock(unix.F_SETLK, fa, unix.F_WRLCK, 0, 10).err(), unix.EAGAIN)
		wantErr(t, "the other leaves", b.lock(unix.F_SETLK, fb, unix.F_UNLCK, 0, 10).err())
		wantErr(t, "upgrade alone", a.lock(unix.F_SETLK, fa, unix.F_WRLCK, 0, 10).err())
		ro, wo := b.open(dir+"/f", unix.O_RDONLY), b.open(dir+"/f", unix.O_WRONLY)
		wantErr(t, "a writer's lock by a reader", b.lock(unix.F_SETLK, ro, unix.F_WRLCK, 500, 1).err(), unix.EBADF)
		wantErr(t, "a reader's lock by a writer", b.lock(unix.F_SETLK, wo, unix.F_RDLCK, 500, 1).err(), unix.EBADF)
		wantErr(t, "before the beginning", b.lock(unix.F_SETLK, fb, unix.F_WRLCK, 5, -6).err(), unix.EINVAL)
	})
	p.sub(t, "release", func(t *testing.T, dir string) {
		b := spawn(t, nil)
		fb := b.open(dir+"/f", unix.O_CREAT|unix.O_RDWR)
		for how, fn := range map[string]func(a *child, fd int){
			"close": func(a *child, fd int) { a.do(call{Op: "close", FD: fd}) },
			"close of another handle": func(a *child, fd int) {
				a.do(call{Op: "close", FD: a.open(dir+"/f", unix.O_RDONLY)})
			},
			"kill": func(a *child, _ int) { a.kill() },
		} {
			a := spawn(t, nil)
			fa := a.open(dir+"/f", unix.O_RDWR)
			wantErr(t, "hold", a.lock(unix.F_SETLK, fa, unix.F_WRLCK, 0, 0).err())
			wantErr(t, "held", b.lock(unix.F_SETLK, fb, unix.F_WRLCK, 0, 0).err(), unix.EAGAIN)
			b.start(lockCall(unix.F_SETLKW, fb, unix.F_WRLCK, 0, 0))
			b.blocked()
			fn(a, fa)
			wantErr(t, "released by "+how, b.wait().err())
			b.lock(unix.F_SETLK, fb, unix.F_UNLCK, 0, 0)
		}
	})
	p.sub(t, "waiting", func(t *testing.T, dir string) {
		a, b := spawn(t, nil), spawn(t, nil)
		fa, fb := a.open(dir+"/f", unix.O_CREAT|unix.O_RDWR), b.open(dir+"/f", unix.O_RDWR)
		for _, cmd := range []int{unix.F_SETLKW, unix.F_OFD_SETLKW} {
			wantErr(t, "hold", a.lock(unix.F_SETLK, fa, unix.F_WRLCK, 0, 10).err())
			b.start(lockCall(cmd, fb, unix.F_WRLCK, 5, 10))
			b.blocked()
			b.interrupt()
			wantErr(t, "a signal comes", b.wait().err(), unix.EINTR)
			wantErr(t, "not held by who was interrupted", a.lock(unix.F_SETLK, fa, unix.F_WRLCK, 5, 10).err())
			b.start(lockCall(cmd, fb, unix.F_WRLCK, 5, 10))
			b.blocked()
			a.lock(unix.F_SETLK, fa, unix.F_UNLCK, 0, 0)
			wantErr(t, "the lock comes free", b.wait().err())
			b.lock(map[int]int{unix.F_SETLKW: unix.F_SETLK, unix.F_OFD_SETLKW: unix.F_OFD_SETLK}[cmd], fb, unix.F_UNLCK, 0, 0)
		}
	})
	p.sub(t, "deadlock", func(t *testing.T, dir string) {
		a, b := spawn(t, nil), spawn(t, nil)
		fa, fb := a.open(dir+"/f", unix.O_CREAT|unix.O_RDWR), b.open(dir+"/f", unix.O_RDWR)
		wantErr(t, "a", a.lock(unix.F_SETLK, fa, unix.F_WRLCK, 0, 1).err())
		wantErr(t, "b", b.lock(unix.F_SETLK, fb, unix.F_WRLCK, 1, 1).err())
		a.start(lockCall(unix.F_SETLKW, fa, unix.F_WRLCK, 1, 1))
		a.blocked()
		wantErr(t, "b waits for a, who waits for b", b.lock(unix.F_SETLKW, fb, unix.F_WRLCK, 0, 1).err(), unix.EDEADLK)
		b.lock(unix.F_SETLK, fb, unix.F_UNLCK, 0, 0)
		wantErr(t, "a, once b gave up", a.wait().err())
	})
	p.sub(t, "of an unlinked and of a renamed file", func(t *testing.T, dir string) {
		a, b := spawn(t, nil), spawn(t, nil)
		fa := a.open(dir+"/f", unix.O_CREAT|unix.O_RDWR)
		wantErr(t, "hold", a.lock(unix.F_SETLK, fa, unix.F_WRLCK, 0, 0).err())
		must(t, unix.Rename(dir+"/f", dir+"/g"))
		must(t, unix.Link(dir+"/g", dir+"/h"))
		fb := b.open(dir+"/h", unix.O_RDWR)
		wantErr(t, "by another name", b.lock(unix.F_SETLK, fb, unix.F_WRLCK, 0, 0).err(), unix.EAGAIN)
		must(t, unix.Unlink(dir+"/g"))
		must(t, unix.Unlink(dir+"/h"))
		wantErr(t, "without a name", b.lock(unix.F_SETLK, fb, unix.F_WRLCK, 0, 0).err(), unix.EAGAIN)
		fn := b.open(dir+"/f", unix.O_CREAT|unix.O_RDWR)
		wantErr(t, "a new file", b.lock(unix.F_SETLK, fn, unix.F_WRLCK, 0, 0).err())
	})
}

// TestOFDLocks has locks belong to open files instead of processes.
func TestOFDLocks(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	a, b := spawn(t, nil), spawn(t, nil)
	f1, f2 := a.open(dir+"/f", unix.O_CREAT|unix.O_RDWR), a.open(dir+"/f", unix.O_RDWR)
	fb := b.open(dir+"/f", unix.O_RDWR)
	wantErr(t, "hold", a.lock(unix.F_OFD_SETLK, f1, unix.F_WRLCK, 0, 10).err())
	wantErr(t, "the same process by another handle", a.lock(unix.F_OFD_SETLK, f2, unix.F_WRLCK, 0, 10).err(), unix.EAGAIN)
	wantErr(t, "another process", b.lock(unix.F_OFD_SETLK, fb, unix.F_RDLCK, 5, 1).err(), unix.EAGAIN)
	wantErr(t, "another kind of lock", b.lock(unix.F_SETLK, fb, unix.F_RDLCK, 5, 1).err(), unix.EAGAIN)
	g := b.lock(unix.F_OFD_GETLK, fb, unix.F_WRLCK, 0, 0)
	want(t, "F_OFD_GETLK", fmt.Sprint(g.Lock.Type, g.Lock.Start, g.Lock.Len, g.Lock.Pid), fmt.Sprint(unix.F_WRLCK, 0, 10, -1))
	a.do(call{Op: "close", FD: f2})
	wantErr(t, "held after another handle was closed", b.lock(unix.F_OFD_SETLK, fb, unix.F_RDLCK, 5, 1).err(), unix.EAGAIN)
	a.do(call{Op: "close", FD: f1})
	wantErr(t, "free after the handle was closed", b.lock(unix.F_OFD_SETLK, fb, unix.F_WRLCK, 0, 0).err())
	b.kill()
	f1 = a.open(dir+"/f", unix.O_RDWR)
	wantErr(t, "free after the process ended", a.lock(unix.F_OFD_SETLK, f1, unix.F_WRLCK, 0, 0).err())
}

func TestFlock(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	a, b := spawn(t, nil), spawn(t, nil)
	flock := func(c *child, fd, how int) error { return c.do(call{Op: "flock", FD: fd, Flags: how}).err() }
	f1, f2 := a.open(dir+"/f", unix.O_CREAT|unix.O_RDWR), a.open(dir+"/f", unix.O_RDONLY)
	fb := b.open(dir+"/f", unix.O_RDONLY)
	const nb = unix.LOCK_NB
	wantErr(t, "share", flock(a, f1, unix.LOCK_SH|nb))
	wantErr(t, "share with another", flock(b, fb, unix.LOCK_SH|nb))
	wantErr(t, "upgrade with another there", flock(a, f1, unix.LOCK_EX|nb), unix.EWOULDBLOCK)
	wantErr(t, "the other leaves", flock(b, fb, unix.LOCK_UN))
	wantErr(t, "share again, for a failed upgrade may lose the lock", flock(a, f1, unix.LOCK_SH|nb))
	wantErr(t, "upgrade alone", flock(a, f1, unix.LOCK_EX|nb))
	wantErr(t, "by another handle of the process", flock(a, f2, unix.LOCK_SH|nb), unix.EWOULDBLOCK)
	wantErr(t, "by another process", flock(b, fb, unix.LOCK_EX|nb), unix.EWOULDBLOCK)
	wantErr(t, "fcntl locks are others", b.lock(unix.F_SETLK, fb, unix.F_RDLCK, 0, 0).err())
	b.start(call{Op: "flock", FD: fb, Flags: unix.LOCK_EX})
	b.blocked()
	b.interrupt()
	wantErr(t, "a signal comes", b.wait().err(), unix.EINTR)
	b.start(call{Op: "flock", FD: fb, Flags: unix.LOCK_EX})
	b.blocked()
	a.do(call{Op: "close", FD: f2})
	wantErr(t, "still held", flock(a, f1, unix.LOCK_EX|nb))
	a.do(call{Op: "close", FD: f1})
	wantErr(t, "closed", b.wait().err())
	f1 = a.open(dir+"/f", unix.O_RDONLY)
	a.start(call{Op: "flock", FD: f1, Flags: unix.LOCK_SH})
	a.blocked()
	b.kill()
	wantErr(t, "the holder was killed", a.wait().err())
}
