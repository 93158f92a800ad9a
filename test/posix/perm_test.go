package posix

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Users and groups that no machine is likely to give rights to.
const (
	alice, bob = 54001, 54002
	users      = 54100 // everybody's group
	club       = 54101
	strangers  = 54102
)

func TestAccess(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	type who struct {
		name         string
		cred         *syscall.Credential
		owner, group bool
	}
	f := dir + "/f"
	put(t, f, "body")
	must(t, unix.Chown(f, alice, club))
	for _, w := range []who{
		{"the owner", user(alice, users), true, false},
		{"the owner, of the group, too", user(alice, club), true, true},
		{"the group", user(bob, club), false, true},
		{"the group by a further one", user(bob, users, strangers, club), false, true},
		{"a stranger", user(bob, users, strangers), false, false},
	} {
		c := spawn(t, w.cred)
		for mode := uint32(0); mode < 0o1000; mode += 0o011 + mode%3 {
			must(t, unix.Chmod(f, mode))
			bits := mode & 7
			if w.owner {
				bits = mode >> 6 & 7
			} else if w.group {
				bits = mode >> 3 & 7
			}
			for ask := uint32(0); ask < 8; ask++ {
				var errno unix.Errno
				if ask&^bits != 0 {
					errno = unix.EACCES
				}
				wantErr(t, fmt.Sprintf("%s: access(%o) with mode %o", w.name, ask, mode), c.do(call{Op: "access", Path: f, Mode: int(ask)}).err(), errno)
			}
			for flags, ask := range map[int]uint32{unix.O_RDONLY: 4, unix.O_WRONLY: 2, unix.O_RDWR: 6, unix.O_WRONLY | unix.O_TRUNC: 2} {
				var errno unix.Errno
				if ask&^bits != 0 {
					errno = unix.EACCES
				}
				r := c.do(call{Op: "open", Path: f, Flags: flags})
				wantErr(t, fmt.Sprintf("%s: open(%o) with mode %o", w.name, flags, mode), r.err(), errno)
				if r.Errno == 0 {
					c.do(call{Op: "close", FD: r.N})
				}
			}
		}
	}
	root := spawn(t, nil)
	must(t, unix.Chmod(f, 0))
	wantErr(t, "root reads and writes", root.do(call{Op: "access", Path: f, Mode: 6}).err())
	wantErr(t, "root runs what nobody may", root.do(call{Op: "access", Path: f, Mode: 1}).err(), unix.EACCES)
	root.open(f, unix.O_RDWR)
	must(t, unix.Chmod(f, 0o010))
	wantErr(t, "root runs what somebody may", root.do(call{Op: "access", Path: f, Mode: 1}).err())
}

