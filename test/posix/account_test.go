package posix

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

// opened is the path of what a handle opens.
func opened(t *testing.T, mount string, h unix.FileHandle) string {
	t.Helper()
	top := open(t, mount, unix.O_DIRECTORY, 0)
	defer unix.Close(top)
	fd, err := unix.OpenByHandleAt(top, h, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	path, err := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
	must(t, err)
	return path
}

// TestAccounts is about the directories that are volumes of their own.
func TestAccounts(t *testing.T) {
	if plain {
		t.Skip("a plain filesystem has no accounts")
	}
	p := newPlace(t)
	// domain runs a subtest in a domain of its own.
	domain := func(name string, fn func(t *testing.T, dom string)) {
		t.Run(name, func(t *testing.T) {
			dom, err := os.MkdirTemp(p.root, "domain")
			must(t, err)
			must(t, os.Chmod(dom, 0o755))
			fn(t, dom)
		})
	}
	domain("links and renames across", func(t *testing.T, dom string) {
		a, b := dom+"/a", dom+"/b"
		must(t, os.Mkdir(a, 0o755))
		must(t, os.Mkdir(b, 0o755))
		put(t, a+"/f", "body")
		put(t, b+"/g", "other")
		must(t, os.MkdirAll(a+"/d/e", 0o755))
		must(t, os.Mkdir(b+"/d", 0o755))
		fd := open(t, a, unix.O_TMPFILE|unix.O_RDWR, 0o600)
		before := [2]unix.Stat_t{lstat(t, a), lstat(t, b)}
		x := func(o, n string, flags uint) error {
			return unix.Renameat2(unix.AT_FDCWD, a+o, unix.AT_FDCWD, n, flags)
		}
		for what, err := range map[string]error{
			"link": unix.Link(a+"/f", b+"/f"), "link over": unix.Link(a+"/f", b+"/g"),
			"link to the domain": unix.Link(a+"/f", dom+"/f"), "rename": x("/f", b+"/f", 0), "rename over": x("/f", b+"/g", 0),
			"rename of a directory": x("/d", b+"/e", 0), "rename over a directory": x("/d", b+"/d", 0),
			"rename without replacing": x("/f", b+"/f", unix.RENAME_NOREPLACE), "exchange": x("/f", b+"/g", unix.RENAME_EXCHANGE),
			"rename to the domain": x("/f", dom+"/f", 0), "rename of a directory to the domain": x("/d", dom+"/d", 0),
			"link of a file without a name": unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, b+"/t", unix.AT_SYMLINK_FOLLOW),
			"account into another":          unix.Rename(a, b+"/x"),
		} {
			if what == "link over" {
				wantErr(t, what, err, unix.EXDEV, unix.EEXIST)
				continue
			}
			wantErr(t, what, err, unix.EXDEV)
		}
		want(t, "mtime of an account", lstat(t, a).Mtim, before[0].Mtim)
		want(t, "mtime of the other account", lstat(t, b).Mtim, before[1].Mtim)
		wantErr(t, "account into itself", unix.Rename(a, a+"/d/x"), unix.EINVAL)
		out, err := exec.Command("mv", a+"/f", a+"/d", b+"/d/").CombinedOutput()
		if err != nil {
			t.Fatalf("mv: %v\n%s", err, out)
		}
		wantBody(t, b+"/d/f", []byte("body"))
		want(t, "a moved directory", exists(b+"/d/d/e"), true)
		want(t, "what was moved", exists(a+"/f") || exists(a+"/d"), false)
	})
	domain("copies across", func(t *testing.T, dom string) {
		must(t, os.Mkdir(dom+"/a", 0o755))
		must(t, os.Mkdir(dom+"/b", 0o755))
		body := bytes.Repeat([]byte("12345678"), 700_000)
		must(t, os.WriteFile(dom+"/a/f", body, 0o600))
		in, out := open(t, dom+"/a/f", unix.O_RDONLY, 0), open(t, dom+"/b/f", unix.O_CREAT|unix.O_WRONLY, 0o600)
		for {
			n, err := unix.CopyFileRange(in, nil, out, nil, 1<<20, 0)
			must(t, err)
			if n == 0 {
				break
			}
		}
		wantBody(t, dom+"/b/f", body)
	})
	domain("mv keeps everything", func(t *testing.T, dom string) {
		a := dom + "/a"
		must(t, os.MkdirAll(a+"/Maildir/new", 0o755))
		for i := range 200 {
			put(t, fmt.Sprint(a, "/Maildir/new/", i), fmt.Sprint("message ", i))
		}
		must(t, os.Link(a+"/Maildir/new/0", a+"/link"))
		must(t, unix.Setxattr(a, "user.x", []byte("v"), 0))
		must(t, unix.Chown(a, alice, users))
		must(t, unix.Chmod(a, 0o2750))
		fd := open(t, a+"/Maildir/new/1", unix.O_RDWR, 0)
		before, file, domBefore := lstat(t, a), lstat(t, a+"/Maildir/new/7"), lstat(t, dom)
		must(t, os.Mkdir(dom+"/empty", 0o755))
		must(t, os.MkdirAll(dom+"/full/x", 0o755))
		must(t, os.Mkdir(dom+"-other", 0o755))
		wantErr(t, "over one that is not empty", unix.Rename(a, dom+"/full"), unix.ENOTEMPTY)
		wantErr(t, "over one without replacing", unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, dom+"/empty", unix.RENAME_NOREPLACE), unix.EEXIST)
		b := dom + "/b"
		for i, to := range []string{b, dom + "/empty", dom + "-other/c", a, b} {
			from := []string{a, b, dom + "/empty", dom + "-other/c", a}[i]
			if out, err := exec.Command("mv", "-T", from, to).CombinedOutput(); err != nil {
				t.Fatalf("mv %s %s: %v\n%s", from, to, err, out)
			}
			want(t, "the old name", exists(from), false)
			after := lstat(t, to)
			after.Ctim = before.Ctim
			want(t, "what stat shows of "+to, after, before)
			// The same inode: nothing was copied.
			want(t, "what stat shows of a message", lstat(t, to+"/Maildir/new/7"), file)
			want(t, "..", lstat(t, to+"/..").Ino, lstat(t, filepath.Dir(to)).Ino)
			want(t, ".. in a listing", harness.DotDot(t, to), lstat(t, filepath.Dir(to)).Ino)
		}
		want(t, "nlink of the domain", lstat(t, dom).Nlink, domBefore.Nlink+1) // b for a, and full
		pwrite(t, fd, []byte("MESS"), 0)
		wantBody(t, b+"/Maildir/new/1", []byte("MESSage 1"))
		wantBytes(t, "xattr", getxattr(t, b, "user.x"), []byte("v"))
		want(t, "nlink", lstat(t, b+"/link").Nlink, 2)
		must(t, os.Link(b+"/link", b+"/another"))
		put(t, b+"/Maildir/new/200", "message 200")
		must(t, unix.Renameat2(unix.AT_FDCWD, b, unix.AT_FDCWD, dom+"/full", unix.RENAME_EXCHANGE))
		want(t, "inode after an exchange", lstat(t, dom+"/full").Ino, before.Ino)
		want(t, "the other after an exchange", exists(b+"/x"), true)
		must(t, unix.Rename(dom+"/full", dom+"-other/full"))
		handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dom+"-other/full/Maildir", 0)
		must(t, err)
		p.node.Term()
		p.node.Restart()
		// The kernel knows nothing of the path now, and asks for each "..".
		want(t, "the path of a handle", opened(t, p.root, handle), dom+"-other/full/Maildir")
		must(t, unix.Rename(dom+"-other/full", dom+"/full"))
		for i := range 201 {
			if i != 1 {
				wantBody(t, fmt.Sprint(dom, "/full/Maildir/new/", i), []byte(fmt.Sprint("message ", i)))
			}
		}
	})
	domain("removal", func(t *testing.T, dom string) {
		a := dom + "/a"
		must(t, os.Mkdir(a, 0o755))
		ino := lstat(t, a).Ino
		put(t, a+"/f", "body")
		wantErr(t, "rmdir of one that is not empty", unix.Rmdir(a), unix.ENOTEMPTY)
		wantErr(t, "unlink", unix.Unlink(a), unix.EISDIR)
		wantErr(t, "rmdir of the domain", unix.Rmdir(dom), unix.ENOTEMPTY)
		wantBody(t, a+"/f", []byte("body"))
		dfd := open(t, a, unix.O_DIRECTORY, 0)
		must(t, unix.Unlink(a+"/f"))
		must(t, unix.Rmdir(a))
		want(t, "nlink of the domain", lstat(t, dom).Nlink, 2)
		_, err := unix.Openat(dfd, "f", unix.O_CREAT|unix.O_WRONLY, 0o600)
		wantErr(t, "create in one that was removed", err, unix.ENOENT)
		must(t, os.Mkdir(a, 0o700))
		want(t, "the inode is another", lstat(t, a).Ino != ino, true)
		want(t, "nothing in a new one", exists(a+"/f"), false)
		must(t, unix.Rmdir(a))
		must(t, unix.Rmdir(dom))
	})
	domain("an open file of a removed one", func(t *testing.T, dom string) {
		a := dom + "/a"
		must(t, os.Mkdir(a, 0o755))
		body := fill(300_000, 'x')
		must(t, os.WriteFile(a+"/f", body, 0o600))
		fd := open(t, a+"/f", unix.O_RDWR, 0)
		must(t, unix.Fsync(fd))
		must(t, unix.Unlink(a+"/f"))
		must(t, unix.Rmdir(a))
		must(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
		wantBytes(t, "body", pread(t, fd, 400_000, 0), body)
		pwrite(t, fd, []byte("y"), 0)
		wantErr(t, "fsync", unix.Fsync(fd))
		wantBytes(t, "written", pread(t, fd, 2, 0), []byte("yx"))
		want(t, "nlink", fstat(t, fd).Nlink, 0)
		wantErr(t, "close", unix.Close(fd))
	})
	domain("one filesystem", func(t *testing.T, dom string) {
		must(t, os.MkdirAll(dom+"/a/d", 0o755))
		put(t, dom+"/a/f", "")
		dev := lstat(t, p.root).Dev
		numbers := map[uint64]string{}
		for _, path := range []string{p.root, dom, dom + "/a", dom + "/a/d", dom + "/a/f"} {
			st := lstat(t, path)
			want(t, "device of "+path, st.Dev, dev)
			if other := numbers[st.Ino]; other != "" {
				t.Errorf("%s and %s have the same inode number", path, other)
			}
			numbers[st.Ino] = path
		}
		for _, e := range listAll(t, open(t, dom, unix.O_DIRECTORY, 0), 4096) {
			want(t, "number of "+e.name, e.ino, lstat(t, dom+"/"+e.name).Ino)
			want(t, "type of "+e.name, e.typ, unix.DT_DIR)
		}
		want(t, "nlink of the domain", lstat(t, dom).Nlink, 3)
		want(t, "nlink of the account", lstat(t, dom+"/a").Nlink, 3)
		want(t, "..", lstat(t, dom+"/a/..").Ino, lstat(t, dom).Ino)
	})
	domain("a maildir in place of a domain", func(t *testing.T, dom string) {
		for _, sub := range []string{"tmp", "new", "cur", ".Sent"} {
			must(t, os.Mkdir(dom+"/"+sub, 0o700))
		}
		put(t, dom+"/tmp/m", "message")
		must(t, unix.Link(dom+"/tmp/m", dom+"/new/m"))
		must(t, unix.Unlink(dom+"/tmp/m"))
		must(t, unix.Rename(dom+"/new/m", dom+"/cur/m:2,S"))
		must(t, unix.Rename(dom+"/cur/m:2,S", dom+"/.Sent/m"))
		wantBody(t, dom+"/.Sent/m", []byte("message"))
	})
	domain("one of many makes it", func(t *testing.T, dom string) {
		for round := range 20 {
			a := fmt.Sprint(dom, "/", round)
			var mu sync.Mutex
			var wg sync.WaitGroup
			won := 0
			for range 12 {
				wg.Go(func() {
					err := unix.Mkdir(a, 0o755)
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						won++
					} else if !errors.Is(err, unix.EEXIST) {
						t.Errorf("mkdir: %v, want EEXIST", err)
					}
				})
			}
			wg.Wait()
			want(t, "makers", won, 1)
		}
		want(t, "nlink of the domain", lstat(t, dom).Nlink, 22)
	})
	domain("removed or filled", func(t *testing.T, dom string) {
		for round := range 60 {
			a := fmt.Sprint(dom, "/", round)
			must(t, os.Mkdir(a, 0o755))
			var made, removed error
			var wg sync.WaitGroup
			wg.Go(func() { made = unix.Mknod(a+"/f", unix.S_IFREG|0o600, 0) })
			wg.Go(func() { removed = unix.Rmdir(a) })
			wg.Wait()
			switch {
			case made == nil && errors.Is(removed, unix.ENOTEMPTY):
				want(t, "the file", exists(a+"/f"), true)
			case errors.Is(made, unix.ENOENT) && removed == nil:
				want(t, "the account", exists(a), false)
			default:
				t.Errorf("create: %v, rmdir: %v", made, removed)
			}
		}
	})
}
