package posix

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// kinds of things that a name can lead to; "" is no name.
var kinds = []string{"", "file", "symlink", "fifo", "dir", "full"}

func makeKind(t *testing.T, kind, path string) {
	t.Helper()
	switch kind {
	case "file":
		put(t, path, path)
	case "symlink":
		must(t, os.Symlink("nowhere", path))
	case "fifo":
		must(t, unix.Mkfifo(path, 0o600))
	case "dir":
		must(t, os.Mkdir(path, 0o755))
	case "full":
		must(t, os.MkdirAll(filepath.Join(path, "in", "deep"), 0o755))
	}
}

func isDir(kind string) bool { return kind == "dir" || kind == "full" }

// renameErr is what rename(2) says.
func renameErr(oldKind, newKind string, flags uint) unix.Errno {
	switch {
	case oldKind == "":
		return unix.ENOENT
	case flags == unix.RENAME_EXCHANGE && newKind == "":
		return unix.ENOENT
	case flags == unix.RENAME_EXCHANGE:
		return 0
	case flags == unix.RENAME_NOREPLACE && newKind != "":
		return unix.EEXIST
	case newKind == "":
		return 0
	case isDir(oldKind) && !isDir(newKind):
		return unix.ENOTDIR
	case !isDir(oldKind) && isDir(newKind):
		return unix.EISDIR
	case newKind == "full":
		return unix.ENOTEMPTY
	}
	return 0
}

// TestRenameMatrix renames everything over everything, within a directory and
// from one to another.
func TestRenameMatrix(t *testing.T) {
	p := newPlace(t)
	flagNames := map[uint]string{0: "plain", unix.RENAME_NOREPLACE: "noreplace", unix.RENAME_EXCHANGE: "exchange"}
	for flags, flagName := range flagNames {
		for _, oldKind := range kinds {
			for _, newKind := range kinds {
				for _, across := range []bool{false, true} {
					name := fmt.Sprintf("%s/%s-over-%s/across=%v", flagName, oldKind, newKind, across)
					p.sub(t, name, func(t *testing.T, dir string) {
						renameCase(t, dir, oldKind, newKind, flags, across)
					})
				}
			}
		}
	}
}

func renameCase(t *testing.T, dir, oldKind, newKind string, flags uint, across bool) {
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "from")
	if across {
		to = filepath.Join(dir, "to")
		must(t, os.Mkdir(to, 0o755))
	}
	must(t, os.Mkdir(from, 0o755))
	o, n := filepath.Join(from, "old"), filepath.Join(to, "new")
	makeKind(t, oldKind, o)
	makeKind(t, newKind, n)
	var before [2]unix.Stat_t
	if oldKind != "" {
		before[0] = lstat(t, o)
	}
	if newKind != "" {
		before[1] = lstat(t, n)
	}
	fromBefore, toBefore := lstat(t, from), lstat(t, to)

	wantErrno := renameErr(oldKind, newKind, flags)
	err := unix.Renameat2(unix.AT_FDCWD, o, unix.AT_FDCWD, n, flags)
	wantErr(t, "rename", err, wantErrno)

	afterOld, afterNew := oldKind, newKind // the kinds at the two names
	inoOld, inoNew := before[0].Ino, before[1].Ino
	if wantErrno == 0 {
		if flags == unix.RENAME_EXCHANGE {
			afterOld, afterNew, inoOld, inoNew = newKind, oldKind, before[1].Ino, before[0].Ino
		} else {
			afterOld, afterNew, inoOld, inoNew = "", oldKind, 0, before[0].Ino
		}
	}
	wantKind(t, o, afterOld, inoOld, from)
	wantKind(t, n, afterNew, inoNew, to)
	wantSubdirs(t, from)
	wantSubdirs(t, to)
	if wantErrno != 0 {
		want(t, "mtime of the old parent after a failure", lstat(t, from).Mtim, fromBefore.Mtim)
		want(t, "mtime of the new parent after a failure", lstat(t, to).Mtim, toBefore.Mtim)
		return
	}
	later(t, "mtime of the old parent", fromBefore.Mtim, lstat(t, from).Mtim)
	later(t, "mtime of the new parent", toBefore.Mtim, lstat(t, to).Mtim)
	later(t, "ctime of what was renamed", before[0].Ctim, lstat(t, n).Ctim)
	want(t, "mtime of what was renamed", lstat(t, n).Mtim, before[0].Mtim)
}

