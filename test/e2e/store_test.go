package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// site is what one test works on: a scratch directory on the local disk and a
// directory of mail, which is a mounted store or, in plain mode, a directory.
type site struct {
	// base holds configurations, spools, sockets and logs; anybody may pass.
	base string
	// mail is the mount point.
	mail string
	// data is the store's directory.
	data string
	// args are further ones of the store's program.
	args []string
}

// plain says whether a plain directory takes the mount's place.
func plain() bool { return os.Getenv("PILLARBOX_TEST_PLAIN") != "" }

func newSite(t *testing.T, args ...string) *site {
	t.Helper()
	base := newBase(t)
	s := &site{base: base, mail: filepath.Join(base, "mail"), data: filepath.Join(base, "data"), args: args}
	mkdir(t, s.mail, 0, 0o755)
	if !plain() {
		mountStore(t, s)
	}
	return s
}

// newSmallSite is a site with a disk of its own, of so many bytes.
func newSmallSite(t *testing.T, size int64) *site {
	t.Helper()
	base := newBase(t)
	disk := filepath.Join(base, "disk")
	mkdir(t, disk, 0, 0o755)
	ok(t, "mounting a tmpfs", syscall.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", size)))
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Errorf("unmounting the tmpfs: %v", err)
		}
	})
	s := &site{base: base, mail: filepath.Join(base, "mail"), data: filepath.Join(disk, "data")}
	if plain() {
		s.mail = filepath.Join(disk, "mail")
	}
	mkdir(t, s.mail, 0, 0o755)
	if !plain() {
		mountStore(t, s)
	}
	return s
}

// newBase makes a directory that unprivileged servers can pass, with a name
// short enough for the sockets below it.
func newBase(t *testing.T) string {
	t.Helper()
	base, err := os.MkdirTemp(filepath.Dir(basePrefix()), filepath.Base(basePrefix()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Errorf("removing the scratch directory: %v", err)
		}
	})
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	return base
}

// account makes the directory of a user, owned by uid, and its domain's.
func (s *site) account(t *testing.T, domain, user string, uid int) string {
	t.Helper()
	if dir := filepath.Join(s.mail, domain); !exists(dir) {
		mkdir(t, dir, 0, 0o755)
	}
	dir := filepath.Join(s.mail, domain, user)
	if !exists(dir) {
		mkdir(t, dir, uid, 0o700)
	}
	return dir
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func mkdir(t *testing.T, dir string, uid int, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(dir, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}
