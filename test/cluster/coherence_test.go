package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

// twoMounts mounts a new cluster's store twice, with one account in it.
func twoMounts(t *testing.T) (c *cluster, a, b string) {
	t.Helper()
	c = newCluster(t, 3)
	c.healthy(3)
	am, _ := c.mount("mx1")
	bm, _ := c.mount("mx2")
	dir := "example.org/user/Maildir"
	for _, sub := range []string{"tmp", "new", "cur"} {
		if err := os.MkdirAll(filepath.Join(am, dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c, filepath.Join(am, dir), filepath.Join(bm, dir)
}

// TestCoherence: what one mount did when a system call returned, the other sees.
func TestCoherence(t *testing.T) {
	_, a, b := twoMounts(t)
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	read := func(path, want string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Fatalf("%s holds %.40q, %v; want %.40q", path, got, err, want)
		}
	}
	for i := range 50 {
		name := fmt.Sprint("m", i)
		on, other := a, b
		if i%2 == 1 {
			on, other = b, a
		}
		if _, err := os.Lstat(filepath.Join(other, "new", name)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("before: %v", err)
		}
		must("write", os.WriteFile(filepath.Join(on, "tmp", name), []byte("one "+name), 0o600))
		must("link", os.Link(filepath.Join(on, "tmp", name), filepath.Join(on, "new", name)))
		read(filepath.Join(other, "new", name), "one "+name)
		must("unlink", os.Remove(filepath.Join(other, "tmp", name)))
		if _, err := os.Lstat(filepath.Join(on, "tmp", name)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("after unlink: %v", err)
		}
		must("chmod", os.Chmod(filepath.Join(on, "new", name), 0o640))
		st, err := os.Stat(filepath.Join(other, "new", name))
		must("stat", err)
		if st.Mode().Perm() != 0o640 {
			t.Fatalf("mode %v", st.Mode())
		}
		must("setxattr", unix.Setxattr(filepath.Join(other, "new", name), "user.x", []byte(name), 0))
		buf := make([]byte, 100)
		n, err := unix.Getxattr(filepath.Join(on, "new", name), "user.x", buf)
		must("getxattr", err)
		if string(buf[:n]) != name {
			t.Fatalf("attribute %q", buf[:n])
		}
		must("rename", os.Rename(filepath.Join(on, "new", name), filepath.Join(on, "cur", name+":2,S")))
		list, err := os.ReadDir(filepath.Join(other, "cur"))
		must("readdir", err)
		if len(list) != i+1 {
			t.Fatalf("%d names in cur, not %d", len(list), i+1)
		}
		// Overwritten in place, while the other has it open, and its pages.
		path := filepath.Join("cur", name+":2,S")
		f, err := os.OpenFile(filepath.Join(other, path), os.O_RDWR, 0)
		must("open", err)
		got := make([]byte, 100)
		n, _ = f.ReadAt(got, 0)
		if string(got[:n]) != "one "+name {
			t.Fatalf("open file holds %q", got[:n])
		}
		m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		must("mmap", err)
		_ = m[0]
		must("write", os.WriteFile(filepath.Join(on, path), []byte("two, and longer "+name), 0o600))
		n, _ = f.ReadAt(got, 0)
		if string(got[:n]) != "two, and longer "+name {
			t.Fatalf("open file holds %q after another wrote it", got[:n])
		}
		if !bytes.HasPrefix(m, []byte("two, and longer "+name)) {
			t.Fatalf("mapping holds %q after another wrote the file", m[:30])
		}
		must("munmap", unix.Munmap(m))
		must("truncate", os.Truncate(filepath.Join(on, path), 3))
		if st, err := f.Stat(); err != nil || st.Size() != 3 {
			t.Fatalf("size %v, %v", st, err)
		}
		// Removed while the other has it open.
		must("write", os.WriteFile(filepath.Join(on, "tmp/open"), []byte("still here"), 0o600))
		g, err := os.Open(filepath.Join(other, "tmp/open"))
		must("open", err)
		must("unlink", os.Remove(filepath.Join(on, "tmp/open")))
		n, err = g.ReadAt(got, 0)
		if string(got[:n]) != "still here" {
			t.Fatalf("a file that another host unlinked: %q, %v", got[:n], err)
		}
		must("close", g.Close())
		must("close", f.Close())
	}
	// An account that another host moves away from its domain, and back.
	for i, to := range []string{"example.net/other", "example.org/user"} {
		from := []string{"example.org/user", "example.net/other"}[i]
		on, other := filepath.Join(a, "../../.."), filepath.Join(b, "../../..")
		must("mkdir", os.MkdirAll(filepath.Join(on, filepath.Dir(to)), 0o755))
		must("rename", os.Rename(filepath.Join(on, from), filepath.Join(on, to)))
		for _, mount := range []string{on, other} {
			var up unix.Stat_t
			must("stat", unix.Stat(filepath.Join(mount, filepath.Dir(to)), &up))
			if got := harness.DotDot(t, filepath.Join(mount, to)); got != up.Ino {
				t.Fatalf(".. of %s is %d, not %d", to, got, up.Ino)
			}
		}
	}
}

// TestCounter has two mounts add to a number in a file, under an O_EXCL lock.
func TestCounter(t *testing.T) {
	_, a, b := twoMounts(t)
	if err := os.WriteFile(filepath.Join(a, "n"), []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	const rounds = 150
	var wg sync.WaitGroup
	for w, dir := range []string{a, b, a, b} {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for range rounds {
				lock := filepath.Join(dir, "n.lock")
				for {
					f, err := os.OpenFile(lock, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
					if err == nil {
						f.Close()
						break
					}
					if !errors.Is(err, fs.ErrExist) {
						t.Errorf("lock: %v", err)
						return
					}
					time.Sleep(time.Duration(r.IntN(int(time.Millisecond))))
				}
				b, err := os.ReadFile(filepath.Join(dir, "n"))
				n := 0
				if _, serr := fmt.Sscan(string(b), &n); err != nil || serr != nil {
					t.Errorf("read %q: %v, %v", b, err, serr)
				}
				if err := os.WriteFile(filepath.Join(dir, "n"), fmt.Append(nil, n+1), 0o600); err != nil {
					t.Error(err)
				}
				if err := os.Remove(lock); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(filepath.Join(b, "n"))
	if err != nil || string(got) != fmt.Sprint(4*rounds) {
		t.Errorf("counted to %q, not %d, %v", got, 4*rounds, err)
	}
}

// TestDirectoriesElsewhere: the kernel keeps names and attributes of directories for
// a moment. What another host does to them while they are in use is seen at once.
func TestDirectoriesElsewhere(t *testing.T) {
	_, a, b := twoMounts(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	stat := func(dir, name string) os.FileInfo {
		t.Helper()
		st, err := os.Lstat(filepath.Join(dir, name))
		must(err)
		return st
	}
	gone := func(dir, name string) {
		t.Helper()
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s: %v, and another host took it away", name, err)
		}
	}
	end := make(chan struct{})
	var users sync.WaitGroup
	defer users.Wait()
	defer close(end)
	for range 2 {
		users.Go(func() {
			for {
				for _, name := range []string{".box/cur/none", ".box/none", ".moved/cur/none", "none"} {
					os.Lstat(filepath.Join(b, name))
				}
				select {
				case <-end:
					return
				default:
				}
			}
		})
	}
	for i := range 2 {
		must(os.MkdirAll(filepath.Join(a, ".box/cur"), 0o755))
		for k := range 20 {
			stat(b, ".box/cur")
			mode := os.FileMode(0o700 | k%8)
			must(os.Chmod(filepath.Join(a, ".box"), mode))
			if got := stat(b, ".box").Mode().Perm(); got != mode {
				t.Fatalf("mode %v on one host, %v on another", mode, got)
			}
			must(os.WriteFile(filepath.Join(a, ".box/cur", fmt.Sprint(k)), nil, 0o600))
			if here, there := stat(a, ".box/cur").ModTime(), stat(b, ".box/cur").ModTime(); !here.Equal(there) {
				t.Fatalf("a directory was changed at %v on one host, at %v on another", here, there)
			}
		}
		must(os.Chmod(filepath.Join(a, ".box"), 0o755))
		if i%2 == 1 { // over an empty one
			must(os.Mkdir(filepath.Join(a, ".moved"), 0o755))
			stat(b, ".moved")
		}
		was := stat(b, ".box").Sys().(*syscall.Stat_t).Ino
		must(unix.Rename(filepath.Join(a, ".box"), filepath.Join(a, ".moved")))
		gone(b, ".box")
		gone(b, ".box/cur/0")
		if ino := stat(b, ".moved").Sys().(*syscall.Stat_t).Ino; ino != was {
			t.Fatalf("inode %d is where %d was moved to", ino, was)
		}
		must(os.RemoveAll(filepath.Join(a, ".moved")))
		gone(b, ".moved")
	}
}
