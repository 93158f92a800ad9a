package crash

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

var trialsFlag = flag.Int("trials", 5, "how often TestDamage damages each kind of file")

const (
	exitForeign = 7
	exitNewer   = 6
	exitDamaged = 9
)

// kinds of files that are damaged, as patterns below the data directory.
var kinds = []string{
	"store.json",
	"osd.0/wal/*.log",
	"osd.0/chunks/*.seg",
	"osd.0/db/*.sst",
	"osd.0/db/*.mem",
	"osd.0/db/*.vlog",
	"osd.0/db/MANIFEST",
	"osd.0/db/KEYREGISTRY",
	"osd.0/db/DISCARD",
	"mon/member/wal/*.wal",
	"mon/member/snap/db",
}

// specimen is a stopped store that the trials copy and damage.
type specimen struct {
	data string
	kept *kept
	tail map[string]bool // delivered last: a damaged end of the log looks like one that a power cut tore
}

// newSpecimen makes a store that was killed, with messages in tables, in
// memtable logs, in segments of both kinds, and in the log alone.
func newSpecimen(t *testing.T, r *rand.Rand) *specimen {
	t.Helper()
	n := harness.Start(t, harness.Options{})
	s := &specimen{data: n.Data, kept: newKept(), tail: map[string]bool{}}
	dirs := makeMaildirs(t, n.Mount)
	deliver := func(stage string, count int) {
		for i := range count {
			mean := 3000.0
			if i%8 == 0 {
				mean = 150000
			}
			name := fmt.Sprint(stage, i)
			if err := s.kept.deliver(n.Mount, dirs[i%len(dirs)], name, randomBody(r, mean)); err != nil {
				t.Fatal(err)
			}
			if stage == "tail" {
				s.tail[filepath.Join(dirs[i%len(dirs)], "new", name)] = true
			}
		}
	}
	deliver("table", 150)
	n.Term()
	n.Restart()
	logs := filepath.Join(s.data, "osd.0/db/*.mem")
	before := diskUsage(t, logs)
	deliver("flushed", 100)
	eventually(t, 20*time.Second, "a flush", func() bool { return diskUsage(t, logs) > before })
	deliver("logged", 50)
	deliver("tail", 6)
	n.Kill9()
	n.Unmount()
	return s
}

func (s *specimen) copyTo(t *testing.T, dir string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", "--sparse=always", "--reflink=auto", s.data, dir).CombinedOutput(); err != nil {
		t.Fatalf("copy the store: %v\n%s", err, out)
	}
}

// spoil damages a file at a random place and says how.
func spoil(t *testing.T, r *rand.Rand, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(data, "\x00"))
	if used == 0 {
		used = len(data)
	}
	at, n := r.IntN(used), 1+r.IntN(16)
	for range 100 { // rather where something is written
		if data[at] != 0 {
			break
		}
		at = r.IntN(used)
	}
	var what string
	switch r.IntN(5) {
	case 0:
		what = fmt.Sprintf("truncate to %d of %d", at, len(data))
		err = os.Truncate(file, int64(at))
	case 1:
		n = 512
		fallthrough
	case 2:
		what = fmt.Sprintf("%d random bytes at %d of %d", n, at, used)
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		err = writeAt(file, b, at)
	case 3:
		what = "remove"
		err = os.Remove(file)
	case 4:
		what = fmt.Sprintf("one bit flipped at %d of %d", at, used)
		err = writeAt(file, []byte{data[at] ^ 1<<r.IntN(8)}, at)
	}
	if err != nil {
		t.Fatal(err)
	}
	return what
}

func writeAt(file string, b []byte, at int) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, int64(at))
	return errors.Join(err, f.Close())
}

// attempt is a start of the program that may well fail.
type attempt struct {
	mount string
	cmd   *exec.Cmd
	ended chan struct{}
	out   bytes.Buffer
}

// tryUp starts the program and returns when it serves or has ended.
func tryUp(t *testing.T, data string) (a *attempt, serves bool) {
	t.Helper()
	a = &attempt{mount: t.TempDir(), ended: make(chan struct{})}
	a.cmd = exec.Command(harness.Binary(t), "up", "--data", data, a.mount)
	a.cmd.Stdout, a.cmd.Stderr = &a.out, &a.out
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		a.cmd.Wait() // how it ended is in ProcessState
		close(a.ended)
	}()
	t.Cleanup(a.stop)
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); {
		var st unix.Statfs_t
		if unix.Statfs(a.mount, &st) == nil && st.Type == 0x65735546 {
			return a, true
		}
		select {
		case <-a.ended:
			return a, false
		case <-time.After(5 * time.Millisecond):
		}
	}
	t.Fatal("the program neither serves nor ends")
	return nil, false
}

func (a *attempt) stop() {
	a.cmd.Process.Signal(unix.SIGKILL) // fails if it has ended, which is fine
	<-a.ended
	for unix.Unmount(a.mount, unix.MNT_DETACH) == nil {
	}
}

