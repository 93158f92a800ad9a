package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"golang.org/x/sync/errgroup"
)

// TestDovecotLMTP delivers the whole set by LMTP and reads it back from disk
// and by IMAP.
func TestDovecotLMTP(t *testing.T) {
	s, set := newSite(t), loadMail(t, 0)
	var users, dirs []string
	for i := range 8 {
		user := fmt.Sprintf("user%d", i)
		users = append(users, user+"@lmtp.test")
		dirs = append(dirs, s.account(t, "lmtp.test", user, vmailID)+"/Maildir")
	}
	d := startDovecot(t, s)
	inject(t, d.lmtp, "LHLO", 8, set, func(i int) string { return users[i%len(users)] })
	byFile, byIMAP := newCheck(set), newCheck(set)
	byFile.maildirs(t, dirs...)
	byFile.complete(t, 1)
	for _, user := range users {
		c := d.login(t, user, nil)
		selectBox(t, c, "INBOX")
		byIMAP.fetchAll(t, c)
		ok(t, "LOGOUT", c.Logout().Wait())
	}
	byIMAP.complete(t, 1)
	d.checkLog(t)
}

// TestDovecotLDA delivers through dovecot-lda, one process for each message,
// under the unprivileged uid of the mail.
func TestDovecotLDA(t *testing.T) {
	s, set := newSite(t), loadMail(t, 400)
	dir := s.account(t, "lda.test", "user", vmailID) + "/Maildir"
	d := startDovecot(t, s)
	var group errgroup.Group
	group.SetLimit(4)
	for i, m := range set {
		group.Go(func() error {
			cmd := command(vmailID, "/usr/lib/dovecot/dovecot-lda", "-c", d.conf, "-d", "user@lda.test", "-f", sender(i))
			cmd.Stdin = strings.NewReader(string(m.Stored()))
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("delivering %s: %w: %s", m.ID, err, out)
			}
			return nil
		})
	}
	ok(t, "dovecot-lda", group.Wait())
	c := newCheck(set)
	c.eachFile(t, c.same, []string{dir})
	c.complete(t, 1)
	d.checkLog(t)
}

// TestDovecotIMAP works on one mailbox as a mail program does, and compares
// what is left with what must be.
func TestDovecotIMAP(t *testing.T) {
	s, set := newSite(t), loadMail(t, 600)
	s.account(t, "imap.test", "user", vmailID)
	d := startDovecot(t, s)
	inject(t, d.lmtp, "LHLO", 4, set, func(int) string { return "user@imap.test" })
	c := d.login(t, "user@imap.test", nil)
	if n := selectBox(t, c, "INBOX"); n != len(set) {
		t.Fatalf("INBOX has %d messages, not %d", n, len(set))
	}
	uids := search(t, c, &imap.SearchCriteria{})
	odd, third := pick(uids, 2), pick(uids, 3)
	for _, name := range []string{"Archive", "Archive.2002", "Moved", "Sent"} {
		ok(t, "CREATE", c.Create(name, nil).Wait())
	}
	ok(t, "STORE", storeFlags(c, odd, imap.StoreFlagsAdd, imap.FlagSeen, imap.FlagFlagged))
	ok(t, "STORE", storeFlags(c, third, imap.StoreFlagsAdd, imap.FlagAnswered, "project"))
	ok(t, "STORE", storeFlags(c, odd, imap.StoreFlagsDel, imap.FlagFlagged))
	copied, err := c.Copy(odd, "Archive").Wait()
	ok(t, "COPY", err)
	if got, want := number(copied.DestUIDs), number(odd); got != want {
		t.Errorf("COPY made %d messages, not %d", got, want)
	}
	// Copies are hard links, as Dovecot makes them by default.
	links := must(t, 0, "find", s.mail+"/imap.test/user", "-path", "*/cur/*", "-links", "2")
	if got := strings.Count(links, "\n"); got != 2*number(odd) {
		t.Errorf("%d names of copied messages have two links, want %d", got, 2*number(odd))
	}
	_, err = c.Move(third, "Moved").Wait()
	ok(t, "MOVE", err)
	ok(t, "RENAME", c.Rename("Archive.2002", "Archive.2003", nil).Wait())
	appended := append([]byte("Subject: appended\r\n\r\n"), strings.Repeat("0123456789\r\n", 50000)...)
	app := c.Append("Sent", int64(len(appended)), &imap.AppendOptions{Flags: []imap.Flag{imap.FlagSeen}})
	if _, err := app.Write(appended); err != nil {
		t.Fatal(err)
	}
	ok(t, "APPEND", app.Close())
	_, err = app.Wait()
	ok(t, "APPEND", err)
	t.Run("search", func(t *testing.T) { searches(t, c, len(uids), number(odd), number(third)) })
	t.Run("quota", func(t *testing.T) { quota(t, d, "user@imap.test", s, len(set)+number(odd)+1) })

	rest := number(imap.UIDSetNum(uids...)) - number(third)
	gone := pick(search(t, c, &imap.SearchCriteria{}), 5)
	ok(t, "STORE", storeFlags(c, gone, imap.StoreFlagsAdd, imap.FlagDeleted))
	expunged, err := c.Expunge().Collect()
	ok(t, "EXPUNGE", err)
	if len(expunged) != number(gone) {
		t.Errorf("EXPUNGE removed %d messages, not %d", len(expunged), number(gone))
	}
	for name, want := range map[string]int{"INBOX": rest - number(gone), "Archive": number(odd), "Moved": number(third), "Sent": 1} {
		if n := selectBox(t, c, name); n != want {
			t.Errorf("%s has %d messages, not %d", name, n, want)
		}
		if name == "Sent" {
			continue
		}
		chk := newCheck(set)
		chk.fetchAll(t, c)
		if dir := folder(s, "imap.test/user", name); len(maildirFiles(t, dir)) != want {
			t.Errorf("%s holds %d files, not %d", dir, len(maildirFiles(t, dir)), want)
		}
	}
	for _, name := range []string{"Archive.2003", "Archive", "Moved"} {
		ok(t, "DELETE", c.Delete(name).Wait())
	}
	d.checkLog(t)
}

