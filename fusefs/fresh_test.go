package fusefs

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

func (m *mounted) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

func (m *mounted) stat(name string) unix.Stat_t {
	m.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(m.path(name), &st); err != nil {
		m.Fatalf("stat %s: %v", name, err)
	}
	return st
}

func (m *mounted) put(name, text string) {
	m.Helper()
	m.must(os.WriteFile(m.path(name), []byte(text), 0o644))
}

func (m *mounted) contents(name, want string) {
	m.Helper()
	got, err := os.ReadFile(m.path(name))
	m.must(err)
	if string(got) != want {
		m.Fatalf("%s contains %.60q, want %.60q", name, got, want)
	}
}

// TestDirectoryFresh stats a directory at once after each change of its names:
// mtime must have moved forward, and listing and nlink must be right.
func TestDirectoryFresh(t *testing.T) {
	m := mount(t)
	m.must(os.Mkdir(m.path("d"), 0o755))
	m.must(os.Mkdir(m.path("e"), 0o755))
	m.put("d/old", "x")
	m.put("e/other", "y")
	last := map[string]int64{}
	for _, d := range []string{"d", "e"} {
		st := m.stat(d)
		last[d] = st.Mtim.Nano()
	}
	for _, c := range []struct {
		what    string
		do      func() error
		changed []string
		nlink   map[string]uint64
		names   map[string]int
	}{
		{"create", func() error { m.put("d/new", "z"); return nil }, []string{"d"}, nil, map[string]int{"d": 2}},
		{"rename in", func() error { return os.Rename(m.path("d/new"), m.path("d/newer")) }, []string{"d"}, nil, map[string]int{"d": 2}},
		{"rename across", func() error { return os.Rename(m.path("d/newer"), m.path("e/newer")) }, []string{"d", "e"}, nil, map[string]int{"d": 1, "e": 2}},
		{"link", func() error { return os.Link(m.path("e/newer"), m.path("d/hard")) }, []string{"d"}, nil, map[string]int{"d": 2}},
		{"unlink", func() error { return os.Remove(m.path("d/hard")) }, []string{"d"}, nil, map[string]int{"d": 1}},
		{"rename over", func() error { return os.Rename(m.path("d/old"), m.path("e/other")) }, []string{"d", "e"}, nil, map[string]int{"d": 0, "e": 2}},
		{"symlink", func() error { return os.Symlink("nowhere", m.path("d/sym")) }, []string{"d"}, nil, map[string]int{"d": 1}},
		{"mkdir", func() error { return os.Mkdir(m.path("d/sub"), 0o755) }, []string{"d"}, map[string]uint64{"d": 3}, nil},
		{"move directory", func() error { return os.Rename(m.path("d/sub"), m.path("e/sub")) }, []string{"d", "e"}, map[string]uint64{"d": 2, "e": 3}, nil},
		{"rmdir", func() error { return os.Remove(m.path("e/sub")) }, []string{"e"}, map[string]uint64{"e": 2}, nil},
		{"exchange", func() error {
			return unix.Renameat2(unix.AT_FDCWD, m.path("d/sym"), unix.AT_FDCWD, m.path("e/other"), unix.RENAME_EXCHANGE)
		}, []string{"d", "e"}, nil, nil},
		{"mkfifo", func() error { return unix.Mkfifo(m.path("d/fifo"), 0o600) }, []string{"d"}, nil, nil},
	} {
		m.must(c.do())
		for _, d := range c.changed {
			st := m.stat(d)
			if now := st.Mtim.Nano(); now <= last[d] {
				t.Errorf("%s: mtime of %s did not move forward", c.what, d)
			} else {
				last[d] = now
			}
		}
		for d, n := range c.nlink {
			if st := m.stat(d); uint64(st.Nlink) != n {
				t.Errorf("%s: nlink of %s is %d, want %d", c.what, d, st.Nlink, n)
			}
		}
		for d, n := range c.names {
			list, err := os.ReadDir(m.path(d))
			m.must(err)
			if len(list) != n {
				t.Errorf("%s: %d names in %s, want %d", c.what, len(list), d, n)
			}
		}
	}
}

