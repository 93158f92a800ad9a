package e2e

import (
	"errors"
	"fmt"
	"net/textproto"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"golang.org/x/sync/errgroup"

	"pillarbox/test/mailset"
)

// sending is mail that goes to one user of one server while things break.
type sending struct {
	port      int
	hello, to string
	set       []mailset.Message
	sent      atomic.Int64 // the first so many of the set were taken
	putOff    atomic.Int64 // temporary refusals
}

// run sends until stop is closed. What a server refuses for now is sent again.
func (s *sending) run(stop <-chan struct{}) error {
	c, err := dialTransfer(address(s.port), s.hello)
	if err != nil {
		return err
	}
	defer func() { c.Close() }()
	for i := 0; ; {
		select {
		case <-stop:
			return nil
		default:
		}
		err := c.send(sender(i), s.to, s.set[i%len(s.set)].Wire())
		var answer *textproto.Error
		switch {
		case err == nil:
			i++
			s.sent.Store(int64(i))
			if i == len(s.set) {
				return fmt.Errorf("%s has got all %d messages before everything was broken once", s.to, i)
			}
		case errors.As(err, &answer) && answer.Code/100 == 4:
			s.putOff.Add(1)
			c.Close()
			if c, err = dialTransfer(address(s.port), s.hello); err != nil {
				return err
			}
		default:
			return fmt.Errorf("message %d to %s: %w", i, s.to, err)
		}
	}
}

// TestServersThroughFaults has Postfix on one host and Dovecot on another take mail, and a
// client read and flag it, while an OSD is killed, another freezes, and the monitor
// is killed: no server says that something failed for good, no message is lost or
// doubled, and no flag.
func TestServersThroughFaults(t *testing.T) {
	if plain() {
		t.Skip("a plain directory has no OSDs")
	}
	cl := newCluster(t)
	hosts, set := cl.hosts(2), loadMail(t, 0)
	virtual := hosts[0].account(t, "example.org", "by-postfix", vmailID) + "/Maildir"
	hosts[0].account(t, "example.org", "by-dovecot", vmailID)
	p, d := startPostfix(t, hosts[0], []string{"by-postfix"}), startDovecot(t, hosts[1])
	byPostfix := &sending{port: p.port, hello: "EHLO", to: "by-postfix@example.org", set: set}
	byDovecot := &sending{port: d.lmtp, hello: "LHLO", to: "by-dovecot@example.org", set: set}
	stop := make(chan struct{})
	end := sync.OnceFunc(func() { close(stop) })
	var work errgroup.Group
	reader := &reader{seen: map[imap.UID]bool{}}
	work.Go(func() error { return byPostfix.run(stop) })
	work.Go(func() error { return byDovecot.run(stop) })
	work.Go(func() error { return reader.run(d, byDovecot.to, stop) })
	defer func() { end(); _ = work.Wait() }()

	// goesOn waits until more mail has come both ways, and has been read.
	goesOn := func(when string) {
		t.Helper()
		a, b, c := byPostfix.sent.Load(), byDovecot.sent.Load(), reader.done.Load()
		waitFor(t, "mail to go on "+when, 2*time.Minute, func() bool {
			return byPostfix.sent.Load() >= a+5 && byDovecot.sent.Load() >= b+5 && reader.done.Load() >= c+5
		})
	}
	down := func(i int) {
		t.Helper()
		waitFor(t, fmt.Sprintf("osd.%d to be marked down", i), time.Minute, func() bool { _, up := cl.up(); return !up[i] })
	}
	goesOn("at first")
	cl.osds[0].kill()
	down(0)
	goesOn("with osd.0 killed")
	cl.osds[0] = cl.osds[0].again(t, cl.site, "osd0-again")
	cl.healthy()
	frozen := cl.osds[1].cmd.Process.Pid
	thaw := func() error { return syscall.Kill(frozen, syscall.SIGCONT) }
	defer thaw()
	ok(t, "freezing osd.1", syscall.Kill(frozen, syscall.SIGSTOP))
	down(1)
	goesOn("with osd.1 frozen")
	ok(t, "thawing osd.1", thaw())
	cl.healthy()
	cl.mon.kill()
	goesOn("without a monitor")
	cl.mon = cl.mon.again(t, cl.site, "mon-again")
	cl.healthy()
	goesOn("at last")
	end()
	ok(t, "working through it all", work.Wait())
	p.delivered(t, 3*time.Minute)

	check := newCheck(set[:byPostfix.sent.Load()])
	check.maildirs(t, virtual)
	check.complete(t, 1)
	check = newCheck(set[:byDovecot.sent.Load()])
	client := d.login(t, byDovecot.to, nil)
	selectBox(t, client, "INBOX")
	check.fetchAll(t, client)
	check.complete(t, 1)
	flagged := map[imap.UID]bool{}
	for _, uid := range search(t, client, &imap.SearchCriteria{Flag: []imap.Flag{imap.FlagSeen}}) {
		flagged[uid] = true
	}
	for uid := range reader.seen {
		if !flagged[uid] {
			t.Errorf("UID %d was flagged, and is not", uid)
		}
	}
	t.Logf("Postfix took %d messages, Dovecot %d and put off %d, %d were read and flagged",
		byPostfix.sent.Load(), byDovecot.sent.Load(), byDovecot.putOff.Load(), len(reader.seen))
	cleanLog(t, p.log, nil, "fatal:", "panic:", "status=bounced")
	cleanLog(t, d.log, slow, "Error:", "Corrupted", "Panic:", "Fatal:")
}

// reader is an IMAP client that reads and flags what comes.
type reader struct {
	done atomic.Int64
	seen map[imap.UID]bool // flags that were acknowledged
}

func (r *reader) run(d *dovecot, user string, stop <-chan struct{}) error {
	c, err := d.dial(user, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Select("INBOX", nil).Wait(); err != nil {
		return fmt.Errorf("SELECT: %w", err)
	}
	for {
		select {
		case <-stop:
			return c.Logout().Wait()
		default:
		}
		found, err := c.UIDSearch(&imap.SearchCriteria{NotFlag: []imap.Flag{imap.FlagSeen}}, nil).Wait()
		if err != nil {
			return fmt.Errorf("SEARCH: %w", err)
		}
		if len(found.AllUIDs()) == 0 {
			select {
			case <-time.After(50 * time.Millisecond):
			case <-stop:
			}
		}
		for _, uid := range found.AllUIDs() {
			set := imap.UIDSetNum(uid)
			if err := c.Fetch(set, &imap.FetchOptions{BodySection: []*imap.FetchItemBodySection{whole}}).Close(); err != nil {
				return fmt.Errorf("FETCH: %w", err)
			}
			if err := storeFlags(c, set, imap.StoreFlagsAdd, imap.FlagSeen); err != nil {
				return fmt.Errorf("STORE: %w", err)
			}
			r.seen[uid] = true
			r.done.Add(1)
		}
	}
}
