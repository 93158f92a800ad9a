package mailimport

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// attrs are what a file has besides contents.
type attrs struct {
	uid, gid     uint32
	mode         uint32 // permission bits
	atime, mtime int64  // nanoseconds
	xattrs       map[string][]byte
}

func (e *entry) attrs() (attrs, error) {
	x, err := readXattrs(e.src)
	return attrs{uid: e.st.Uid, gid: e.st.Gid, mode: e.st.Mode & 0o7777, atime: e.st.Atim.Nano(), mtime: mtimeOf(&e.st), xattrs: x}, err
}

func readXattrs(path string) (map[string][]byte, error) {
	list, err := sized(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if err != nil || len(list) == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		return nil, at("list attributes of", path, err)
	}
	found := map[string][]byte{}
	for _, name := range bytes.Split(bytes.TrimSuffix(list, []byte{0}), []byte{0}) {
		value, err := sized(func(b []byte) (int, error) { return unix.Lgetxattr(path, string(name), b) })
		if err != nil {
			return nil, at("read attribute "+string(name)+" of", path, err)
		}
		found[string(name)] = value
	}
	return found, nil
}

// sized calls a function that tells the size it needs when given no buffer.
func sized(get func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := get(nil)
		if n <= 0 || err != nil {
			return nil, err
		}
		b := make([]byte, n)
		if n, err = get(b); !errors.Is(err, unix.ERANGE) {
			return b[:max(n, 0)], err
		}
	}
}

// apply gives path, which may be a symlink, its attributes. Ownership is left
// alone when this is not root's process; an attribute that the destination does
// not take is counted by refused.
func (a *attrs) apply(path string, symlink bool, refused func(name string)) error {
	if err := unix.Lchown(path, int(a.uid), int(a.gid)); err != nil {
		if os.Geteuid() == 0 || !errors.Is(err, unix.EPERM) {
			return at("chown", path, err)
		}
	}
	if !symlink {
		if err := unix.Chmod(path, a.mode); err != nil {
			return at("chmod", path, err)
		}
	}
	for name, value := range a.xattrs {
		switch err := unix.Lsetxattr(path, name, value, 0); {
		case err == nil:
		case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM), errors.Is(err, unix.E2BIG):
			refused(name)
		default:
			return at("set attribute "+name+" of", path, err)
		}
	}
	times := []unix.Timespec{unix.NsecToTimespec(a.atime), unix.NsecToTimespec(a.mtime)}
	return at("set times of", path, unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW))
}

// differs says in what the file at path is not as it should be; empty: in
// nothing. Attributes that were refused do not count.
func (a *attrs) differs(path string, symlink bool, refused func(name string) bool) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", at("lstat", path, err)
	}
	var diff []string
	if !symlink && st.Mode&0o7777 != a.mode {
		diff = append(diff, fmt.Sprintf("mode %o, not %o", st.Mode&0o7777, a.mode))
	}
	if os.Geteuid() == 0 && (st.Uid != a.uid || st.Gid != a.gid) {
		diff = append(diff, fmt.Sprintf("owner %d:%d, not %d:%d", st.Uid, st.Gid, a.uid, a.gid))
	}
	if mtimeOf(&st) != a.mtime {
		diff = append(diff, "time of modification")
	}
	if len(a.xattrs) > 0 {
		have, err := readXattrs(path)
		if err != nil {
			return "", err
		}
		for name, value := range a.xattrs {
			if got, ok := have[name]; (!ok || !bytes.Equal(got, value)) && !refused(name) {
				diff = append(diff, "attribute "+name)
			}
		}
	}
	return strings.Join(diff, ", "), nil
}

func at(what, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", what, path, err)
}