// refusal is the program's last line, after checks that it is a proper refusal.
func (a *attempt) refusal(t *testing.T, codes ...int) string {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(a.out.String()), "\n")
	last := lines[len(lines)-1]
	ok := false
	for _, c := range codes {
		ok = ok || a.cmd.ProcessState.ExitCode() == c
	}
	if !ok || !strings.HasPrefix(last, "pillarbox: ") {
		t.Errorf("ended with %v, want one line and an exit code of %v:\n%s", a.cmd.ProcessState, codes, a.out.String())
	}
	a.noPanic(t)
	return last
}

func (a *attempt) noPanic(t *testing.T) {
	t.Helper()
	for _, sign := range []string{"goroutine ", "panic", "SIGBUS", "fatal error"} {
		if strings.Contains(a.out.String(), sign) {
			t.Errorf("the program printed %q:\n%.3000s", sign, a.out.String())
		}
	}
}

// check reads every message: the right bytes, or EIO. It returns how many gave EIO.
func (s *specimen) check(t *testing.T, mount string) (unreadable int) {
	t.Helper()
	for path, sum := range s.kept.files {
		body, err := os.ReadFile(filepath.Join(mount, path))
		switch {
		case errors.Is(err, unix.EIO):
			unreadable++
		case errors.Is(err, fs.ErrNotExist) && s.tail[path]:
		case err != nil:
			t.Errorf("silently lost: %v", err)
		case sha256.Sum256(body) != sum:
			t.Errorf("%s: WRONG BYTES", path)
		}
	}
	// Names are found by listing, too, which goes another way.
	listed := map[string]bool{}
	dirs, err := filepath.Glob(filepath.Join(mount, "*/*/Maildir/new"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, unix.EIO) {
			return unreadable + 1
		}
		if err != nil {
			t.Error(err)
		}
		rel, _ := filepath.Rel(mount, dir) // dir is below mount
		for _, e := range entries {
			listed[filepath.Join(rel, e.Name())] = true
		}
	}
	for path := range s.kept.files {
		if !listed[path] && !s.tail[path] && unreadable == 0 {
			t.Errorf("%s is missing in the listing", path)
		}
	}
	return unreadable
}

// TestDamage damages one file of a stopped store in each trial. The start is
// refused, or every message is right or unreadable.
func TestDamage(t *testing.T) {
	sd := seed(t)
	s := newSpecimen(t, rand.New(rand.NewPCG(sd, 0)))
	for k, kind := range kinds {
		for trial := range *trialsFlag {
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(kind), trial), func(t *testing.T) {
				s.trial(t, rand.New(rand.NewPCG(sd, uint64(1+k*1000+trial))), kind)
			})
		}
	}
}

func (s *specimen) trial(t *testing.T, r *rand.Rand, kind string) {
	data := filepath.Join(t.TempDir(), "data")
	s.copyTo(t, data)
	files, err := filepath.Glob(filepath.Join(data, kind))
	if err != nil || len(files) == 0 {
		t.Fatalf("no file %s: %v", kind, err)
	}
	file := files[r.IntN(len(files))]
	what := spoil(t, r, file)
	t.Logf("%s: %s", filepath.Base(file), what)

	fsck := exec.Command(harness.Binary(t), "fsck", "--data", data)
	report, _ := fsck.CombinedOutput() // its exit code is looked at below
	if bytes.Contains(report, []byte("goroutine ")) {
		t.Errorf("fsck panics:\n%.3000s", report)
	}
	a, serves := tryUp(t, data)
	if serves {
		unreadable := s.check(t, a.mount)
		a.noPanic(t)
		t.Logf("starts; %d messages cannot be read", unreadable)
		if unreadable == 0 {
			return
		}
		if code := fsck.ProcessState.ExitCode(); code != 4 && code != 8 {
			t.Errorf("%d messages cannot be read, and fsck ended with %d:\n%s", unreadable, code, report)
		}
		for text, by := range map[string]string{a.out.String(): "log", string(report): "fsck"} {
			// Where an unflushed chunk was stands in its own header only.
			named := strings.Contains(text, file) && strings.Contains(text, "offset") || strings.Contains(text, "missing chunk")
			if !named && !(what == "remove" && strings.Contains(text, filepath.Base(file)+" is missing")) {
				t.Errorf("the %s names neither %s and an offset nor a chunk:\n%s", by, file, text)
			}
		}
		if unreadable > 2 && !strings.HasPrefix(what, "truncate") && what != "remove" {
			t.Errorf("%d messages cannot be read", unreadable) // what is not damaged can be
		}
		return
	}
	codes := []int{exitDamaged}
	if kind == "store.json" {
		codes = append(codes, exitNewer, exitForeign) // a number or an id that became another
	}
	line := a.refusal(t, codes...)
	t.Logf("refused: %s", line)
	if what == "remove" {
		file = filepath.Dir(file) // what its name was may be known no more
	}
	if !strings.Contains(line, file) && !(kind == "store.json" && strings.Contains(line, data) && strings.Contains(line, kind)) {
		t.Errorf("the refusal does not name %s: %s", file, line)
	}
	if code := fsck.ProcessState.ExitCode(); code != 4 && code != 8 && !strings.HasPrefix(kind, "mon/") && kind != "store.json" {
		t.Errorf("the start was refused, and fsck ended with %d:\n%s", code, report)
	}
}
