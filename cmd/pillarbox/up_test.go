package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func notMounted(t *testing.T, point string) {
	t.Helper()
	if mnt, err := mountAt(point); err != nil || mnt != nil {
		t.Errorf("still mounted: %+v, %v", mnt, err)
	}
}

func TestUpServesUntilSignal(t *testing.T) {
	data, point := place(t)
	mail := filepath.Join(point, "example.org/alice/mail")
	for i, sig := range []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
		d := startUp(t, data, point)
		if i == 0 {
			write(t, mail, "hello")
		}
		if got := read(t, mail); got != "hello" {
			t.Errorf("read %q", got)
		}
		if code := d.stop(t, sig); code != exitOK {
			t.Errorf("%v: exit code %d\n%s", sig, code, d.stderr.String())
		}
		notMounted(t, point)
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, storeFile: 0o600, lockFile: 0o600} {
		if st, err := os.Stat(filepath.Join(data, name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	if _, err := os.Lstat(filepath.Join(data, sockFile)); err == nil {
		t.Error("the admin socket is left behind")
	}
}

func TestSecondStartIsRefused(t *testing.T) {
	data, point := place(t)
	other := filepath.Join(filepath.Dir(point), "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	d := startUp(t, data, point)
	for _, sub := range []string{"up", "mount"} {
		if _, stderr := expect(t, exitLocked, sub, "--data", data, other); !strings.Contains(stderr, "pid") {
			t.Errorf("%s does not say who: %s", sub, stderr)
		}
		expect(t, exitLocked, sub, "--data", data, point)
		expect(t, exitInUse, sub, "--data", data+"2", point)
	}
	if _, err := os.Stat(data + "2"); err == nil {
		t.Error("a refused start made its data directory")
	}
	write(t, filepath.Join(point, "still"), "here")
	if code := d.stop(t, unix.SIGTERM); code != exitOK {
		t.Errorf("exit code %d\n%s", code, d.stderr.String())
	}
}

func TestBusyMountIsFlushedAndCutOff(t *testing.T) {
	data, point := place(t)
	d := startUp(t, data, point)
	name := filepath.Join(point, "example.org/alice/open")
	write(t, name, "written ")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("while open"); err != nil {
		t.Fatal(err)
	}
	if code := d.stop(t, unix.SIGTERM); code != exitOK {
		t.Errorf("exit code %d\n%s", code, d.stderr.String())
	}
	if !strings.Contains(d.stderr.String(), "busy") {
		t.Errorf("does not say that the mount is busy:\n%s", d.stderr.String())
	}
	notMounted(t, point)
	if _, err := f.WriteString("later"); err == nil {
		t.Error("a write after the end succeeds")
	}
	d = startUp(t, data, point)
	if got := read(t, name); got != "written while open" {
		t.Errorf("after a new start: %q", got)
	}
	d.stop(t, unix.SIGTERM)
}

func TestUnmountFromOutsideEndsUp(t *testing.T) {
	data, point := place(t)
	d := startUp(t, data, point)
	write(t, filepath.Join(point, "a/b/c"), "x")
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	d.ended <- <-d.ended
	if code := d.cmd.ProcessState.ExitCode(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, d.stderr.String())
	}
}

func TestLazyUnmountFromOutside(t *testing.T) {
	data, point := place(t)
	d := startUp(t, data, point)
	name := filepath.Join(point, "a/b/c")
	write(t, name, "x")
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if code := d.stop(t, unix.SIGTERM); code != exitOK {
		t.Errorf("exit code %d\n%s", code, d.stderr.String())
	}
}

func TestKillLeavesADeadMountThatTheNextStartRemoves(t *testing.T) {
	data, point := place(t)
	d := startUp(t, data, point)
	name := filepath.Join(point, "example.org/alice/mail")
	write(t, name, "kept")
	d.kill()
	if mnt, err := mountAt(point); err != nil || mnt == nil || !isDead(point) {
		t.Fatalf("no dead mount: %+v, %v", mnt, err)
	}
	expect(t, exitNotRunning, "status", "--data", data)
	d = startUp(t, data, point)
	if !strings.Contains(d.stderr.String(), "dead mount") {
		t.Errorf("does not say that it removed a dead mount:\n%s", d.stderr.String())
	}
	if got := read(t, name); got != "kept" {
		t.Errorf("after kill -9: %q", got)
	}
	d.kill()
	expect(t, exitOK, "umount", point) // a dead one
	notMounted(t, point)
}

func TestMountAndUmount(t *testing.T) {
	data, point := place(t)
	data = filepath.Join(filepath.Dir(data), `da ta\011`, strings.Repeat("deep/", 30)) // escapes in mountinfo, too long for a socket
	name := filepath.Join(point, "example.org/alice/mail")
	for i := range 2 {
		args := []string{"--data", data, point}
		if i == 1 { // as mount(8) calls it
			args = []string{sourcePrefix + data, point, "-v", "-t", "pillarbox"}
		}
		expect(t, exitOK, append([]string{"mount", "-o", "noatime,_netdev,dirsync"}, args...)...)
		if isDead(point) {
			t.Fatal("mount returned before the mount answers")
		}
		if i == 0 {
			write(t, name, "hello")
		}
		if got := read(t, name); got != "hello" {
			t.Errorf("read %q", got)
		}
		out, _ := expect(t, exitOK, "status", "--data", data, "--format", "json")
		var st statusReport
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			t.Fatal(err)
		}
		if st.Health != "ok" || st.Mountpoint != point || st.Data != filepath.Clean(data) || st.OSDs != (osdCounts{1, 1, 1}) || st.PGs != 64 || st.Bytes.Avail == 0 {
			t.Errorf("status: %s", out)
		}
		if out, _ := expect(t, exitOK, "status", point); !strings.Contains(out, data) {
			t.Errorf("status of the mount point: %s", out)
		}
		if out, _ := expect(t, exitOK, "df", "--data", data); !strings.Contains(out, point) {
			t.Errorf("df: %s", out)
		}
		expect(t, exitOK, "umount", point)
		notMounted(t, point)
		if pid, err := holder(data); pid != 0 || err != nil {
			t.Errorf("process %d lives after umount: %v", pid, err)
		}
	}
	if log := read(t, filepath.Join(data, "log/pillarbox.log")); strings.Count(log, "msg=serving") != 2 || strings.Contains(log, "level=ERROR") {
		t.Errorf("log:\n%s", log)
	}
	expect(t, exitInUse, "umount", point)
	expect(t, exitInUse, "status", point)
}

func TestPartsOfTwoStores(t *testing.T) {
	data, point := place(t)
	startUp(t, data, point).stop(t, unix.SIGTERM)
	name := filepath.Join(data, storeFile)
	var info storeInfo
	good := read(t, name)
	if err := json.Unmarshal([]byte(good), &info); err != nil || !info.Complete {
		t.Fatalf("%s: %v", good, err)
	}
	write(t, name, strings.Replace(good, info.FSID, "11111111-2222-4333-8444-555555555555", 1))
	expect(t, exitForeign, "mount", "--data", data, point)
	write(t, name, good)
	if err := os.Rename(filepath.Join(data, osdDir), filepath.Join(data, "lost")); err != nil {
		t.Fatal(err)
	}
	expect(t, exitDamaged, "mount", "--data", data, point)
	if err := os.Rename(filepath.Join(data, "lost"), filepath.Join(data, osdDir)); err != nil {
		t.Fatal(err)
	}
	wals, err := filepath.Glob(filepath.Join(data, "mon/member/wal/*.wal"))
	if err != nil || len(wals) == 0 {
		t.Fatal(wals, err)
	}
	body := []byte(read(t, wals[0]))
	body[300] ^= 1
	write(t, wals[0], string(body))
	_, stderr := expect(t, exitDamaged, "mount", "--data", data, point)
	t.Log(stderr)
	notMounted(t, point)
}