func TestDirectoryRights(t *testing.T) {
	p := newPlace(t)
	a := spawn(t, user(alice, users))
	p.sub(t, "modes", func(t *testing.T, dir string) {
		d := dir + "/d"
		for mode := range 8 {
			must(t, os.MkdirAll(d, 0o700))
			put(t, d+"/f", "")
			must(t, unix.Chmod(d+"/f", 0o666))
			must(t, unix.Chmod(d, uint32(mode)))
			need := func(bits int) unix.Errno {
				if mode&bits != bits {
					return unix.EACCES
				}
				return 0
			}
			what := fmt.Sprintf("mode %o: ", mode)
			wantErr(t, what+"list", a.do(call{Op: "readdir", Path: d}).err(), need(4))
			wantErr(t, what+"access", a.do(call{Op: "access", Path: d + "/f"}).err(), need(1))
			wantErr(t, what+"mkdir", a.do(call{Op: "mkdir", Path: d + "/sub", Mode: 0o700}).err(), need(3))
			wantErr(t, what+"symlink", a.do(call{Op: "symlink", Path: "x", Path2: d + "/s"}).err(), need(3))
			wantErr(t, what+"link", a.do(call{Op: "link", Path: d + "/f", Path2: d + "/l"}).err(), need(3))
			wantErr(t, what+"rename", a.do(call{Op: "rename", Path: d + "/f", Path2: d + "/g"}).err(), need(3))
			if need(3) != 0 {
				wantErr(t, what+"unlink", a.do(call{Op: "unlink", Path: d + "/f"}).err(), unix.EACCES)
			} else {
				wantErr(t, what+"unlink", a.do(call{Op: "unlink", Path: d + "/g"}).err())
			}
			must(t, os.RemoveAll(d))
		}
	})
	p.sub(t, "change at once", func(t *testing.T, dir string) {
		must(t, os.MkdirAll(dir+"/a/b", 0o755))
		put(t, dir+"/a/b/f", "")
		f := call{Op: "access", Path: dir + "/a/b/f"}
		for range 20 {
			wantErr(t, "with rights", a.do(f).err())
			must(t, unix.Chmod(dir+"/a", 0o700))
			wantErr(t, "without", a.do(f).err(), unix.EACCES)
			must(t, unix.Chmod(dir+"/a", 0o755))
		}
		must(t, unix.Chmod(dir+"/a/b/f", 0o666))
		fd := a.open(dir+"/a/b/f", unix.O_RDWR)
		must(t, unix.Chmod(dir+"/a/b/f", 0))
		wantErr(t, "write by an open handle", a.do(call{Op: "pwrite", FD: fd, Data: []byte("x")}).err())
	})
	p.sub(t, "sticky", func(t *testing.T, dir string) {
		d := dir + "/tmp"
		must(t, os.Mkdir(d, 0o755))
		must(t, unix.Chown(d, strangers, strangers))
		must(t, unix.Chmod(d, 0o1777))
		want(t, "mode", lstat(t, d).Mode, unix.S_IFDIR|0o1777)
		b := spawn(t, user(bob, users))
		owner := spawn(t, user(strangers, users))
		for _, name := range []string{"f", "g", "h"} {
			a.open(d+"/"+name, unix.O_CREAT|unix.O_RDWR)
		}
		wantErr(t, "alice's mkdir", a.do(call{Op: "mkdir", Path: d + "/d", Mode: 0o777}).err())
		b.open(d+"/bobs", unix.O_CREAT|unix.O_RDWR)
		for what, k := range map[string]call{
			"unlink": {Op: "unlink", Path: d + "/f"}, "rmdir": {Op: "rmdir", Path: d + "/d"},
			"rename": {Op: "rename", Path: d + "/f", Path2: d + "/z"}, "rename over": {Op: "rename", Path: d + "/bobs", Path2: d + "/f"},
		} {
			wantErr(t, "bob's "+what, b.do(k).err(), unix.EPERM, unix.EACCES)
		}
		wantErr(t, "bob's own", b.do(call{Op: "rename", Path: d + "/bobs", Path2: d + "/mine"}).err())
		wantErr(t, "alice's own", a.do(call{Op: "unlink", Path: d + "/f"}).err())
		wantErr(t, "the directory's owner", owner.do(call{Op: "unlink", Path: d + "/g"}).err())
		wantErr(t, "alice's rmdir", a.do(call{Op: "rmdir", Path: d + "/d"}).err())
		wantErr(t, "root", unix.Unlink(d+"/h"))
	})
	p.sub(t, "set-group-ID", func(t *testing.T, dir string) {
		d := dir + "/shared"
		must(t, os.Mkdir(d, 0o755))
		must(t, unix.Chown(d, bob, club))
		must(t, unix.Chmod(d, 0o2777))
		a.open(d+"/f", unix.O_CREAT|unix.O_RDWR)
		wantErr(t, "mkdir", a.do(call{Op: "mkdir", Path: d + "/d", Mode: 0o755}).err())
		wantErr(t, "symlink", a.do(call{Op: "symlink", Path: "x", Path2: d + "/s"}).err())
		wantErr(t, "mkfifo", a.do(call{Op: "mknod", Path: d + "/p", Mode: unix.S_IFIFO | 0o600}).err())
		for _, name := range []string{"f", "d", "s", "p"} {
			st := lstat(t, d+"/"+name)
			want(t, "owner of "+name, [2]uint32{st.Uid, st.Gid}, [2]uint32{alice, club})
		}
		want(t, "mode of the directory", lstat(t, d+"/d").Mode, unix.S_IFDIR|0o2755)
		want(t, "mode of the file", lstat(t, d+"/f").Mode, unix.S_IFREG|0o644)
		// Who is not of the group gives nobody its rights.
		r := a.do(call{Op: "open", Path: d + "/sg", Flags: unix.O_CREAT | unix.O_RDWR, Mode: 0o2775})
		wantErr(t, "create with the bit", r.err())
		want(t, "mode of a file made by a stranger", lstat(t, d+"/sg").Mode&0o2000, 0)
		must(t, os.Mkdir(d+"/roots", 0o755))
		want(t, "mode of root's directory", lstat(t, d+"/roots").Mode, unix.S_IFDIR|0o2755)
		want(t, "group of root's directory", lstat(t, d+"/roots").Gid, club)
	})
	p.sub(t, "umask", func(t *testing.T, dir string) {
		must(t, unix.Chmod(dir, 0o777))
		a.do(call{Op: "umask", Mode: 0o027})
		defer a.do(call{Op: "umask", Mode: 0o022})
		a.open(dir+"/f", unix.O_CREAT|unix.O_RDWR)
		a.do(call{Op: "mkdir", Path: dir + "/d", Mode: 0o777})
		a.do(call{Op: "mknod", Path: dir + "/n", Mode: unix.S_IFREG | 0o666})
		a.do(call{Op: "symlink", Path: "x", Path2: dir + "/s"})
		for name, mode := range map[string]uint32{"f": unix.S_IFREG | 0o640, "d": unix.S_IFDIR | 0o750, "n": unix.S_IFREG | 0o640, "s": unix.S_IFLNK | 0o777} {
			st := lstat(t, dir+"/"+name)
			want(t, "mode of "+name, fmt.Sprintf("%o", st.Mode), fmt.Sprintf("%o", mode))
			want(t, "owner of "+name, [2]uint32{st.Uid, st.Gid}, [2]uint32{alice, users})
		}
	})
	p.sub(t, "making nodes", func(t *testing.T, dir string) {
		must(t, unix.Chmod(dir, 0o777))
		wantErr(t, "a device", a.do(call{Op: "mknod", Path: dir + "/c", Mode: unix.S_IFCHR | 0o600, N: 1<<8 | 3}).err(), unix.EPERM)
		wantErr(t, "a socket", a.do(call{Op: "mknod", Path: dir + "/s", Mode: unix.S_IFSOCK | 0o600}).err())
		must(t, unix.Chmod(dir, 0o755))
		wantErr(t, "in another's directory", a.do(call{Op: "mkdir", Path: dir + "/d", Mode: 0o700}).err(), unix.EACCES)
	})
}

