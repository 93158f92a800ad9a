// Package outside runs the drivers of outside pools against the real services that
// can be had on one machine, and Pillarbox on them.
package outside

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

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

// noSecrets: an error of a request that did not reach the store tells no secret.
func noSecrets(t *testing.T, secret string, request func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := request(ctx)
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("the error of a request: %v", err)
	}
}
