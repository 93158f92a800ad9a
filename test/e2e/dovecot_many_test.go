package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"golang.org/x/sync/errgroup"
)

// TestDovecotManyClients has several clients and LMTP deliveries work on one
// mailbox at once: nothing may be lost, doubled or reported as corrupt.
func TestDovecotManyClients(t *testing.T) {
	const clients = 6
	s, set := newSite(t), loadMail(t, 600)
	s.account(t, "many.test", "user", vmailID)
	d := startDovecot(t, s)
	half := len(set) / 2
	first, second := set[:half], set[half:]
	inject(t, d.lmtp, "LHLO", 4, first, func(int) string { return "user@many.test" })
	admin := d.login(t, "user@many.test", nil)
	ok(t, "CREATE", admin.Create("Work", nil).Wait())
	selectBox(t, admin, "INBOX")
	uids := search(t, admin, &imap.SearchCriteria{})

	var group errgroup.Group
	for k := range clients {
		var mine []imap.UID
		for i := k; i < len(uids); i += clients {
			mine = append(mine, uids[i])
		}
		group.Go(func() error { return workOn(d, mine, uids[(k*7)%len(uids)]) })
	}
	group.Go(func() error {
		c, err := dialTransfer(address(d.lmtp), "LHLO")
		if err != nil {
			return err
		}
		defer c.Close()
		for i, m := range second {
			if err := c.send(sender(half+i), "user@many.test", m.Wire()); err != nil {
				return err
			}
		}
		return nil
	})
	ok(t, "working at once", group.Wait())

	c := newCheck(set)
	inbox := selectBox(t, admin, "INBOX")
	c.fetchAll(t, admin)
	work := selectBox(t, admin, "Work")
	c.fetchAll(t, admin)
	c.complete(t, 1)
	moved := 0 // each client moved every second one of its messages
	for k := range clients {
		moved += ((len(uids)-k+clients-1)/clients + 1) / 2
	}
	if inbox+work != len(set) || work != moved {
		t.Errorf("INBOX has %d and Work %d messages, want %d in all and %d moved", inbox, work, len(set), moved)
	}
	d.checkLog(t)
}

// workOn flags a client's own messages one by one, moves every second one and
// copies and expunges as it goes. shared is a message everybody flags.
func workOn(d *dovecot, mine []imap.UID, shared imap.UID) error {
	c, err := d.dial("user@many.test", nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Select("INBOX", nil).Wait(); err != nil {
		return err
	}
	for i, uid := range mine {
		one := imap.UIDSetNum(uid)
		if err := storeFlags(c, one, imap.StoreFlagsAdd, imap.FlagSeen, imap.Flag(fmt.Sprintf("k%d", i%5))); err != nil {
			return fmt.Errorf("STORE: %w", err)
		}
		if err := storeFlags(c, imap.UIDSetNum(shared), imap.StoreFlagsAdd, imap.FlagFlagged); err != nil {
			return fmt.Errorf("STORE on a shared message: %w", err)
		}
		if i%2 == 0 {
			if _, err := c.Move(one, "Work").Wait(); err != nil {
				return fmt.Errorf("MOVE: %w", err)
			}
		}
		if i%10 == 0 {
			if err := c.Noop().Wait(); err != nil {
				return fmt.Errorf("NOOP: %w", err)
			}
		}
	}
	return c.Logout().Wait()
}

// pick is every n-th uid.
func pick(uids []imap.UID, n int) imap.UIDSet {
	var set imap.UIDSet
	for i := 0; i < len(uids); i += n {
		set.AddNum(uids[i])
	}
	return set
}

// number is how many messages a set names.
func number(set imap.UIDSet) int {
	nums, _ := set.Nums()
	return len(nums)
}

// folder is the directory of a mailbox in Maildir++.
func folder(s *site, account, name string) string {
	dir := filepath.Join(s.mail, account, "Maildir")
	if name == "INBOX" {
		return dir
	}
	return filepath.Join(dir, "."+name)
}

func globDirs(t *testing.T, pattern string) []string {
	t.Helper()
	dirs, err := filepath.Glob(pattern)
	ok(t, "listing folders", err)
	return dirs
}

// virtualSize is a file's size with CRLF line ends.
func virtualSize(t *testing.T, file string) int64 {
	t.Helper()
	text, err := os.ReadFile(file)
	ok(t, "reading a message", err)
	size := int64(len(text))
	for i, b := range text {
		if b == '\n' && (i == 0 || text[i-1] != '\r') {
			size++
		}
	}
	return size
}

// hear waits for something a server says by itself.
func hear[T any](t *testing.T, from chan T, right func(T) bool) {
	t.Helper()
	limit := time.After(awake)
	for {
		select {
		case x := <-from:
			if right(x) {
				return
			}
		case <-limit:
			t.Fatalf("the idling client heard nothing for %v", awake)
		}
	}
}
