package mon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"pillarbox/objstore"
)

const childEnv = "PILLARBOX_MON_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

// child hands out session ids until it is killed.
func child(dir string) int {
	ctx := context.Background()
	m, err := Open(ctx, Options{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		id, err := m.NewSession(ctx)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println(id)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func open(t *testing.T, dir string) *Monitor {
	t.Helper()
	m, err := Open(t.Context(), Options{Dir: dir, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestBootstrapAndReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mon")
	m, err := Open(t.Context(), Options{Dir: dir, VolumeDepth: 3, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	a, err := m.Map(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a.VolumeDepth != 3 || a.Epoch != 1 || len(a.FSID) != 36 || len(a.OSDs) != 1 || a.Meta().PGs != 64 {
		t.Errorf("new map: %+v", a)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := m.NewSession(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("NewSession after Close: %v", err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", st.Mode(), err)
	}
	b, err := open(t, dir).Map(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b.FSID != a.FSID || b.VolumeDepth != 3 {
		t.Errorf("reopened map %+v, was %+v", b, a)
	}
}

func TestSessionsNeverRepeatAfterKill(t *testing.T) {
	dir, last := t.TempDir(), uint64(0)
	for range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			id, err := strconv.ParseUint(lines.Text(), 10, 64)
			if err != nil || id <= last {
				t.Errorf("session %q after %d: %v", lines.Text(), last, err)
			}
			last = id
			if n == 20 {
				if err := cmd.Process.Kill(); err != nil {
					t.Error(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("child ended: %v", err)
		}
	}
	if id, err := open(t, dir).NewSession(t.Context()); err != nil || id <= last {
		t.Errorf("session %d after %d: %v", id, last, err)
	}
}

func TestSessionsOfManyCallers(t *testing.T) {
	m, ids := open(t, t.TempDir()), make(chan uint64, 80)
	for range 8 {
		go func() {
			for range 10 {
				id, err := m.NewSession(t.Context())
				if err != nil {
					t.Error(err)
				}
				ids <- id
			}
		}()
	}
	seen := map[uint64]bool{}
	for range 80 {
		id := <-ids
		if id == 0 || seen[id] {
			t.Errorf("session %d given out twice", id)
		}
		seen[id] = true
	}
}

func next(t *testing.T, c <-chan *objstore.Map) *objstore.Map {
	t.Helper()
	select {
	case m, ok := <-c:
		if !ok {
			t.Fatal("the watch ended")
		}
		return m
	case <-time.After(10 * time.Second):
		t.Fatal("no map within 10 s")
		return nil
	}
}

func TestWatch(t *testing.T) {
	m := open(t, t.TempDir())
	c, err := m.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e := next(t, c).Epoch; e != 1 {
		t.Errorf("first epoch %d", e)
	}
	for range 300 { // more than the history etcd keeps, unread
		if _, err := m.Update(t.Context(), func(cm *objstore.Map) error {
			cm.OSDs[0].Up = !cm.OSDs[0].Up
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for e := uint64(1); e < 301; {
		cm := next(t, c)
		if cm.Epoch <= e {
			t.Fatalf("epoch %d after %d", cm.Epoch, e)
		}
		e = cm.Epoch
	}
	broken := errors.New("no")
	if _, err := m.Update(t.Context(), func(*objstore.Map) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("Update: %v", err)
	}
	if _, err := m.Update(t.Context(), func(cm *objstore.Map) error { cm.Pools = nil; return nil }); !errors.Is(err, objstore.Invalid) {
		t.Errorf("Update to an invalid map: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := <-c; ok {
		t.Error("the watch outlives the monitor")
	}
	if _, err := m.Watch(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Watch after Close: %v", err)
	}
}

func TestCloseLeavesNoGoroutineAndNoPort(t *testing.T) {
	before := runtime.NumGoroutine()
	dir := t.TempDir()
	m, err := Open(t.Context(), Options{Dir: dir, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if n := sockets(t); n != 0 {
		t.Errorf("%d sockets are open", n)
	}
	if _, err := m.Watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, were %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// sockets counts the sockets this process has open.
func sockets(t *testing.T) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

func TestDamageIsAnError(t *testing.T) {
	for _, c := range []struct {
		file   string
		at, to int
	}{
		{"member/wal/*.wal", 0, 32 << 10},
		{"member/wal/*.wal", 300, 304},
		{"member/snap/db", 0, 32 << 10},
	} {
		dir := t.TempDir()
		m, err := Open(t.Context(), Options{Dir: dir, Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		names, err := filepath.Glob(filepath.Join(dir, c.file))
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %v, %v", c.file, names, err)
		}
		b, err := os.ReadFile(names[0])
		if err != nil {
			t.Fatal(err)
		}
		for i := c.at; i < c.to; i++ {
			b[i] ^= 0x5a
		}
		if err := os.WriteFile(names[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err = Open(t.Context(), Options{Dir: dir, Log: quiet()})
		if err == nil {
			m.Close()
			t.Errorf("%s is damaged and opens", c.file)
			continue
		}
		t.Log(err)
		if !errors.Is(err, objstore.Corrupt) {
			t.Errorf("%s damaged: %v", c.file, err)
		}
	}
}
