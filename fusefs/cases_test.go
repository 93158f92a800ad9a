package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func lockThread() { runtime.LockOSThread() }

func setGroups(g []uint32) error {
	var p unsafe.Pointer
	if len(g) > 0 {
		p = unsafe.Pointer(&g[0])
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(g)), uintptr(p), 0); e != 0 {
		return e
	}
	return nil
}

func TestPermissions(t *testing.T) {
	m := mount(t)
	m.must(os.Mkdir(m.path("d"), 0o750))
	m.must(os.Chown(m.path("d"), 1000, 2000))
	m.put("d/f", "secret")
	m.must(os.Chown(m.path("d/f"), 1000, 2000))
	m.must(os.Chmod(m.path("d/f"), 0o640))
	read := func() error { _, err := os.ReadFile(m.path("d/f")); return err }
	write := func() error { return appendTo(m.path("d/f"), "!") }
	m.must(as(1000, nil, read))
	m.must(as(1000, nil, write))
	if err := as(1001, nil, read); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a stranger reads: %v", err)
	}
	m.must(as(1001, []int{7, 2000}, read))
	if err := as(1001, []int{7, 2000}, write); !errors.Is(err, os.ErrPermission) {
		t.Errorf("the group writes: %v", err)
	}
	m.must(os.Chmod(m.path("d"), 0o770|os.ModeSetgid))
	m.must(as(1001, []int{2000}, func() error { return os.WriteFile(m.path("d/new"), nil, 0o600) }))
	if st := m.stat("d/new"); st.Uid != 1001 || st.Gid != 2000 {
		t.Errorf("owner %d:%d of a file in a set-group-ID directory", st.Uid, st.Gid)
	}
}

// TestListingDuringRenames has every message seen once while flags change.
func TestListingDuringRenames(t *testing.T) {
	m := mount(t)
	m.must(os.Mkdir(m.path("cur"), 0o755))
	const n = 1500
	name := func(i int, flags string) string { return m.path(fmt.Sprintf("cur/%010d.M%dP1.host:2,%s", i, i, flags)) }
	for i := range n {
		m.must(os.WriteFile(name(i, ""), nil, 0o600))
	}
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		flags := []string{"", "S", "RS"}
		for k := 0; ; k++ {
			for i := 0; i < n; i += 3 {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				if err := os.Rename(name(i, flags[k%3]), name(i, flags[(k+1)%3])); err != nil {
					done <- err
					return
				}
			}
		}
	}()
	for range 20 {
		seen := map[string]int{}
		d, err := os.Open(m.path("cur"))
		m.must(err)
		names, err := d.Readdirnames(-1)
		m.must(err)
		d.Close()
		for _, s := range names {
			seen[s[:10]]++
		}
		for s, k := range seen {
			if k != 1 {
				t.Errorf("message %s was seen %d times", s, k)
			}
		}
		if len(seen) != n {
			t.Errorf("%d messages were seen, want %d", len(seen), n)
		}
	}
	close(stop)
	m.must(<-done)
}

func TestManyNames(t *testing.T) {
	m := mount(t)
	m.must(os.Mkdir(m.path("d"), 0o755))
	const n = 100_000
	for i := range n {
		m.must(unix.Mknod(m.path(fmt.Sprintf("d/%d", i)), unix.S_IFREG|0o600, 0))
	}
	start := time.Now()
	lookups := m.ask("count Lookup")
	list, err := os.ReadDir(m.path("d"))
	m.must(err)
	if len(list) != n {
		t.Fatalf("%d names, want %d", len(list), n)
	}
	if now := m.ask("count Lookup"); now != lookups {
		t.Errorf("listing looked names up: %s, then %s", lookups, now)
	}
	t.Logf("listed in %v", time.Since(start))
	// Removing what getdents returned, batch by batch, must leave nothing.
	m.must(os.RemoveAll(m.path("d")))
}

