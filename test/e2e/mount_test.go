package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// programDir holds the program that the tests mount with; TestMain removes it.
func programDir() string { return basePrefix() + "program" }

var buildProgram = sync.OnceValues(func() (string, error) {
	program := filepath.Join(programDir(), "pillarbox")
	out, err := exec.Command("go", "build", "-o", program, "pillarbox/cmd/pillarbox").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("building pillarbox: %w\n%s", err, out)
	}
	return program, err
})

// mountStore runs `pillarbox up` on a new store until the test ends: it must
// then exit 0, the mount be gone and fsck find nothing wrong.
func mountStore(t *testing.T, s *site) {
	t.Helper()
	program, err := buildProgram()
	ok(t, "building", err)
	before := device(t, s.mail)
	t.Cleanup(func() {
		if device(t, s.mail) != before {
			t.Errorf("%s is still mounted", s.mail)
			if err := syscall.Unmount(s.mail, syscall.MNT_DETACH); err != nil {
				t.Errorf("unmounting it: %v", err)
			}
		}
	})
	d := start(t, s, "pillarbox", []string{"HOME=/nonexistent"}, append(append([]string{program, "up", "--data", s.data}, s.args...), s.mail)...)
	t.Cleanup(func() {
		if err := d.stop(t); err != nil {
			t.Errorf("pillarbox up ended with: %v", err)
		}
		if out, err := exec.Command(program, "fsck", "--data", s.data).CombinedOutput(); err != nil {
			t.Errorf("fsck: %v\n%s", err, tail(out))
		}
	})
	waitFor(t, "the store to be mounted", 60*time.Second, func() bool {
		select {
		case err := <-d.done:
			d.done <- err
			t.Fatalf("pillarbox up ended: %v", err)
		default:
		}
		return device(t, s.mail) != before
	})
	ok(t, "chmod of the mount", os.Chmod(s.mail, 0o755))
}

// device is the filesystem a path is on; 0 when it cannot be asked, as at a
// mount whose server has died.
func device(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0
	}
	return st.Dev
}
