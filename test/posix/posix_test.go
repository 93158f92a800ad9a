// Package posix holds a real mount against what POSIX and Linux promise.
package posix

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"pillarbox/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// TestPosixtest runs go-fuse's own suite inside an account.
func TestPosixtest(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	for name, fn := range posixtest.All {
		if name == "FcntlFlockLocksFile" {
			continue // wants a process kept out by its own fcntl lock, which POSIX does not do
		}
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(n.Mount, "example.org", "user", name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			fn(t, dir)
		})
	}
	n.Term()
	n.Fsck()
}
