package posix

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestUnlinkedButOpen(t *testing.T) {
	p := newPlace(t)
	for _, size := range []int{0, 100, 50_000, 9 << 20} {
		p.sub(t, fmt.Sprint(size), func(t *testing.T, dir string) {
			f := dir + "/f"
			body := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
			must(t, os.WriteFile(f, body, 0o600))
			fd, second := open(t, f, unix.O_RDWR, 0), open(t, f, unix.O_RDONLY, 0)
			must(t, unix.Unlink(f))
			want(t, "nlink", fstat(t, fd).Nlink, 0)
			want(t, "size", fstat(t, fd).Size, int64(size))
			wantBytes(t, "body", pread(t, fd, size+1, 0), body)
			pwrite(t, fd, []byte("tail"), int64(size))
			wantBytes(t, "grown", pread(t, second, size+9, 0), append(bytes.Clone(body), "tail"...))
			must(t, unix.Fsync(fd))
			must(t, unix.Fchmod(fd, 0o640))
			must(t, unix.Ftruncate(fd, int64(size/2)))
			want(t, "size by the other handle", fstat(t, second).Size, int64(size/2))
			must(t, unix.Ftruncate(fd, int64(size)))
			wantBytes(t, "cut and grown", pread(t, second, size, 0), append(bytes.Clone(body[:size/2]), make([]byte, size-size/2)...))
			// A new file of the name is another one.
			put(t, f, "new")
			wantBytes(t, "old", pread(t, fd, 4, int64(size)), nil)
			want(t, "the inodes differ", lstat(t, f).Ino != fstat(t, fd).Ino, true)
			again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR, 0)
			wantErr(t, "open through /proc", err)
			must(t, unix.Close(fd))
			pwrite(t, again, []byte("again"), 0)
			wantBytes(t, "by the last handles", pread(t, second, 5, 0), []byte("again"))
			must(t, unix.Close(again))
			wantBody(t, f, []byte("new"))
		})
	}
	p.sub(t, "a removed directory", func(t *testing.T, dir string) {
		must(t, os.Mkdir(dir+"/d", 0o755))
		fd := open(t, dir+"/d", unix.O_DIRECTORY, 0)
		must(t, unix.Rmdir(dir+"/d"))
		want(t, "nlink", fstat(t, fd).Nlink, 0)
		_, err := unix.Openat(fd, "x", unix.O_CREAT|unix.O_WRONLY, 0o600)
		wantErr(t, "create", err, unix.ENOENT)
		wantErr(t, "mkdir", unix.Mkdirat(fd, "x", 0o700), unix.ENOENT)
		n, err := unix.ReadDirent(fd, make([]byte, 4096))
		wantErr(t, "getdents", err, 0, unix.ENOENT)
		want(t, "bytes listed", max(n, 0) < 64, true) // at most the dots
	})
}

