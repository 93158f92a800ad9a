package crash

import (
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
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of the load and of the moments of death; 0 takes a new one")
	roundsFlag = flag.Int("rounds", 8, "deaths per test")
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

const workers = 6

func seed(t *testing.T) uint64 {
	s := *seedFlag
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d: go test ./test/crash -run '^%s$' -seed %d", s, t.Name(), s)
	return s
}

// TestKill9 kills the process at random moments under load. Whatever system
// call had returned must have happened, once and whole; what was under way may
// have happened or not.
func TestKill9(t *testing.T) {
	r := rand.New(rand.NewPCG(seed(t), 1))
	n := harness.Start(t, harness.Options{})
	l := newLoad(n.Mount)
	for round := range *roundsFlag {
		if round > 0 {
			n.Restart()
		}
		l.verify(t, true)
		l.run(t, r.Uint64(), round, time.Duration(200+r.IntN(2500))*time.Millisecond, n.Kill9)
		n.Fsck()
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	n.Restart()
	l.verify(t, true)
	n.Term()
	n.Fsck()
}

// TestPowerCut takes the disk away under load: what was not synced is lost, as
// when the power goes. All that fsync, link or a directory's fsync had promised
// must be there and whole; nothing may be torn.
func TestPowerCut(t *testing.T) {
	r := rand.New(rand.NewPCG(seed(t), 2))
	d := newDisk(t, 3<<30)
	n := harness.Start(t, harness.Options{Data: filepath.Join(d.dir, "data")})
	l := newLoad(n.Mount)
	for round := range *roundsFlag {
		if round > 0 {
			n.Restart()
		}
		l.verify(t, false)
		l.run(t, r.Uint64(), round, time.Duration(200+r.IntN(2500))*time.Millisecond, func() {
			d.cut()
			n.Kill9()
		})
		n.Unmount()
		d.back()
		n.Fsck()
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	n.Restart()
	l.verify(t, false)
	n.Term()
}

// TestKill9AfterFlush kills the process when all is flushed and its log holds
// nothing: a file that was open without a name must go at the next start all
// the same.
func TestKill9AfterFlush(t *testing.T) {
	n := harness.Start(t, harness.Options{})
	db, segments := filepath.Join(n.Data, "osd.0/db/*.mem"), filepath.Join(n.Data, "osd.0/chunks/*.seg")
	dir := makeMaildirs(t, n.Mount)[0]
	for i := range 100 { // enough for its flush to be seen in the database's log
		if err := os.WriteFile(filepath.Join(n.Mount, dir, "new", fmt.Sprint("m", i)), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const size = 32 << 20
	f, err := os.Create(filepath.Join(n.Mount, dir, "tmp", "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), os.Remove(f.Name())); err != nil {
		t.Fatal(err)
	}
	before := diskUsage(t, db)
	eventually(t, 20*time.Second, "a flush", func() bool { return diskUsage(t, db) > before })
	if used := diskUsage(t, segments); used < size {
		t.Fatalf("the open file takes %d bytes", used)
	}
	n.Kill9()
	n.Restart()
	eventually(t, 20*time.Second, "the space of the file comes back", func() bool { return diskUsage(t, segments) < size/4 })
	n.Term()
	n.Fsck()
}

// diskUsage is what the files take on disk, in bytes.
func diskUsage(t *testing.T, pattern string) (bytes int64) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		var st unix.Stat_t
		if err := unix.Stat(f, &st); err == nil { // else it has just gone
			bytes += st.Blocks * 512
		}
	}
	return bytes
}

// disk is an ext4 image on a loop device.
type disk struct {
	t        *testing.T
	img, dir string
}

func newDisk(t *testing.T, size int64) *disk {
	t.Helper()
	d := &disk{t, filepath.Join(t.TempDir(), "img"), t.TempDir()}
	f, err := os.Create(d.img)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	d.run("mkfs.ext4", "-qF", d.img)
	d.run("mount", "-o", "loop", d.img, d.dir)
	t.Cleanup(func() { exec.Command("umount", "-l", d.dir).Run() })
	return d
}

func (d *disk) run(argv ...string) {
	d.t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

// cut shuts the filesystem down without writing anything more.
func (d *disk) cut() {
	const ext4Shutdown, noLogFlush = 0x8004587d, 2
	f, err := os.Open(d.dir)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, noLogFlush); err != nil {
		d.t.Fatalf("shut the disk down: %v", err)
	}
}

// back mounts the disk again, which replays its journal.
func (d *disk) back() {
	d.run("umount", d.dir)
	d.run("mount", "-o", "loop", d.img, d.dir)
}

// message is what a load knows of one message.
type message struct {
	sum [32]byte
	// durable: its link or a sync behind it had returned. removed: its unlink
	// had returned; it may be back only after a power cut.
	durable, removed bool
	flagged          bool // its rename into cur had returned
}

// load delivers mail from several workers, each into its own account, and
// remembers what every returned system call had promised.
type load struct {
	mount string
	known [workers]map[string]message
	open  [workers]string // the name that was being worked on at death
}

func newLoad(mount string) *load {
	l := &load{mount: mount}
	for i := range l.known {
		l.known[i] = map[string]message{}
	}
	return l
}

func (l *load) maildir(w int) string {
	return filepath.Join(l.mount, "example.org", fmt.Sprint("user", w), "Maildir")
}

// run works until death has done its deed.
func (l *load) run(t *testing.T, seed uint64, round int, after time.Duration, death func()) {
	var wg sync.WaitGroup
	for w := range workers {
		r := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() {
			if err := l.prepare(w); err != nil {
				return
			}
			for i := 0; ; i++ {
				if err := l.step(w, fmt.Sprintf("%d.%d", round, i), r); err != nil {
					return // the mount is gone
				}
			}
		})
	}
	timer := time.NewTimer(after)
	<-timer.C
	death()
	wg.Wait()
	total := 0
	for _, k := range l.known {
		total += len(k)
	}
	t.Logf("round %d: died after %v, %d messages known", round, after, total)
}

func (l *load) prepare(w int) error {
	for _, d := range []string{"tmp", "new", "cur"} {
		if err := os.MkdirAll(filepath.Join(l.maildir(w), d), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// step delivers a message, half of the time by link and half by rename, moves
// it to cur, and removes an older one now and then.
func (l *load) step(w int, name string, r *rand.Rand) error {
	dir, known := l.maildir(w), l.known[w]
	body := make([]byte, 1+int(r.ExpFloat64()*40000)%400000)
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	l.open[w] = name
	tmp, fresh, cur := filepath.Join(dir, "tmp", name), filepath.Join(dir, "new", name), filepath.Join(dir, "cur", name+":2,S")
	byLink, sync := r.IntN(2) == 0, r.IntN(4) > 0
	if err := writeFile(tmp, body, sync); err != nil {
		return err
	}
	m := message{sum: sha256.Sum256(body)}
	var err error
	if byLink {
		if err = os.Link(tmp, fresh); err == nil {
			m.durable = sync
			known[name] = m
			err = os.Remove(tmp)
		}
	} else if err = os.Rename(tmp, fresh); err == nil {
		known[name] = m
		if sync {
			err = syncDir(filepath.Join(dir, "new"))
			m.durable = err == nil
		}
	}
	if err != nil {
		return err
	}
	known[name] = m
	if err := os.Rename(fresh, cur); err != nil {
		return err
	}
	m.flagged = true
	known[name] = m
	if r.IntN(3) == 0 {
		return l.removeOne(w)
	}
	return nil
}

func (l *load) removeOne(w int) error {
	for name, m := range l.known[w] {
		if m.removed || !m.flagged {
			continue
		}
		l.open[w] = name
		if err := os.Remove(filepath.Join(l.maildir(w), "cur", name+":2,S")); err != nil {
			return err
		}
		m.removed = true
		l.known[w][name] = m
		return nil
	}
	return nil
}

func writeFile(path string, body []byte, sync bool) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// verify compares the mount with what was promised, strictly after the death of
// processes, and takes over what it finds as the new truth.
func (l *load) verify(t *testing.T, strict bool) {
	t.Helper()
	for w := range workers {
		found := l.list(t, w)
		for name, m := range l.known[w] {
			sum, there := found[name]
			unsure := name == l.open[w]
			switch {
			case there && sum != m.sum:
				t.Errorf("worker %d: %s has other content than was written", w, name)
			case !there && !m.removed && !unsure && (strict || m.durable):
				t.Errorf("worker %d: %s is lost", w, name)
			case there && m.removed && !unsure && strict:
				t.Errorf("worker %d: %s is back after its unlink", w, name)
			}
		}
		for name := range found {
			if _, ok := l.known[w][name]; !ok && name != l.open[w] {
				t.Errorf("worker %d: %s appeared from nowhere", w, name)
			}
		}
		next := map[string]message{}
		for name, sum := range found {
			// Whatever a listing showed after a power cut is on disk.
			next[name] = message{sum: sum, durable: true, flagged: l.isIn(w, "cur", name+":2,S")}
		}
		l.known[w] = next
	}
}

func (l *load) isIn(w int, dir, name string) bool {
	_, err := os.Lstat(filepath.Join(l.maildir(w), dir, name))
	return err == nil
}

// list reads a worker's mailbox; a message that is there twice is an error.
func (l *load) list(t *testing.T, w int) map[string][32]byte {
	t.Helper()
	found := map[string][32]byte{}
	for _, d := range []string{"new", "cur"} {
		entries, err := os.ReadDir(filepath.Join(l.maildir(w), d))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name, _, _ := strings.Cut(e.Name(), ":")
			body, err := os.ReadFile(filepath.Join(l.maildir(w), d, e.Name()))
			if err != nil {
				t.Errorf("worker %d: %v", w, err)
			}
			if _, twice := found[name]; twice {
				t.Errorf("worker %d: %s is there twice", w, name)
			}
			found[name] = sha256.Sum256(body)
		}
	}
	return found
}
