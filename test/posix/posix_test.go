// Package posix holds a real mount against what POSIX and Linux promise.
//
// With PILLARBOX_TEST_PLAIN=1 the same cases run on a temporary directory of
// the machine's own filesystem, which should be ext4, so that a wrong test can
// be told from a wrong filesystem. PILLARBOX_TEST_SEED repeats a run of the
// random tests, PILLARBOX_TEST_MILLION=1 makes the large directory ten times
// larger.
package posix

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"pillarbox/test/harness"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(serveParent())
	}
	os.Exit(harness.Main(m))
}

// TestPosixtest runs go-fuse's own suite inside an account.
func TestPosixtest(t *testing.T) {
	p := newPlace(t)
	for name, fn := range posixtest.All {
		if name == "FcntlFlockLocksFile" {
			continue // wants a process kept out by its own fcntl lock, which POSIX does not do
		}
		if name == "OpenSymlinkRace" && plain {
			continue // wants /etc on another filesystem
		}
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(p.dir, name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			fn(t, dir)
		})
	}
}