// searches checks counts that follow from the flags set before. A message is
// in third or not; those in third have left the mailbox.
func searches(t *testing.T, c *imapclient.Client, total, odd, third int) {
	both := (total + 5) / 6
	for _, x := range []struct {
		name string
		by   *imap.SearchCriteria
		want int
	}{
		{"all", &imap.SearchCriteria{}, total - third},
		{"seen", &imap.SearchCriteria{Flag: []imap.Flag{imap.FlagSeen}}, odd - both},
		{"flagged", &imap.SearchCriteria{Flag: []imap.Flag{imap.FlagFlagged}}, 0},
		{"keyword", &imap.SearchCriteria{Flag: []imap.Flag{"project"}}, 0},
		{"header", &imap.SearchCriteria{Header: []imap.SearchCriteriaHeaderField{{Key: "Delivered-To", Value: "user@imap.test"}}}, total - third},
		{"body", &imap.SearchCriteria{Body: []string{"no message of the set says this"}}, 0},
	} {
		if got := len(search(t, c, x.by)); got != x.want {
			t.Errorf("SEARCH %s finds %d, not %d", x.name, got, x.want)
		}
	}
}

// quota compares Dovecot's count with the files, line ends counted as CRLF.
func quota(t *testing.T, d *dovecot, user string, s *site, messages int) {
	var bytes int64
	local, domain, _ := strings.Cut(user, "@")
	home := filepath.Join(s.mail, domain, local, "Maildir")
	for _, dir := range append(globDirs(t, home+"/.*"), home) {
		for _, file := range maildirFiles(t, dir) {
			bytes += virtualSize(t, file)
		}
	}
	want := fmt.Sprintf("User quota\tSTORAGE\t%d\t-\t0\nUser quota\tMESSAGE\t%d\t-\t0\n", (bytes+1023)/1024, messages)
	if got := d.doveadm(t, "-f", "tab", "quota", "get", "-u", user); !strings.HasSuffix(got, want) {
		t.Errorf("quota is\n%swant\n%s", got, want)
	}
	d.doveadm(t, "quota", "recalc", "-u", user)
	if got := d.doveadm(t, "-f", "tab", "quota", "get", "-u", user); !strings.HasSuffix(got, want) {
		t.Errorf("recalculated, quota is\n%swant\n%s", got, want)
	}
}

// TestDovecotIdle has a client wait in IDLE while a message comes by LMTP, and
// another client change a flag.
func TestDovecotIdle(t *testing.T) {
	s, set := newSite(t), loadMail(t, 5)
	s.account(t, "idle.test", "user", vmailID)
	d := startDovecot(t, s)
	exists, flags := make(chan uint32, 100), make(chan []imap.Flag, 100)
	c := d.login(t, "user@idle.test", &imapclient.Options{UnilateralDataHandler: &imapclient.UnilateralDataHandler{
		Mailbox: func(data *imapclient.UnilateralDataMailbox) {
			if data.NumMessages != nil {
				exists <- *data.NumMessages
			}
		},
		Fetch: func(msg *imapclient.FetchMessageData) {
			if buf, err := msg.Collect(); err == nil {
				flags <- buf.Flags
			}
		},
	}})
	selectBox(t, c, "INBOX")
	idle, err := c.Idle()
	ok(t, "IDLE", err)
	for i := range set {
		inject(t, d.lmtp, "LHLO", 1, set[i:i+1], func(int) string { return "user@idle.test" })
		hear(t, exists, func(n uint32) bool { return n == uint32(i+1) })
	}
	other := d.login(t, "user@idle.test", nil)
	selectBox(t, other, "INBOX")
	ok(t, "STORE", storeFlags(other, imap.SeqSetNum(2), imap.StoreFlagsAdd, imap.FlagFlagged))
	hear(t, flags, func(f []imap.Flag) bool {
		for _, flag := range f {
			if flag == imap.FlagFlagged {
				return true
			}
		}
		return false
	})
	ok(t, "DONE", idle.Close())
	ok(t, "IDLE", idle.Wait())
	d.checkLog(t)
}
