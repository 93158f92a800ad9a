package fusefs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pillarbox/cachefs"
	"pillarbox/cachefs/storetest"
)

// serveEnv makes the test binary a file server for the mount point it names: a
// process that uses its own mount can wait for itself for ever.
const serveEnv = "FUSEFS_TEST_SERVE"

func TestMain(m *testing.M) {
	if point := os.Getenv(serveEnv); point != "" {
		if err := serve(point); err != nil {
			fmt.Fprintln(os.Stderr, "serve:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// serve mounts, says so on stdout, answers questions on stdin, and unmounts at its end.
func serve(point string) error {
	store := storetest.New()
	fs, err := cachefs.New(store, cachefs.Options{Base: context.Background()})
	if err != nil {
		return err
	}
	m, err := Mount(point, fs, Options{Source: "test-store", Base: context.Background()})
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		answer(store, in.Text())
	}
	err = m.Unmount()
	if err != nil {
		err = errors.Join(err, m.UnmountLazily())
	}
	err = errors.Join(err, fs.Close())
	found, cerr := store.Check()
	if len(found) > 0 {
		cerr = fmt.Errorf("volume check: %v", found)
	}
	if left, _ := store.Orphans(); len(left) > 0 {
		cerr = errors.Join(cerr, fmt.Errorf("orphans left: %v", left))
	}
	return errors.Join(err, cerr)
}

func answer(store *storetest.Store, q string) {
	op, arg, _ := strings.Cut(q, " ")
	switch op {
	case "count":
		fmt.Println(store.Count(arg))
	case "orphans":
		left, err := store.Orphans()
		fmt.Println(len(left), err)
	default:
		fmt.Println("what?")
	}
}

// mounted is a mount in a child process.
type mounted struct {
	*testing.T
	dir string
	in  io.WriteCloser
	out *bufio.Reader
}

// mount gives the test a fresh mount, gone at its end whatever happens.
func mount(t *testing.T) *mounted {
	t.Helper()
	dir := t.TempDir()
	// Others must get there for the tests of permissions.
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), serveEnv+"="+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := &mounted{t, dir, in, bufio.NewReader(out)}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("server: %v\n%s", err, stderr.String())
		} else if stderr.Len() > 0 {
			t.Logf("server: %s", stderr.String())
		}
		// The server unmounts; after a crash of it nobody has.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err == nil {
			t.Error("the server left its mount behind")
		}
	})
	if line, err := m.out.ReadString('\n'); line != "mounted\n" {
		t.Fatalf("server said %q, %v", line, err)
	}
	return m
}

// ask puts a question to the server.
func (m *mounted) ask(q string) string {
	m.Helper()
	fmt.Fprintln(m.in, q)
	line, err := m.out.ReadString('\n')
	if err != nil {
		m.Fatalf("ask %q: %v", q, err)
	}
	return strings.TrimSpace(line)
}
