// Package provider starts for tests the services that outside pools can lie in, each
// on this machine, with an empty place for a pool. They end with the test.
package provider

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// cached is a path below what `make test-deps` leaves in .cache.
func cached(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(filepath.Dir(strings.TrimSpace(string(out))), ".cache", path)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("run `make test-deps`: %v", err)
	}
	return path
}

// serve starts a daemon that ends with the test, and returns what a line of its
// output says in place of the expression's group.
func serve(t *testing.T, ready string, cmd *exec.Cmd) string {
	t.Helper()
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatalf("start %v: %v", cmd.Args, err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		out.Close()
	})
	lines, said := bufio.NewScanner(out), ""
	for re := regexp.MustCompile(ready); lines.Scan(); said += lines.Text() + "\n" {
		if m := re.FindStringSubmatch(lines.Text()); m != nil {
			go func() { // what else it says is of no interest, but must not fill the pipe
				for lines.Scan() {
				}
			}()
			return m[1]
		}
	}
	t.Fatalf("%v did not start:\n%s", cmd.Args, said)
	return ""
}
