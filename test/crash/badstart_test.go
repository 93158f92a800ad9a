package crash

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

const (
	exitFailure    = 1
	exitMountpoint = 3
	exitInUse      = 4
	exitLocked     = 5
)

// contents tells everything below the directories: names, modes, times, bytes.
func contents(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && path == dir {
				return nil
			}
			if err != nil {
				return err
			}
			st, err := e.Info()
			if err != nil {
				return err
			}
			all[path] = fmt.Sprint(st.Mode(), st.ModTime())
			if !st.Mode().IsRegular() {
				return nil
			}
			b, err := os.ReadFile(path)
			all[path] += fmt.Sprintf(" %x", sha256.Sum256(b))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// refused starts the program on data and mount, which must refuse with one
// line that holds the words, and change nothing below the directories.
func refused(t *testing.T, code int, data, mount string, look []string, words ...string) {
	t.Helper()
	before := contents(t, look...)
	out, err := exec.Command(harness.Binary(t), "up", "--data", data, mount).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("ended with %v, want %d:\n%s", err, code, out)
	}
	line := strings.TrimSuffix(string(out), "\n")
	if !strings.HasPrefix(line, "pillarbox: ") || strings.Contains(line, "\n") {
		t.Errorf("want one line:\n%s", out)
	}
	for _, w := range words {
		if !strings.Contains(line, w) {
			t.Errorf("%q is not in: %s", w, line)
		}
	}
	after := contents(t, look...)
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s changed: %s, was %s", path, after[path], was)
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok {
			t.Errorf("%s is new", path)
		}
	}
}

// newStore makes a store with a message and stops it.
func newStore(t *testing.T, data string) {
	t.Helper()
	n := harness.Start(t, harness.Options{Data: data})
	dir := filepath.Join(n.Mount, "example.org", "alice")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "message"), []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Term()
}

// intact starts the store and reads the message.
func intact(t *testing.T, data, made string) {
	t.Helper()
	n := harness.Start(t, harness.Options{Data: data})
	if b, err := os.ReadFile(filepath.Join(n.Mount, "example.org/alice/message")); err != nil || string(b) != made {
		t.Errorf("message: %q, %v", b, err)
	}
	n.Term()
	n.Fsck()
}

func TestBadDataDirectory(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	newStore(t, data)
	mount := t.TempDir()
	t.Run("a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, exitForeign, file, mount, []string{filepath.Dir(file)}, file, "not a directory")
	})
	t.Run("something else", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "letter.txt"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, exitForeign, dir, mount, []string{dir}, dir, "letter.txt")
	})
	t.Run("a newer format", func(t *testing.T) {
		info := filepath.Join(data, "store.json")
		b, err := os.ReadFile(info)
		if err != nil {
			t.Fatal(err)
		}
		newer := strings.Replace(string(b), `"format": 1`, `"format": 99, "colour": "blue"`, 1)
		if newer == string(b) {
			t.Fatalf("store.json: %s", b)
		}
		if err := os.WriteFile(info, []byte(newer), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, exitNewer, data, mount, []string{data}, info, "format 99")
		if err := os.WriteFile(info, b, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a part is missing", func(t *testing.T) {
		for _, part := range []string{"osd.0", "mon"} {
			away := filepath.Join(t.TempDir(), part)
			if err := os.Rename(filepath.Join(data, part), away); err != nil {
				t.Fatal(err)
			}
			refused(t, exitDamaged, data, mount, []string{data}, data, part)
			if err := os.Rename(away, filepath.Join(data, part)); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("in use", func(t *testing.T) {
		n := harness.Start(t, harness.Options{Data: data})
		pid, err := os.ReadFile(filepath.Join(data, "lock"))
		if err != nil {
			t.Fatal(err)
		}
		refused(t, exitLocked, data, mount, []string{mount, filepath.Join(data, "lock")}, data, strings.TrimSpace(string(pid)))
		n.Term()
	})
	intact(t, data, data)
}

// TestForeignOSD puts one store's osd.0 into another.
func TestForeignOSD(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	newStore(t, one)
	newStore(t, two)
	swap := func() {
		t.Helper()
		if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(one, "osd.0"), unix.AT_FDCWD, filepath.Join(two, "osd.0"), unix.RENAME_EXCHANGE); err != nil {
			t.Fatal(err)
		}
	}
	swap()
	mount := t.TempDir()
	// The monitor and the database were opened to find out, which leaves traces.
	refused(t, exitForeign, one, mount, []string{filepath.Join(one, "osd.0/chunks"), filepath.Join(one, "store.json")}, filepath.Join(one, "osd.0"))
	swap()
	intact(t, one, one)
	intact(t, two, two)
}

func TestUnwritableDisk(t *testing.T) {
	d := newDisk(t, 1<<30)
	data := filepath.Join(d.dir, "data")
	newStore(t, data)
	mount := t.TempDir()
	d.run("mount", "-o", "remount,ro", d.dir)
	refused(t, exitFailure, data, mount, []string{d.dir}, data, "read-only")
	refused(t, exitFailure, data+"2", mount, []string{d.dir}, data+"2", "read-only")
	d.run("mount", "-o", "remount,rw", d.dir)
	t.Cleanup(func() { exec.Command("chattr", "-i", d.dir).Run() }) // else nothing below can be removed
	d.run("chattr", "+i", d.dir)
	refused(t, exitFailure, data+"2", mount, []string{d.dir}, data+"2", "not permitted")
	d.run("chattr", "-i", d.dir)
	intact(t, data, data)
}

func TestBadMountPoint(t *testing.T) {
	dir := t.TempDir()
	data, full, file := filepath.Join(dir, "data"), filepath.Join(dir, "full"), filepath.Join(dir, "file")
	newStore(t, data)
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, filepath.Join(full, "file")} {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	look := []string{dir}
	refused(t, exitMountpoint, data, filepath.Join(dir, "none"), look, filepath.Join(dir, "none"), "does not exist")
	refused(t, exitMountpoint, data, file, look, file, "not a directory")
	refused(t, exitMountpoint, data, full, look, full, "not empty")
	refused(t, exitMountpoint, data, filepath.Join(data, "osd.0"), look, data, "overlap")
	fresh := filepath.Join(dir, "fresh")
	refused(t, exitMountpoint, fresh, full, look, full, "not empty") // and makes no store

	other := harness.Start(t, harness.Options{})
	refused(t, exitInUse, data, other.Mount, look, other.Mount, "in use")
	other.Kill9()
	var st unix.Statfs_t
	if err := unix.Statfs(other.Mount, &st); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("the mount of a killed process: %v, want a dead one", err)
	}
	// A dead mount goes, whatever store was there.
	n := harness.Start(t, harness.Options{Data: data, Mount: other.Mount})
	if b, err := os.ReadFile(filepath.Join(n.Mount, "example.org/alice/message")); err != nil || string(b) != data {
		t.Errorf("message: %q, %v", b, err)
	}
	if log := n.Log(); !strings.Contains(log, "removed a dead mount") || !strings.Contains(log, other.Mount) {
		t.Errorf("the log says nothing of the dead mount:\n%s", log)
	}
	n.Term()
	if err := unix.Statfs(other.Mount, &st); err != nil || st.Type == 0x65735546 {
		t.Errorf("a mount is left: %v", err)
	}
}
