package posix

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLink(t *testing.T) {
	p := newPlace(t)
	p.sub(t, "counts", func(t *testing.T, dir string) {
		put(t, dir+"/0", "body")
		fd := open(t, dir+"/0", unix.O_RDONLY, 0)
		for i := 1; i <= 50; i++ {
			before := fstat(t, fd)
			must(t, unix.Link(dir+"/0", fmt.Sprint(dir, "/", i)))
			want(t, "nlink", lstat(t, fmt.Sprint(dir, "/", i)).Nlink, uint64(i+1))
			want(t, "nlink by handle", fstat(t, fd).Nlink, uint64(i+1))
			later(t, "ctime", before.Ctim, fstat(t, fd).Ctim)
		}
		for i := 50; i >= 0; i-- {
			before := fstat(t, fd)
			must(t, unix.Unlink(fmt.Sprint(dir, "/", i)))
			want(t, "nlink by handle", fstat(t, fd).Nlink, uint64(i))
			later(t, "ctime", before.Ctim, fstat(t, fd).Ctim)
		}
		wantBytes(t, "body", pread(t, fd, 9, 0), []byte("body"))
	})
	p.sub(t, "one body", func(t *testing.T, dir string) {
		put(t, dir+"/a", "one")
		must(t, unix.Link(dir+"/a", dir+"/b"))
		put(t, dir+"/b", "other")
		wantBody(t, dir+"/a", []byte("other"))
		must(t, unix.Chmod(dir+"/a", 0o600))
		want(t, "mode", lstat(t, dir+"/b").Mode, unix.S_IFREG|0o600)
		want(t, "size", lstat(t, dir+"/a").Size, 5)
		must(t, unix.Unlink(dir+"/a"))
		wantBody(t, dir+"/b", []byte("other"))
	})
	p.sub(t, "errors", func(t *testing.T, dir string) {
		put(t, dir+"/f", "")
		put(t, dir+"/g", "")
		must(t, os.Mkdir(dir+"/d", 0o755))
		must(t, os.Symlink("nowhere", dir+"/s"))
		wantErr(t, "a directory", unix.Link(dir+"/d", dir+"/x"), unix.EPERM)
		for _, to := range []string{"f", "g", "d", "s"} {
			wantErr(t, "over "+to, unix.Link(dir+"/f", dir+"/"+to), unix.EEXIST)
		}
		wantErr(t, "of nothing", unix.Link(dir+"/x", dir+"/y"), unix.ENOENT)
		wantErr(t, "into nothing", unix.Link(dir+"/f", dir+"/x/y"), unix.ENOENT)
		wantErr(t, "to a name with a slash", unix.Link(dir+"/f", dir+"/x/"), unix.ENOENT)
	})
	p.sub(t, "of anything but directories", func(t *testing.T, dir string) {
		for _, kind := range []string{"symlink", "fifo"} {
			makeKind(t, kind, dir+"/"+kind)
			must(t, unix.Link(dir+"/"+kind, dir+"/"+kind+"2"))
			want(t, "inode", lstat(t, dir+"/"+kind).Ino, lstat(t, dir+"/"+kind+"2").Ino)
			want(t, "nlink", lstat(t, dir+"/"+kind).Nlink, 2)
			must(t, unix.Unlink(dir+"/"+kind))
			want(t, "nlink", lstat(t, dir+"/"+kind+"2").Nlink, 1)
		}
		put(t, dir+"/nowhere", "")
		must(t, unix.Linkat(unix.AT_FDCWD, dir+"/symlink2", unix.AT_FDCWD, dir+"/followed", unix.AT_SYMLINK_FOLLOW))
		want(t, "inode of a link through a symlink", lstat(t, dir+"/followed").Ino, lstat(t, dir+"/nowhere").Ino)
	})
	p.sub(t, "to a removed file", func(t *testing.T, dir string) {
		put(t, dir+"/f", "body")
		fd := open(t, dir+"/f", unix.O_RDWR, 0)
		must(t, unix.Unlink(dir+"/f"))
		err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, dir+"/g", unix.AT_SYMLINK_FOLLOW)
		wantErr(t, "linkat", err, unix.ENOENT)
		want(t, "the name", exists(dir+"/g"), false)
	})
}

// TestOneWins has many try for a name at once.
func TestOneWins(t *testing.T) {
	p := newPlace(t)
	ways := map[string]func(dir, name string, i int) error{
		"O_EXCL": func(dir, name string, _ int) error {
			fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600)
			if err == nil {
				err = unix.Close(fd)
			}
			return err
		},
		"mkdir":   func(dir, name string, _ int) error { return unix.Mkdir(name, 0o700) },
		"symlink": func(dir, name string, i int) error { return unix.Symlink(fmt.Sprint(i), name) },
		"mknod":   func(dir, name string, _ int) error { return unix.Mknod(name, unix.S_IFREG|0o600, 0) },
		"link":    func(dir, name string, i int) error { return unix.Link(fmt.Sprint(dir, "/own", i), name) },
		"noreplace": func(dir, name string, i int) error {
			return unix.Renameat2(unix.AT_FDCWD, fmt.Sprint(dir, "/own", i), unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
		},
	}
	const racers, rounds = 24, 40
	for way, fn := range ways {
		p.sub(t, way, func(t *testing.T, dir string) {
			for i := range racers {
				put(t, fmt.Sprint(dir, "/own", i), "")
			}
			for round := range rounds {
				name := fmt.Sprint(dir, "/", round)
				errs := make([]error, racers)
				gate := make(chan struct{})
				var wg sync.WaitGroup
				for i := range racers {
					wg.Go(func() {
						<-gate
						errs[i] = fn(dir, name, i)
					})
				}
				close(gate)
				wg.Wait()
				won := -1
				for i, err := range errs {
					switch {
					case err == nil && won >= 0:
						t.Fatalf("both %d and %d made the name", won, i)
					case err == nil:
						won = i
					case !errors.Is(err, unix.EEXIST):
						t.Fatalf("%d got %v, want EEXIST", i, err)
					}
				}
				if won < 0 {
					t.Fatal("nobody made the name")
				}
				if way == "noreplace" {
					put(t, fmt.Sprint(dir, "/own", won), "")
				}
			}
		})
	}
}

// TestOneTakes has many rename or remove one name at once.
func TestOneTakes(t *testing.T) {
	p := newPlace(t)
	for way, fn := range map[string]func(dir, name string, i int) error{
		"unlink": func(_, name string, _ int) error { return unix.Unlink(name) },
		"rename": func(dir, name string, i int) error { return unix.Rename(name, fmt.Sprint(dir, "/taken", i)) },
	} {
		p.sub(t, way, func(t *testing.T, dir string) {
			for round := range 40 {
				name := fmt.Sprint(dir, "/", round)
				put(t, name, "")
				var mu sync.Mutex
				won := 0
				var wg sync.WaitGroup
				for i := range 16 {
					wg.Go(func() {
						err := fn(dir, name, i)
						mu.Lock()
						defer mu.Unlock()
						if err == nil {
							won++
						} else if !errors.Is(err, unix.ENOENT) {
							t.Errorf("%d got %v, want ENOENT", i, err)
						}
					})
				}
				wg.Wait()
				want(t, "takers", won, 1)
			}
		})
	}
}
