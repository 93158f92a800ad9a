package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// absolute resolves the symlinks of a path as far as it exists; the rest is
// taken as it is. The last element may be a dead mount, which answers nothing.
func absolute(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("resolve %s: %w", path, err)
	}
	rest := ""
	for at := abs; ; at = filepath.Dir(at) {
		real, err := filepath.EvalSymlinks(at)
		switch {
		case err == nil:
			return filepath.Join(real, rest), nil
		case at == "/":
			return "", fmt.Errorf("resolve %s: %w", path, err)
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENOTCONN):
			rest = filepath.Join(filepath.Base(at), rest)
		default:
			return "", fmt.Errorf("resolve %s: %w", path, err)
		}
	}
}

// within says whether path is dir or lies in it. Both are absolute and resolved.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// isDead says whether path is on a FUSE mount that nobody serves. Asked for the
// free space because the kernel may answer stat from what it remembers.
func isDead(path string) bool {
	var st unix.Statfs_t
	return errors.Is(unix.Statfs(path, &st), unix.ENOTCONN)
}

// checkApart refuses a mount point and a data directory of which one is in the
// other. Both are absolute and resolved.
func checkApart(point, dataDir string) error {
	if within(point, dataDir) || within(dataDir, point) {
		return failure(exitMountpoint, "mount point %s and data directory %s overlap", point, dataDir)
	}
	return nil
}

// checkMountpoint says whether a store can be mounted at point, which is
// absolute and resolved. It changes nothing. dead: a mount that nobody
// serves is in the way, to be removed by clearDead.
func checkMountpoint(point string, nonempty bool) (dead bool, err error) {
	st, err := os.Stat(point)
	mnt, merr := mountAt(point)
	if merr != nil {
		return false, merr
	}
	switch {
	case isDead(point) && mnt != nil && mnt.fstype == fsType:
		return true, nil
	case isDead(point):
		return false, failure(exitInUse, "mount point %s holds or lies in a dead mount that is not Pillarbox's; unmount that first", point)
	case errors.Is(err, fs.ErrNotExist):
		return false, failure(exitMountpoint, "mount point %s does not exist; make it with: mkdir -p %s", point, point)
	case err != nil:
		return false, failure(exitMountpoint, "mount point %s: %w", point, err)
	case !st.IsDir():
		return false, failure(exitMountpoint, "mount point %s is not a directory", point)
	case mnt != nil:
		return false, failure(exitInUse, "mount point %s is in use: %s (%s) is mounted there", point, mnt.source, mnt.fstype)
	}
	return false, checkEmpty(point, nonempty)
}

func checkEmpty(point string, nonempty bool) error {
	if nonempty {
		return nil
	}
	d, err := os.Open(point)
	if err != nil {
		return failure(exitMountpoint, "mount point %s: %w", point, err)
	}
	defer d.Close()
	switch names, err := d.Readdirnames(1); {
	case len(names) > 0:
		return failure(exitMountpoint, "mount point %s is not empty (--nonempty mounts over what is there)", point)
	case err != nil && !errors.Is(err, io.EOF):
		return failure(exitMountpoint, "mount point %s: %w", point, err)
	}
	return nil
}

// clearDead removes the dead mounts of Pillarbox that lie on point.
func clearDead(point string, log *slog.Logger) error {
	for {
		mnt, err := mountAt(point)
		if err != nil {
			return err
		}
		if mnt == nil || mnt.fstype != fsType || !isDead(point) {
			return nil
		}
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return failure(exitMount, "remove the dead mount on %s: %w", point, err)
		}
		log.Warn("removed a dead mount: the Pillarbox that served it had ended without unmounting", "mountpoint", point, "source", mnt.source)
	}
}

// checkFuse says early whether this process can mount at all.
func checkFuse() error {
	if os.Geteuid() != 0 {
		return failure(exitMount, "mounting needs root")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return failure(exitMount, "mounting needs FUSE: %w (try: modprobe fuse)", err)
	}
	return f.Close()
}
