package posix

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const childEnv = "PILLARBOX_TEST_CHILD"

// call is a system call for another process to make.
type call struct {
	Op          string
	Path, Path2 string
	FD          int
	Flags, Mode int
	Off, N      int64
	Data        []byte
	Lock        unix.Flock_t
}

// result is what came of a call.
type result struct {
	Errno unix.Errno
	N     int
	Data  []byte
	Lock  unix.Flock_t
}

func (r result) err() error {
	if r.Errno == 0 {
		return nil
	}
	return r.Errno
}

// child is another process, maybe of another user, that makes system calls.
type child struct {
	t       testing.TB
	cmd     *exec.Cmd
	in      io.WriteCloser
	enc     *gob.Encoder
	results chan result
	tid     int // of the thread that makes the calls
}

// spawn starts a child as a user; nil means root. It ends with the test.
func spawn(t testing.TB, cred *syscall.Credential) *child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	c := &child{t: t, cmd: cmd, in: in, enc: gob.NewEncoder(in), results: make(chan result)}
	ended := make(chan struct{})
	go func() {
		defer close(c.results)
		dec := gob.NewDecoder(out)
		for {
			var r result
			if dec.Decode(&r) != nil {
				return
			}
			select {
			case c.results <- r:
			case <-ended:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(ended)
		c.kill()
	})
	c.tid = c.do(call{Op: "gettid"}).N
	return c
}

// user is a credential with no further groups than those given.
func user(uid, gid uint32, groups ...uint32) *syscall.Credential {
	return &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}
}

// start has a call made that may block; wait brings its result.
func (c *child) start(k call) {
	c.t.Helper()
	if err := c.enc.Encode(k); err != nil {
		c.t.Fatalf("ask the child for %s: %v", k.Op, err)
	}
}

func (c *child) wait() result {
	c.t.Helper()
	return within(c.t, "the child's answer", c.results)
}

func (c *child) do(k call) result {
	c.t.Helper()
	c.start(k)
	return c.wait()
}

// open returns the child's number of the file.
func (c *child) open(path string, flags int) int {
	c.t.Helper()
	r := c.do(call{Op: "open", Path: path, Flags: flags, Mode: 0o666})
	if r.Errno != 0 {
		c.t.Fatalf("the child opens %s: %v", path, r.Errno)
	}
	return r.N
}

// lock makes one of the fcntl lock commands.
func (c *child) lock(cmd, fd int, typ int16, start, n int64) result {
	c.t.Helper()
	return c.do(lockCall(cmd, fd, typ, start, n))
}

func lockCall(cmd, fd int, typ int16, start, n int64) call {
	return call{Op: "fcntl", FD: fd, Flags: cmd, Lock: unix.Flock_t{Type: typ, Start: start, Len: n}}
}

// blocked waits until the thread that makes the calls sleeps in the kernel's
// wait for a lock.
func (c *child) blocked() {
	c.t.Helper()
	path := fmt.Sprintf("/proc/%d/task/%d/syscall", c.cmd.Process.Pid, c.tid)
	for range 100_000 {
		b, err := os.ReadFile(path)
		must(c.t, err)
		var nr int
		if _, err := fmt.Sscan(string(b), &nr); err == nil && (nr == unix.SYS_FCNTL || nr == unix.SYS_FLOCK) {
			return
		}
		runtime.Gosched()
	}
	c.t.Fatal("the child does not wait for the lock")
}

// interrupt sends a signal that does not restart system calls.
func (c *child) interrupt() {
	c.t.Helper()
	must(c.t, unix.Tgkill(c.cmd.Process.Pid, c.tid, unix.SIGUSR1))
}

// kill ends the child and waits for that.
func (c *child) kill() {
	c.cmd.Process.Signal(unix.SIGKILL) // fails if it has ended, which is fine
	c.in.Close()
	c.cmd.Wait()
}

// serveParent is the child's main program.
func serveParent() int {
	runtime.LockOSThread()
	if err := interruptible(unix.SIGUSR1); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		return 1
	}
	dec, enc := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	for {
		var k call
		if err := dec.Decode(&k); err != nil {
			return 0
		}
		if err := enc.Encode(k.make()); err != nil {
			return 1
		}
	}
}

