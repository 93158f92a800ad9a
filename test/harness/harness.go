// Package harness runs the real program for tests: it builds pillarbox once per
// test binary, starts `pillarbox up` as a process, waits until the mount
// answers, kills it in all ways, and cleans up when the test ends, also when it
// fails. A Node belongs to the goroutine of its test.
package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const fuseMagic = 0x65735546

// Options of Start. The zero value is a new store on temporary directories.
type Options struct {
	Args  []string // further arguments of `pillarbox up`
	Data  string   // data directory; a new temporary one if empty
	Mount string   // mount point; a new temporary one if empty
}

// Node is a running `pillarbox up`.
type Node struct {
	Mount, Data string

	t     testing.TB
	args  []string
	cmd   *exec.Cmd
	ended chan struct{}
	log   string
}

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "pillarbox-test-bin-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "pillarbox")
	out, err := exec.Command("go", "build", "-tags", tags, "-o", bin, "pillarbox/cmd/pillarbox").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build pillarbox: %w\n%s", err, out)
	}
	return bin, nil
})

// Binary builds the program; Main removes it when the tests are over.
func Binary(t testing.TB) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// Main runs a test binary's tests and removes the program that was built for
// them. It fails without root: mounts need it.
func Main(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests must run as root: they mount filesystems")
		return 1
	}
	code := m.Run()
	if bin, err := build(); err == nil {
		os.RemoveAll(filepath.Dir(bin))
	}
	return code
}

// Start starts a node and waits until it serves.
func Start(t testing.TB, o Options) *Node {
	t.Helper()
	n := &Node{t: t, Mount: o.Mount, Data: o.Data, args: o.Args, log: filepath.Join(t.TempDir(), "log")}
	if n.Data == "" {
		n.Data = filepath.Join(t.TempDir(), "data")
	}
	if n.Mount == "" {
		n.Mount = t.TempDir()
	}
	t.Cleanup(n.cleanup)
	n.Restart()
	return n
}

// Restart starts the program again after it ended.
func (n *Node) Restart() {
	n.t.Helper()
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	args := append([]string{"up", "--data", n.Data}, n.args...)
	n.cmd = exec.Command(Binary(n.t), append(args, n.Mount)...)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatalf("start pillarbox: %v", err)
	}
	n.ended = make(chan struct{})
	go func(c *exec.Cmd, ended chan struct{}) {
		c.Wait() // how it ended is in ProcessState
		close(ended)
	}(n.cmd, n.ended)
	deadline := time.Now().Add(60 * time.Second)
	for !n.serving() {
		select {
		case <-n.ended:
			n.t.Fatalf("pillarbox up ended: %v\n%s", n.cmd.ProcessState, n.Log())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("pillarbox up does not answer\n%s", n.Log())
		}
	}
}

// await waits for the process to have ended.
func (n *Node) await() {
	n.t.Helper()
	select {
	case <-n.ended:
	case <-time.After(60 * time.Second):
		n.t.Fatalf("pillarbox up does not end\n%s", n.Log())
	}
}

// serving says whether the mount answers.
func (n *Node) serving() bool {
	var st unix.Statfs_t
	return unix.Statfs(n.Mount, &st) == nil && st.Type == fuseMagic
}

// Log is what the program has printed so far.
func (n *Node) Log() string {
	b, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Kill9 kills the program, which leaves a dead mount.
func (n *Node) Kill9() {
	n.t.Helper()
	if err := n.cmd.Process.Signal(unix.SIGKILL); err != nil {
		n.t.Fatalf("kill -9: %v", err)
	}
	n.await()
}

// Term ends the program as Ctrl-C does; it must exit 0.
func (n *Node) Term() {
	n.t.Helper()
	if err := n.cmd.Process.Signal(unix.SIGTERM); err != nil {
		n.t.Fatalf("SIGTERM: %v", err)
	}
	n.await()
	if code := n.cmd.ProcessState.ExitCode(); code != 0 {
		n.t.Fatalf("pillarbox up ended with %d\n%s", code, n.Log())
	}
}

// Unmount takes a dead mount away.
func (n *Node) Unmount() {
	for unix.Unmount(n.Mount, unix.MNT_DETACH) == nil {
	}
}

// Fsck checks the store, which must not be running, and fails the test if it
// finds anything.
func (n *Node) Fsck() {
	n.t.Helper()
	out, err := exec.Command(Binary(n.t), "fsck", "--data", n.Data).CombinedOutput()
	if err != nil {
		n.t.Errorf("fsck: %v\n%s", err, out)
	}
}

func (n *Node) cleanup() {
	if n.cmd != nil && n.ended != nil {
		n.cmd.Process.Signal(unix.SIGKILL) // fails if it has ended, which is fine
		n.await()
	}
	n.Unmount()
	if n.t.Failed() {
		log := strings.TrimSpace(n.Log())
		n.t.Logf("pillarbox printed:\n%s", log[max(0, len(log)-8000):])
	}
}
