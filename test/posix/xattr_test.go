package posix

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func getxattr(t testing.TB, path, name string) []byte {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil {
		t.Errorf("getxattr %s: %v", name, err)
		return nil
	}
	return b[:n]
}

// listxattr is sorted.
func listxattr(t testing.TB, path string) []string {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, b)
	must(t, err)
	return splitNames(b[:n])
}

func splitNames(b []byte) []string {
	names := strings.FieldsFunc(string(b), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	return names
}

func TestXattr(t *testing.T) {
	p := newPlace(t)
	p.sub(t, "values", func(t *testing.T, dir string) {
		for _, kind := range []string{"file", "dir"} {
			f := dir + "/" + kind
			makeKind(t, kind, f)
			_, err := unix.Getxattr(f, "user.none", nil)
			wantErr(t, "get what is not there", err, unix.ENODATA)
			wantErr(t, "remove what is not there", unix.Removexattr(f, "user.none"), unix.ENODATA)
			want(t, "names", len(listxattr(t, f)), 0)
			sizes := []int{0, 1, 100, 3000}
			if !plain {
				sizes = append(sizes, 1<<16) // ext4 keeps them in one block
			}
			for _, size := range sizes {
				v := bytes.Repeat([]byte{0, 'v', 0xff}, size)[:size]
				must(t, unix.Setxattr(f, "user.a", v, 0))
				wantBytes(t, "value", getxattr(t, f, "user.a"), v)
				n, err := unix.Getxattr(f, "user.a", nil)
				wantErr(t, "ask for the size", err)
				want(t, "size", n, size)
				if size > 1 {
					_, err = unix.Getxattr(f, "user.a", make([]byte, size-1))
					wantErr(t, "get into a small buffer", err, unix.ERANGE)
				}
			}
			must(t, unix.Setxattr(f, "user.a", []byte("a"), 0))
			wantErr(t, "too large", unix.Setxattr(f, "user.b", make([]byte, 1<<16+1), 0), unix.E2BIG)
			wantErr(t, "create what is there", unix.Setxattr(f, "user.a", []byte("b"), unix.XATTR_CREATE), unix.EEXIST)
			wantErr(t, "replace what is not", unix.Setxattr(f, "user.b", []byte("b"), unix.XATTR_REPLACE), unix.ENODATA)
			wantErr(t, "create", unix.Setxattr(f, "user.b", []byte("b"), unix.XATTR_CREATE))
			wantErr(t, "replace", unix.Setxattr(f, "user.b", []byte("c"), unix.XATTR_REPLACE))
			wantErr(t, "an unknown flag", unix.Setxattr(f, "user.b", []byte("b"), 4), unix.EINVAL)
			wantBytes(t, "replaced", getxattr(t, f, "user.b"), []byte("c"))
			want(t, "names", fmt.Sprint(listxattr(t, f)), "[user.a user.b]")
			n, err := unix.Listxattr(f, nil)
			wantErr(t, "ask for the list's size", err)
			want(t, "size", n, 14)
			_, err = unix.Listxattr(f, make([]byte, 13))
			wantErr(t, "list into a small buffer", err, unix.ERANGE)
			must(t, unix.Removexattr(f, "user.a"))
			want(t, "names", fmt.Sprint(listxattr(t, f)), "[user.b]")
			must(t, unix.Removexattr(f, "user.b"))
			want(t, "names", len(listxattr(t, f)), 0)
		}
	})
	p.sub(t, "names", func(t *testing.T, dir string) {
		f := dir + "/f"
		put(t, f, "")
		long := "user." + strings.Repeat("n", 250)
		must(t, unix.Setxattr(f, long, []byte("v"), 0))
		want(t, "names", fmt.Sprint(listxattr(t, f)), "["+long+"]")
		wantErr(t, "256 bytes", unix.Setxattr(f, long+"n", []byte("v"), 0), unix.ERANGE)
		wantErr(t, "no bytes", unix.Setxattr(f, "", []byte("v"), 0), unix.ERANGE)
		wantErr(t, "only a prefix", unix.Setxattr(f, "user.", []byte("v"), 0), unix.EINVAL)
		wantErr(t, "no prefix", unix.Setxattr(f, "name", []byte("v"), 0), unix.EOPNOTSUPP)
		wantErr(t, "an unknown prefix", unix.Setxattr(f, "other.name", []byte("v"), 0), unix.EOPNOTSUPP)
		_, err := unix.Getxattr(f, "other.name", nil)
		wantErr(t, "get with an unknown prefix", err, unix.EOPNOTSUPP)
		must(t, unix.Removexattr(f, long))
		var wanted []string
		for _, n := range numbered("user.attribute%02d", 30) {
			must(t, unix.Setxattr(f, n, []byte(n), 0))
			wanted = append(wanted, n)
		}
		want(t, "names", fmt.Sprint(listxattr(t, f)), fmt.Sprint(wanted))
		for i, n := range wanted {
			wantBytes(t, n, getxattr(t, f, n), []byte(n))
			if i%2 == 0 {
				must(t, unix.Removexattr(f, n))
			}
		}
		want(t, "names", len(listxattr(t, f)), 15)
	})
	p.sub(t, "stay with the inode", func(t *testing.T, dir string) {
		put(t, dir+"/f", "")
		must(t, unix.Setxattr(dir+"/f", "user.a", []byte("v"), 0))
		must(t, unix.Link(dir+"/f", dir+"/g"))
		must(t, unix.Rename(dir+"/f", dir+"/h"))
		must(t, unix.Chmod(dir+"/h", 0o600))
		put(t, dir+"/h", "written")
		wantBytes(t, "by another name", getxattr(t, dir+"/g", "user.a"), []byte("v"))
		fd := open(t, dir+"/g", unix.O_RDWR, 0)
		must(t, unix.Unlink(dir+"/g"))
		must(t, unix.Unlink(dir+"/h"))
		must(t, unix.Fsetxattr(fd, "user.b", []byte("w"), 0))
		b := make([]byte, 9)
		n, err := unix.Fgetxattr(fd, "user.b", b)
		wantErr(t, "get without a name", err)
		wantBytes(t, "value", b[:max(n, 0)], []byte("w"))
		must(t, unix.Fremovexattr(fd, "user.a"))
		put(t, dir+"/h", "")
		want(t, "attributes of a new file", len(listxattr(t, dir+"/h")), 0)
	})
	p.sub(t, "namespaces", func(t *testing.T, dir string) {
		f := dir + "/f"
		put(t, f, "")
		must(t, unix.Chown(f, alice, users))
		must(t, unix.Chmod(f, 0o666))
		a, b := spawn(t, user(alice, users)), spawn(t, user(bob, users))
		must(t, unix.Setxattr(f, "trusted.t", []byte("v"), 0))
		must(t, unix.Setxattr(f, "security.s", []byte("v"), 0))
		wantBytes(t, "trusted", getxattr(t, f, "trusted.t"), []byte("v"))
		want(t, "names", fmt.Sprint(listxattr(t, f)), "[security.s trusted.t]")
		set := func(c *child, name string) error {
			return c.do(call{Op: "setxattr", Path: f, Path2: name, Data: []byte("w")}).err()
		}
		get := func(c *child, name string) error { return c.do(call{Op: "getxattr", Path: f, Path2: name, N: 9}).err() }
		wantErr(t, "the owner sets trusted", set(a, "trusted.t"), unix.EPERM)
		wantErr(t, "the owner gets trusted", get(a, "trusted.t"), unix.ENODATA)
		wantErr(t, "the owner removes trusted", a.do(call{Op: "removexattr", Path: f, Path2: "trusted.t"}).err(), unix.EPERM)
		want(t, "names the owner sees", fmt.Sprint(splitNames(a.do(call{Op: "listxattr", Path: f}).Data)), "[security.s]")
		wantErr(t, "the owner sets security", set(a, "security.s"), unix.EPERM)
		wantErr(t, "the owner gets security", get(a, "security.s"))
		wantErr(t, "a writer sets user", set(b, "user.u"))
		wantErr(t, "a reader gets user", get(b, "user.u"))
		must(t, unix.Chmod(f, 0o644))
		wantErr(t, "a reader sets user", set(b, "user.u"), unix.EACCES)
		must(t, unix.Chmod(f, 0o600))
		wantErr(t, "a stranger gets user", get(b, "user.u"), unix.EACCES)
		for _, kind := range []string{"symlink", "fifo"} {
			makeKind(t, kind, dir+"/"+kind)
			wantErr(t, "user of a "+kind, unix.Lsetxattr(dir+"/"+kind, "user.u", []byte("v"), 0), unix.EPERM)
			must(t, unix.Lsetxattr(dir+"/"+kind, "trusted.t", []byte("v"), 0))
			wantBytes(t, "trusted of a "+kind, getxattr(t, dir+"/"+kind, "trusted.t"), []byte("v"))
		}
	})
	p.sub(t, "access control lists", func(t *testing.T, dir string) {
		if plain {
			return // ext4 has them
		}
		// They would have to be enforced, so they are refused, and mode bits stay all there is.
		f := dir + "/f"
		put(t, f, "")
		for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
			_, err := unix.Getxattr(f, name, nil)
			wantErr(t, "get "+name, err, unix.EOPNOTSUPP)
			acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255}
			wantErr(t, "set "+name, unix.Setxattr(dir, name, acl, 0), unix.EOPNOTSUPP)
		}
		want(t, "names", len(listxattr(t, f)), 0)
	})
	p.sub(t, "capabilities go with a write", func(t *testing.T, dir string) {
		caps := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		f := dir + "/f"
		for name, fn := range map[string]func() error{
			"write": func() error {
				fd, err := unix.Open(f, unix.O_WRONLY, 0)
				must(t, err)
				defer unix.Close(fd)
				_, err = unix.Write(fd, []byte("x"))
				return err
			},
			"truncate": func() error { return unix.Truncate(f, 1) },
			"chown":    func() error { return unix.Chown(f, alice, users) },
		} {
			must(t, os.WriteFile(f, []byte("body"), 0o755))
			must(t, unix.Setxattr(f, "security.capability", caps, 0))
			wantBytes(t, "capability", getxattr(t, f, "security.capability"), caps)
			wantErr(t, name, fn())
			_, err := unix.Getxattr(f, "security.capability", make([]byte, 20))
			wantErr(t, "capability after "+name, err, unix.ENODATA)
		}
	})
}
