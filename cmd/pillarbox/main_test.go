package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests run the program as a process: this test binary, told by the
// environment to be pillarbox.
const mainEnv = "PILLARBOX_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		main()
	}
	os.Exit(m.Run())
}

func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), mainEnv+"=1")
	cmd.Args[0] = "pillarbox"
	return cmd
}

// finish runs a command to its end.
func finish(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), o.String(), e.String()
}

// expect runs pillarbox and checks its exit code; a failure must be one line.
func expect(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	got, stdout, stderr := finish(t, command(t, args...))
	if got != code {
		t.Fatalf("pillarbox %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, stdout, stderr)
	}
	if code != exitOK && (strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "pillarbox: ") || len(stderr) < 20) {
		t.Errorf("pillarbox %s: not one clear line: %q", strings.Join(args, " "), stderr)
	}
	return stdout, stderr
}

// place makes a data directory's path and a mount point. At the end whoever
// holds the one is killed and whatever is mounted on the other is unmounted.
func place(t *testing.T) (data, point string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	data, point = filepath.Join(dir, "data"), filepath.Join(dir, "mail box")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cleanUp(t, data, point) })
	return data, point
}

func cleanUp(t *testing.T, data, point string) {
	if pid, err := holder(data); err == nil && pid != 0 && pid != os.Getpid() {
		t.Errorf("process %d was left behind", pid)
		_ = unix.Kill(pid, unix.SIGKILL)
		eventually(t, "the lock is free", func() bool { pid, _ := holder(data); return pid == 0 })
	}
	for mnt, err := mountAt(point); mnt != nil && err == nil; mnt, err = mountAt(point) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			t.Error(err)
			return
		}
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// daemon is a running "pillarbox up".
type daemon struct {
	cmd    *exec.Cmd
	stderr stderrFile
	ended  chan error
}

// stderrFile takes a process's stderr, to be read while it runs.
type stderrFile string