// TestOwnership is about who may change what stat(2) shows.
func TestOwnership(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	f := dir + "/f"
	put(t, f, "body")
	a, b := spawn(t, user(alice, users, club)), spawn(t, user(bob, users))
	reset := func(mode uint32) {
		t.Helper()
		must(t, unix.Chown(f, alice, users))
		must(t, unix.Chmod(f, mode))
	}
	const keep = -1
	owner := func() [2]uint32 { st := lstat(t, f); return [2]uint32{st.Uid, st.Gid} }
	for _, c := range []struct {
		what  string
		by    *child
		k     call
		mode  uint32
		errno unix.Errno
	}{
		{"chmod by the owner", a, call{Op: "chmod", Path: f, Mode: 0o600}, 0o644, 0},
		{"chmod by another", b, call{Op: "chmod", Path: f, Mode: 0o600}, 0o666, unix.EPERM},
		{"chgrp to a further group", a, call{Op: "lchown", Path: f, Off: keep, N: club}, 0o644, 0},
		{"chgrp to the same", a, call{Op: "lchown", Path: f, Off: alice, N: users}, 0o644, 0},
		{"chgrp to a strange group", a, call{Op: "lchown", Path: f, Off: keep, N: strangers}, 0o644, unix.EPERM},
		{"chown by the owner", a, call{Op: "lchown", Path: f, Off: bob, N: keep}, 0o644, unix.EPERM},
		{"chown by another", b, call{Op: "lchown", Path: f, Off: bob, N: keep}, 0o666, unix.EPERM},
		{"chgrp by another", b, call{Op: "lchown", Path: f, Off: keep, N: users}, 0o666, unix.EPERM},
		{"utime by the owner", a, call{Op: "utimes", Path: f, Off: 5, N: 6}, 0o444, 0},
		{"utime by a writer", b, call{Op: "utimes", Path: f, Off: 5, N: 6}, 0o666, unix.EPERM},
		{"touch by the owner", a, call{Op: "utimes", Path: f, Off: unix.UTIME_NOW, N: unix.UTIME_NOW}, 0o444, 0},
		{"touch by a writer", b, call{Op: "utimes", Path: f, Off: unix.UTIME_NOW, N: unix.UTIME_NOW}, 0o666, 0},
		{"touch by a reader", b, call{Op: "utimes", Path: f, Off: unix.UTIME_NOW, N: unix.UTIME_NOW}, 0o644, unix.EACCES},
		{"truncate by a writer", b, call{Op: "truncate", Path: f, N: 2}, 0o666, 0},
		{"truncate by a reader", b, call{Op: "truncate", Path: f, N: 2}, 0o644, unix.EACCES},
	} {
		reset(c.mode)
		before := lstat(t, f)
		wantErr(t, c.what, c.by.do(c.k).err(), c.errno)
		if c.errno != 0 {
			want(t, c.what+": what stat shows", lstat(t, f), before)
		}
	}
	reset(0o644)
	must(t, unix.Chown(f, keep, 7))
	want(t, "owner after root's chgrp", owner(), [2]uint32{alice, 7})
	must(t, unix.Chown(f, 1<<32-2, 1<<31))
	want(t, "large numbers", owner(), [2]uint32{1<<32 - 2, 1 << 31})
}

