package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emersion/go-imap/v2"
)

// TestDoveadm runs the commands admins use on a mailbox with flags and folders.
func TestDoveadm(t *testing.T) {
	s, set := newSite(t), loadMail(t, 500)
	const user, other = "user@admin.test", "other@admin.test"
	home := s.account(t, "admin.test", "user", vmailID)
	s.account(t, "admin.test", "other", vmailID)
	d := startDovecot(t, s)
	inject(t, d.lmtp, "LHLO", 4, set, func(int) string { return user })
	d.doveadm(t, "mailbox", "create", "-u", user, "Archive", "Archive.Old")
	d.doveadm(t, "copy", "-u", user, "Archive", "mailbox", "INBOX", "1:200")
	d.doveadm(t, "flags", "add", "-u", user, `\Flagged kept`, "mailbox", "INBOX", "1:50")
	d.doveadm(t, "move", "-u", user, "Archive.Old", "mailbox", "INBOX", "451:500")

	d.wants(t, user, map[string]int{"INBOX": 450, "Archive": 200, "Archive.Old": 50})

	t.Run("backup", func(t *testing.T) {
		d.doveadm(t, "backup", "-u", user, "maildir:"+home+"/backup")
		c := newCheck(set)
		c.maildirs(t, home+"/backup", home+"/backup/.Archive.Old")
		c.complete(t, 1)
		before := d.overview(t, user)
		d.doveadm(t, "backup", "-R", "-u", other, "maildir:"+home+"/backup")
		if after := d.overview(t, other); after != before {
			t.Errorf("restored, the mail differs:\n%s", firstDifference(before, after))
		}
		// A second run changes nothing.
		listing := must(t, 0, "find", home+"/backup", "-name", "[0-9]*", "-printf", "%p %i\n")
		d.doveadm(t, "backup", "-u", user, "maildir:"+home+"/backup")
		if again := must(t, 0, "find", home+"/backup", "-name", "[0-9]*", "-printf", "%p %i\n"); again != listing {
			t.Errorf("a second backup changed files:\n%s", firstDifference(listing, again))
		}
	})
	t.Run("sync", func(t *testing.T) {
		d.doveadm(t, "expunge", "-u", user, "mailbox", "INBOX", "1:10")
		d.doveadm(t, "flags", "add", "-u", other, `\Answered`, "mailbox", "INBOX", "uid", "100")
		d.doveadm(t, "sync", "-u", user, "maildir:"+strings.Replace(home, "/user", "/other", 1)+"/Maildir")
		if one, two := d.overview(t, user), d.overview(t, other); one != two {
			t.Errorf("after sync the two differ:\n%s", firstDifference(one, two))
		}
		d.wants(t, other, map[string]int{"INBOX": 440, "Archive": 200, "Archive.Old": 50})
	})
	t.Run("expunge", func(t *testing.T) {
		d.doveadm(t, "expunge", "-u", user, "mailbox", "Archive", "all")
		d.wants(t, user, map[string]int{"INBOX": 440, "Archive": 0, "Archive.Old": 50})
		if files := maildirFiles(t, folder(s, "admin.test/user", "Archive")); len(files) != 0 {
			t.Errorf("%d files are left in Archive", len(files))
		}
	})
	// What follows has Dovecot report what it repairs: look at its log before.
	d.checkLog(t)
	t.Run("force-resync", func(t *testing.T) {
		before := d.overview(t, user)
		index := filepath.Join(home, "Maildir")
		for _, name := range []string{"dovecot.index.log", "dovecot.index", "dovecot.index.cache"} {
			if err := os.Remove(filepath.Join(index, name)); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		d.doveadm(t, "force-resync", "-u", user, "*")
		if after := d.overview(t, user); after != before {
			t.Errorf("with the indexes made anew the mail differs:\n%s", firstDifference(before, after))
		}
		cleanLog(t, d.log, nil, "Corrupted", "Panic:", "Fatal:")
	})
}

// overview lists folder, uid, flags and digest of each message.
func (d *dovecot) overview(t *testing.T, user string) string {
	t.Helper()
	return d.doveadm(t, "-f", "tab", "fetch", "-u", user, "mailbox uid flags date.received size.virtual hdr", "mailbox", "*", "all")
}

// wants checks how many messages folders have, by doveadm and by IMAP.
func (d *dovecot) wants(t *testing.T, user string, folders map[string]int) {
	t.Helper()
	c := d.login(t, user, nil)
	defer c.Close()
	for name, want := range folders {
		got := d.doveadm(t, "-f", "tab", "mailbox", "status", "-u", user, "messages", name)
		if !strings.HasSuffix(got, fmt.Sprintf("%s\t%d\n", name, want)) {
			t.Errorf("doveadm counts %q in %s, want %d", got, name, want)
		}
		status, err := c.Status(name, &imap.StatusOptions{NumMessages: true}).Wait()
		ok(t, "STATUS", err)
		if int(*status.NumMessages) != want {
			t.Errorf("IMAP counts %d in %s, want %d", *status.NumMessages, name, want)
		}
	}
}

// firstDifference shows the first line in which two texts differ.
func firstDifference(a, b string) string {
	one, two := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range max(len(one), len(two)) {
		x, y := "(end)", "(end)"
		if i < len(one) {
			x = one[i]
		}
		if i < len(two) {
			y = two[i]
		}
		if x != y {
			return fmt.Sprintf("line %d is\n%.300q\nand\n%.300q", i+1, x, y)
		}
	}
	return "(none)"
}