// interruptible has a signal caught, and system calls end with EINTR, which
// the runtime's handlers do not do.
func interruptible(sig unix.Signal) error {
	signal.Notify(make(chan os.Signal, 1), sig)
	var act struct {
		handler, flags, restorer uintptr
		mask                     uint64
	}
	const saRestart = 0x10000000
	if _, _, e := syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&act)), 8, 0, 0); e != 0 {
		return e
	}
	act.flags &^= saRestart
	if _, _, e := syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0); e != 0 {
		return e
	}
	return nil
}

func (k call) make() (r result) {
	var err error
	switch k.Op {
	case "gettid":
		r.N = unix.Gettid()
	case "umask":
		r.N = unix.Umask(k.Mode)
	case "open":
		r.N, err = unix.Open(k.Path, k.Flags|unix.O_CLOEXEC, uint32(k.Mode))
	case "close":
		err = unix.Close(k.FD)
	case "pread":
		r.Data = make([]byte, k.N)
		r.N, err = unix.Pread(k.FD, r.Data, k.Off)
		r.Data = r.Data[:max(r.N, 0)]
	case "pwrite":
		r.N, err = unix.Pwrite(k.FD, k.Data, k.Off)
	case "append":
		for range k.N {
			if _, err = unix.Write(k.FD, k.Data); err != nil {
				break
			}
		}
	case "truncate":
		err = unix.Truncate(k.Path, k.N)
	case "ftruncate":
		err = unix.Ftruncate(k.FD, k.N)
	case "fallocate":
		err = unix.Fallocate(k.FD, uint32(k.Mode), k.Off, k.N)
	case "copy": // all of Path to FD
		var in int
		if in, err = unix.Open(k.Path, unix.O_RDONLY, 0); err == nil {
			r.N, err = unix.CopyFileRange(in, nil, k.FD, nil, 1<<20, 0)
			unix.Close(in)
		}
	case "mkdir":
		err = unix.Mkdir(k.Path, uint32(k.Mode))
	case "mknod":
		err = unix.Mknod(k.Path, uint32(k.Mode), int(k.N))
	case "unlink":
		err = unix.Unlink(k.Path)
	case "rmdir":
		err = unix.Rmdir(k.Path)
	case "rename":
		err = unix.Rename(k.Path, k.Path2)
	case "link":
		err = unix.Link(k.Path, k.Path2)
	case "symlink":
		err = unix.Symlink(k.Path, k.Path2)
	case "chmod":
		err = unix.Chmod(k.Path, uint32(k.Mode))
	case "lchown":
		err = unix.Lchown(k.Path, int(k.Off), int(k.N))
	case "access":
		err = unix.Access(k.Path, uint32(k.Mode))
	case "utimes": // Off and N are the nanosecond fields, UTIME_NOW and UTIME_OMIT among them
		err = unix.UtimesNanoAt(unix.AT_FDCWD, k.Path, []unix.Timespec{{Nsec: k.Off}, {Nsec: k.N}}, 0)
	case "setxattr":
		err = unix.Setxattr(k.Path, k.Path2, k.Data, k.Flags)
	case "getxattr":
		r.Data = make([]byte, k.N)
		r.N, err = unix.Getxattr(k.Path, k.Path2, r.Data)
	case "removexattr":
		err = unix.Removexattr(k.Path, k.Path2)
	case "listxattr":
		r.Data = make([]byte, 1<<16)
		r.N, err = unix.Listxattr(k.Path, r.Data)
		r.Data = r.Data[:max(r.N, 0)]
	case "flock":
		err = unix.Flock(k.FD, k.Flags)
	case "fcntl":
		r.Lock = k.Lock
		err = unix.FcntlFlock(uintptr(k.FD), k.Flags, &r.Lock)
	case "readdir":
		_, err = os.ReadDir(k.Path)
	default:
		err = unix.ENOSYS
	}
	if err != nil && !errors.As(err, &r.Errno) {
		r.Errno = unix.EIO
	}
	return r
}
