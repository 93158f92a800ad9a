package cluster

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// node is a file or directory of the model.
type node struct {
	dir  bool
	mode os.FileMode
	data string
}

// TestModel makes random changes through either of two mounts, one after the
// other, and compares both with a model after each.
func TestModel(t *testing.T) {
	const steps = 1200
	_, a, b := twoMounts(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	mounts := []string{a, b}
	model := map[string]*node{"tmp": {dir: true, mode: 0o755}, "new": {dir: true, mode: 0o755}, "cur": {dir: true, mode: 0o755}}
	pick := func() string {
		dirs := []string{"tmp", "new", "cur"}
		for p, n := range model {
			if n.dir && strings.Count(p, "/") < 2 {
				dirs = append(dirs, p)
			}
		}
		slices.Sort(dirs)
		return path.Join(dirs[r.IntN(len(dirs))], fmt.Sprint("n", r.IntN(6)))
	}
	children := func(dir string) (names []string) {
		for p := range model {
			if path.Dir(p) == dir {
				names = append(names, path.Base(p))
			}
		}
		slices.Sort(names)
		return names
	}
	step := func(i int) (what string, want syscall.Errno, err error) {
		m := mounts[r.IntN(2)]
		p, q := pick(), pick()
		n, to := model[p], model[q]
		full := filepath.Join(m, p)
		switch op := r.IntN(9); op {
		case 0, 1: // write whole
			data := strings.Repeat(fmt.Sprint(i, ","), 1+r.IntN(2000))
			err = os.WriteFile(full, []byte(data), 0o644)
			switch {
			case n == nil:
				model[p] = &node{mode: 0o644, data: data}
			case n.dir:
				want = syscall.EISDIR
			default:
				n.data = data
			}
			return fmt.Sprintf("write %s", full), want, err
		case 2: // append
			f, err := os.OpenFile(full, os.O_WRONLY|os.O_APPEND, 0)
			if err == nil {
				_, err = f.WriteString("more")
				if cerr := f.Close(); err == nil {
					err = cerr
				}
			}
			switch {
			case n == nil:
				want = syscall.ENOENT
			case n.dir:
				want = syscall.EISDIR
			default:
				n.data += "more"
			}
			return fmt.Sprintf("append to %s", full), want, err
		case 3: // link
			err = os.Link(full, filepath.Join(m, q))
			switch {
			case n == nil:
				want = syscall.ENOENT
			case to != nil:
				want = syscall.EEXIST
			case n.dir:
				want = syscall.EPERM
			default:
				model[q] = n
			}
			return fmt.Sprintf("link %s to %s", full, q), want, err
		case 4: // unlink
			err = syscall.Unlink(full)
			switch {
			case n == nil:
				want = syscall.ENOENT
			case n.dir:
				want = syscall.EISDIR
			default:
				delete(model, p)
			}
			return fmt.Sprintf("unlink %s", full), want, err
		case 5: // rename a file
			if n != nil && n.dir || to != nil && to.dir {
				return "", 0, nil
			}
			err = syscall.Rename(full, filepath.Join(m, q))
			if n == nil {
				want = syscall.ENOENT
			} else if n != to { // else both are names of one file, and nothing happens
				delete(model, p)
				model[q] = n
			}
			return fmt.Sprintf("rename %s to %s", full, q), want, err
		case 6: // mkdir, rmdir
			if n == nil {
				model[p] = &node{dir: true, mode: 0o755}
				return fmt.Sprintf("mkdir %s", full), 0, os.Mkdir(full, 0o755)
			}
			if !n.dir {
				return "", 0, nil
			}
			err = syscall.Rmdir(full)
			if len(children(p)) > 0 {
				want = syscall.ENOTEMPTY
			} else {
				delete(model, p)
			}
			return fmt.Sprintf("rmdir %s", full), want, err
		case 7: // chmod
			mode := os.FileMode(0o600 + r.IntN(8)*8)
			err = os.Chmod(full, mode)
			if n == nil {
				want = syscall.ENOENT
			} else {
				n.mode = mode
			}
			return fmt.Sprintf("chmod %s", full), want, err
		default: // truncate
			if n == nil || n.dir {
				return "", 0, nil
			}
			size := r.IntN(3000)
			err = os.Truncate(full, int64(size))
			if size > len(n.data) {
				n.data += strings.Repeat("\x00", size-len(n.data))
			} else {
				n.data = n.data[:size]
			}
			return fmt.Sprintf("truncate %s to %d", full, size), 0, err
		}
	}
	for i := range steps {
		what, want, err := step(i)
		var errno syscall.Errno
		if e, ok := err.(syscall.Errno); ok {
			errno = e
		} else if err != nil {
			for u := err; u != nil; {
				if e, ok := u.(syscall.Errno); ok {
					errno = e
				}
				w, ok := u.(interface{ Unwrap() error })
				if !ok {
					break
				}
				u = w.Unwrap()
			}
		}
		if errno != want || err != nil && errno == 0 {
			t.Fatalf("step %d: %s: %v, want %v", i, what, err, want)
		}
		for _, m := range mounts {
			for range 3 {
				p := pick()
				n := model[p]
				st, err := os.Lstat(filepath.Join(m, p))
				if (err == nil) != (n != nil) {
					t.Fatalf("step %d, after %s: %s in %s: %v, in the model %v", i, what, p, m, err, n)
				}
				if n == nil {
					continue
				}
				if st.Mode().Perm() != n.mode || st.IsDir() != n.dir {
					t.Fatalf("step %d, after %s: %s in %s has mode %v, not %v", i, what, p, m, st.Mode(), n.mode)
				}
				if n.dir {
					var names []string
					list, err := os.ReadDir(filepath.Join(m, p))
					for _, e := range list {
						names = append(names, e.Name())
					}
					if err != nil || !slices.Equal(names, children(p)) {
						t.Fatalf("step %d, after %s: %s in %s lists %v, not %v, %v", i, what, p, m, names, children(p), err)
					}
					continue
				}
				links := 0
				for _, other := range model {
					if other == n {
						links++
					}
				}
				if got := st.Sys().(*syscall.Stat_t).Nlink; int(got) != links || st.Size() != int64(len(n.data)) {
					t.Fatalf("step %d, after %s: %s in %s has %d links and %d bytes, not %d and %d", i, what, p, m, got, st.Size(), links, len(n.data))
				}
				if data, err := os.ReadFile(filepath.Join(m, p)); err != nil || string(data) != n.data {
					t.Fatalf("step %d, after %s: %s in %s holds other data, %v", i, what, p, m, err)
				}
			}
		}
	}
}
