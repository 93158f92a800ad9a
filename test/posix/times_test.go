package posix

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func ns(t unix.Timespec) int64 { return t.Nano() }

// later checks that a time moved on.
func later(t testing.TB, what string, before, after unix.Timespec) {
	t.Helper()
	if ns(after) <= ns(before) {
		t.Errorf("%s went from %d to %d, which is not later", what, ns(before), ns(after))
	}
}

// TestDirectoryTimes has every change of a directory's names move its mtime,
// which Dovecot relies on, without a moment's wait in between.
func TestDirectoryTimes(t *testing.T) {
	p := newPlace(t)
	dir, other := p.newDir(t), p.newDir(t)
	f := open(t, other+"/outside", unix.O_CREAT|unix.O_RDWR, 0o600)
	steps := []struct {
		name string
		fn   func() error
		both bool // the other directory's names change, too
	}{
		{"create", func() error {
			fd, err := unix.Open(dir+"/a", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600)
			unix.Close(fd)
			return err
		}, false},
		{"link", func() error { return unix.Link(dir+"/a", dir+"/b") }, false},
		{"rename within", func() error { return unix.Rename(dir+"/b", dir+"/c") }, false},
		{"rename over", func() error { return unix.Rename(dir+"/c", dir+"/a") }, false}, // one inode: nothing changes
		{"rename out", func() error { return unix.Rename(dir+"/a", other+"/a") }, true},
		{"rename in", func() error { return unix.Rename(other+"/a", dir+"/a") }, true},
		{"link in", func() error { return unix.Link(other+"/outside", dir+"/in") }, false},
		{"symlink", func() error { return unix.Symlink("x", dir+"/s") }, false},
		{"mkdir", func() error { return unix.Mkdir(dir+"/d", 0o700) }, false},
		{"mknod", func() error { return unix.Mknod(dir+"/n", unix.S_IFIFO|0o600, 0) }, false},
		{"exchange", func() error {
			return unix.Renameat2(unix.AT_FDCWD, dir+"/a", unix.AT_FDCWD, dir+"/d", unix.RENAME_EXCHANGE)
		}, false},
		{"exchange back", func() error {
			return unix.Renameat2(unix.AT_FDCWD, dir+"/a", unix.AT_FDCWD, dir+"/d", unix.RENAME_EXCHANGE)
		}, false},
		{"rename over another", func() error { return unix.Rename(dir+"/in", dir+"/n") }, false},
		{"unlink", func() error { return unix.Unlink(dir + "/a") }, false},
		{"unlink the other name", func() error { return unix.Unlink(dir + "/c") }, false},
		{"unlink a symlink", func() error { return unix.Unlink(dir + "/s") }, false},
		{"rmdir", func() error { return unix.Rmdir(dir + "/d") }, false},
		{"unlink the last", func() error { return unix.Unlink(dir + "/n") }, false},
	}
	for round := range 30 {
		for _, s := range steps {
			before, otherBefore := lstat(t, dir), lstat(t, other)
			if err := s.fn(); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			after, otherAfter := lstat(t, dir), lstat(t, other)
			if s.name == "rename over" {
				want(t, "mtime after a rename that does nothing", after.Mtim, before.Mtim)
				continue
			}
			later(t, s.name+": mtime", before.Mtim, after.Mtim)
			later(t, s.name+": ctime", before.Ctim, after.Ctim)
			if s.both {
				later(t, s.name+": mtime of the other directory", otherBefore.Mtim, otherAfter.Mtim)
			} else {
				want(t, s.name+": mtime of the other directory", otherAfter.Mtim, otherBefore.Mtim)
			}
		}
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	before := lstat(t, dir)
	pwrite(t, f, []byte("x"), 0)
	put(t, other+"/outside", "y")
	want(t, "mtime of a directory whose names stay", lstat(t, dir).Mtim, before.Mtim)
}

func TestFileTimes(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	f := dir + "/f"
	put(t, f, "body")
	must(t, os.WriteFile(f, fill(100000, 'x'), 0o600))
	fd := open(t, f, unix.O_RDWR, 0)
	for _, s := range []struct {
		name  string
		fn    func() error
		mtime bool // mtime moves, too
	}{
		{"chmod", func() error { return unix.Chmod(f, 0o640) }, false},
		{"chmod to the same", func() error { return unix.Chmod(f, 0o640) }, false},
		{"fchmod", func() error { return unix.Fchmod(fd, 0o600) }, false},
		{"chown", func() error { return unix.Chown(f, 5, 5) }, false},
		{"chown to the same", func() error { return unix.Chown(f, 5, 5) }, false},
		{"link", func() error { return unix.Link(f, dir+"/g") }, false},
		{"rename", func() error { return unix.Rename(dir+"/g", dir+"/h") }, false},
		{"unlink", func() error { return unix.Unlink(dir + "/h") }, false},
		{"setxattr", func() error { return unix.Setxattr(f, "user.a", []byte("b"), 0) }, false},
		{"removexattr", func() error { return unix.Removexattr(f, "user.a") }, false},
		{"write", func() error { _, err := unix.Pwrite(fd, []byte("w"), 0); return err }, true},
		{"write of the same", func() error { _, err := unix.Pwrite(fd, []byte("w"), 0); return err }, true},
		{"ftruncate down", func() error { return unix.Ftruncate(fd, 50000) }, true},
		{"ftruncate up", func() error { return unix.Ftruncate(fd, 60000) }, true},
		{"truncate", func() error { return unix.Truncate(f, 40000) }, true},
		{"truncate to the same", func() error { return unix.Truncate(f, 40000) }, true},
		{"punch", func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		}, true},
		{"fallocate", func() error { return unix.Fallocate(fd, 0, 0, 70000) }, true},
		{"open with O_TRUNC", func() error {
			tr, err := unix.Open(f, unix.O_WRONLY|unix.O_TRUNC, 0)
			unix.Close(tr)
			return err
		}, true},
	} {
		before := lstat(t, f)
		// Writes may carry the time of the kernel's last tick.
		if s.mtime {
			nextTick(t)
		}
		if err := s.fn(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		after := lstat(t, f)
		later(t, s.name+": ctime", before.Ctim, after.Ctim)
		if s.mtime {
			later(t, s.name+": mtime", before.Mtim, after.Mtim)
		} else {
			want(t, s.name+": mtime", after.Mtim, before.Mtim)
		}
		want(t, s.name+": times by handle", fstat(t, fd).Ctim, after.Ctim)
	}
	before := lstat(t, f)
	for range 3 {
		_, err := os.ReadFile(f)
		must(t, err)
	}
	after := lstat(t, f)
	want(t, "mtime after a read", after.Mtim, before.Mtim)
	want(t, "ctime after a read", after.Ctim, before.Ctim)
	if !plain {
		// Reading keeps atime as it is, as a mount with noatime does.
		want(t, "atime after a read", after.Atim, before.Atim)
	}
}

// TestNewTimes has what is made carry the time of its making, and so its parent.
func TestNewTimes(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	for _, kind := range []string{"file", "dir", "symlink", "fifo"} {
		start := time.Now().Add(-20 * time.Millisecond)
		makeKind(t, kind, dir+"/"+kind)
		for _, path := range []string{dir, dir + "/" + kind} {
			st := lstat(t, path)
			if path != dir {
				wantBetween(t, kind+": atime", st.Atim, start)
			}
			wantBetween(t, kind+": mtime of "+filepath.Base(path), st.Mtim, start)
			wantBetween(t, kind+": ctime of "+filepath.Base(path), st.Ctim, start)
		}
	}
	// What fails leaves the times alone.
	before := [2]unix.Stat_t{lstat(t, dir), lstat(t, dir+"/file")}
	nextTick(t)
	for what, err := range map[string]error{
		"open": func() error {
			_, err := unix.Open(dir+"/file", unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o600)
			return err
		}(),
		"mkdir": unix.Mkdir(dir+"/file", 0o700), "link": unix.Link(dir+"/file", dir+"/dir"), "rmdir": unix.Rmdir(dir + "/file"),
		"unlink": unix.Unlink(dir + "/dir"), "symlink": unix.Symlink("x", dir+"/file"), "truncate": unix.Truncate(dir+"/file", -1),
		"setxattr": unix.Setxattr(dir+"/file", "user.a", nil, unix.XATTR_REPLACE), "removexattr": unix.Removexattr(dir+"/file", "user.a"),
		"rename": unix.Rename(dir+"/file", dir+"/dir"),
	} {
		if err == nil {
			t.Errorf("%s succeeds", what)
		}
	}
	open(t, dir+"/file", unix.O_CREAT|unix.O_RDWR, 0o600)
	want(t, "what stat shows of the directory", lstat(t, dir), before[0])
	want(t, "what stat shows of the file", lstat(t, dir+"/file"), before[1])
}

// nextTick waits until the coarse clock has moved on.
func nextTick(t *testing.T) {
	t.Helper()
	var a, b unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &a))
	for b = a; b == a; {
		must(t, unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &b))
	}
}

