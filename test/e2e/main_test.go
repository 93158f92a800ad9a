package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Accounts of the tests, made by test/install.sh.
const (
	vmailID = 5000
	aliceID = 5001
	bobID   = 5002
	// localHomes is where the user database says alice and bob live.
	localHomes = "/var/lib/pillarbox-test/home"
	// serversRoot holds the servers that are unpacked, not installed.
	serversRoot = "/var/cache/pillarbox-test/servers"
)

// basePrefix begins the name of every directory that this run makes.
func basePrefix() string { return fmt.Sprintf("/tmp/pbe2e-%d-", os.Getpid()) }

// TestMain lets one run at a time onto the machine (local users have one home)
// and fails when a test left a process or a mount behind.
func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the end-to-end tests must run as root: they start servers under several users")
		return 1
	}
	if _, err := os.Stat(filepath.Join(serversRoot, ".done")); err != nil {
		fmt.Fprintln(os.Stderr, "run `make test-deps` first:", err)
		return 1
	}
	lock, err := os.OpenFile("/run/lock/pillarbox-e2e.lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "waiting for other end-to-end tests:", err)
		return 1
	}
	defer lock.Close()
	code := m.Run()
	if err := os.RemoveAll(programDir()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if left := leftovers(); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "FAIL: the tests left behind:\n\t"+strings.Join(left, "\n\t"))
		return 1
	}
	return code
}

// leftovers names mounts below the tests' directories, and processes that have
// one of these in their command line or as their working directory.
func leftovers() []string {
	var left []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, basePrefix()) {
			left = append(left, "mount: "+line)
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return []string{err.Error()}
	}
	for _, proc := range procs {
		// A process that ends while we look is no leftover.
		cmdline, _ := os.ReadFile(proc + "/cmdline")
		cwd, _ := os.Readlink(proc + "/cwd")
		if strings.Contains(string(cmdline), basePrefix()) || strings.HasPrefix(cwd, basePrefix()) {
			left = append(left, fmt.Sprintf("process %s: %q in %s", filepath.Base(proc), cmdline, cwd))
		}
	}
	return left
}
