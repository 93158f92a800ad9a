package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A locker is a process that does what it is told with a file, a line at a time:
// POSIX locks belong to processes.
type locker struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

const lockerEnv = "PILLARBOX_TEST_LOCKER"

// beLocker is such a process, for the first of some files until told to use another.
func beLocker(paths string) int {
	var files []*os.File
	for _, path := range strings.Split(paths, "\n") {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		files = append(files, f)
	}
	f := files[0]
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var verb, how string
		var start, n int64
		fmt.Sscan(lines.Text(), &verb, &how, &start, &n)
		if verb == "use" {
			f = files[start]
		}
		fmt.Println(lockerDo(f, verb, how, start, n))
	}
	return 0
}

func lockerDo(f *os.File, verb, how string, start, n int64) string {
	if verb == "count" {
		for range n {
			if err := setLock(f, how, unix.F_WRLCK, 0, 0); err != nil {
				return "lock: " + err.Error()
			}
			buf := make([]byte, 20)
			m, err := f.ReadAt(buf, 0)
			v := 0
			if _, serr := fmt.Sscan(string(buf[:m]), &v); serr != nil || err != nil && err != io.EOF {
				return fmt.Sprintf("read %q: %v", buf[:m], err)
			}
			if _, err := f.WriteAt(fmt.Appendf(nil, "%-10d", v+1), 0); err != nil {
				return "write: " + err.Error()
			}
			if err := setLock(f, how, unix.F_UNLCK, 0, 0); err != nil {
				return "unlock: " + err.Error()
			}
		}
		return "ok"
	}
	switch verb {
	case "use":
		return "ok"
	case "put":
		_, err := f.WriteAt([]byte(how), start)
		return answerOf(err)
	case "sync":
		return answerOf(f.Sync())
	}
	typ := map[string]int{"write": unix.F_WRLCK, "read": unix.F_RDLCK, "unlock": unix.F_UNLCK}
	if verb == "test" {
		l := unix.Flock_t{Type: unix.F_WRLCK, Start: start, Len: n}
		if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err != nil {
			return err.Error()
		}
		return fmt.Sprint("type ", l.Type, " start ", l.Start, " len ", l.Len)
	}
	return answerOf(setLock(f, how, typ[verb], start, n))
}

func answerOf(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func setLock(f *os.File, how string, typ int, start, n int64) error {
	how, try := strings.CutSuffix(how, "-try")
	if how == "flock" {
		op := map[int]int{unix.F_WRLCK: unix.LOCK_EX, unix.F_RDLCK: unix.LOCK_SH, unix.F_UNLCK: unix.LOCK_UN}[typ]
		if try {
			op |= unix.LOCK_NB
		}
		return unix.Flock(int(f.Fd()), op)
	}
	cmd := map[string]int{"posix": unix.F_SETLKW, "ofd": unix.F_OFD_SETLKW}[how]
	if try {
		cmd = map[string]int{"posix": unix.F_SETLK, "ofd": unix.F_OFD_SETLK}[how]
	}
	return unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: int16(typ), Start: start, Len: n})
}

func startLocker(t *testing.T, paths ...string) *locker {
	t.Helper()
	l := &locker{t: t, cmd: exec.Command("/proc/self/exe")}
	l.cmd.Env = append(os.Environ(), lockerEnv+"="+strings.Join(paths, "\n"))
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	l.cmd.Stderr = os.Stderr
	in, err := l.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.in, l.out = in, bufio.NewReader(out)
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.kill)
	l.expect("ready")
	return l
}

func (l *locker) kill() { l.cmd.Process.Kill(); l.cmd.Wait() }

func (l *locker) tell(format string, args ...any) { fmt.Fprintf(l.in, format+"\n", args...) }

func (l *locker) answer() string {
	s, err := l.out.ReadString('\n')
	if err != nil {
		s += " " + err.Error()
	}
	return strings.TrimSpace(s)
}

func (l *locker) expect(want string) {
	l.t.Helper()
	if got := l.answer(); got != want {
		l.t.Fatalf("a process that locks says %q, not %q", got, want)
	}
}