// TestSeekDir goes back to every offset of a listing, changes in between.
func TestSeekDir(t *testing.T) {
	m := mount(t)
	for i := range 300 {
		m.put(fmt.Sprintf("f%03d", i), "")
	}
	fd, err := unix.Open(m.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	m.must(err)
	defer unix.Close(fd)
	type entry struct {
		name string
		off  int64
	}
	read := func() (list []entry) {
		buf := make([]byte, 2048)
		n, err := unix.Getdents(fd, buf)
		m.must(err)
		for b := buf[:n]; len(b) > 0; {
			d := (*unix.Dirent)(unsafe.Pointer(&b[0]))
			s, _, _ := strings.Cut(string(b[unsafe.Offsetof(d.Name):d.Reclen]), "\x00")
			list = append(list, entry{s, d.Off})
			b = b[d.Reclen:]
		}
		return list
	}
	var all []entry
	for batch := read(); len(batch) > 0; batch = read() {
		all = append(all, batch...)
	}
	if len(all) != 302 {
		t.Fatalf("%d entries, want 302", len(all))
	}
	m.must(os.Remove(m.path(all[100].name)))
	m.must(os.Rename(m.path(all[101].name), m.path("renamed")))
	// Whether a listing under way shows the changes is open; the offsets of
	// removed and renamed entries must work all the same.
	for _, i := range []int{0, 1, 50, 97, 100, 101, 200, 300} {
		_, err := unix.Seek(fd, all[i].off, io.SeekStart)
		m.must(err)
		next := i + 1
		got := read()
		if len(got) == 0 || got[0].off != all[next].off {
			t.Errorf("behind entry %d (%s) comes %v, want %v", i, all[i].name, got[:min(1, len(got))], all[next])
		}
	}
	_, err = unix.Seek(fd, 0, io.SeekStart)
	m.must(err)
	left := 0
	for batch := read(); len(batch) > 0; batch = read() {
		left += len(batch)
	}
	if left != 301 {
		t.Errorf("%d entries after a removal, want 301", left)
	}
}

func TestMmap(t *testing.T) {
	m := mount(t)
	f, err := os.Create(m.path("f"))
	m.must(err)
	m.must(f.Truncate(20000))
	p, err := unix.Mmap(int(f.Fd()), 0, 20000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	m.must(err)
	copy(p[9000:], "through the map")
	m.must(unix.Msync(p, unix.MS_SYNC))
	got := make([]byte, 15)
	_, err = f.ReadAt(got, 9000)
	m.must(err)
	if string(got) != "through the map" {
		t.Errorf("read %q", got)
	}
	// Appended bytes must show in a map at once, as index logs are read.
	_, err = f.WriteAt([]byte("by write"), 100)
	m.must(err)
	if string(p[100:108]) != "by write" {
		t.Errorf("map shows %q", p[100:108])
	}
	copy(p[15000:], "last")
	m.must(f.Close())
	m.must(unix.Munmap(p))
	b, err := os.ReadFile(m.path("f"))
	m.must(err)
	if len(b) != 20000 || string(b[15000:15004]) != "last" {
		t.Error("what the map wrote after close is missing")
	}
}

func TestAppend(t *testing.T) {
	m := mount(t)
	m.put("log", "")
	const writers, lines = 4, 200
	done := make(chan error)
	for w := range writers {
		go func() {
			f, err := os.OpenFile(m.path("log"), os.O_WRONLY|os.O_APPEND, 0)
			for i := 0; i < lines && err == nil; i++ {
				if _, err = fmt.Fprintf(f, "%d %050d\n", w, i); err == nil && i%20 == 0 {
					err = f.Sync()
				}
			}
			done <- errors.Join(err, f.Close())
		}()
	}
	for range writers {
		m.must(<-done)
	}
	b, err := os.ReadFile(m.path("log"))
	m.must(err)
	next := [writers]int{}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		var w, i int
		if _, err := fmt.Sscanf(line, "%d %d", &w, &i); err != nil || next[w] != i {
			t.Fatalf("line %q, want number %d", line, next[w])
		}
		next[w]++
	}
	if next != [writers]int{lines, lines, lines, lines} {
		t.Errorf("lines: %v", next)
	}
}

func TestSparse(t *testing.T) {
	m := mount(t)
	f, err := os.Create(m.path("f"))
	m.must(err)
	defer f.Close()
	const tib = 1 << 40
	_, err = f.WriteAt([]byte("end"), tib-3)
	m.must(err)
	_, err = f.WriteAt(bytes.Repeat([]byte("x"), 10000), 1<<30)
	m.must(err)
	m.must(f.Sync())
	if st := m.stat("f"); st.Size != tib || st.Blocks > 100 {
		t.Errorf("size %d, %d blocks", st.Size, st.Blocks)
	}
	for _, c := range []struct{ from, data, hole int64 }{{0, 1 << 30, 0}, {1<<30 + 5, 1<<30 + 5, 1<<30 + 10000}, {1<<30 + 10000, tib - 3, 1<<30 + 10000}, {tib - 1, tib - 1, tib}} {
		if off, err := unix.Seek(int(f.Fd()), c.from, unix.SEEK_DATA); err != nil || off != c.data {
			t.Errorf("SEEK_DATA from %d: %d, %v, want %d", c.from, off, err, c.data)
		}
		if off, err := unix.Seek(int(f.Fd()), c.from, unix.SEEK_HOLE); err != nil || off != c.hole {
			t.Errorf("SEEK_HOLE from %d: %d, %v, want %d", c.from, off, err, c.hole)
		}
	}
	m.must(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, tib-4))
	p := make([]byte, 4)
	_, err = f.ReadAt(p, 1<<30)
	m.must(err)
	if !bytes.Equal(p, make([]byte, 4)) {
		t.Errorf("punched hole reads %q", p)
	}
}

