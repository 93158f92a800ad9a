package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// daemon is a server process, leader of its own process group.
type daemon struct {
	name string
	cmd  *exec.Cmd
	done chan error
	// stopped belongs to the goroutine of the test.
	stopped bool
}

// libraryPath lets the unpacked servers find their libraries.
func libraryPath() string {
	return "LD_LIBRARY_PATH=" + strings.Join([]string{
		serversRoot + "/usr/lib/postfix", serversRoot + "/usr/lib", serversRoot + "/usr/lib/x86_64-linux-gnu",
		serversRoot + "/usr/lib/aarch64-linux-gnu"}, ":")
}

// start runs a server in the foreground until the test ends; what it prints
// goes to a file that is shown if the test fails.
func start(t *testing.T, s *site, name string, env []string, argv ...string) *daemon {
	t.Helper()
	out, err := os.Create(filepath.Join(s.base, name+".out"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	out.Close()
	d := &daemon{name: name, cmd: cmd, done: make(chan error, 1)}
	go func() { d.done <- cmd.Wait() }()
	t.Cleanup(func() {
		d.stop(t)
		if text, _ := os.ReadFile(out.Name()); t.Failed() && len(text) > 0 {
			t.Logf("%s printed:\n%s", name, tail(text))
		}
	})
	return d
}

// stop asks the server to end, kills its whole group when it does not, and
// returns how it ended. The second call does nothing.
func (d *daemon) stop(t *testing.T) error {
	t.Helper()
	if d.stopped {
		return nil
	}
	d.stopped = true
	group := -d.cmd.Process.Pid
	// ESRCH only says that it has ended by itself.
	_ = syscall.Kill(d.cmd.Process.Pid, syscall.SIGTERM)
	var err error
	select {
	case err = <-d.done:
	case <-time.After(20 * time.Second):
		err = fmt.Errorf("%s did not end on SIGTERM", d.name)
		t.Error(err)
	}
	_ = syscall.Kill(group, syscall.SIGKILL)
	waitFor(t, d.name+"'s processes to end", 20*time.Second, func() bool { return syscall.Kill(group, 0) == syscall.ESRCH })
	return err
}

// kill ends the server as kill -9 does. Started again it goes on where it was.
func (d *daemon) kill() {
	d.stopped = true
	_ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
	<-d.done
}

// again starts a killed server once more, under another name.
func (d *daemon) again(t *testing.T, s *site, name string) *daemon {
	t.Helper()
	return start(t, s, name, clusterEnv, d.cmd.Args...)
}

// waitFor polls until ok, or fails the test.
func waitFor(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func waitPort(t *testing.T, port int) {
	t.Helper()
	waitFor(t, fmt.Sprintf("port %d", port), 30*time.Second, func() bool {
		conn, err := net.Dial("tcp", address(port))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// freePort finds a port of 127.0.0.1 that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func address(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// command prepares a command that runs as uid, with nothing of the caller's
// environment but the paths.
func command(uid int, argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC", "HOME=/nonexistent"}
	cmd.Dir = "/"
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return cmd
}

// must runs a command as uid and returns its standard output; that it fails
// fails the test.
func must(t *testing.T, uid int, argv ...string) string {
	t.Helper()
	cmd := command(uid, argv...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(argv, " "), err, tail(out), tail(stderr.Bytes()))
	}
	return string(out)
}

// tail is the end of a text, as much as is good to show.
func tail(text []byte) []byte {
	const most = 2000
	if len(text) <= most {
		return text
	}
	return append([]byte("[...] "), text[len(text)-most:]...)
}

// cleanLog fails the test for each line of a log that holds one of words, and is
// none that but matches, if that is not nil.
func cleanLog(t *testing.T, path string, but *regexp.Regexp, words ...string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Errorf("reading the server's log: %v", err)
	}
	bad := 0
	for _, line := range strings.Split(string(text), "\n") {
		for _, word := range words {
			if strings.Contains(line, word) && (but == nil || !but.MatchString(line)) {
				if bad++; bad <= 20 {
					t.Errorf("%s: %s", filepath.Base(path), line)
				}
				break
			}
		}
	}
	if bad > 20 {
		t.Errorf("%s: %d such lines in all", filepath.Base(path), bad)
	}
}
