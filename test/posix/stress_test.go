package posix

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRandomTree has several workers make random changes, each in its own tree
// and the same in a tree of the machine's own filesystem. Every call must end
// the same way in both, and the trees must be equal at the end, also after a
// restart.
func TestRandomTree(t *testing.T) {
	p := newPlace(t)
	r := seeded(t)
	twin, err := os.MkdirTemp("", "pillarbox-twin-")
	must(t, err)
	t.Cleanup(func() {
		if err := os.RemoveAll(twin); err != nil {
			t.Error(err)
		}
	})
	const workers, steps = 6, 4000
	here := p.newDir(t)
	var wg sync.WaitGroup
	for i := range workers {
		d := &double{t: t, r: rand.New(rand.NewPCG(r.Uint64(), 0))}
		// A symlink may lead one level out.
		d.roots = [2]string{fmt.Sprint(here, "/", i, "/top"), fmt.Sprint(twin, "/", i, "/top")}
		for _, root := range d.roots {
			must(t, os.MkdirAll(root, 0o755))
		}
		wg.Go(func() {
			defer d.closeAll()
			for range steps {
				if d.step(); t.Failed() {
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	wantSameTree(t, here, twin)
	if p.node == nil {
		return
	}
	p.node.Term()
	p.node.Restart()
	wantSameTree(t, here, twin)
}

// double makes every change twice.
type double struct {
	t     *testing.T
	r     *rand.Rand
	roots [2]string
	open  [][2]int // the same file in both trees
	log   []string
}

// names are few, so that they meet.
var names = []string{"a", "b", "c", "d", "long" + strings.Repeat("o", 240), "x:2,S"}

func (d *double) path() string {
	s := ""
	for range 1 + d.r.IntN(3) {
		s += "/" + names[d.r.IntN(len(names))]
	}
	return s
}

// both makes a call in both trees and compares how they end.
func (d *double) both(what string, fn func(root string) error) {
	d.log = append(d.log, what)
	if len(d.log) > 100 {
		d.log = d.log[1:]
	}
	d.same(fn(d.roots[0]), fn(d.roots[1]))
}

func (d *double) same(got, wanted error) {
	var g, w unix.Errno
	if got != nil && !errors.As(got, &g) || wanted != nil && !errors.As(wanted, &w) || g != w {
		d.t.Errorf("%v, want %v, after\n%s", got, wanted, d.history())
	}
}

func (d *double) history() string {
	return strings.ReplaceAll(strings.Join(d.log, "\n"), names[4], "long")
}

func (d *double) step() {
	a, b := d.path(), d.path()
	n := int64(d.r.IntN(20_000))
	if d.r.IntN(50) == 0 {
		n *= 100
	}
	switch d.r.IntN(22) {
	case 0, 1:
		d.both("mkdir "+a, func(root string) error { return unix.Mkdir(root+a, 0o750) })
	case 2:
		d.both("rmdir "+a, func(root string) error { return unix.Rmdir(root + a) })
	case 3:
		d.both("unlink "+a, func(root string) error { return unix.Unlink(root + a) })
	case 4, 5, 6:
		flags := []uint{0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[d.r.IntN(4)]
		d.both(fmt.Sprintf("rename %s to %s, flags %d", a, b, flags), func(root string) error {
			return unix.Renameat2(unix.AT_FDCWD, root+a, unix.AT_FDCWD, root+b, flags)
		})
	case 7:
		d.both("link "+a+" to "+b, func(root string) error { return unix.Link(root+a, root+b) })
	case 8:
		target := []string{"a", "../b", "x/y", b[1:]}[d.r.IntN(4)]
		d.both("symlink "+a+" to "+target, func(root string) error { return unix.Symlink(target, root+a) })
	case 9:
		mode := uint32(d.r.IntN(0o10000))
		d.both(fmt.Sprintf("chmod %s to %o", a, mode), func(root string) error { return unix.Chmod(root+a, mode) })
	case 10:
		d.both("chown "+a, func(root string) error { return unix.Lchown(root+a, int(n)%5, int(n)%7) })
	case 11:
		d.both("truncate "+a, func(root string) error { return unix.Truncate(root+a, n) })
	case 12:
		name, value := fmt.Sprint("user.", n%3), fmt.Sprint(n)
		flags := d.r.IntN(3)
		d.both(fmt.Sprintf("setxattr %s of %s, flags %d", name, a, flags), func(root string) error {
			return unix.Lsetxattr(root+a, name, []byte(value), flags)
		})
	case 13:
		d.both("removexattr "+a, func(root string) error { return unix.Lremovexattr(root+a, fmt.Sprint("user.", n%3)) })
	case 14:
		d.both("mkfifo "+a, func(root string) error { return unix.Mkfifo(root+a, 0o600) })
	case 15:
		d.both("utime "+a, func(root string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, root+a, []unix.Timespec{{Sec: n}, {Sec: n, Nsec: n}}, unix.AT_SYMLINK_NOFOLLOW)
		})
	case 16, 17, 18:
		d.openFile(a)
	case 19, 20:
		d.writeFile(n)
	case 21:
		d.closeFile()
	}
}

func (d *double) openFile(path string) {
	if len(d.open) > 8 {
		d.closeFile()
	}
	flags := unix.O_RDWR | unix.O_NONBLOCK | unix.O_CLOEXEC
	for _, f := range []int{unix.O_CREAT, unix.O_CREAT, unix.O_EXCL, unix.O_TRUNC, unix.O_APPEND, unix.O_NOFOLLOW} {
		if d.r.IntN(3) == 0 {
			flags |= f
		}
	}
	if flags&unix.O_CREAT == 0 {
		flags &^= unix.O_EXCL // means nothing then
	}
	var fds []int
	d.both(fmt.Sprintf("open %s, flags %o", path, flags), func(root string) error {
		fd, err := unix.Open(root+path, flags, 0o640)
		if err == nil {
			fds = append(fds, fd)
		}
		return err
	})
	if len(fds) == 2 {
		d.log = append(d.log, fmt.Sprint("handles ", fds))
		d.open = append(d.open, [2]int{fds[0], fds[1]})
	} else if len(fds) == 1 {
		unix.Close(fds[0]) // the difference was reported
	}
}

func (d *double) writeFile(n int64) {
	if len(d.open) == 0 {
		return
	}
	fds := d.open[d.r.IntN(len(d.open))]
	b := fill(1+int(n)/2, 'a'+byte(n%26))
	how := d.r.IntN(6)
	d.log = append(d.log, fmt.Sprintf("change %d of %d bytes at %d, handles %d", how, len(b), n, fds))
	var errs [2]error
	for i, fd := range fds {
		switch how {
		case 0:
			errs[i] = unix.Ftruncate(fd, n)
		case 1:
			errs[i] = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, n/2, n+1)
		case 2:
			errs[i] = unix.Fsync(fd)
		default:
			_, errs[i] = unix.Pwrite(fd, b, n)
		}
	}
	d.same(errs[0], errs[1])
	var st [2]unix.Stat_t
	for i, fd := range fds {
		if err := unix.Fstat(fd, &st[i]); err != nil {
			d.t.Errorf("fstat in %s: %v, after\n%s", d.roots[i], err, d.history())
		}
	}
	if st[1].Mode&unix.S_IFMT == unix.S_IFREG && (st[0].Size != st[1].Size || st[0].Nlink != st[1].Nlink || st[0].Mode != st[1].Mode) {
		d.t.Errorf("size %d, nlink %d, mode %o, want %d, %d and %o, after\n%s", st[0].Size, st[0].Nlink, st[0].Mode,
			st[1].Size, st[1].Nlink, st[1].Mode, d.history())
	}
}

func (d *double) closeFile() {
	if len(d.open) == 0 {
		return
	}
	i := d.r.IntN(len(d.open))
	d.log = append(d.log, fmt.Sprint("close ", d.open[i]))
	d.same(unix.Close(d.open[i][0]), unix.Close(d.open[i][1]))
	d.open = slices.Delete(d.open, i, i+1)
}

func (d *double) closeAll() {
	for len(d.open) > 0 {
		d.closeFile()
	}
}

func wantSameTree(t *testing.T, got, wanted string) {
	t.Helper()
	g, w := picture(t, got), picture(t, wanted)
	for _, path := range slices.Sorted(maps.Keys(w)) {
		if g[path] != w[path] {
			t.Errorf("%.100s: %s, want %s", path, g[path], w[path])
		}
		delete(g, path)
	}
	for path, s := range g {
		t.Errorf("%.100s: %s, want nothing", path, s)
	}
}

// picture describes everything below a directory.
func picture(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	first := map[uint64]string{} // inode number -> first path of it
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := path[len(root):]
		st := lstat(t, path)
		if strings.Count(rel, "/") == 0 {
			return nil
		}
		s := fmt.Sprintf("mode %o nlink %d owner %d:%d", st.Mode, st.Nlink, st.Uid, st.Gid)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			s += fmt.Sprintf(" size %d same as %s", st.Size, first[st.Ino])
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" body %x", sha256.Sum256(b))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			s += " to " + target
		}
		for _, n := range listxattr(t, path) {
			s += fmt.Sprintf(" %s=%q", n, getxattr(t, path, n))
		}
		all[rel] = s
		return nil
	})
	must(t, err)
	return all
}