// TestRemovedButHeld holds on to things that are not files open for reading or
// writing, of which the kernel tells a filesystem nothing, and removes them.
func TestRemovedButHeld(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	held := map[string]int{}
	for _, kind := range kinds[1:] {
		makeKind(t, kind, dir+"/"+kind)
		held[kind] = open(t, dir+"/"+kind, unix.O_PATH|unix.O_NOFOLLOW, 0)
	}
	makeKind(t, "fifo", dir+"/pipe")
	held["pipe"] = open(t, dir+"/pipe", unix.O_RDWR|unix.O_NONBLOCK, 0)
	makeKind(t, "dir", dir+"/list")
	held["list"] = open(t, dir+"/list", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	makeKind(t, "dir", dir+"/replaced")
	held["replaced"] = open(t, dir+"/replaced", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	makeKind(t, "dir", dir+"/replacement")
	must(t, unix.Rename(dir+"/replacement", dir+"/replaced"))
	modes := map[string]uint32{}
	for name, fd := range held {
		modes[name] = fstat(t, fd).Mode
		must(t, os.RemoveAll(dir+"/"+name))
	}
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end) && !t.Failed(); {
		for name, fd := range held {
			var st unix.Stat_t
			wantErr(t, "fstat of "+name, unix.Fstat(fd, &st))
			want(t, "nlink of "+name, st.Nlink, 0)
			want(t, "mode of "+name, st.Mode, modes[name])
		}
		must(t, unix.Mknod(dir+"/other", unix.S_IFREG|0o600, 0)) // gives the filesystem something to do
		must(t, unix.Unlink(dir+"/other"))
	}
	n, err := unix.Getdents(held["list"], make([]byte, 4096))
	wantErr(t, "getdents of list", err, 0, unix.ENOENT)
	want(t, "bytes listed", max(n, 0) < 64, true) // at most the dots
	_, err = unix.Openat(held["list"], "x", unix.O_CREAT|unix.O_WRONLY, 0o600)
	wantErr(t, "create in list", err, unix.ENOENT)
	_, err = unix.Write(held["pipe"], []byte("x"))
	wantErr(t, "write to pipe", err)
}

func TestTmpfile(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o640)
	if err == unix.EOPNOTSUPP {
		return // programs know how to do without
	}
	must(t, err)
	defer unix.Close(fd)
	st := fstat(t, fd)
	want(t, "nlink", st.Nlink, 0)
	want(t, "mode", st.Mode, unix.S_IFREG|0o640)
	body := bytes.Repeat([]byte("tmp"), 30_000)
	pwrite(t, fd, body, 0)
	list, err := os.ReadDir(dir)
	must(t, err)
	want(t, "names", len(list), 0)
	before := lstat(t, dir)
	proc := func(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
	must(t, unix.Linkat(unix.AT_FDCWD, proc(fd), unix.AT_FDCWD, dir+"/f", unix.AT_SYMLINK_FOLLOW))
	want(t, "nlink", fstat(t, fd).Nlink, 1)
	wantBody(t, dir+"/f", body)
	later(t, "mtime of the directory", before.Mtim, lstat(t, dir).Mtim)
	pwrite(t, fd, []byte("TMP"), 0)
	copy(body, "TMP")
	must(t, unix.Close(fd))
	wantBody(t, dir+"/f", body)

	excl := open(t, dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL, 0o600)
	pwrite(t, excl, body, 0)
	wantErr(t, "link with O_EXCL", unix.Linkat(unix.AT_FDCWD, proc(excl), unix.AT_FDCWD, dir+"/g", unix.AT_SYMLINK_FOLLOW), unix.ENOENT)
	wantBytes(t, "without a name", pread(t, excl, 3, 0), []byte("TMP"))
	_, err = unix.Open(dir, unix.O_TMPFILE|unix.O_RDONLY, 0o600)
	wantErr(t, "read-only", err, unix.EINVAL)
}

func TestOpen(t *testing.T) {
	p := newPlace(t)
	p.sub(t, "errors", func(t *testing.T, dir string) {
		put(t, dir+"/f", "body")
		must(t, unix.Mkfifo(dir+"/p", 0o600))
		must(t, unix.Mknod(dir+"/s", unix.S_IFSOCK|0o600, 0))
		for _, c := range []struct {
			what, path string
			flags      int
			errno      unix.Errno
		}{
			{"no file", "/x", unix.O_RDWR, unix.ENOENT},
			{"no directory", "/x/y", unix.O_CREAT | unix.O_RDWR, unix.ENOENT},
			{"O_EXCL", "/f", unix.O_CREAT | unix.O_EXCL | unix.O_RDWR, unix.EEXIST},
			{"a directory for writing", "", unix.O_RDWR, unix.EISDIR},
			{"a directory with O_CREAT", "", unix.O_CREAT | unix.O_RDONLY, unix.EISDIR},
			{"a file as a directory", "/f", unix.O_DIRECTORY, unix.ENOTDIR},
			{"a fifo nobody reads", "/p", unix.O_WRONLY | unix.O_NONBLOCK, unix.ENXIO},
			{"a socket", "/s", unix.O_RDWR, unix.ENXIO},
			{"a slash behind", "/new/", unix.O_CREAT | unix.O_RDWR, unix.EISDIR},
		} {
			fd, err := unix.Open(dir+c.path, c.flags|unix.O_CLOEXEC, 0o600)
			if err == nil {
				unix.Close(fd)
			}
			wantErr(t, c.what, err, c.errno)
		}
		ro, wo := open(t, dir+"/f", unix.O_RDONLY, 0), open(t, dir+"/f", unix.O_WRONLY, 0)
		_, err := unix.Pwrite(ro, []byte("x"), 0)
		wantErr(t, "write by a reader", err, unix.EBADF)
		_, err = unix.Pread(wo, make([]byte, 1), 0)
		wantErr(t, "read by a writer", err, unix.EBADF)
		wantErr(t, "ftruncate by a reader", unix.Ftruncate(ro, 0), unix.EINVAL, unix.EBADF)
		d := open(t, dir, unix.O_DIRECTORY, 0)
		_, err = unix.Pread(d, make([]byte, 1), 0)
		wantErr(t, "read of a directory", err, unix.EISDIR)
	})
	p.sub(t, "O_TRUNC", func(t *testing.T, dir string) {
		f := dir + "/f"
		for _, size := range []int{0, 10, 5000, 300_000} {
			must(t, os.WriteFile(f, fill(size, 'x'), 0o600))
			old := open(t, f, unix.O_RDWR, 0)
			pwrite(t, old, fill(100, 'y'), int64(size))
			open(t, f, unix.O_WRONLY|unix.O_TRUNC, 0)
			want(t, "size", fstat(t, old).Size, 0)
			wantBytes(t, "body", pread(t, old, 10, 0), nil)
			pwrite(t, old, []byte("z"), 5000)
			wantBody(t, f, append(make([]byte, 5000), 'z'))
		}
	})
	p.sub(t, "a file without rights may be written by who made it", func(t *testing.T, dir string) {
		fd := open(t, dir+"/f", unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0)
		pwrite(t, fd, []byte("x"), 0)
		want(t, "mode", fstat(t, fd).Mode, unix.S_IFREG)
	})
	p.sub(t, "fifo", func(t *testing.T, dir string) {
		must(t, unix.Mkfifo(dir+"/p", 0o600))
		fd := open(t, dir+"/p", unix.O_RDWR|unix.O_NONBLOCK, 0)
		_, err := unix.Write(fd, []byte("through"))
		must(t, err)
		b := make([]byte, 20)
		n, err := unix.Read(fd, b)
		must(t, err)
		wantBytes(t, "fifo", b[:n], []byte("through"))
	})
	p.sub(t, "devices keep their numbers", func(t *testing.T, dir string) {
		for _, typ := range []uint32{unix.S_IFCHR, unix.S_IFBLK} {
			path := fmt.Sprint(dir, "/", typ)
			must(t, unix.Mknod(path, typ|0o600, int(unix.Mkdev(259, 1234))))
			st := lstat(t, path)
			want(t, "device", st.Rdev, unix.Mkdev(259, 1234))
			want(t, "type", st.Mode&unix.S_IFMT, typ)
		}
	})
}

// TestSync has all ways to sync succeed.
func TestSync(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	f := dir + "/f"
	fd := open(t, f, unix.O_CREAT|unix.O_RDWR, 0o600)
	ro, d := open(t, f, unix.O_RDONLY, 0), open(t, dir, unix.O_DIRECTORY, 0)
	for i, flags := range []int{unix.O_SYNC, unix.O_DSYNC, unix.O_SYNC | unix.O_APPEND} {
		s := open(t, f, unix.O_WRONLY|flags, 0)
		pwrite(t, s, fill(10, 'a'+byte(i)), int64(10*i))
	}
	for what, err := range map[string]error{
		"fsync": unix.Fsync(fd), "fdatasync": unix.Fdatasync(fd), "fsync by a reader": unix.Fsync(ro), "fsync of a directory": unix.Fsync(d),
		"fdatasync of a directory": unix.Fdatasync(d), "syncfs": unix.Syncfs(fd), "sync_file_range": unix.SyncFileRange(fd, 0, 0, 7),
	} {
		wantErr(t, what, err)
	}
	wantBody(t, f, append(append(fill(10, 'a'), fill(10, 'b')...), fill(10, 'c')...))
}

// TestSplice moves bytes without reading and writing them.
func TestSplice(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	body := bytes.Repeat([]byte("0123456789"), 50_000)
	must(t, os.WriteFile(dir+"/src", body, 0o600))
	src, dst := open(t, dir+"/src", unix.O_RDONLY, 0), open(t, dir+"/dst", unix.O_CREAT|unix.O_RDWR, 0o600)
	for off := int64(0); off < int64(len(body)); {
		_, err := unix.Sendfile(dst, src, &off, len(body))
		must(t, err)
	}
	wantBody(t, dir+"/dst", body)
	var pipe [2]int
	must(t, unix.Pipe(pipe[:]))
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	from, to := int64(1), int64(3)
	for left := 200_000; left > 0; {
		n, err := unix.Splice(src, &from, pipe[1], nil, min(left, 1<<16), 0)
		must(t, err)
		left -= int(n)
		for n > 0 {
			k, err := unix.Splice(pipe[0], nil, dst, &to, int(n), 0)
			must(t, err)
			n -= k
		}
	}
	copy(body[3:], bytes.Clone(body[1:200_001]))
	wantBody(t, dir+"/dst", body)
}

// TestAppend has several processes append to one file; no record is lost, torn,
// or out of its writer's order.
func TestAppend(t *testing.T) {
	p := newPlace(t)
	for _, size := range []int{48, 5000} {
		p.sub(t, fmt.Sprint(size), func(t *testing.T, dir string) {
			const writers, records = 4, 300
			cs := make([]*child, writers)
			for i := range cs {
				cs[i] = spawn(t, nil)
				fd := cs[i].open(dir+"/log", unix.O_CREAT|unix.O_APPEND|unix.O_WRONLY)
				cs[i].start(call{Op: "append", FD: fd, N: records, Data: fill(size, 'a'+byte(i))})
			}
			for _, c := range cs {
				wantErr(t, "append", c.wait().err())
			}
			b, err := os.ReadFile(dir + "/log")
			must(t, err)
			want(t, "size", len(b), writers*records*size)
			seen := map[byte]int{}
			for len(b) >= size {
				if !bytes.Equal(b[:size], fill(size, b[0])) {
					t.Fatalf("a torn record: %q", b[:size])
				}
				seen[b[0]]++
				b = b[size:]
			}
			for i := range writers {
				want(t, "records", seen['a'+byte(i)], records)
			}
		})
	}
	p.sub(t, "to where the end is now", func(t *testing.T, dir string) {
		f := dir + "/f"
		a := open(t, f, unix.O_CREAT|unix.O_APPEND|unix.O_RDWR, 0o600)
		b := open(t, f, unix.O_APPEND|unix.O_RDWR, 0)
		write := func(fd int, s string) {
			_, err := unix.Write(fd, []byte(s))
			must(t, err)
		}
		write(a, "1")
		write(b, "2")
		// Linux appends whatever offset pwrite names.
		pwrite(t, a, []byte("3"), 0)
		must(t, unix.Ftruncate(b, 2))
		write(a, "4")
		must(t, unix.Ftruncate(b, 5))
		write(b, "5")
		wantBody(t, f, []byte("124\x00\x005"))
		off, err := unix.Seek(b, 0, unix.SEEK_CUR)
		must(t, err)
		want(t, "offset", off, 6)
	})
}