// wantKind checks what a name leads to.
func wantKind(t *testing.T, path, kind string, ino uint64, parent string) {
	t.Helper()
	name := filepath.Base(path)
	if kind == "" {
		var st unix.Stat_t
		wantErr(t, "lstat "+name, unix.Lstat(path, &st), unix.ENOENT)
		return
	}
	st := lstat(t, path)
	want(t, "inode of "+name, st.Ino, ino)
	types := map[string]uint32{"file": unix.S_IFREG, "symlink": unix.S_IFLNK, "fifo": unix.S_IFIFO, "dir": unix.S_IFDIR, "full": unix.S_IFDIR}
	want(t, "type of "+name, st.Mode&unix.S_IFMT, types[kind])
	if isDir(kind) {
		want(t, ".. of "+name, lstat(t, path+"/..").Ino, lstat(t, parent).Ino)
		wantSubdirs(t, path)
	} else {
		want(t, "nlink of "+name, st.Nlink, 1)
	}
	if kind == "full" {
		want(t, "nlink within "+name, lstat(t, path+"/in").Nlink, 3)
	}
}

// wantSubdirs checks a directory's link count against what it holds.
func wantSubdirs(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	n := uint64(2)
	for _, e := range list {
		if e.IsDir() {
			n++
		}
	}
	want(t, "nlink of "+filepath.Base(dir), uint64(lstat(t, dir).Nlink), n)
}