// TestRandomMeetings has several workers change the same few names. Whatever
// the order was, at the end names, link counts and listings fit together.
func TestRandomMeetings(t *testing.T) {
	p := newPlace(t)
	r := seeded(t)
	dir := p.newDir(t)
	dirs := []string{dir + "/0", dir + "/1", dir + "/1/2", dir + "/1/3"}
	for _, d := range dirs {
		must(t, os.Mkdir(d, 0o755))
	}
	allowed := []unix.Errno{unix.ENOENT, unix.EEXIST, unix.ENOTEMPTY, unix.EISDIR, unix.ENOTDIR, unix.EPERM, unix.EINVAL, unix.ELOOP}
	var wg sync.WaitGroup
	for range 8 {
		r := rand.New(rand.NewPCG(r.Uint64(), 0))
		path := func() string {
			return dirs[r.IntN(len(dirs))] + "/" + string(rune('a'+r.IntN(8)))
		}
		wg.Go(func() {
			for range 2500 {
				a, b := path(), path()
				var err error
				switch r.IntN(12) {
				case 0, 1:
					var fd int
					if fd, err = unix.Open(a, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err == nil {
						if _, err = unix.Pwrite(fd, []byte("body"), 0); err != nil {
							t.Errorf("write: %v", err)
						}
						err = unix.Close(fd)
					}
				case 2:
					err = unix.Mkdir(a, 0o755)
				case 3:
					err = unix.Rmdir(a)
				case 4, 5:
					err = unix.Unlink(a)
				case 6, 7:
					err = unix.Link(a, b)
				case 8:
					err = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
				case 9:
					_, err = os.ReadDir(filepath.Dir(a))
				default:
					err = unix.Rename(a, b)
				}
				if err != nil && !slices.ContainsFunc(allowed, func(e unix.Errno) bool { return errors.Is(err, e) }) {
					t.Errorf("%s, %s: %v", a, b, err)
				}
			}
		})
	}
	wg.Wait()
	links := map[uint64]int{}
	nlink := map[uint64]int{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st := lstat(t, path)
		want(t, "type in the listing of "+path, e.Type().IsDir(), st.Mode&unix.S_IFMT == unix.S_IFDIR)
		if e.IsDir() {
			wantSubdirs(t, path)
			if path != dir {
				want(t, ".. of "+path, lstat(t, path+"/..").Ino, lstat(t, filepath.Dir(path)).Ino)
			}
			return nil
		}
		links[st.Ino]++
		nlink[st.Ino] = int(st.Nlink)
		return nil
	})
	must(t, err)
	for ino, n := range nlink {
		want(t, fmt.Sprintf("link count of inode %d", ino), n, links[ino])
	}
}