func (l *locker) do(want, format string, args ...any) {
	l.t.Helper()
	l.tell(format, args...)
	l.expect(want)
}

// silent says that no answer comes for a while.
func (l *locker) silent(d time.Duration) (<-chan string, bool) {
	answer := make(chan string, 1)
	go func() { answer <- l.answer() }()
	select {
	case s := <-answer:
		l.t.Errorf("answered %q where it had to wait", s)
		return answer, false
	case <-time.After(d):
		return answer, true
	}
}

// TestLocks: locks exclude one another across hosts as on one.
func TestLocks(t *testing.T) {
	_, a, b := twoMounts(t)
	if err := os.WriteFile(filepath.Join(a, "f"), []byte("0         "), 0o600); err != nil {
		t.Fatal(err)
	}
	pa, pb := startLocker(t, filepath.Join(a, "f")), startLocker(t, filepath.Join(b, "f"))
	for _, how := range []string{"posix", "ofd", "flock"} {
		pa.do("ok", "read %s 0 0", how)
		pb.do("ok", "read %s-try 0 0", how)
		pb.do("EAGAIN", "write %s-try 0 0", how)
		pa.do("ok", "unlock %s 0 0", how)
		pb.do("ok", "write %s-try 0 0", how)
		pa.tell("write %s 0 0", how)
		answer, ok := pa.silent(300 * time.Millisecond)
		if !ok {
			t.FailNow()
		}
		pb.do("ok", "unlock %s 0 0", how)
		if s := <-answer; s != "ok" {
			t.Fatalf("after a wait: %s", s)
		}
		pa.do("ok", "unlock %s 0 0", how)
	}
	// Ranges, and who has them.
	pa.do("ok", "write posix 10 5")
	pb.do("ok", "write posix-try 15 5")
	pb.do("EAGAIN", "read posix-try 14 1")
	pb.do(fmt.Sprint("type ", unix.F_WRLCK, " start 10 len 5"), "test posix 0 100")
	// A cycle.
	pa.tell("write posix 15 1")
	answer, ok := pa.silent(200 * time.Millisecond)
	if !ok {
		t.FailNow()
	}
	pb.do("EDEADLK", "write posix 10 1")
	pb.do("ok", "unlock posix 0 0")
	if s := <-answer; s != "ok" {
		t.Fatalf("after a cycle was broken: %s", s)
	}
	// Locks end with the process.
	for _, how := range []string{"posix", "ofd", "flock"} {
		pa.do("ok", "write %s 0 0", how)
		pb.tell("write %s 0 0", how)
		answer, ok := pb.silent(200 * time.Millisecond)
		if !ok {
			t.FailNow()
		}
		pa.kill()
		if s := <-answer; s != "ok" {
			t.Fatalf("%s: after the holder was killed: %s", how, s)
		}
		pb.do("ok", "unlock %s 0 0", how)
		pa = startLocker(t, filepath.Join(a, "f"))
	}
}

// TestLockedCounter has processes on two hosts add to a number under a lock: no
// two ever hold it, none is forgotten, and each sees what the last one wrote.
func TestLockedCounter(t *testing.T) {
	const rounds = 100
	_, a, b := twoMounts(t)
	for _, how := range []string{"posix", "ofd", "flock"} {
		if err := os.WriteFile(filepath.Join(a, how), []byte("0         "), 0o600); err != nil {
			t.Fatal(err)
		}
		var all []*locker
		for _, dir := range []string{a, b, a, b} {
			all = append(all, startLocker(t, filepath.Join(dir, how)))
		}
		for _, l := range all {
			l.tell("count %s 0 %d", how, rounds)
		}
		for _, l := range all {
			l.expect("ok")
			l.kill()
		}
		got, err := os.ReadFile(filepath.Join(b, how))
		if n := strings.TrimSpace(string(got)); err != nil || n != fmt.Sprint(4*rounds) {
			t.Errorf("%s: counted to %s, not %d, %v", how, n, 4*rounds, err)
		}
	}
}

