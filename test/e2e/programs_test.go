package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"pillarbox/test/mailset"
)

// TestMutt has mutt, on a terminal of its own, copy, flag and delete messages
// of a Maildir, and file what it sends.
func TestMutt(t *testing.T) {
	s, set := toolSite(t, newSite(t)), loadMail(t, 200)
	fill(t, s, set)
	home := filepath.Join(s.mail, "example.org", "a")
	scratch := filepath.Join(s.base, "mutt")
	rc := write(t, filepath.Join(s.base, "muttrc"), fmt.Sprintf(`
set mbox_type=Maildir folder=%[1]s spoolfile=%[1]s/Maildir record=%[1]s/Sent
set quit=yes delete=yes confirmappend=no confirmcreate=no move=no mark_old=no wait_key=no
set sendmail=/bin/true tmpdir=%[2]s header_cache="" from=a@example.org
`, home, scratch), 0o644)
	mkdir(t, scratch, vmailID, 0o700)
	// The patterns go by number, so that what must be left is known.
	keys := "<tag-pattern>~m1-50<enter><tag-prefix><copy-message>=Copy<enter><untag-pattern>~A<enter>" +
		"<tag-pattern>~m101-120<enter><tag-prefix><flag-message><untag-pattern>~A<enter><delete-pattern>~m151-200<enter><sync-mailbox><quit>"
	mutt := fmt.Sprintf("mutt -n -F %s -f %s/Maildir -e 'set sort=mailbox-order' -e 'push %s'", rc, home, keys)
	cmd := command(vmailID, "timeout", "60", "script", "-qec", mutt, "/dev/null")
	cmd.Env = append(cmd.Env, "TERM=xterm", "HOME="+scratch, "TMPDIR="+scratch, "LINES=40", "COLUMNS=120")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mutt: %v\n%s", err, tail(out))
	}
	left := newCheck(set)
	left.eachFile(t, left.same, []string{home + "/Maildir"})
	for what, n := range map[string][2]int{
		"messages left": {total(left.seen), 150}, "copies": {bodies(t, set[:50], home+"/Copy"), 50},
		"flagged": {strings.Count(must(t, 0, "find", home+"/Maildir/cur", "-name", "*:2,*F*"), "\n"), 20},
	} {
		if n[0] != n[1] {
			t.Errorf("%s: %d, want %d", what, n[0], n[1])
		}
	}
	send := command(vmailID, "mutt", "-n", "-F", rc, "-s", "in batch", "someone@example.net")
	send.Env = append(send.Env, "HOME="+scratch, "TMPDIR="+scratch)
	send.Stdin = strings.NewReader("a line\n")
	if out, err := send.CombinedOutput(); err != nil {
		t.Fatalf("mutt in batch: %v\n%s", err, out)
	}
	if n := len(maildirFiles(t, home+"/Sent")); n != 1 {
		t.Errorf("%d messages in Sent, want 1", n)
	}
}

// bodies counts the messages of a Maildir whose body is one of the set: mutt
// adds fields to the header of a copy.
func bodies(t *testing.T, set []mailset.Message, maildir string) int {
	t.Helper()
	known, n := map[string]bool{}, 0
	body := func(msg []byte) string {
		_, text, _ := bytes.Cut(msg, []byte("\n\n"))
		return string(text)
	}
	for _, m := range set {
		known[body(m.Stored())] = true
	}
	for _, file := range maildirFiles(t, maildir) {
		got, err := os.ReadFile(file)
		ok(t, "reading a copy", err)
		if known[body(got)] {
			n++
		}
	}
	return n
}

func total(seen []int) int {
	n := 0
	for _, k := range seen {
		n += k
	}
	return n
}

