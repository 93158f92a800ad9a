package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const tortureEnv = "PILLARBOX_TEST_TORTURE"

// tortureHow are the ways to lock, in the order of an oracle.
var tortureHow = [tortureKinds]string{"posix", "ofd", "flock", "dot", "link"}

// torturer is a process that takes and drops locks at random, or counts under them.
type torturer struct {
	dir  string
	slot int
	o    *oracle
	r    *rand.Rand
	tid  int
}

// beTorturer is such a process.
func beTorturer(words string) int {
	var verb, dir, path string
	var slot, rounds int
	var seed uint64
	_, err := fmt.Sscan(words, &verb, &dir, &path, &slot, &rounds, &seed)
	w := &torturer{dir: dir, slot: slot, r: rand.New(rand.NewPCG(seed, uint64(slot)))}
	if err == nil {
		w.o, err = openOracle(path)
	}
	runtime.LockOSThread()
	w.tid = unix.Gettid()
	signal.Notify(make(chan os.Signal, 1), unix.SIGUSR1)
	if err == nil && verb == "count" {
		err = w.count()
	}
	for i := 0; err == nil && verb == "locks" && i < rounds; i++ {
		kind := w.r.IntN(tortureKinds)
		if err = w.round(kind); err != nil {
			err = fmt.Errorf("round %d, %s: %w", i, tortureHow[kind], err)
		}
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// round takes a lock in one of the ways, has it for a moment and drops it.
func (w *torturer) round(kind int) error {
	if how := tortureHow[kind]; how == "dot" || how == "link" {
		return w.nameLock(kind)
	}
	return w.fileLock(kind)
}

// part of a file is 10 bytes; flock(2) has one.
func (w *torturer) part(kind int) (part int, start int64) {
	if tortureHow[kind] == "flock" {
		return 0, 0
	}
	part = w.r.IntN(tortureParts)
	return part, int64(part) * 10
}

func (w *torturer) fileLock(kind int) error {
	how := tortureHow[kind]
	f, err := os.OpenFile(filepath.Join(w.dir, how), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	part, start := w.part(kind)
	write := w.r.IntN(2) == 0
	got, err := w.get(f, how, write, start)
	if err != nil || !got {
		return err
	}
	if err := w.o.take(kind, part, w.slot, write); err != nil {
		return err
	}
	w.linger()
	switch {
	case w.r.IntN(3) > 0:
	case write: // who sees a reader must see no writer
		if err := w.o.take(kind, part, w.slot, false); err != nil {
			return err
		}
		if how == "flock" { // lets go of the first lock
			w.o.drop(kind, part, w.slot)
		}
		if err := setAnyway(f, how, unix.F_RDLCK, start); err != nil {
			return fmt.Errorf("downgrade: %w", err)
		}
		if err := w.o.take(kind, part, w.slot, false); err != nil {
			return err
		}
	default:
		if err := w.upgrade(f, kind, part, start); err != nil {
			return err
		}
	}
	w.linger()
	w.o.drop(kind, part, w.slot)
	if w.r.IntN(3) == 0 {
		return nil // closing drops it
	}
	return setAnyway(f, how, unix.F_UNLCK, start)
}

// setAnyway goes on when what is left of an earlier round's signal comes.
func setAnyway(f *os.File, how string, typ int, start int64) error {
	for {
		if err := setLock(f, how, typ, start, 10); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// get tries, waits, or waits until a signal comes.
func (w *torturer) get(f *os.File, how string, write bool, start int64) (got bool, err error) {
	typ := unix.F_RDLCK
	if write {
		typ = unix.F_WRLCK
	}
	switch w.r.IntN(3) {
	case 0:
		err = setLock(f, how+"-try", typ, start, 10)
		if errors.Is(err, unix.EAGAIN) {
			return false, nil
		}
		return err == nil, err
	case 1:
		signal := time.AfterFunc(time.Duration(w.r.IntN(30))*time.Millisecond, func() { unix.Tgkill(os.Getpid(), w.tid, unix.SIGUSR1) })
		defer signal.Stop()
		err = setLock(f, how, typ, start, 10)
		if errors.Is(err, unix.EINTR) {
			return false, nil
		}
		return err == nil, err
	}
	err = setAnyway(f, how, typ, start)
	return err == nil, err
}

// upgrade turns a lock to read into one to write. fcntl says that two who try wait
// for each other, flock(2) lets go of the first lock.
func (w *torturer) upgrade(f *os.File, kind, part int, start int64) error {
	how := tortureHow[kind]
	switch how {
	case "ofd":
		how = "ofd-try"
	case "flock":
		w.o.drop(kind, part, w.slot)
	}
	err := setAnyway(f, how, unix.F_WRLCK, start)
	switch {
	case err == nil:
		return w.o.take(kind, part, w.slot, true)
	case kind == 0 && errors.Is(err, unix.EDEADLK), kind == 1 && errors.Is(err, unix.EAGAIN):
		return nil // it still has what it had
	}
	return fmt.Errorf("upgrade: %w", err)
}

// nameLock is one that a file's name makes.
func (w *torturer) nameLock(kind int) error {
	name, own := filepath.Join(w.dir, tortureHow[kind]+".lock"), filepath.Join(w.dir, fmt.Sprint("own.", w.slot))
	if tortureHow[kind] == "dot" {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		if err != nil {
			return err
		}
		f.Close()
	} else {
		if err := os.WriteFile(own, nil, 0o600); err != nil {
			return err
		}
		defer os.Remove(own)
		err := os.Link(own, name)
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	if err := w.o.take(kind, 0, w.slot, true); err != nil {
		return err
	}
	w.linger()
	w.o.drop(kind, 0, w.slot)
	return os.Remove(name)
}

// linger lets others run.
func (w *torturer) linger() {
	for range w.r.IntN(200) {
		runtime.Gosched()
	}
}

// tortured is what a test of several torturers has of them.
type tortured struct {
	t      *testing.T
	o      *oracle
	path   string
	seed   uint64
	mounts []string // the directories; process i is on the i-th, and so on around
}

func newTortured(t *testing.T, mounts ...string) *tortured {
	t.Helper()
	o, path := newOracle(t)
	w := &tortured{t: t, o: o, path: path, seed: rand.Uint64(), mounts: mounts}
	t.Logf("seed %d", w.seed)
	return w
}

// begin starts a process; ended tells how it ended.
func (w *tortured) begin(verb string, slot, rounds int) (cmd *exec.Cmd, ended <-chan error) {
	w.t.Helper()
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %d %d %d", tortureEnv, verb, w.mounts[slot%len(w.mounts)], w.path, slot, rounds, w.seed))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cmd.Process.Kill() })
	done := make(chan error, 1)
	go func() {
		if err := cmd.Wait(); err != nil {
			done <- fmt.Errorf("process %d: %w\n%s", slot, err, out)
		}
		close(done)
	}()
	return cmd, done
}

// await waits for processes to end well.
func (w *tortured) await(all []<-chan error) {
	w.t.Helper()
	limit := time.After(5 * time.Minute)
	for _, ended := range all {
		select {
		case err := <-ended:
			if err != nil {
				w.t.Error(err)
			}
		case <-limit:
			w.t.Fatal("some wait for ever")
		}
	}
}

// TestLockTorture has processes on two hosts take locks of all kinds at random, turn
// them into others, wait for them, be interrupted, and be killed while they have
// some: there are never two holders, and nobody waits for ever.
func TestLockTorture(t *testing.T) {
	const rounds, kills = 80, 8
	_, a, b := twoMounts(t)
	for _, how := range tortureHow[:3] {
		if err := os.WriteFile(filepath.Join(a, how), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := newTortured(t, a, b)
	var all []<-chan error
	victim := tortureSlots - 1
	for slot := range victim {
		_, ended := w.begin("locks", slot, rounds)
		all = append(all, ended)
	}
	r := rand.New(rand.NewPCG(w.seed, 99))
	for range kills {
		cmd, ended := w.begin("locks", victim, 1<<30)
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Duration(50+r.IntN(500)) * time.Millisecond):
		}
		w.o.doomed[victim].Store(true)
		cmd.Process.Kill()
		<-ended
		for kind, how := range tortureHow { // a name that it had made stays, as on any file system
			if kind > 2 && w.o.holds[kind][0][victim].Load() != 0 {
				os.Remove(filepath.Join(a, how+".lock"))
			}
		}
		w.o.bury(victim)
		w.seed++
	}
	w.await(all)
	for _, how := range tortureHow[:3] { // nothing may be left; the kernel tells of a close(2) some time later
		for _, dir := range []string{a, b} {
			l := startLocker(t, filepath.Join(dir, how))
			l.do("ok", "write %s 0 0", how)
			l.kill()
		}
	}
}