// TestLocksOutliveTheLeader: who holds a lock keeps it when the OSD dies that
// knew of it; who is cut off for longer than a lease does not, and hears of it.
func TestLocksOutliveTheLeader(t *testing.T) {
	c, a, b := twoMounts(t)
	if err := os.WriteFile(filepath.Join(a, "f"), []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	pa, pb := startLocker(t, filepath.Join(a, "f")), startLocker(t, filepath.Join(b, "f"))
	pa.do("ok", "write posix 0 0")
	for _, osd := range c.all[1:4] {
		c.kill(osd)
		pb.do("EAGAIN", "write posix-try 0 0")
		c.restart(osd)
		c.healthy(3)
	}
	pa.do("ok", "unlock posix 0 0")
	pb.do("ok", "write posix-try 0 0")
	pb.do("ok", "unlock posix 0 0")

	pa.do("ok", "write posix 0 0")
	pa.do("ok", "put stale 0 0")
	frozen := c.all[4]
	if frozen.name != "mount.mx1" {
		t.Fatalf("%s is not the mount", frozen.name)
	}
	frozen.cmd.Process.Signal(unix.SIGSTOP)
	start := time.Now()
	pb.do("ok", "write posix 0 0")
	t.Logf("a frozen host's lock was free after %v", time.Since(start))
	pb.do("ok", "put fresh 0 0")
	pb.do("ok", "sync")
	frozen.cmd.Process.Signal(unix.SIGCONT)
	pa.do("EIO", "sync")
	pa.do("EIO", "read posix-try 50 1")
	pa.do("EIO", "put stale 0 0")
	pb.do("ok", "unlock posix 0 0")
	pa.kill()
	pa = startLocker(t, filepath.Join(a, "f"))
	pa.do("ok", "write posix 0 0")
	for _, dir := range []string{a, b} {
		if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(got) != "fresh" {
			t.Errorf("after a host was fenced: %q, %v", got, err)
		}
	}
}

// TestDeadlocks: a cycle is found wherever the files of it lie, by one of those in
// it, and turning locks of flock(2) into others is none.
func TestDeadlocks(t *testing.T) {
	_, a, b := twoMounts(t)
	other := "../../other" // an account, and so a placement group, of its own
	if err := os.Mkdir(filepath.Join(a, other), 0o755); err != nil {
		t.Fatal(err)
	}
	files := func(dir string) (paths []string) {
		for _, name := range []string{"f", filepath.Join(other, "f")} {
			paths = append(paths, filepath.Join(dir, name))
		}
		return paths
	}
	for _, path := range files(a) {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// settle waits for both; first is what the one must be told that is told first.
	settle := func(first string, pa, pb *locker, unlock string) {
		t.Helper()
		answers := make(chan *locker, 2)
		said := map[*locker]string{}
		var mu sync.Mutex
		for _, l := range []*locker{pa, pb} {
			go func() {
				s := l.answer()
				mu.Lock()
				said[l] = s
				mu.Unlock()
				answers <- l
			}()
		}
		l := <-answers
		mu.Lock()
		got := said[l]
		mu.Unlock()
		if got != first {
			t.Fatalf("the first one is told %q, not %q", got, first)
		}
		for i := range 2 {
			l.do("ok", "use x %d", i)
			l.do("ok", unlock)
		}
		if l = <-answers; said[l] != "ok" {
			t.Fatalf("the other is told %q", said[l])
		}
	}
	pa, pb := startLocker(t, files(a)...), startLocker(t, files(b)...)
	pa.do("ok", "write posix 0 0")
	pb.do("ok", "use x 1")
	pb.do("ok", "write posix 0 0")
	pa.do("ok", "use x 1")
	pb.do("ok", "use x 0")
	pa.tell("write posix 0 0")
	pb.tell("write posix 0 0")
	settle("EDEADLK", pa, pb, "unlock posix 0 0")
	pa.kill()
	pb.kill()

	pa, pb = startLocker(t, files(a)...), startLocker(t, files(b)...)
	pa.do("ok", "read flock 0 0")
	pb.do("ok", "read flock 0 0")
	pa.tell("write flock 0 0")
	pb.tell("write flock 0 0")
	settle("ok", pa, pb, "unlock flock 0 0")
}