func TestRename(t *testing.T) {
	p := newPlace(t)
	p.sub(t, "into itself", func(t *testing.T, dir string) {
		d := filepath.Join(dir, "d")
		must(t, os.MkdirAll(d+"/e/f", 0o755))
		wantErr(t, "d to d/x", unix.Rename(d, d+"/x"), unix.EINVAL)
		wantErr(t, "d to d/e/f/x", unix.Rename(d, d+"/e/f/x"), unix.EINVAL)
		wantErr(t, "d over d/e/f", unix.Rename(d, d+"/e/f"), unix.EINVAL)
		wantErr(t, "d/e/f over d", unix.Rename(d+"/e/f", d), unix.ENOTEMPTY)
		wantErr(t, "d/e over d", unix.Rename(d+"/e", d), unix.ENOTEMPTY)
		wantErr(t, "exchange d and d/e", unix.Renameat2(unix.AT_FDCWD, d, unix.AT_FDCWD, d+"/e", unix.RENAME_EXCHANGE), unix.EINVAL)
		wantErr(t, "exchange d/e/f and d", unix.Renameat2(unix.AT_FDCWD, d+"/e/f", unix.AT_FDCWD, d, unix.RENAME_EXCHANGE), unix.EINVAL)
		wantErr(t, "d/. to x", unix.Rename(d+"/.", dir+"/x"), unix.EBUSY)
		wantErr(t, "d to itself", unix.Rename(d, d))
		wantSubdirs(t, d)
	})
	p.sub(t, "flags that exclude each other", func(t *testing.T, dir string) {
		put(t, dir+"/a", "a")
		err := unix.Renameat2(unix.AT_FDCWD, dir+"/a", unix.AT_FDCWD, dir+"/b", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE)
		wantErr(t, "rename", err, unix.EINVAL)
	})
	p.sub(t, "links of one inode", func(t *testing.T, dir string) {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		put(t, a, "body")
		must(t, os.Link(a, b))
		before := lstat(t, dir)
		wantErr(t, "rename", unix.Rename(a, b))
		want(t, "nlink", lstat(t, a).Nlink, 2)
		want(t, "inode", lstat(t, a).Ino, lstat(t, b).Ino)
		want(t, "mtime of the directory", lstat(t, dir).Mtim, before.Mtim)
		wantErr(t, "rename without replacing", unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE), unix.EEXIST)
		wantErr(t, "exchange", unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
		wantBody(t, a, []byte("body"))
		wantBody(t, b, []byte("body"))
	})
	p.sub(t, "over an open file", func(t *testing.T, dir string) {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		put(t, a, "new")
		put(t, b, "old")
		fa, fb := open(t, a, unix.O_RDWR, 0), open(t, b, unix.O_RDWR, 0)
		pwrite(t, fb, []byte("+"), 3)
		must(t, unix.Rename(a, b))
		want(t, "nlink of what was replaced", fstat(t, fb).Nlink, 0)
		want(t, "nlink of what replaced it", fstat(t, fa).Nlink, 1)
		wantBytes(t, "replaced", pread(t, fb, 9, 0), []byte("old+"))
		pwrite(t, fb, []byte("gone"), 0)
		pwrite(t, fa, []byte("+"), 3)
		wantBytes(t, "replaced, written again", pread(t, fb, 9, 0), []byte("gone"))
		wantBody(t, b, []byte("new+"))
	})
	p.sub(t, "over an open directory", func(t *testing.T, dir string) {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		must(t, os.Mkdir(a, 0o755))
		must(t, os.Mkdir(b, 0o755))
		fd := open(t, b, unix.O_DIRECTORY, 0)
		must(t, unix.Rename(a, b))
		want(t, "nlink of what was replaced", fstat(t, fd).Nlink, 0)
		_, err := unix.Openat(fd, "x", unix.O_CREAT|unix.O_WRONLY, 0o600)
		wantErr(t, "create in a removed directory", err, unix.ENOENT)
	})
	p.sub(t, "trailing slashes", func(t *testing.T, dir string) {
		put(t, dir+"/f", "")
		must(t, os.Mkdir(dir+"/d", 0o755))
		wantErr(t, "f/ to g", unix.Rename(dir+"/f/", dir+"/g"), unix.ENOTDIR)
		wantErr(t, "f to g/", unix.Rename(dir+"/f", dir+"/g/"), unix.ENOTDIR)
		wantErr(t, "d/ to e/", unix.Rename(dir+"/d/", dir+"/e/"))
	})
	p.sub(t, "a busy tree keeps its names", func(t *testing.T, dir string) {
		deep := filepath.Join(dir, "a/b/c/d")
		must(t, os.MkdirAll(deep, 0o755))
		put(t, deep+"/f", "body")
		fd := open(t, deep, unix.O_DIRECTORY, 0)
		must(t, unix.Rename(dir+"/a/b", dir+"/z"))
		wantBody(t, dir+"/z/c/d/f", []byte("body"))
		ff, err := unix.Openat(fd, "../../../a", unix.O_DIRECTORY, 0)
		wantErr(t, ".. three times, then a", err)
		unix.Close(ff)
		want(t, "the old name", exists(dir+"/a/b"), false)
		want(t, "nlink of a", lstat(t, dir+"/a").Nlink, 2)
		want(t, "nlink of the directory", lstat(t, dir).Nlink, 4)
	})
}

