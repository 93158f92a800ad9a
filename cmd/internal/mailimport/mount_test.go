package mailimport

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func mountAt(t *testing.T, kind, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	must(t, unix.Mount("none", dir, kind, 0, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// Two accounts of a store are as two filesystems: no hard link leads from one
// to the other.
func TestHardLinksBetweenFilesystems(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), t.TempDir()
	put(t, src+"/a/1", "shared")
	must(t, os.Mkdir(src+"/b", 0o755))
	must(t, os.Link(src+"/a/1", src+"/a/2"))
	must(t, os.Link(src+"/a/1", src+"/b/1"))
	mountAt(t, "tmpfs", dst+"/b")
	o := options(t, src, dst)
	for run := range 2 {
		rep := imported(t, o)
		if rep.SplitLinks != 1 || rep.HardLinks != 2 || rep.Copied+rep.Present != 3 || run == 1 && rep.Copied > 0 {
			t.Errorf("run %d: %+v", run, rep)
		}
	}
	if got := inodes(t, dst); len(got) != 3 || got[dst+"/a/1"] != got[dst+"/a/2"] {
		t.Errorf("%v", got)
	}
}

func TestAttributesThatAreRefused(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), t.TempDir()
	put(t, src+"/a", "x")
	must(t, unix.Lsetxattr(src+"/a", "user.note", []byte("y"), 0))
	must(t, os.Chmod(src, 0o711))
	mountAt(t, "ramfs", dst)
	before, err := os.Stat(dst)
	must(t, err)
	o := options(t, src, dst)
	for run := range 2 {
		rep := imported(t, o)
		if rep.Refused["user.note"] != 1-run || rep.Copied != int64(1-run) {
			t.Errorf("run %d: %+v", run, rep)
		}
	}
	after, err := os.Stat(dst)
	must(t, err)
	if after.Mode() != before.Mode() {
		t.Errorf("the mount point's mode became %v", after.Mode())
	}
}

func TestFullDestination(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), t.TempDir()
	put(t, src+"/a", string(make([]byte, 1<<20)))
	must(t, unix.Mount("none", dst, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { must(t, unix.Unmount(dst, unix.MNT_DETACH)) })
	o := options(t, src, dst)
	if _, err := Run(t.Context(), o); err == nil || !hopeless(err) {
		t.Errorf("before: %v", err)
	}
	if _, err := Run(t.Context(), o); err == nil || !hopeless(err) { // resumed: only the copy finds out
		t.Errorf("while copying: %v", err)
	}
	if left := inodes(t, dst); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