func TestUnlinkedOpen(t *testing.T) {
	m := mount(t)
	f, err := os.Create(m.path("f"))
	m.must(err)
	_, err = f.WriteString("still here")
	m.must(err)
	m.must(os.Remove(m.path("f")))
	_, err = f.WriteString(", and growing")
	m.must(err)
	g, err := os.Create(m.path("g"))
	m.must(err)
	_, err = g.WriteString("replaced")
	m.must(err)
	m.put("h", "new")
	m.must(os.Rename(m.path("h"), m.path("g")))
	for f, want := range map[*os.File]string{f: "still here, and growing", g: "replaced"} {
		p := make([]byte, 100)
		if n, _ := f.ReadAt(p, 0); string(p[:n]) != want {
			t.Errorf("unlinked file reads %q", p[:n])
		}
		var st unix.Stat_t
		m.must(unix.Fstat(int(f.Fd()), &st))
		if st.Nlink != 0 || st.Size != int64(len(want)) {
			t.Errorf("nlink %d size %d", st.Nlink, st.Size)
		}
	}
	m.contents("g", "new")
	if got := m.ask("orphans"); got != "2 <nil>" {
		t.Errorf("orphans while open: %s", got)
	}
	m.must(f.Close())
	m.must(g.Close())
	for deadline := time.Now().Add(10 * time.Second); m.ask("orphans") != "0 <nil>"; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("orphans are not purged")
		}
	}
}

func TestTmpfileLink(t *testing.T) {
	m := mount(t)
	fd, err := unix.Open(m.dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	m.must(err)
	f := os.NewFile(uintptr(fd), "tmpfile")
	_, err = f.WriteString("gets a name")
	m.must(err)
	m.must(unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, m.path("named"), unix.AT_SYMLINK_FOLLOW))
	_, err = f.WriteString(" and more")
	m.must(err)
	m.must(f.Close())
	m.contents("named", "gets a name and more")
	if st := m.stat("named"); st.Nlink != 1 {
		t.Errorf("nlink %d", st.Nlink)
	}
}

func TestXattrNames(t *testing.T) {
	m := mount(t)
	m.put("f", "x")
	for name, want := range map[string]error{
		"user.a": nil, "trusted.a": nil, "security.a": nil,
		"system.posix_acl_access": unix.EOPNOTSUPP, "system.other": unix.EOPNOTSUPP,
	} {
		if err := unix.Setxattr(m.path("f"), name, []byte("\x02\x00\x00\x00"), 0); !errors.Is(err, want) {
			t.Errorf("set %s: %v, want %v", name, err, want)
		}
	}
	if err := unix.Setxattr(m.path("f"), "user.a", nil, unix.XATTR_CREATE); err != unix.EEXIST {
		t.Errorf("create again: %v", err)
	}
}

// TestLargeFile copies 40 MB through the mount, with copy_file_range too.
func TestLargeFile(t *testing.T) {
	m := mount(t)
	want := bytes.Repeat([]byte("0123456789abcdef-"), 40<<20/17)
	m.must(os.WriteFile(m.path("a"), want, 0o600))
	src, err := os.Open(m.path("a"))
	m.must(err)
	defer src.Close()
	dst, err := os.Create(m.path("b"))
	m.must(err)
	for {
		n, err := unix.CopyFileRange(int(src.Fd()), nil, int(dst.Fd()), nil, 1<<30, 0)
		m.must(err)
		if n == 0 {
			break
		}
	}
	m.must(dst.Close())
	got, err := os.ReadFile(m.path("b"))
	m.must(err)
	if !bytes.Equal(got, want) {
		t.Error("the copy differs")
	}
}

// TestMountTable checks what admins see.
func TestMountTable(t *testing.T) {
	m := mount(t)
	b, err := os.ReadFile("/proc/self/mountinfo")
	m.must(err)
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, " "+m.dir+" ") {
			continue
		}
		for _, want := range []string{"fuse.pillarbox test-store", "nosuid", "nodev", "allow_other", "default_permissions"} {
			if !strings.Contains(line, want) {
				t.Errorf("no %q in %q", want, line)
			}
		}
		return
	}
	t.Error("not in mountinfo")
}