// TestMbsync mirrors an IMAP account into a Maildir on the mount, and that one
// into another, both ways.
func TestMbsync(t *testing.T) {
	s, set := newSite(t), loadMail(t, 500)
	s.account(t, "sync.test", "user", vmailID)
	near := s.account(t, "sync.test", "near", vmailID)
	far := s.account(t, "other.test", "far", vmailID)
	d := startDovecot(t, s)
	inject(t, d.lmtp, "LHLO", 4, set, func(int) string { return "user@sync.test" })
	d.doveadm(t, "mailbox", "create", "-u", "user@sync.test", "Archive")
	d.doveadm(t, "move", "-u", "user@sync.test", "Archive", "mailbox", "INBOX", "1:100")
	rc := write(t, filepath.Join(s.base, "mbsyncrc"), fmt.Sprintf(`
IMAPAccount dovecot
Host 127.0.0.1
Port %[1]d
User user@sync.test
Pass %[2]s
SSLType None
AuthMechs LOGIN

IMAPStore dovecot
Account dovecot

MaildirStore near
Path %[3]s/mail/
Inbox %[3]s/Maildir
SubFolders Verbatim

MaildirStore far
Path %[4]s/mail/
Inbox %[4]s/Maildir
SubFolders Verbatim

Channel imap
Far :dovecot:
Near :near:
Patterns INBOX *
Create Near
Expunge Both
Remove Near
SyncState *

Channel copy
Far :far:
Near :near:
Patterns INBOX *
Create Far
Expunge Both
SyncState %[5]s/state/
`, d.imap, dovecotPassword, near, far, s.base), 0o644)
	mkdir(t, s.base+"/state", vmailID, 0o700)
	mkdir(t, near+"/mail", vmailID, 0o700)
	mkdir(t, far+"/mail", vmailID, 0o700)
	mbsync := func(channel string) {
		t.Helper()
		if out, err := command(vmailID, "mbsync", "-c", rc, channel).CombinedOutput(); err != nil {
			t.Fatalf("mbsync %s: %v\n%s", channel, err, out)
		}
	}
	// The X-TUID field is how mbsync finds a message that it has just stored.
	tuid := regexp.MustCompile(`(?m)^X-TUID: .*\n`)
	compare := func(dir string, folders ...string) {
		t.Helper()
		c := newCheck(set)
		var dirs []string
		for _, folder := range folders {
			dirs = append(dirs, filepath.Join(dir, folder))
		}
		c.eachFile(t, func(t *testing.T, where string, got []byte) {
			c.stored(t, where, tuid.ReplaceAll(got, nil))
		}, dirs)
		c.complete(t, 1)
	}
	mbsync("imap")
	compare(near, "Maildir", "mail/Archive")
	mbsync("copy")
	compare(far, "Maildir", "mail/Archive")

	before := must(t, 0, "find", near, far, "-path", "*/cur/*", "-printf", "%i %p\n")
	mbsync("imap")
	mbsync("copy")
	if after := must(t, 0, "find", near, far, "-path", "*/cur/*", "-printf", "%i %p\n"); after != before {
		t.Errorf("a second run changed something: %s", firstDifference(before, after))
	}
	// A flag and an expunge travel from one end to the other.
	d.doveadm(t, "flags", "add", "-u", "user@sync.test", `\Flagged`, "mailbox", "INBOX", "1:30")
	d.doveadm(t, "expunge", "-u", "user@sync.test", "mailbox", "Archive", "1:40")
	mbsync("imap")
	mbsync("copy")
	if n := strings.Count(must(t, 0, "find", far+"/Maildir", "-name", "*:2,*F*"), "\n"); n != 30 {
		t.Errorf("%d flagged messages arrived, want 30", n)
	}
	if n := len(maildirFiles(t, far+"/mail/Archive")); n != 60 {
		t.Errorf("%d messages are left in Archive, want 60", n)
	}
	d.checkLog(t)
}

// TestVolumes checks what only a store does: accounts are volumes.
func TestVolumes(t *testing.T) {
	if plain() {
		t.Log("a plain directory has no volumes")
		return
	}
	s := toolSite(t, newSite(t))
	one, other := s.mail+"/example.org/a/f", s.mail+"/example.org/b/f"
	write(t, one, "text", 0o600)
	for what, err := range map[string]error{"link": os.Link(one, other), "rename": syscall.Rename(one, other)} {
		if !errors.Is(err, syscall.EXDEV) {
			t.Errorf("%s across accounts: %v, want EXDEV", what, err)
		}
	}
	var before, after syscall.Stat_t
	ok(t, "stat", syscall.Stat(one, &before))
	ok(t, "renaming a user", os.Rename(s.mail+"/example.org/a", s.mail+"/example.org/renamed"))
	ok(t, "stat", syscall.Stat(s.mail+"/example.org/renamed/f", &after))
	if before.Ino != after.Ino {
		t.Errorf("renaming a user moved mail: inode %d became %d", before.Ino, after.Ino)
	}
}

// TestSpace compares df and stat -f with the disk that the store is on.
func TestSpace(t *testing.T) {
	const disk = 1 << 30
	s := toolSite(t, newSmallSite(t, disk))
	columns := func(path string) (size, used, avail int64) {
		t.Helper()
		out := must(t, 0, "df", "--output=size,used,avail", "-B1", path)
		if _, err := fmt.Sscan(out[strings.Index(out, "\n"):], &size, &used, &avail); err != nil {
			t.Fatalf("df prints %q", out)
		}
		return
	}
	size, used, avail := columns(s.mail)
	if size < disk*9/10 || size > disk || used < 0 || used > disk/2 || avail < disk/4 || used+avail > size {
		t.Errorf("df shows size %d, used %d, available %d of a disk of %d", size, used, avail, disk)
	}
	text := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
	for i := range 16 {
		for j := range text[:64] {
			text[j] = byte(i * j)
		}
		write(t, fmt.Sprintf("%s/example.org/a/big%d", s.mail, i), string(text), 0o600)
	}
	// What is written behind counts once it is on the disk.
	const written = 64 << 20
	waitFor(t, "df to show what was written", 30*time.Second, func() bool {
		_, more, less := columns(s.mail)
		return more >= used+written*9/10 && less <= avail-written*9/10
	})
	if _, more, _ := columns(s.mail); more > used+4*written {
		t.Errorf("%d bytes more take df's used from %d to %d", written, used, more)
	}
	if out := must(t, 0, "stat", "-f", "-c", "%l", s.mail); strings.TrimSpace(out) != "255" {
		t.Errorf("stat -f says names have at most %s bytes", out)
	}
}