func (f stderrFile) String() string {
	b, err := os.ReadFile(string(f))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func startUp(t *testing.T, data, point string, more ...string) *daemon {
	t.Helper()
	d := &daemon{cmd: command(t, append([]string{"up", "--data", data, point}, more...)...), ended: make(chan error, 1)}
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d.cmd.Stderr, d.stderr = f, stderrFile(f.Name())
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up := make(chan struct{})
	go func() {
		lines, told := bufio.NewScanner(out), false
		for lines.Scan() {
			if !told && strings.Contains(lines.Text(), "Pillarbox is up") {
				close(up)
				told = true
			}
		}
		_, _ = io.Copy(io.Discard, out)
		d.ended <- d.cmd.Wait()
	}()
	t.Cleanup(func() { d.kill() })
	select {
	case <-up:
	case err := <-d.ended:
		d.ended <- err
		t.Fatalf("up ended: %v\n%s", err, d.stderr.String())
	}
	return d
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	d.ended <- <-d.ended
}

// stop sends a signal and returns the exit code.
func (d *daemon) stop(t *testing.T, sig os.Signal) int {
	t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	d.ended <- <-d.ended
	return d.cmd.ProcessState.ExitCode()
}

// snapshot describes everything below dir, to see that nothing changed.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, path, st.Mode(), st.Size(), st.ModTime())
		if st.Mode().IsRegular() {
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%x\n", sha256.Sum256(body))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func write(t *testing.T, name, body string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const goodStore = `{"format":1,"fsid":"f","created":"2026-01-01T00:00:00Z","volume_depth":2,"complete":false}`

func TestBadInputChangesNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		code int
		make func(t *testing.T, data, point string)
		args func(data, point string) []string
	}{
		{"no data", exitUsage, nil, func(_, p string) []string { return []string{p} }},
		{"empty data", exitUsage, nil, func(_, p string) []string { return []string{"--data", "", p} }},
		{"no mount point", exitUsage, nil, func(d, _ string) []string { return []string{"--data", d} }},
		{"empty mount point", exitUsage, nil, func(d, _ string) []string { return []string{"--data", d, ""} }},
		{"two mount points", exitUsage, nil, func(d, p string) []string { return []string{"--data", d, p, p} }},
		{"unknown flag", exitUsage, nil, func(d, p string) []string { return []string{"--data", d, "--nope", p} }},
		{"flag without value", exitUsage, nil, func(d, p string) []string { return []string{p, "--data"} }},
		{"volume depth no number", exitUsage, nil, func(d, p string) []string { return []string{"--data", d, "--volume-depth", "x", p} }},
		{"volume depth 0", exitUsage, nil, func(d, p string) []string { return []string{"--data", d, "--volume-depth", "0", p} }},
		{"volume depth 99", exitUsage, nil, func(d, p string) []string { return []string{"--data", d, "--volume-depth", "99", p} }},
		{"log format", exitUsage, nil, func(d, p string) []string { return []string{"--data", d, "--log-format", "xml", p} }},
		{"mount option", exitUsage, nil, func(d, p string) []string { return []string{"--data", d, "-o", "ro", p} }},
		{"log in the mount", exitUsage, nil, func(d, p string) []string { return []string{"--data", d, "-o", "log-file=" + p + "/log", p} }},
		{"another volume depth", exitUsage, func(t *testing.T, d, _ string) {
			write(t, d+"/store.json", goodStore)
			write(t, d+"/lock", "")
		}, func(d, p string) []string { return []string{"--data", d, "--volume-depth", "3", p} }},
		{"mount point missing", exitMountpoint, nil, func(d, p string) []string { return []string{"--data", d, p + "/no/such"} }},
		{"mount point a file", exitMountpoint, func(t *testing.T, _, p string) { write(t, p+"/f", "") },
			func(d, p string) []string { return []string{"--data", d, p + "/f"} }},
		{"mount point below a file", exitMountpoint, func(t *testing.T, _, p string) { write(t, p+"/f", "") },
			func(d, p string) []string { return []string{"--data", d, p + "/f/g"} }},
		{"mount point not empty", exitMountpoint, func(t *testing.T, _, p string) { write(t, p+"/f", "") }, nil},
		{"data in mount point", exitMountpoint, nil, func(_, p string) []string { return []string{"--data", p + "/data", p} }},
		{"mount point in data", exitMountpoint, nil, func(_, p string) []string { return []string{"--data", filepath.Dir(p), p} }},
		{"mount point is data", exitMountpoint, nil, func(_, p string) []string { return []string{"--data", p, p} }},
		{"overlap through a link", exitMountpoint, func(t *testing.T, d, p string) {
			if err := os.Symlink(p, d+".link"); err != nil {
				t.Fatal(err)
			}
		}, func(d, p string) []string { return []string{"--data", d + ".link/data", p} }},
		{"mount point in use", exitInUse, func(t *testing.T, _, p string) {
			if err := unix.Mount("none", p, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"locked", exitLocked, func(t *testing.T, d, _ string) {
			write(t, d+"/store.json", goodStore)
			own := &dataDir{path: d}
			if err := errors.Join(own.takeLock(), own.writePid()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { own.release() })
		}, nil},
		{"newer", exitNewer, func(t *testing.T, d, _ string) {
			write(t, d+"/store.json", `{"format":3,"something":"else"}`)
		}, nil},
		{"something else", exitForeign, func(t *testing.T, d, _ string) { write(t, d+"/notes.txt", "") }, nil},
		{"data a file", exitForeign, func(t *testing.T, d, _ string) { write(t, d, "") }, nil},
		{"store.json garbage", exitDamaged, func(t *testing.T, d, _ string) { write(t, d+"/store.json", "{{{") }, nil},
		{"store.json empty", exitDamaged, func(t *testing.T, d, _ string) { write(t, d+"/store.json", "") }, nil},
		{"store.json without fsid", exitDamaged, func(t *testing.T, d, _ string) { write(t, d+"/store.json", `{"format":1}`) }, nil},
		{"monitor missing", exitDamaged, func(t *testing.T, d, _ string) {
			write(t, d+"/store.json", strings.Replace(goodStore, "false", "true", 1))
			write(t, d+"/osd.0/x", "")
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			data, point := place(t)
			if c.make != nil {
				c.make(t, data, point)
			}
			args := []string{"--data", data, point}
			if c.args != nil {
				args = c.args(data, point)
			}
			before := snapshot(t, filepath.Dir(data))
			for _, sub := range []string{"up", "mount"} {
				if c.name == "log in the mount" && sub == "up" {
					continue // up logs to stderr
				}
				_, stderr := expect(t, c.code, append([]string{sub}, args...)...)
				t.Logf("%s: %s", sub, strings.TrimSpace(stderr))
				if after := snapshot(t, filepath.Dir(data)); after != before {
					t.Errorf("%s changed something:\n%swas:\n%s", sub, after, before)
				}
			}
		})
	}
}

func TestNoFuseAndNoRoot(t *testing.T) {
	data, point := place(t)
	before := snapshot(t, filepath.Dir(data))
	noFuse := command(t)
	noFuse.Path = "/usr/bin/unshare"
	noFuse.Args = []string{"unshare", "-m", "sh", "-c", `mount -t tmpfs none /dev && exec "$@"`, "sh", os.Args[0], "up", "--data", data, point}
	noRoot := command(t, "up", "--data", data, point)
	noRoot.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	for name, cmd := range map[string]*exec.Cmd{"no /dev/fuse": noFuse, "not root": noRoot} {
		if code, _, stderr := finish(t, cmd); code != exitMount || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d: %s", name, code, stderr)
		}
	}
	if after := snapshot(t, filepath.Dir(data)); after != before {
		t.Errorf("changed:\n%swas:\n%s", after, before)
	}
}

func TestCommands(t *testing.T) {
	expect(t, exitUsage, "nope")
	expect(t, exitUsage, "--nope")
	expect(t, exitUsage, "status", "--nope")
	expect(t, exitForeign, "status", "--conf", t.TempDir())
	expect(t, exitUsage, "status", "--data", "/x", "--format", "xml")
	expect(t, exitUsage, "version", "x")
	expect(t, exitUsage, "verify", "--remove", "--conf", t.TempDir(), "cloud")
	expect(t, exitUsage, "umount")
	expect(t, exitInUse, "umount", t.TempDir())
	expect(t, exitInUse, "umount", "/no/such/place")
	expect(t, exitInUse, "umount", "/proc")
	expect(t, exitNotRunning, "status", "--data", t.TempDir())
	expect(t, exitNotRunning, "df", "--data", t.TempDir()+"/missing")
	if out, _ := expect(t, exitOK, "version"); !strings.HasPrefix(out, "pillarbox ") {
		t.Errorf("version: %q", out)
	}
	out, _ := expect(t, exitOK)
	for code, meaning := range exitMeaning() {
		if meaning == "" || !strings.Contains(out, fmt.Sprintf("%2d  %s", code, meaning)) {
			t.Errorf("help does not explain exit code %d", code)
		}
	}
}
