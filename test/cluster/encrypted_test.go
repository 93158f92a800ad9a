package cluster

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEncrypted: two hosts with the key read and write the same encrypted
// account, one without cannot; the key rotated and destroyed on one host is so on
// the other; OSDs have seen no plain text.
func TestEncrypted(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	keys := c.path("keys")
	c.run("key", "create", "--key-file", keys)
	a, _ := c.mount("mx1", "key-file="+keys, "encrypt")
	b, _ := c.mount("mx2", "key-file="+keys)
	bare, _ := c.mount("mx3")
	const secret = "nobody on an OSD may read this line\n"
	small, large := []byte(strings.Repeat(secret, 20)), []byte(strings.Repeat(secret, 8000))
	dir := func(point string) string { return filepath.Join(point, "example.org", "alice") }
	write := func(path string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reads := func(path string, want []byte) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", path, len(got), len(want), err)
		}
	}
	if err := os.MkdirAll(dir(a), 0o700); err != nil {
		t.Fatal(err)
	}
	write(dir(a)+"/small", small)
	write(dir(b)+"/large", large)
	for _, point := range []string{a, b} {
		reads(dir(point)+"/small", small)
		reads(dir(point)+"/large", large)
	}
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, unix.EACCES) {
			t.Errorf("%s: %v, want EACCES", what, err)
		}
	}
	for _, name := range []string{"small", "large"} {
		_, err := os.ReadFile(filepath.Join(dir(bare), name))
		refused("read without the key", err)
	}
	refused("make an account without the key", os.Mkdir(filepath.Join(bare, "example.org", "bob"), 0o700))
	c.quiet(secret[:20])

	c.run("key", "rotate", "--key-file", keys)
	c.run("key", "rewrap", "--key-file", keys, a)
	for _, point := range []string{a, b} {
		write(dir(point)+"/new", small)
		reads(dir(point)+"/large", large)
	}
	old := strings.Fields(strings.Split(c.run("key", "ls", "--key-file", keys, b), "\n")[2])
	if len(old) != 3 || old[2] != "0" {
		t.Errorf("after the rewrap, the old key: %q", old)
	}
	c.run("key", "forget", "--key-file", keys, old[0])
	reads(dir(b)+"/small", small)

	write(dir(a)+"/unread", large) // b has nothing of it in its kernel
	c.run("destroy-keys", "--yes", dir(a))
	for _, point := range []string{a, b} {
		_, err := os.ReadFile(dir(point) + "/unread")
		refused("read after the key was destroyed", err)
	}
	if err := os.RemoveAll(dir(b)); err != nil {
		t.Errorf("remove the account: %v", err)
	}
}

// quiet makes sure that no file of an OSD holds a text.
func (c *cluster) quiet(text string) {
	c.t.Helper()
	err := filepath.WalkDir(c.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && strings.HasPrefix(e.Name(), "mnt.") {
			return fs.SkipDir
		}
		if !e.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if bytes.Contains(b, []byte(text)) {
			c.t.Errorf("%s holds %q", path, text)
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
}