// TestFileFresh stats a file at once after each change of it or of its names.
func TestFileFresh(t *testing.T) {
	m := mount(t)
	f, err := os.Create(m.path("f"))
	m.must(err)
	defer f.Close()
	last := m.stat("f")
	step := func(what string, size int64, nlink uint64, mtime bool) {
		t.Helper()
		st := m.stat("f")
		if st.Size != size || uint64(st.Nlink) != nlink {
			t.Errorf("%s: size %d nlink %d, want %d and %d", what, st.Size, st.Nlink, size, nlink)
		}
		if mtime && st.Mtim.Nano() <= last.Mtim.Nano() {
			t.Errorf("%s: mtime did not move", what)
		}
		if st.Ctim.Nano() <= last.Ctim.Nano() {
			t.Errorf("%s: ctime did not move", what)
		}
		last = st
	}
	_, err = f.Write(make([]byte, 1000))
	m.must(err)
	step("write", 1000, 1, true)
	_, err = f.WriteAt(make([]byte, 10), 5000)
	m.must(err)
	step("write beyond", 5010, 1, true)
	m.must(f.Truncate(70000))
	step("grow", 70000, 1, true)
	m.must(f.Truncate(10))
	step("shrink", 10, 1, true)
	m.must(os.Link(m.path("f"), m.path("g")))
	step("link", 10, 2, false)
	m.must(os.Rename(m.path("g"), m.path("h")))
	step("rename other name", 10, 2, false)
	m.put("i", "replaces")
	m.must(os.Rename(m.path("i"), m.path("h")))
	step("rename over other name", 10, 1, false)
	m.must(os.Link(m.path("f"), m.path("g")))
	step("link again", 10, 2, false)
	m.must(os.Remove(m.path("g")))
	step("unlink other name", 10, 1, false)
	m.must(f.Chmod(0o600))
	step("chmod", 10, 1, false)
	m.must(unix.Setxattr(m.path("f"), "user.k", []byte("v"), 0))
	step("setxattr", 10, 1, false)
	m.must(unix.Fallocate(int(f.Fd()), 0, 0, 9000))
	step("fallocate", 9000, 1, true)
	when := []unix.Timespec{{Sec: 5}, {Sec: 1 << 33, Nsec: 7}}
	_, err = f.WriteAt([]byte("dirty"), 0)
	m.must(err)
	m.must(unix.UtimesNanoAt(unix.AT_FDCWD, m.path("f"), when, 0))
	if st := m.stat("f"); st.Mtim != when[1] || st.Atim != when[0] {
		t.Errorf("utimes after write: %v %v", st.Atim, st.Mtim)
	}
	m.must(f.Close())
	if st := m.stat("f"); st.Mtim != when[1] {
		t.Errorf("mtime after close: %v", st.Mtim)
	}
}

// TestSetID has an unprivileged writer lose set-ID bits, and chown too.
func TestSetID(t *testing.T) {
	m := mount(t)
	m.must(os.Chmod(m.dir, 0o755))
	m.put("f", "x")
	m.must(os.Chown(m.path("f"), 12345, 12345))
	set := func() { m.must(unix.Chmod(m.path("f"), 0o6755)) }
	bits := func(what string) {
		t.Helper()
		if st := m.stat("f"); st.Mode&0o7777 != 0o755 {
			t.Errorf("%s leaves mode %o", what, st.Mode&0o7777)
		}
	}
	set()
	m.must(as(12345, nil, func() error { return appendTo(m.path("f"), "more") }))
	bits("write")
	set()
	m.must(as(12345, nil, func() error { return os.Truncate(m.path("f"), 1) }))
	bits("truncate")
	set()
	m.must(as(12345, nil, func() error {
		f, err := os.OpenFile(m.path("f"), os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		return f.Close()
	}))
	bits("O_TRUNC")
	set()
	m.must(os.Chown(m.path("f"), 1, 1))
	bits("chown")
	set()
	m.must(appendTo(m.path("f"), "root may"))
	if st := m.stat("f"); st.Mode&0o7777 != 0o6755 {
		t.Errorf("write by root leaves mode %o", st.Mode&0o7777)
	}
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if _, err = f.WriteString(text); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// as runs fn on a thread that has another uid, gid and supplementary groups.
func as(uid int, groups []int, fn func() error) error {
	done := make(chan error)
	go func() {
		// The thread is not given back: it ends with the goroutine.
		lockThread()
		done <- func() error {
			g := make([]uint32, 0, len(groups)+1)
			for _, id := range groups {
				g = append(g, uint32(id))
			}
			if err := setGroups(g); err != nil {
				return err
			}
			if _, _, e := syscall.RawSyscall(unix.SYS_SETRESGID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				return e
			}
			if _, _, e := syscall.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				return e
			}
			return fn()
		}()
	}()
	return <-done
}
