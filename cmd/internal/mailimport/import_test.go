package mailimport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, path, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

func options(t testing.TB, src, dst string) Options {
	o := Defaults(src, dst)
	o.State = filepath.Join(t.TempDir(), "journal")
	return o
}

func imported(t testing.TB, o Options) *Report {
	t.Helper()
	rep, err := Run(context.Background(), o)
	if err != nil {
		t.Fatalf("%v: %+v", err, rep)
	}
	return rep
}

// describe says everything about a tree that an import keeps: inodes by their
// first name.
func describe(t testing.TB, root string) map[string]string {
	t.Helper()
	found, first := map[string]string{}, map[uint64]string{}
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		if _, ok := first[st.Ino]; !ok {
			first[st.Ino] = rel
		}
		x, err := readXattrs(path)
		must(t, err)
		s := fmt.Sprintf("%o %d:%d %d %v %s", st.Mode, st.Uid, st.Gid, mtimeOf(&st), x, first[st.Ino])
		switch {
		case d.Type().IsRegular():
			b, err := os.ReadFile(path)
			must(t, err)
			s += fmt.Sprintf(" %d %q", st.Nlink, b)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			must(t, err)
			s += " -> " + target
		}
		found[rel] = s
		return nil
	}))
	return found
}

// maildirs makes a tree of two accounts with everything an import keeps.
func maildirs(t testing.TB) string {
	src := filepath.Join(t.TempDir(), "src")
	for u := range 2 {
		box := filepath.Join(src, "example.org", fmt.Sprintf("user%d", u), "Maildir")
		for _, d := range []string{"cur", "new", "tmp", ".Sent/cur", ".Sent/new", ".Sent/tmp"} {
			must(t, os.MkdirAll(filepath.Join(box, d), 0o750))
		}
		for i := range 20 {
			name := filepath.Join(box, "cur", fmt.Sprintf("%d.M%d.host:2,S", 1100000000+i, i))
			put(t, name, strings.Repeat(fmt.Sprintf("From me: %d\n", i), 1+i*i*40))
			if i%3 == 0 {
				must(t, os.Link(name, filepath.Join(box, ".Sent/cur", filepath.Base(name))))
			}
		}
		put(t, box+"/new/odd \xff\n\"name", "")
		put(t, box+"/new/looks-like.mbox", sep+"A: b\n\n")
		put(t, box+"/cur/really.lock", "a message called so")
		put(t, box+"/dovecot-uidlist", "3 V1 N1\n")
		put(t, box+"/dovecot-uidlist.lock", "")
		must(t, os.Symlink("Maildir/.Sent", filepath.Join(box, "../sent")))
		must(t, unix.Lsetxattr(box+"/cur", "user.quota", []byte("1\x002"), 0))
		must(t, unix.Lsetxattr(box+"/dovecot-uidlist", "user.note", nil, 0))
		must(t, unix.Mkfifo(box+"/pipe", 0o600))
	}
	put(t, src+"/README", "From nobody\n")
	must(t, os.Chmod(src+"/README", 0o4751))
	n := 0
	must(t, filepath.WalkDir(src, func(path string, _ fs.DirEntry, err error) error {
		n++
		must(t, unix.Lchown(path, 1000+n%3, 2000+n%2))
		return err
	}))
	must(t, os.Chmod(src+"/README", 0o4751)) // chown took the bit
	var all []string
	must(t, filepath.WalkDir(src, func(path string, _ fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	}))
	slices.Reverse(all)
	for i, path := range all {
		ts := unix.NsecToTimespec(int64(1_000_000_000+i)*1e9 + 123456789)
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return src
}

func TestTreeOfMaildirs(t *testing.T) {
	src, dst := maildirs(t), filepath.Join(t.TempDir(), "dst")
	o := options(t, src, dst)
	var stages []string
	o.Progress = func(stage string, done, total int64) {
		if done > total {
			t.Errorf("%s: %d of %d", stage, done, total)
		}
		if !slices.Contains(stages, stage) {
			stages = append(stages, stage)
		}
	}
	rep := imported(t, o)
	want := describe(t, src)
	for name := range want {
		if strings.HasSuffix(name, "uidlist.lock") || strings.HasSuffix(name, "/pipe") {
			delete(want, name)
		}
	}
	got := describe(t, dst)
	if !reflect.DeepEqual(got, want) {
		for name := range want {
			if got[name] != want[name] {
				t.Errorf("%q:\n got %.200s\nwant %.200s", name, got[name], want[name])
			}
		}
		t.Fatalf("%d names, want %d", len(got), len(want))
	}
	things := rep.Files + rep.HardLinks + rep.Symlinks
	if rep.HardLinks != 14 || rep.Symlinks != 2 || rep.LocksLeft != 2 || rep.Special != 2 || rep.Copied != things ||
		rep.Verified != things+rep.Directories || rep.Resumed || len(rep.Refused) > 0 || !slices.Equal(stages, []string{"copy", "verify"}) {
		t.Errorf("%+v, %v", rep, stages)
	}
	again := imported(t, o)
	if !again.Resumed || again.Copied != 0 || again.Present != things {
		t.Errorf("again: %+v", again)
	}
	if !reflect.DeepEqual(describe(t, dst), want) {
		t.Error("the second run changed something")
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	src, dst := maildirs(t), filepath.Join(t.TempDir(), "dst")
	o := options(t, src, dst)
	o.DryRun = true
	rep := imported(t, o)
	if rep.Files == 0 || rep.Copied != 0 {
		t.Errorf("%+v", rep)
	}
	for _, path := range []string{dst, o.State} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestVerificationFindsDamage(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"contents": func(p string) error {
			st, err := os.Stat(p)
			b, e := os.ReadFile(p)
			b[len(b)/2] ^= 1
			return errors.Join(err, e, os.WriteFile(p, b, 0), os.Chtimes(p, st.ModTime(), st.ModTime()))
		},
		"missing":   os.Remove,
		"truncated": func(p string) error { return os.Truncate(p, 3) },
		"mode":      func(p string) error { return os.Chmod(p, 0o644) },
		"owner":     func(p string) error { return os.Chown(p, 1, 1) },
		"time":      func(p string) error { return os.Chtimes(p, time.Now(), time.Now()) },
	} {
		t.Run(name, func(t *testing.T) {
			src, dst := maildirs(t), filepath.Join(t.TempDir(), "dst")
			o := options(t, src, dst)
			imported(t, o)
			must(t, damage(filepath.Join(dst, "example.org/user1/Maildir/cur/1100000003.M3.host:2,S")))
			rep, err := Run(context.Background(), o)
			if !errors.Is(err, ErrMismatch) || rep.Mismatches == 0 || len(rep.Errors) == 0 {
				t.Errorf("%v, %+v", err, rep)
			}
			if name == "missing" && rep.Gone != 1 {
				t.Errorf("what was removed since came back: %+v", rep)
			}
			o.NoVerify = true
			imported(t, o)
		})
	}
}

// A hard link that became a file of its own is a link again behind the next
// run, and told by a verification alone.
func TestLostHardLink(t *testing.T) {
	src, dst := maildirs(t), filepath.Join(t.TempDir(), "dst")
	o := options(t, src, dst)
	imported(t, o)
	want := describe(t, dst)
	p := filepath.Join(dst, "example.org/user1/Maildir/cur/1100000003.M3.host:2,S")
	b, err := os.ReadFile(p)
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Stat(p, &st))
	must(t, os.Remove(p))
	put(t, p, string(b))
	must(t, os.Chown(p, int(st.Uid), int(st.Gid)))
	must(t, unix.UtimesNano(p, []unix.Timespec{st.Atim, st.Mtim}))

	j, err := openJournal(o.State, o.Src, o.Dst)
	must(t, err)
	r := &run{opt: o, j: j}
	must(t, r.verify(context.Background()))
	must(t, j.close())
	if r.rep.Mismatches != 2 || !strings.Contains(strings.Join(r.rep.Errors, ""), "no hard link") { // and the directory's time
		t.Errorf("%+v", r.rep)
	}
	if rep := imported(t, o); rep.Copied != 1 {
		t.Errorf("%+v", rep)
	}
	if !reflect.DeepEqual(describe(t, dst), want) {
		t.Error("not as before")
	}
}

func TestChangesBetweenRuns(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "s"), t.TempDir()
	put(t, src+"/a", "one")
	put(t, src+"/theirs", "source")
	put(t, dst+"/theirs", "destination")
	put(t, src+"/equal", "equal")
	put(t, dst+"/equal", "equal")
	o := options(t, src, dst)
	rep, err := Run(context.Background(), o)
	if !errors.Is(err, ErrFailed) || rep.Failed != 1 || rep.Copied != 1 || rep.Present != 1 || !strings.Contains(rep.Errors[0], "theirs exists") {
		t.Fatalf("%v, %+v", err, rep)
	}
	must(t, os.Remove(dst+"/theirs"))
	put(t, src+"/a", "one, changed")
	put(t, src+"/b", "added")
	if rep := imported(t, o); rep.Copied != 3 || rep.Present != 1 {
		t.Errorf("%+v", rep)
	}
	if b, err := os.ReadFile(dst + "/a"); err != nil || string(b) != "one, changed" {
		t.Errorf("%q, %v", b, err)
	}
	put(t, src+"/a", "again")
	put(t, dst+"/a", "by another hand")
	if rep, err := Run(context.Background(), o); !errors.Is(err, ErrFailed) {
		t.Errorf("%v, %+v", err, rep)
	}
	if b, err := os.ReadFile(dst + "/a"); err != nil || string(b) != "by another hand" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestBadOptions(t *testing.T) {
	src, file := t.TempDir(), filepath.Join(t.TempDir(), "file")
	put(t, file, "no mbox")
	for name, o := range map[string]Options{
		"no source":    Defaults(src+"/none", t.TempDir()),
		"no parent":    Defaults(src, t.TempDir()+"/a/b"),
		"nested":       Defaults(src, src+"/dst"),
		"nested, back": Defaults(src, filepath.Dir(src)),
		"same":         Defaults(src, src),
		"to a file":    Defaults(src, file),
		"no workers":   {Src: src, Dst: t.TempDir(), Mbox: Folders},
		"layout":       {Src: src, Dst: t.TempDir(), Workers: 1, Mbox: "x"},
		"not an mbox":  options(t, file, filepath.Join(t.TempDir(), "dst")),
	} {
		if _, err := Run(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := os.Stat(o.Dst + "/new"); err == nil {
			t.Errorf("%s: something was made", name)
		}
	}
}

func TestInterrupt(t *testing.T) {
	src, dst := maildirs(t), filepath.Join(t.TempDir(), "dst")
	o := options(t, src, dst)
	stop := errors.New("stopped by the test")
	ctx, cancel := context.WithCancelCause(context.Background())
	o.Progress = func(string, int64, int64) { cancel(stop) }
	rep, err := Run(ctx, o)
	if !errors.Is(err, stop) {
		t.Fatalf("%v, %+v", err, rep)
	}
	o.Progress = nil
	if rep := imported(t, o); !rep.Resumed || rep.Present == 0 || rep.Copied == 0 {
		t.Errorf("%+v", rep)
	}
}
