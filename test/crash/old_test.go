package crash

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

// testdata/store-1.tar.zst is a store of format 1 as the program of before there
// could be several pools left it: filled, stopped, started again, changed and
// killed, so that a part is in the database and a part in the log. It stays as it
// is: every later program has to open it.

func oldMessage(i, n int) string {
	return strings.Repeat(fmt.Sprintf("message %d\n", i), n/10+1)[:n]
}

func TestOldStore(t *testing.T) {
	dir := t.TempDir()
	harness.Unpack(t, "testdata/store-1.tar.zst", dir)
	n := harness.Start(t, harness.Options{Data: filepath.Join(dir, "store"), Args: []string{"--s3", "off"}})
	box := filepath.Join(n.Mount, "example.org/alice/Maildir")
	check := func() {
		t.Helper()
		for name, want := range map[string]string{
			"new/0.msg": "", "cur/1.msg:2,RS": oldMessage(1, 10), "new/2.msg": oldMessage(2, 3000), "new/3.msg": oldMessage(3, 5000),
			"cur/3.msg:2,S": oldMessage(3, 5000), "new/4.msg": oldMessage(4, 20000), "new/5.msg": oldMessage(5, 70000),
			"link/new/2.msg": oldMessage(2, 3000), "sparse": strings.Repeat("\x00", 5<<20) + "end", "../../../example.net/carol/late": "after the restart",
		} {
			if b, err := os.ReadFile(filepath.Join(box, name)); err != nil || string(b) != want {
				t.Errorf("%s: %d bytes, want %d, %v", name, len(b), len(want), err)
			}
		}
		if names, err := os.ReadDir(filepath.Join(n.Mount, "example.net/bob")); err != nil || len(names) != 0 {
			t.Errorf("the renamed account holds %v, %v", names, err)
		}
		if _, err := os.Stat(filepath.Join(n.Mount, "example.org/bob")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the renamed account's old name: %v", err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(box, "new/4.msg"), &st); err != nil || st.Mode&0o777 != 0o640 || st.Uid != 7 || st.Gid != 8 {
			t.Errorf("mode %o, owner %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
		}
		if err := unix.Stat(filepath.Join(box, "cur/3.msg:2,S"), &st); err != nil || st.Nlink != 2 {
			t.Errorf("%d links, %v", st.Nlink, err)
		}
		color := make([]byte, 16)
		if l, err := unix.Getxattr(filepath.Join(box, "new/2.msg"), "user.color", color); err != nil || string(color[:l]) != "blue" {
			t.Errorf("attribute %q, %v", color[:max(l, 0)], err)
		}
		// The program of before did not tell the account that it was moved.
		if err := unix.Stat(filepath.Join(n.Mount, "example.net"), &st); err != nil || st.Ino != harness.DotDot(t, filepath.Join(n.Mount, "example.net/bob")) {
			t.Errorf(".. of the renamed account is not %d, %v", st.Ino, err)
		}
	}
	check()
	late := filepath.Join(box, "cur/later")
	if err := os.WriteFile(late, []byte(oldMessage(6, 100000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(box, "new/0.msg")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(box, "new/0.msg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.Term()
	n.Fsck()
	n.Restart()
	check()
	if b, err := os.ReadFile(late); err != nil || string(b) != oldMessage(6, 100000) {
		t.Errorf("written since: %d bytes, %v", len(b), err)
	}
	n.Term()
}
