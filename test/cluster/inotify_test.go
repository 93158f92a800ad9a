package cluster

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watch tells of inotify's events on a directory, as "MASK name".
func watch(t *testing.T, dir string) <-chan string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	const mask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MODIFY | unix.IN_ATTRIB
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	t.Cleanup(func() { f.Close() })
	events := make(chan string, 1000)
	go func() {
		defer close(events)
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buf)
			if err != nil || n <= 0 {
				return
			}
			for at := 0; at < n; {
				m := binary.NativeEndian.Uint32(buf[at+4:])
				size := int(binary.NativeEndian.Uint32(buf[at+12:]))
				name := strings.TrimRight(string(buf[at+16:at+16+size]), "\x00")
				for bit, what := range map[uint32]string{unix.IN_CREATE: "CREATE", unix.IN_DELETE: "DELETE", unix.IN_MOVED_FROM: "MOVED_FROM",
					unix.IN_MOVED_TO: "MOVED_TO", unix.IN_MODIFY: "MODIFY", unix.IN_ATTRIB: "ATTRIB"} {
					if m&bit != 0 {
						events <- what + " " + name
					}
				}
				at += 16 + size
			}
		}
	}()
	return events
}

// TestInotify: a watch on one host fires for what another did.
func TestInotify(t *testing.T) {
	_, a, b := twoMounts(t)
	inNew, inCur := watch(t, filepath.Join(b, "new")), watch(t, filepath.Join(b, "cur"))
	delays := map[string][]time.Duration{} // by what was done
	expect := func(done string, from <-chan string, want ...string) {
		t.Helper()
		start := time.Now()
		for {
			select {
			case got := <-from:
				if slices.Contains(want, got) {
					delays[done] = append(delays[done], time.Since(start))
					return
				}
				if !strings.HasPrefix(got, "ATTRIB") && !strings.HasPrefix(got, "MODIFY") {
					t.Errorf("unexpected %s, waiting for %v", got, want)
				}
			case <-time.After(time.Minute):
				t.Fatalf("no event %v", want)
			}
		}
	}
	for i := range 60 {
		if i == 10 { // the kernel may drop the path of a directory that is watched
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
				t.Fatal(err)
			}
		}
		name := fmt.Sprint("m", i)
		if err := os.WriteFile(filepath.Join(a, "new", "created."+name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		expect("create", inNew, "CREATE created."+name)
		if err := os.Remove(filepath.Join(a, "new", "created."+name)); err != nil {
			t.Fatal(err)
		}
		expect("unlink", inNew, "DELETE created."+name)
		path := func(dir string) string { return filepath.Join(a, dir, name) }
		if err := os.WriteFile(path("tmp"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		mtime := func() time.Time {
			st, err := os.Stat(filepath.Join(b, "new"))
			if err != nil {
				t.Fatal(err)
			}
			return st.ModTime()
		}
		if i%2 == 0 {
			if err := os.Link(path("tmp"), path("new")); err != nil {
				t.Fatal(err)
			}
			expect("link", inNew, "CREATE "+name)
			if err := os.Remove(path("tmp")); err != nil {
				t.Fatal(err)
			}
		} else {
			if err := os.Rename(path("tmp"), path("new")); err != nil {
				t.Fatal(err)
			}
			expect("rename from a directory that nobody watches", inNew, "CREATE "+name, "MOVED_TO "+name)
		}
		before := mtime()
		list, err := os.ReadDir(filepath.Join(b, "new"))
		if err != nil || len(list) != 1 || list[0].Name() != name {
			t.Fatalf("in new: %v, %v", list, err)
		}
		if got, err := os.ReadFile(filepath.Join(b, "new", name)); err != nil || string(got) != "x" {
			t.Fatalf("%q, %v", got, err)
		}
		if !mtime().Equal(before) {
			t.Error("telling of a change changes the directory")
		}
		if err := os.Rename(path("new"), path("cur")); err != nil {
			t.Fatal(err)
		}
		expect("rename", inNew, "MOVED_FROM "+name)
		expect("rename", inCur, "MOVED_TO "+name)
		if err := os.WriteFile(path("cur"), []byte("longer"), 0o600); err != nil {
			t.Fatal(err)
		}
		expect("write and close", inCur, "MODIFY "+name)
		if err := os.Remove(path("cur")); err != nil {
			t.Fatal(err)
		}
		expect("unlink", inCur, "DELETE "+name)
	}
	if err := os.Mkdir(filepath.Join(a, "cur/dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	expect("mkdir", inCur, "CREATE dir")
	if err := os.Remove(filepath.Join(a, "cur/dir")); err != nil {
		t.Fatal(err)
	}
	expect("rmdir", inCur, "DELETE dir")
	for done, d := range delays {
		slices.Sort(d)
		t.Logf("%s: an event came after %v at the median, %v at the 99th percentile of %d", done, d[len(d)/2], d[len(d)*99/100], len(d))
	}
	for _, m := range []string{a, b} {
		for _, dir := range []string{"tmp", "new", "cur"} {
			if list, err := os.ReadDir(filepath.Join(m, dir)); err != nil || len(list) > 0 {
				t.Errorf("left in %s: %v, %v", dir, list, err)
			}
		}
	}
}