func TestUtimensat(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	omit, now := unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Nsec: unix.UTIME_NOW}
	set := func(path string, a, m unix.Timespec) {
		t.Helper()
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{a, m}, unix.AT_SYMLINK_NOFOLLOW))
	}
	for _, kind := range kinds[1:] {
		path := dir + "/" + kind
		makeKind(t, kind, path)
		// What ext4 holds: up to 2446.
		for _, v := range []unix.Timespec{{Sec: 1, Nsec: 1}, {Sec: 1_700_000_000, Nsec: 123_456_789}, {}, {Sec: -1, Nsec: 999_999_999}, {Sec: -1_000_000_000, Nsec: 5}, {Sec: 1 << 32, Nsec: 7}, {Sec: 9_000_000_000, Nsec: 8}} {
			before := lstat(t, path)
			m := unix.Timespec{Sec: v.Sec + 1, Nsec: v.Nsec}
			set(path, v, m)
			st := lstat(t, path)
			want(t, kind+": atime", st.Atim, v)
			want(t, kind+": mtime", st.Mtim, m)
			later(t, kind+": ctime", before.Ctim, st.Ctim)
		}
		set(path, unix.Timespec{Sec: 5}, unix.Timespec{Sec: 6})
		set(path, omit, unix.Timespec{Sec: 7})
		want(t, kind+": atime, omitted", lstat(t, path).Atim, unix.Timespec{Sec: 5})
		set(path, unix.Timespec{Sec: 8}, omit)
		want(t, kind+": mtime, omitted", lstat(t, path).Mtim, unix.Timespec{Sec: 7})
		before := lstat(t, path)
		set(path, omit, omit)
		want(t, kind+": ctime, both omitted", lstat(t, path).Ctim, before.Ctim)
		// A tick of the coarse clock is at most 10 ms long.
		start := time.Now().Add(-20 * time.Millisecond)
		set(path, now, omit)
		st := lstat(t, path)
		want(t, kind+": mtime, omitted", st.Mtim, unix.Timespec{Sec: 7})
		wantBetween(t, kind+": atime, now", st.Atim, start)
		set(path, omit, now)
		wantBetween(t, kind+": mtime, now", lstat(t, path).Mtim, start)
		set(path, now, now)
		st = lstat(t, path)
		wantBetween(t, kind+": atime, both now", st.Atim, start)
		wantBetween(t, kind+": mtime, both now", st.Mtim, start)
	}
	// A time that was set survives what was written before it, and close.
	f := dir + "/written"
	fd := open(t, f, unix.O_CREAT|unix.O_RDWR, 0o600)
	pwrite(t, fd, fill(200_000, 'x'), 0)
	set(f, unix.Timespec{Sec: 10}, unix.Timespec{Sec: 11, Nsec: 12})
	must(t, unix.Fsync(fd))
	must(t, unix.Close(fd))
	want(t, "mtime after close", lstat(t, f).Mtim, unix.Timespec{Sec: 11, Nsec: 12})
	bad := []unix.Timespec{{Nsec: 1_000_000_000}, {}}
	wantErr(t, "a billion nanoseconds", unix.UtimesNanoAt(unix.AT_FDCWD, f, bad, 0), unix.EINVAL)
}

func wantBetween(t testing.TB, what string, got unix.Timespec, start time.Time) {
	t.Helper()
	if g := time.Unix(0, ns(got)); g.Before(start) || g.After(time.Now()) {
		t.Errorf("%s: %v is not between %v and now", what, g, start)
	}
}
