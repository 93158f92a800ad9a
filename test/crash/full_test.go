package crash

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

// smallDisk is what the tests here fill.
const smallDisk = 512 << 20

// kept is what the store has acknowledged: the digest of each file, by path
// below the mount.
type kept struct {
	mu    sync.Mutex
	files map[string][32]byte
	bytes int64
}

func newKept() *kept { return &kept{files: map[string][32]byte{}} }

func (k *kept) add(path string, body []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files[path] = sha256.Sum256(body)
	k.bytes += int64(len(body))
}

// verify reads everything back.
func (k *kept) verify(t *testing.T, mount, when string) {
	t.Helper()
	bad := 0
	for path, sum := range k.files {
		body, err := os.ReadFile(filepath.Join(mount, path))
		if err == nil && sha256.Sum256(body) != sum {
			err = fmt.Errorf("%s: other content than was written", path)
		}
		if err != nil {
			if bad++; bad <= 5 {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	if bad > 0 {
		t.Fatalf("%s: %d of %d messages are not as acknowledged", when, bad, len(k.files))
	}
}

func randomBody(r *rand.Rand, mean float64) []byte {
	body := make([]byte, 1+int(r.ExpFloat64()*mean)%1000000)
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	return body
}

// deliver delivers as Postfix does. What an error leaves in tmp is removed,
// which must work however full the store is.
func (k *kept) deliver(mount, maildir, name string, body []byte) error {
	tmp, fresh := filepath.Join(mount, maildir, "tmp", name), filepath.Join(maildir, "new", name)
	err := writeFile(tmp, body, true)
	if err == nil {
		err = os.Link(tmp, filepath.Join(mount, fresh))
	}
	if err == nil {
		k.add(fresh, body)
	}
	if gone := os.Remove(tmp); gone != nil && !errors.Is(gone, os.ErrNotExist) {
		return fmt.Errorf("unlink at full: %w", gone)
	}
	return err
}

func makeMaildirs(t *testing.T, mount string) (dirs []string) {
	t.Helper()
	for w := range workers {
		dir := filepath.Join("example.org", fmt.Sprint("user", w), "Maildir")
		for _, d := range []string{"tmp", "new", "cur"} {
			if err := os.MkdirAll(filepath.Join(mount, dir, d), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// fill lets every worker put files until the store is full, and checks that it says so.
func fill(t *testing.T, dirs []string, put func(r *rand.Rand, dir, name string) error) {
	t.Helper()
	s := seed(t)
	var wg sync.WaitGroup
	for w, dir := range dirs {
		r := rand.New(rand.NewPCG(s, uint64(w)))
		wg.Go(func() {
			for i := 0; i < 1<<20; i++ {
				if err := put(r, dir, fmt.Sprint("m", i)); err != nil {
					if !errors.Is(err, unix.ENOSPC) {
						t.Errorf("worker %d: file %d: %v, want ENOSPC", w, i, err)
					}
					return
				}
			}
			t.Errorf("worker %d: the disk is never full", w)
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// free is the space left on the disk below the store, in bytes.
func (d *disk) free() int64 {
	d.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Bfree) * st.Bsize
}

// eventually polls until ok.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, within)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestFull delivers until the disk is full, goes on at full, and makes room.
func TestFull(t *testing.T) {
	d := newDisk(t, smallDisk)
	n := harness.Start(t, harness.Options{Data: filepath.Join(d.dir, "data")})
	dirs, k := makeMaildirs(t, n.Mount), newKept()
	fill(t, dirs, func(r *rand.Rand, dir, name string) error {
		return k.deliver(n.Mount, dir, name, randomBody(r, 60000))
	})
	t.Logf("full with %d messages, %d MiB; %d MiB free on the disk", len(k.files), k.bytes>>20, d.free()>>20)
	if k.bytes < smallDisk/4 {
		t.Errorf("full with only %d bytes", k.bytes)
	}
	k.verify(t, n.Mount, "at full")

	toCur := newKept()
	for path, sum := range k.files {
		cur := filepath.Join(filepath.Dir(filepath.Dir(path)), "cur", filepath.Base(path)+":2,S")
		if err := os.Rename(filepath.Join(n.Mount, path), filepath.Join(n.Mount, cur)); err != nil {
			t.Fatalf("rename at full: %v", err)
		}
		toCur.files[cur] = sum
	}
	k = toCur
	before, removed := d.free(), int64(0)
	for path := range k.files {
		if removed > 100<<20 {
			break
		}
		st, err := os.Stat(filepath.Join(n.Mount, path))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(n.Mount, path)); err != nil {
			t.Fatalf("unlink at full: %v", err)
		}
		removed += st.Size()
		delete(k.files, path)
	}
	eventually(t, 30*time.Second, "the space of expunged mail comes back", func() bool { return d.free()-before > removed*8/10 })

	r := rand.New(rand.NewPCG(1, 1))
	for i := range 200 {
		if err := k.deliver(n.Mount, dirs[i%len(dirs)], fmt.Sprint("again", i), randomBody(r, 60000)); err != nil {
			t.Fatalf("delivery after %d MiB were expunged: %v", removed>>20, err)
		}
	}
	k.verify(t, n.Mount, "after making room")
	n.Term()
	n.Restart()
	k.verify(t, n.Mount, "after a restart")
	n.Term()
	n.Fsck()
}

// TestFullWithoutSync fills the store with files nobody syncs: an error may
// come from write or close, but what close accepted is there.
func TestFullWithoutSync(t *testing.T) {
	d := newDisk(t, smallDisk)
	n := harness.Start(t, harness.Options{Data: filepath.Join(d.dir, "data")})
	dirs, k := makeMaildirs(t, n.Mount), newKept()
	fill(t, dirs, func(r *rand.Rand, dir, name string) error {
		body := randomBody(r, 120000)
		path := filepath.Join(dir, "new", name)
		err := writeFile(filepath.Join(n.Mount, path), body, false)
		if err == nil {
			k.add(path, body)
		}
		return err
	})
	t.Logf("full with %d files, %d MiB", len(k.files), k.bytes>>20)
	k.verify(t, n.Mount, "at full")
	n.Kill9()
	n.Restart()
	k.verify(t, n.Mount, "after kill -9 at full")
	n.Term()
	n.Fsck()
}

// hog fills the disk to the last byte with something that is not the store's.
func (d *disk) hog() (path string) {
	d.t.Helper()
	path = filepath.Join(d.dir, "hog")
	f, err := os.Create(path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 4096; size /= 4 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if err = errors.Join(f.Sync()); err != nil && !errors.Is(err, unix.ENOSPC) {
			d.t.Fatal(err)
		}
	}
	return path
}

// shuffle renames until the store refuses it, and returns how often it could.
// The names are long, so that the log soon asks for more room.
func shuffle(t *testing.T, dir string, most int) int {
	t.Helper()
	var names [2]string
	for i := range names {
		names[i] = filepath.Join(dir, strings.Repeat(fmt.Sprint(i), 250))
	}
	if err := os.Rename(filepath.Join(dir, "short"), names[0]); err != nil {
		t.Fatal(err)
	}
	for i := range most {
		if err := os.Rename(names[i%2], names[1-i%2]); err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("rename %d with no byte free: %v", i, err)
			}
			return i
		}
	}
	return most
}

// TestDiskTakenAway lets something else fill the disk under load, to the last byte.
func TestDiskTakenAway(t *testing.T) {
	d := newDisk(t, smallDisk)
	n := harness.Start(t, harness.Options{Data: filepath.Join(d.dir, "data")})
	dirs, k := makeMaildirs(t, n.Mount), newKept()
	r := rand.New(rand.NewPCG(seed(t), 1))
	for i := range 200 {
		if err := k.deliver(n.Mount, dirs[i%len(dirs)], fmt.Sprint("first", i), randomBody(r, 60000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(n.Mount, dirs[1], "tmp", "short"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hog := d.hog()
	t.Logf("%d bytes free", d.free())
	accepted := 0
	for i := range 200 {
		err := k.deliver(n.Mount, dirs[i%len(dirs)], fmt.Sprint("full", i), randomBody(r, 60000))
		if err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("delivery with no byte free: %v, want ENOSPC", err)
		}
		if err == nil {
			accepted++
		}
	}
	t.Logf("%d of 200 deliveries were accepted with no byte free", accepted)
	// Long enough for every flush that is due to be tried.
	for began := time.Now(); time.Since(began) < 8*time.Second; time.Sleep(200 * time.Millisecond) {
		k.verify(t, n.Mount, "with no byte free")
	}
	for path, sum := range k.files { // names still change
		to := filepath.Join(filepath.Dir(filepath.Dir(path)), "cur", filepath.Base(path))
		if err := os.Rename(filepath.Join(n.Mount, path), filepath.Join(n.Mount, to)); err != nil {
			t.Fatalf("rename with no byte free: %v", err)
		}
		delete(k.files, path)
		k.files[to] = sum
		break
	}
	renamed := shuffle(t, filepath.Join(n.Mount, dirs[1], "tmp"), 60000)
	t.Logf("%d renames with no byte free", renamed)
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, "deliveries work again without a restart", func() bool {
		return k.deliver(n.Mount, dirs[0], "back", []byte("back")) == nil
	})
	k.verify(t, n.Mount, "with room again")

	// The same again, and the process dies at that.
	hog = d.hog()
	n.Kill9()
	n.Unmount()
	refused(t, exitFailure, n.Data, n.Mount, nil, "no space left")
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	n.Restart()
	k.verify(t, n.Mount, "after kill -9 on a full disk")
	hog = d.hog()
	n.Term()
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	n.Restart()
	k.verify(t, n.Mount, "after a stop on a full disk")
	n.Term()
	n.Fsck()
	if log := n.Log(); bytes.Contains([]byte(log), []byte("SIGBUS")) {
		io.WriteString(os.Stderr, log)
		t.Error("the program ran into the end of the disk")
	}
}
