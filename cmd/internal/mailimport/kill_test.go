package mailimport

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test runs itself as the process to be killed, with these set.
const childSrc, childDst, childState = "IMPORT_TEST_SRC", "IMPORT_TEST_DST", "IMPORT_TEST_STATE"

func TestMain(m *testing.M) {
	if src := os.Getenv(childSrc); src != "" {
		o := Defaults(src, os.Getenv(childDst))
		o.State, o.Workers = os.Getenv(childState), 2
		if _, err := Run(context.Background(), o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inodes are all files below dir with their inode numbers.
func inodes(t testing.TB, dir string) map[string]uint64 {
	found := map[string]uint64{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) { // the child renames
				return nil
			}
			return err
		}
		if info, err := d.Info(); err == nil && d.Type().IsRegular() {
			found[path] = info.Sys().(*syscall.Stat_t).Ino
		}
		return nil
	})
	must(t, err)
	return found
}

func TestKillAndGoOn(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	const each = 700
	var box strings.Builder
	for i := range each {
		fmt.Fprintf(&box, "%sX: %d\n\n%s\n", sep, i, strings.Repeat("text\n", i))
		name := fmt.Sprintf("%s/user/Maildir/cur/%d.host:2,", src, i)
		put(t, name, strings.Repeat(fmt.Sprint(i), 100+i*10))
		if i%7 == 0 {
			put(t, fmt.Sprintf("%s/user/Maildir/new/x", src), "")
			must(t, os.Link(name, fmt.Sprintf("%s.copy", name)))
		}
	}
	must(t, os.MkdirAll(src+"/user/Maildir/tmp", 0o700))
	put(t, src+"/mbox/old", box.String())
	o := options(t, src, dst)

	kills := 0
	for _, share := range []int{10, 40, 80} { // percent of the files in place
		self, err := os.Executable()
		must(t, err)
		child := exec.Command(self)
		child.Env = append(os.Environ(), childSrc+"="+src, childDst+"="+dst, childState+"="+o.State)
		must(t, child.Start())
		ended := make(chan error, 1)
		go func() { ended <- child.Wait() }()
		deadline := time.Now().Add(time.Minute)
		for alive := true; alive && len(inodes(t, dst0(dst))) < share*2*each/100; {
			select {
			case err := <-ended:
				t.Fatalf("the child ended by itself: %v", err)
			default:
			}
			if time.Now().After(deadline) {
				must(t, child.Process.Kill())
				<-ended
				t.Fatal("the child does not get on")
			}
		}
		must(t, child.Process.Kill())
		<-ended
		kills++
	}
	before := inodes(t, dst)
	rep := imported(t, o)
	if !rep.Resumed || rep.Present == 0 || rep.Copied == 0 || rep.Copied+rep.Present != rep.Files+rep.Messages+rep.HardLinks {
		t.Errorf("after %d kills: %+v", kills, rep)
	}
	after := inodes(t, dst)
	for path, ino := range before {
		if strings.HasPrefix(filepath.Base(path), tempPrefix) {
			continue
		}
		if after[path] != ino {
			t.Errorf("%s was copied twice", path)
		}
	}
	if len(after) != int(rep.Files+rep.Messages+rep.HardLinks) {
		t.Errorf("%d files, want %d files, %d messages, %d links", len(after), rep.Files, rep.Messages, rep.HardLinks)
	}
	if got := mails(t, dst+"/mbox/old"); len(got) != each {
		t.Errorf("%d messages", len(got))
	}

	// The journal may be lost as well.
	must(t, os.Remove(o.State))
	if rep := imported(t, o); rep.Copied != 0 || rep.Resumed {
		t.Errorf("without the journal: %+v", rep)
	}
}

// dst0 is dir, or its parent while it is not there.
func dst0(dir string) string {
	if _, err := os.Stat(dir); err != nil {
		return filepath.Dir(dir)
	}
	return dir
}

func TestJournalDamage(t *testing.T) {
	src, dst := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dst")
	for i := range 10 {
		put(t, fmt.Sprintf("%s/%d", src, i), fmt.Sprint(i))
	}
	o := options(t, src, dst)
	imported(t, o)
	whole, err := os.ReadFile(o.State)
	must(t, err)
	for cut := range whole {
		if cut%5 != 0 {
			continue
		}
		must(t, os.WriteFile(o.State, whole[:cut], 0o600))
		if rep := imported(t, o); rep.Copied != 0 || rep.Present != 10 {
			t.Fatalf("cut to %d bytes: %+v", cut, rep)
		}
	}
	bad := append([]byte{}, whole...)
	bad[len(bad)/2] ^= 1
	must(t, os.WriteFile(o.State, bad, 0o600))
	if _, err := Run(context.Background(), o); err == nil || !strings.Contains(err.Error(), "damaged in line") {
		t.Errorf("%v", err)
	}
	must(t, os.WriteFile(o.State, whole, 0o600))
	other := o
	other.Dst = filepath.Join(t.TempDir(), "other")
	if _, err := Run(context.Background(), other); err == nil || !strings.Contains(err.Error(), "another import") {
		t.Errorf("%v", err)
	}
	j, err := openJournal(o.State, o.Src, o.Dst)
	must(t, err)
	if _, err := Run(context.Background(), o); err == nil || !strings.Contains(err.Error(), "another import running") {
		t.Errorf("%v", err)
	}
	must(t, j.close())
}
