package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// count adds to numbers in files under locks until it is over, or the mount is gone.
func (w *torturer) count() error {
	for !w.o.over.Load() {
		kind := w.r.IntN(3)
		err := w.add(kind)
		switch {
		case errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED):
			return nil
		case err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("%s: %w", tortureHow[kind], err)
		}
	}
	return nil
}

// add adds one to a number and syncs it, under a lock. A number that two have
// synced was lost: they both had the lock, or one did not hear that it was his no more.
func (w *torturer) add(kind int) error {
	f, err := os.OpenFile(filepath.Join(w.dir, tortureHow[kind]), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close() // and with it the lock
	if err := setLock(f, tortureHow[kind], unix.F_WRLCK, 0, 0); err != nil {
		return err
	}
	n, err := readNumber(f)
	if err != nil {
		return err
	}
	w.o.tried[kind][w.slot].Add(1)
	if _, err := f.WriteAt(fmt.Appendf(nil, "%10d", n+1), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if w.o.counted[kind][n+1].Swap(true) {
		return fmt.Errorf("two have synced the number %d", n+1)
	}
	w.o.done[kind][w.slot].Add(1)
	return nil
}

func readNumber(f *os.File) (int, error) {
	buf := make([]byte, 10)
	if _, err := f.ReadAt(buf, 0); err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(buf)))
}

// TestFenced has processes on three hosts count under locks while hosts are frozen
// and cut off for longer than a lease, and killed: the others go on, no number that
// was synced is lost, and what a host had written when it lost its lease never comes.
func TestFenced(t *testing.T) {
	c := bareCluster(t)
	c.net = newNetwork(t)
	c.found(3)
	c.healthy(3)
	var mounts []*daemon
	var dirs []string
	for _, name := range []string{"mx1", "mx2", "mx3"} {
		point, d := c.mount(name)
		mounts, dirs = append(mounts, d), append(dirs, filepath.Join(point, "example.org/user"))
	}
	if err := os.MkdirAll(dirs[0], 0o755); err != nil {
		t.Fatal(err)
	}
	for _, how := range tortureHow[:3] {
		if err := os.WriteFile(filepath.Join(dirs[0], how), fmt.Appendf(nil, "%10d", 0), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := newTortured(t, dirs...)
	all := make([]<-chan error, tortureSlots)
	for slot := range all {
		_, all[slot] = w.begin("count", slot, 0)
	}
	goOn := func(what string, hosts ...int) {
		t.Helper()
		for slot := range all {
			for _, h := range hosts {
				if from := w.o.progress(slot); slot%len(dirs) == h {
					c.eventually(fmt.Sprint("process ", slot, " goes on ", what), func() bool { return w.o.progress(slot) > from+3 })
				}
			}
		}
	}
	goOn("at first", 0, 1, 2)
	mounts[0].cmd.Process.Signal(unix.SIGSTOP)
	c.net.part(mounts[1].name)
	goOn("while a host is frozen and one cut off", 2)
	mounts[0].cmd.Process.Signal(unix.SIGCONT)
	c.net.heal()
	goOn("again", 0, 1, 2)

	c.kill(mounts[0])
	c.kill(c.all[2])
	goOn("while a host is dead and an OSD", 1, 2)
	w.await([]<-chan error{all[0], all[3]})
	unix.Unmount(c.path("mnt.mx1"), unix.MNT_DETACH)
	c.restart(c.all[2])
	c.mount("mx1")
	for _, slot := range []int{0, 3} {
		_, all[slot] = w.begin("count", slot, 0)
	}
	goOn("in the end", 0, 1, 2)
	w.o.over.Store(true)
	w.await(all)
	for kind, how := range tortureHow[:3] {
		for _, dir := range dirs {
			w.o.verify(t, kind, filepath.Join(dir, how))
		}
	}
}

// verify compares a number with what was counted.
func (o *oracle) verify(t *testing.T, kind int, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := readNumber(f)
	if err != nil {
		t.Fatal(err)
	}
	var done, tried int64
	for slot := range tortureSlots {
		done, tried = done+o.done[kind][slot].Load(), tried+o.tried[kind][slot].Load()
	}
	if int64(n) < done || int64(n) > tried {
		t.Errorf("%s: counted to %d, %d were synced and %d written", path, n, done, tried)
	}
	for v := range o.counted[kind] {
		if v > n && o.counted[kind][v].Load() {
			t.Errorf("%s: %d was synced, and it is %d", path, v, n)
		}
	}
	t.Logf("%s: %d, of %d written", path, n, tried)
}