func TestNames(t *testing.T) {
	p := newPlace(t)
	p.sub(t, "any byte", func(t *testing.T, dir string) {
		names := map[string]bool{}
		for c := 1; c < 256; c++ {
			if c == '/' {
				continue
			}
			names[strings.Repeat(string([]byte{byte(c)}), 255)] = true
			if c != '.' {
				names[string([]byte{byte(c)})] = true
			}
		}
		for _, s := range []string{"...", "..a", " ", "a ", "\xff\xfe", "\xed\xa0\x80", "e\u0301", "\u00e9", "A", "a\nb", "a\\b", "CON", "x:2,S"} {
			names[s] = true
		}
		for s := range names {
			put(t, dir+"/"+s, s)
		}
		list, err := os.ReadDir(dir)
		must(t, err)
		want(t, "names listed", len(list), len(names))
		for _, e := range list {
			if !names[e.Name()] {
				t.Errorf("%q is listed", e.Name())
			}
			wantBody(t, dir+"/"+e.Name(), []byte(e.Name()))
			must(t, os.Remove(dir+"/"+e.Name()))
		}
	})
	p.sub(t, "too long", func(t *testing.T, dir string) {
		f, long := dir+"/f", dir+"/"+strings.Repeat("n", 256)
		put(t, f, "")
		must(t, os.Symlink("f", dir+"/s"))
		fd, err := unix.Open(long, unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err == nil {
			unix.Close(fd)
		}
		var st unix.Stat_t
		for what, err := range map[string]error{
			"open": err, "stat": unix.Stat(long, &st), "mkdir": unix.Mkdir(long, 0o700), "mknod": unix.Mknod(long, unix.S_IFREG, 0),
			"unlink": unix.Unlink(long), "rmdir": unix.Rmdir(long), "rename from": unix.Rename(long, f), "rename to": unix.Rename(f, long),
			"link from": unix.Link(long, f), "link to": unix.Link(f, long), "symlink": unix.Symlink("x", long),
			"a path": unix.Stat(dir+strings.Repeat("/.", 2048), &st), "chmod": unix.Chmod(long, 0), "truncate": unix.Truncate(long, 0),
		} {
			wantErr(t, what, err, unix.ENAMETOOLONG)
		}
	})
	p.sub(t, "dots", func(t *testing.T, dir string) {
		must(t, os.MkdirAll(dir+"/a/b", 0o755))
		wantErr(t, "rmdir a/.", unix.Rmdir(dir+"/a/."), unix.EINVAL)
		wantErr(t, "rmdir a/b/..", unix.Rmdir(dir+"/a/b/.."), unix.ENOTEMPTY)
		wantErr(t, "unlink a/.", unix.Unlink(dir+"/a/."), unix.EISDIR, unix.EINVAL)
		wantErr(t, "mkdir a/.", unix.Mkdir(dir+"/a/.", 0o700), unix.EEXIST)
		wantErr(t, "mkdir a/b/", unix.Mkdir(dir+"/a/b/", 0o700), unix.EEXIST)
		wantErr(t, "rename a/.. ", unix.Rename(dir+"/a/..", dir+"/x"), unix.EBUSY)
	})
	p.sub(t, "not a directory", func(t *testing.T, dir string) {
		put(t, dir+"/f", "")
		f := dir + "/f/x"
		fd, err := unix.Open(f, unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err == nil {
			unix.Close(fd)
		}
		var st unix.Stat_t
		for what, err := range map[string]error{
			"open": err, "stat": unix.Stat(f, &st), "mkdir": unix.Mkdir(f, 0o700), "unlink": unix.Unlink(f), "rmdir": unix.Rmdir(f),
			"rename to": unix.Rename(dir+"/f", f), "link to": unix.Link(dir+"/f", f), "symlink": unix.Symlink("x", f),
			"rmdir of a file": unix.Rmdir(dir + "/f"),
		} {
			wantErr(t, what, err, unix.ENOTDIR)
		}
		wantErr(t, "unlink of a directory", unix.Unlink(dir), unix.EISDIR)
	})
}

func TestSymlinks(t *testing.T) {
	p := newPlace(t)
	p.sub(t, "dangling", func(t *testing.T, dir string) {
		s := dir + "/s"
		must(t, os.Symlink("target", s))
		_, err := unix.Open(s, unix.O_RDONLY, 0)
		wantErr(t, "open", err, unix.ENOENT)
		_, err = unix.Open(s, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600)
		wantErr(t, "open with O_EXCL", err, unix.EEXIST)
		_, err = unix.Open(s, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
		wantErr(t, "open with O_NOFOLLOW", err, unix.ELOOP)
		wantErr(t, "mkdir", unix.Mkdir(s, 0o700), unix.EEXIST)
		wantErr(t, "symlink", unix.Symlink("x", s), unix.EEXIST)
		wantErr(t, "link", unix.Link(s, s), unix.EEXIST)
		st := lstat(t, s)
		want(t, "size", st.Size, 6)
		want(t, "mode", st.Mode, unix.S_IFLNK|0o777)
		put(t, s, "through")
		wantBody(t, dir+"/target", []byte("through"))
		wantErr(t, "unlink", unix.Unlink(s))
		want(t, "the target stays", exists(dir+"/target"), true)
	})
	p.sub(t, "loops", func(t *testing.T, dir string) {
		must(t, os.Symlink("self", dir+"/self"))
		must(t, os.Symlink("b", dir+"/a"))
		must(t, os.Symlink("a", dir+"/b"))
		var st unix.Stat_t
		for _, s := range []string{"self", "a", "a/x", "self/x"} {
			wantErr(t, "stat "+s, unix.Stat(dir+"/"+s, &st), unix.ELOOP)
		}
		put(t, dir+"/0", "end")
		for i := range 41 {
			must(t, os.Symlink(fmt.Sprint(i), fmt.Sprint(dir, "/", i+1)))
		}
		wantErr(t, "stat through 40", unix.Stat(dir+"/40", &st))
		wantErr(t, "stat through 41", unix.Stat(dir+"/41", &st), unix.ELOOP)
	})
	p.sub(t, "targets", func(t *testing.T, dir string) {
		for i, target := range []string{"x", "/", strings.Repeat("t", 59), strings.Repeat("t", 60), strings.Repeat("t", 255), strings.Repeat("/t", 2047), strings.Repeat("t", 4095), "\xff\x01 \n"} {
			s := fmt.Sprint(dir, "/", i)
			must(t, unix.Symlink(target, s))
			for range 2 {
				b := make([]byte, 5000)
				n, err := unix.Readlink(s, b)
				wantErr(t, "readlink", err)
				wantBytes(t, "target", b[:n], []byte(target))
			}
			want(t, "size", lstat(t, s).Size, int64(len(target)))
		}
		b := make([]byte, 3)
		n, err := unix.Readlink(dir+"/2", b)
		wantErr(t, "readlink into a small buffer", err)
		want(t, "bytes", n, 3)
		wantErr(t, "4096 bytes", unix.Symlink(strings.Repeat("t", 4096), dir+"/long"), unix.ENAMETOOLONG)
		wantErr(t, "no bytes", unix.Symlink("", dir+"/empty"), unix.ENOENT)
		put(t, dir+"/f", "")
		_, err = unix.Readlink(dir+"/f", b)
		wantErr(t, "readlink of a file", err, unix.EINVAL)
		// A name that now means another symlink must not show the old target.
		must(t, os.Symlink("other", dir+"/new"))
		must(t, os.Rename(dir+"/new", dir+"/0"))
		got, err := os.Readlink(dir + "/0")
		wantErr(t, "readlink", err)
		want(t, "target after a rename over", got, "other")
	})
	p.sub(t, "attributes of the link itself", func(t *testing.T, dir string) {
		put(t, dir+"/f", "")
		must(t, os.Symlink("f", dir+"/s"))
		must(t, unix.Lchown(dir+"/s", 7, 8))
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/s", []unix.Timespec{{Sec: 1}, {Sec: 2, Nsec: 3}}, unix.AT_SYMLINK_NOFOLLOW))
		st := lstat(t, dir+"/s")
		want(t, "owner", [2]uint32{st.Uid, st.Gid}, [2]uint32{7, 8})
		want(t, "mtime", st.Mtim, unix.Timespec{Sec: 2, Nsec: 3})
		st = lstat(t, dir+"/f")
		want(t, "owner of the target", [2]uint32{st.Uid, st.Gid}, [2]uint32{0, 0})
	})
}
