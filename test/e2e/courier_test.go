package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"golang.org/x/sync/errgroup"

	"pillarbox/test/mailset"
)

// maildrop delivers each message with a process of its own, under the uid of
// the mail.
func maildrop(t *testing.T, s *site, set []mailset.Message, domain, user string) {
	t.Helper()
	maildir := filepath.Join(s.mail, domain, user, "Maildir")
	filter := write(t, filepath.Join(s.base, "mailfilter"), s.sample(t, "`/etc/postfix/mailfilter`"), 0o600)
	ok(t, "chown", os.Chown(filter, vmailID, vmailID))
	maildirmake := command(vmailID, serversRoot+"/usr/bin/maildirmake.maildrop", maildir)
	maildirmake.Env = append(maildirmake.Env, libraryPath())
	if out, err := maildirmake.CombinedOutput(); err != nil {
		t.Fatalf("maildirmake: %v: %s", err, out)
	}
	var group errgroup.Group
	group.SetLimit(4)
	for _, m := range set {
		group.Go(func() error {
			cmd := command(vmailID, serversRoot+"/usr/bin/maildrop", filter, domain, user)
			cmd.Env = append(cmd.Env, libraryPath())
			cmd.Stdin = strings.NewReader(string(m.Stored()))
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("delivering %s: %w: %s", m.ID, err, out)
			}
			return nil
		})
	}
	ok(t, "maildrop", group.Wait())
}

// courier runs Courier's imapd for one user who is already authenticated, as
// couriertcpd and authdaemon would, over a pair of sockets.
func courier(t *testing.T, s *site, home string) *imapclient.Client {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	ok(t, "socketpair", err)
	ours, theirs := os.NewFile(uintptr(fds[0]), "client"), os.NewFile(uintptr(fds[1]), "imapd")
	conn, err := net.FileConn(ours)
	ok(t, "socketpair", err)
	ours.Close()
	settings := strings.Split(strings.TrimSpace(strings.ReplaceAll(s.sample(t, "`/etc/courier/imapd`"), `"`, "")), "\n")
	cmd := command(vmailID, serversRoot+"/usr/bin/imapd", strings.TrimPrefix(settings[0], "MAILDIRPATH="))
	cmd.Env = append(append(cmd.Env, settings...), libraryPath(), "AUTHENTICATED=user", "AUTHADDR=user", "AUTHUSER=user",
		"TCPREMOTEIP=127.0.0.1", "HOME="+home, "IMAP_ACL=0", "IMAP_IDLE_TIMEOUT=1")
	cmd.Dir = home
	log, err := os.CreateTemp("", "courier")
	ok(t, "log", err)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, log
	ok(t, "starting imapd", cmd.Start())
	theirs.Close()
	client := imapclient.New(conn, nil)
	t.Cleanup(func() {
		client.Close()
		end := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil {
			t.Errorf("imapd: %v", err)
		}
		end.Stop()
		endBelow(t, home, "gam_server")
		if text, err := os.ReadFile(log.Name()); err != nil || t.Failed() {
			t.Logf("imapd said: %s %v", tail(text), err)
		}
		log.Close()
		os.Remove(log.Name())
	})
	ok(t, "greeting", client.WaitGreeting())
	return client
}

// endBelow ends the processes of a name that work below a directory: Courier's
// library for file events starts a daemon that stays for a while.
func endBelow(t *testing.T, dir, name string) {
	t.Helper()
	waitFor(t, name+" to end", 20*time.Second, func() bool {
		procs, err := filepath.Glob("/proc/[0-9]*")
		ok(t, "listing processes", err)
		left := false
		for _, proc := range procs {
			// A process may end while we look at it.
			comm, _ := os.ReadFile(proc + "/comm")
			cwd, _ := os.Readlink(proc + "/cwd")
			if strings.TrimSpace(string(comm)) != name || !strings.HasPrefix(cwd, dir) {
				continue
			}
			left = true
			if pid, err := strconv.Atoi(filepath.Base(proc)); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		return !left
	})
}

// TestCourier delivers by maildrop and reads, flags, copies and expunges
// through Courier-IMAP.
func TestCourier(t *testing.T) {
	s, set := newSite(t), loadMail(t, 1000)
	home := s.account(t, "courier.test", "user", vmailID)
	maildir := filepath.Join(home, "Maildir")
	maildrop(t, s, set, "courier.test", "user")
	byFile, byIMAP := newCheck(set), newCheck(set)
	byFile.eachFile(t, byFile.same, []string{maildir})
	byFile.complete(t, 1)

	c := courier(t, s, home)
	if n := selectBox(t, c, "INBOX"); n != len(set) {
		t.Fatalf("INBOX has %d messages, not %d", n, len(set))
	}
	cmd := c.Fetch(all(), &imap.FetchOptions{UID: true, BodySection: []*imap.FetchItemBodySection{whole}})
	bufs, err := cmd.Collect()
	ok(t, "FETCH", err)
	for _, buf := range bufs {
		byIMAP.same(t, fmt.Sprintf("IMAP uid %d", buf.UID), fromWire(buf.FindBodySection(whole)))
	}
	byIMAP.complete(t, 1)

	uids := search(t, c, &imap.SearchCriteria{})
	odd := pick(uids, 2)
	ok(t, "CREATE", c.Create("INBOX.Archive", nil).Wait())
	ok(t, "STORE", storeFlags(c, odd, imap.StoreFlagsAdd, imap.FlagSeen, imap.FlagAnswered))
	_, err = c.Copy(odd, "INBOX.Archive").Wait()
	ok(t, "COPY", err)
	ok(t, "STORE", storeFlags(c, odd, imap.StoreFlagsAdd, imap.FlagDeleted))
	gone, err := c.Expunge().Collect()
	ok(t, "EXPUNGE", err)
	if len(gone) != number(odd) {
		t.Errorf("EXPUNGE removed %d messages, not %d", len(gone), number(odd))
	}
	if n := len(maildirFiles(t, maildir)); n != len(set)-number(odd) {
		t.Errorf("INBOX holds %d files, not %d", n, len(set)-number(odd))
	}
	if n := selectBox(t, c, "INBOX.Archive"); n != number(odd) {
		t.Errorf("Archive has %d messages, not %d", n, number(odd))
	}
	if n := len(search(t, c, &imap.SearchCriteria{Flag: []imap.Flag{imap.FlagAnswered}})); n != number(odd) {
		t.Errorf("%d copies are answered, not %d", n, number(odd))
	}
	ok(t, "LOGOUT", c.Logout().Wait())
}