// TestSetID has set-ID bits go with every change of body or owner by somebody
// who may not give them.
func TestSetID(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	f, src := dir+"/f", dir+"/src"
	put(t, src, "source")
	member, stranger, root := spawn(t, user(bob, club)), spawn(t, user(bob, users)), spawn(t, nil)
	write := func(c *child, k call) error {
		k.FD = c.open(f, unix.O_RDWR)
		defer c.do(call{Op: "close", FD: k.FD})
		return c.do(k).err()
	}
	changes := map[string]func(c *child) error{
		"write":     func(c *child) error { return write(c, call{Op: "pwrite", Data: []byte("x")}) },
		"ftruncate": func(c *child) error { return write(c, call{Op: "ftruncate", N: 3}) },
		"truncate":  func(c *child) error { return c.do(call{Op: "truncate", Path: f, N: 2}).err() },
		"fallocate": func(c *child) error { return write(c, call{Op: "fallocate", N: 100_000}) },
		"punch": func(c *child) error {
			return write(c, call{Op: "fallocate", Mode: unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, N: 4096})
		},
		"copy_file_range": func(c *child) error { return write(c, call{Op: "copy", Path: src}) },
		"open with O_TRUNC": func(c *child) error {
			c.do(call{Op: "close", FD: c.open(f, unix.O_WRONLY|unix.O_TRUNC)})
			return nil
		},
	}
	for name, change := range changes {
		for _, m := range []struct{ mode, member, stranger uint32 }{
			{0o6777, 0o777, 0o777}, {0o4777, 0o777, 0o777}, {0o2777, 0o777, 0o777},
			{0o4666, 0o666, 0o666}, {0o2676, 0o676, 0o676},
			{0o2666, 0o2666, 0o666}, {0o6666, 0o2666, 0o666}, // without group execution the bit gives no rights to members
			{0o1666, 0o1666, 0o1666},
		} {
			for who, c := range map[string]*child{"root": root, "a member": member, "a stranger": stranger} {
				wanted := map[string]uint32{"root": m.mode, "a member": m.member, "a stranger": m.stranger}[who]
				must(t, os.WriteFile(f, fill(8192, 'x'), 0o600))
				must(t, unix.Chown(f, alice, club))
				must(t, unix.Chmod(f, m.mode))
				wantErr(t, name, change(c))
				want(t, fmt.Sprintf("%s by %s: mode %o", name, who, m.mode), fmt.Sprintf("%o", lstat(t, f).Mode&0o7777), fmt.Sprintf("%o", wanted))
			}
		}
	}
	t.Run("chown", func(t *testing.T) {
		for _, m := range [][2]uint32{{0o6755, 0o755}, {0o4755, 0o755}, {0o2755, 0o755}, {0o4644, 0o644}} {
			for name, ids := range map[string][2]int{"owner": {bob, -1}, "group": {-1, users}, "both": {0, 0}, "to the same": {alice, club}, "neither": {-1, -1}} {
				must(t, unix.Chown(f, alice, club))
				must(t, unix.Chmod(f, m[0]))
				must(t, unix.Chown(f, ids[0], ids[1]))
				want(t, fmt.Sprintf("chown of %s by root: mode %o", name, m[0]), fmt.Sprintf("%o", lstat(t, f).Mode&0o7777), fmt.Sprintf("%o", m[1]))
			}
		}
		d := dir + "/d"
		must(t, os.Mkdir(d, 0o755))
		must(t, unix.Chmod(d, 0o6755))
		must(t, unix.Chown(d, alice, club))
		want(t, "mode of a directory after chown", lstat(t, d).Mode&0o7777, 0o6755)
		a := spawn(t, user(alice, users, club))
		for name, gid := range map[string]int64{"group": users, "neither": -1} {
			must(t, unix.Chown(f, alice, club))
			must(t, unix.Chmod(f, 0o6755))
			wantErr(t, "chgrp by the owner", a.do(call{Op: "lchown", Path: f, Off: -1, N: gid}).err())
			want(t, name+": mode after chgrp by the owner", fmt.Sprintf("%o", lstat(t, f).Mode&0o7777), "755")
		}
	})
	t.Run("chmod", func(t *testing.T) {
		a := spawn(t, user(alice, users))
		must(t, unix.Chown(f, alice, club))
		wantErr(t, "chmod", a.do(call{Op: "chmod", Path: f, Mode: 0o6755}).err())
		want(t, "mode set by an owner who is not of the group", fmt.Sprintf("%o", lstat(t, f).Mode&0o7777), "4755")
	})
}

// TestRun runs a program from the mount.
func TestRun(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	body, err := os.ReadFile("/bin/true")
	must(t, err)
	bin := filepath.Join(dir, "true")
	must(t, os.WriteFile(bin, body, 0o755))
	run := func() error {
		cmd := exec.Command(bin)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user(alice, users)}
		return cmd.Run()
	}
	wantErr(t, "run", run())
	fd := open(t, bin, unix.O_WRONLY, 0)
	wantErr(t, "run what is open for writing", run(), unix.ETXTBSY)
	must(t, unix.Close(fd))
	must(t, unix.Chmod(bin, 0o644))
	wantErr(t, "run what is no program", run(), unix.EACCES)
}
