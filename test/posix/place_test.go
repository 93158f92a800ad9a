package posix

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

// plain says that the tests run on the machine's own filesystem.
var plain = os.Getenv("PILLARBOX_TEST_PLAIN") == "1"

// place is where a test works.
type place struct {
	root string        // the mount point
	dir  string        // an empty directory in an account; or, when plain, anywhere
	node *harness.Node // nil when plain
}

// newPlace starts a mount of its own for the test, with further arguments. When the test ends, the
// program must end properly and fsck must find nothing.
func newPlace(t *testing.T, args ...string) *place {
	t.Helper()
	// Other users must get to it, which they do not through t.TempDir.
	base, err := os.MkdirTemp("", "pillarbox-posix-")
	must(t, err)
	must(t, os.Chmod(base, 0o755))
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	unix.Umask(0o022)
	p := &place{root: filepath.Join(base, "mnt")}
	must(t, os.Mkdir(p.root, 0o755))
	if !plain {
		n := harness.Start(t, harness.Options{Mount: p.root, Data: filepath.Join(base, "data"), Args: args})
		p.node = n
		t.Cleanup(func() {
			n.Term()
			n.Fsck()
		})
	}
	p.dir = filepath.Join(p.root, "example.org", "user", "work")
	must(t, os.MkdirAll(p.dir, 0o755))
	return p
}

// sub runs a subtest in a directory of its own.
func (p *place) sub(t *testing.T, name string, fn func(t *testing.T, dir string)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { fn(t, p.newDir(t)) })
}

// newDir makes an empty directory that everybody can get to.
func (p *place) newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(p.dir, strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())+"-")
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErr checks how a call ended; no errno at all means success.
func wantErr(t testing.TB, what string, err error, want ...unix.Errno) {
	t.Helper()
	if len(want) == 0 && err == nil {
		return
	}
	for _, e := range want {
		if e == 0 && err == nil || e != 0 && errors.Is(err, e) {
			return
		}
	}
	if len(want) == 0 {
		t.Errorf("%s: %v", what, err)
		return
	}
	t.Errorf("%s: got %v, want %v", what, err, want)
}

func want[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func lstat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func fstat(t testing.TB, fd int) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatalf("fstat: %v", err)
	}
	return st
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// open opens a file until the test ends.
func open(t testing.TB, path string, flags int, mode uint32) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(func() { unix.Close(fd) }) // it may have been closed already
	return fd
}

func put(t testing.TB, path, body string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(body), 0o644))
}

func pwrite(t testing.TB, fd int, b []byte, off int64) {
	t.Helper()
	n, err := unix.Pwrite(fd, b, off)
	if err != nil || n != len(b) {
		t.Fatalf("pwrite %d bytes at %d: %d, %v", len(b), off, n, err)
	}
}

// pread reads up to n bytes.
func pread(t testing.TB, fd int, n int, off int64) []byte {
	t.Helper()
	b := make([]byte, n)
	done := 0
	for done < n {
		k, err := unix.Pread(fd, b[done:], off+int64(done))
		if err != nil {
			t.Fatalf("pread %d bytes at %d: %v", n, off, err)
		}
		if k == 0 {
			break
		}
		done += k
	}
	return b[:done]
}

// wantBody compares the bytes of a file.
func wantBody(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	wantBytes(t, filepath.Base(path), got, want)
}

func wantBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	t.Errorf("%s: %d bytes, want %d; they differ from %d on: %.16x, want %.16x", what, len(got), len(want), i, got[i:], want[i:])
}

// within waits for a channel, with a deadline that no machine is slow enough to miss.
func within[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(30 * time.Second):
		t.Fatalf("%s did not come within 30 s", what)
		panic("unreachable")
	}
}

// seeded is the random source of a test, which says how to repeat it.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("PILLARBOX_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("PILLARBOX_TEST_SEED: %v", err)
		}
	}
	t.Logf("repeat with PILLARBOX_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func fill(n int, c byte) []byte { return bytes.Repeat([]byte{c}, n) }

func numbered(format string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf(format, i)
	}
	return names
}
