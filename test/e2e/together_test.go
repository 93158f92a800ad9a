package e2e

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"golang.org/x/sync/errgroup"

	"pillarbox/test/mailset"
)

var togetherMail = flag.Int("messages", 200, "how many messages TestTwoHosts delivers; 0: all there are")

const (
	togetherUser     = "user@example.org"
	togetherSessions = 4
)

// together is what sessions on several hosts know of the mailbox that all have
// open, and what has to be found in the end.
type together struct {
	set       []mailset.Message
	delivered chan struct{} // closed when all are

	mu       sync.Mutex
	validity uint32
	uids     map[imap.UID]int        // what INBOX had under each, by its number in set
	numbers  map[int]imap.UID        // and the reverse
	flags    map[int]map[string]bool // what was set and not taken away
	gone     map[int]bool            // expunged
	work     map[int]bool            // moved to Work
}

// TestTwoHosts has one user's mailbox open through Dovecot on two hosts, with stock settings for
// locks, fsync and mmap and its indexes on the mount, while both deliver to it by LMTP and
// Postfix does on a third, and sessions on both flag, move and expunge. No UID may
// ever mean another message, no message be lost or doubled, no flag be forgotten, and
// no index be damaged.
func TestTwoHosts(t *testing.T) {
	hosts := newHosts(t, 3)
	set := loadMail(t, *togetherMail)
	hosts[0].account(t, "example.org", "user", vmailID)
	servers := []*dovecot{startDovecot(t, hosts[0]), startDovecot(t, hosts[1])}
	p := startPostfix(t, hosts[2], []string{"user"})
	admin := servers[0].login(t, togetherUser, nil)
	ok(t, "CREATE", admin.Create("Work", nil).Wait())
	w := &together{
		set: set, delivered: make(chan struct{}), uids: map[imap.UID]int{}, numbers: map[int]imap.UID{},
		flags: map[int]map[string]bool{}, gone: map[int]bool{}, work: map[int]bool{},
	}
	var sessions, deliveries errgroup.Group
	for k := range togetherSessions {
		sessions.Go(func() error {
			if err := w.session(servers[k%2], k); err != nil {
				return fmt.Errorf("session %d: %w", k, err)
			}
			return nil
		})
	}
	for i, by := range []struct {
		port  int
		hello string
	}{{servers[0].lmtp, "LHLO"}, {servers[1].lmtp, "LHLO"}, {p.port, "EHLO"}} {
		deliveries.Go(func() error { return w.deliver(by.port, by.hello, i, 3) })
	}
	err := deliveries.Wait()
	if err == nil {
		p.delivered(t, 5*time.Minute)
	}
	close(w.delivered)
	ok(t, "working at once", sessions.Wait())
	ok(t, "delivering on three hosts", err)
	w.verify(t, servers)
	for _, d := range servers {
		d.checkLog(t)
	}
	p.checkLog(t)
}

// deliver sends every n-th message, from the i-th on.
func (w *together) deliver(port int, hello string, i, n int) error {
	c, err := dialTransfer(address(port), hello)
	if err != nil {
		return err
	}
	defer c.Close()
	for ; i < len(w.set); i += n {
		if err := c.send(sender(i), togetherUser, w.set[i].Wire()); err != nil {
			return fmt.Errorf("message %s: %w", w.set[i].ID, err)
		}
	}
	return c.ask(221, "QUIT")
}

// session is one that works on what comes until all is delivered and done with.
func (w *together) session(d *dovecot, k int) error {
	news := make(chan struct{}, 1)
	c, err := d.dial(togetherUser, &imapclient.Options{UnilateralDataHandler: &imapclient.UnilateralDataHandler{
		Mailbox: func(data *imapclient.UnilateralDataMailbox) {
			select {
			case news <- struct{}{}:
			default:
			}
		},
	}})
	if err != nil {
		return err
	}
	defer c.Close()
	box, err := c.Select("INBOX", nil).Wait()
	if err != nil {
		return fmt.Errorf("SELECT: %w", err)
	}
	if err := w.sameValidity(box.UIDValidity); err != nil {
		return err
	}
	last := imap.UID(0)
	for {
		over := false
		select {
		case <-w.delivered:
			over = true
		default:
		}
		if err := c.Noop().Wait(); err != nil {
			return fmt.Errorf("NOOP: %w", err)
		}
		found, err := w.look(c, last)
		if err != nil {
			return err
		}
		for _, uid := range found {
			if err := w.handle(c, uid, k); err != nil {
				return fmt.Errorf("UID %d: %w", uid, err)
			}
			last = uid
		}
		switch {
		case len(found) > 0:
		case over:
			return c.Logout().Wait()
		default:
			if err := w.idle(c, news); err != nil {
				return err
			}
		}
	}
}

// idle waits until the server says something of the mailbox, or all is delivered.
func (w *together) idle(c *imapclient.Client, news <-chan struct{}) error {
	idle, err := c.Idle()
	if err != nil {
		return fmt.Errorf("IDLE: %w", err)
	}
	select {
	case <-news:
	case <-w.delivered:
	}
	if err := idle.Close(); err != nil {
		return fmt.Errorf("DONE: %w", err)
	}
	return idle.Wait()
}

func (w *together) sameValidity(v uint32) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.validity == 0 {
		w.validity = v
	}
	if w.validity != v {
		return fmt.Errorf("UIDVALIDITY was %d and is %d", w.validity, v)
	}
	return nil
}

// returnPath names a message of the set.
var returnPath = &imap.FetchItemBodySection{Specifier: imap.PartSpecifierHeader, HeaderFields: []string{"Return-Path"}, Peek: true}

// look takes in which messages have UIDs above last.
func (w *together) look(c *imapclient.Client, last imap.UID) (found []imap.UID, err error) {
	set := imap.UIDSet{imap.UIDRange{Start: last + 1, Stop: 0}}
	list, err := c.Fetch(set, &imap.FetchOptions{UID: true, BodySection: []*imap.FetchItemBodySection{returnPath}}).Collect()
	if err != nil && !strings.Contains(err.Error(), "no longer exist") { // another session expunged some
		return nil, fmt.Errorf("FETCH: %w", err)
	}
	for _, m := range list {
		text := m.FindBodySection(returnPath)
		if m.UID <= last || len(text) == 0 {
			continue
		}
		line, _, _ := bytes.Cut(text, []byte("\r\n")) // others are the message's own
		_, addr, _ := bytes.Cut(line, []byte(":"))
		i, err := senderOf(string(addr))
		if err == nil {
			err = w.same(m.UID, i)
		}
		if err != nil {
			return nil, fmt.Errorf("UID %d: %w", m.UID, err)
		}
		found = append(found, m.UID)
	}
	slices.Sort(found)
	return found, nil
}

// same holds a UID against what was seen under it before, on any host.
func (w *together) same(uid imap.UID, i int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if was, ok := w.uids[uid]; ok && was != i {
		return fmt.Errorf("was message %d and is message %d", was, i)
	}
	if other, ok := w.numbers[i]; ok && other != uid {
		return fmt.Errorf("message %d has UID %d, too", i, other)
	}
	w.uids[uid], w.numbers[i] = i, uid
	return nil
}

// handle does something with a message: one session moves or expunges it, or all
// put flags on it.
func (w *together) handle(c *imapclient.Client, uid imap.UID, k int) error {
	one := imap.UIDSetNum(uid)
	mine := int(uid)%togetherSessions == k
	switch kind := int(uid) / togetherSessions % 5; {
	case kind == 0 && mine:
		if err := w.flag(c, uid, imap.StoreFlagsAdd, imap.FlagSeen, imap.Flag(fmt.Sprint("by", k))); err != nil {
			return err
		}
		if _, err := c.Move(one, "Work").Wait(); err != nil {
			return fmt.Errorf("MOVE: %w", err)
		}
		w.note(w.work, uid)
	case kind == 1 && mine:
		if err := w.flag(c, uid, imap.StoreFlagsAdd, imap.FlagDeleted); err != nil {
			return err
		}
		if err := c.UIDExpunge(one).Close(); err != nil {
			return fmt.Errorf("EXPUNGE: %w", err)
		}
		w.note(w.gone, uid)
	case kind == 2 && mine:
		if err := w.flag(c, uid, imap.StoreFlagsAdd, imap.FlagSeen, imap.FlagAnswered); err != nil {
			return err
		}
		return w.flag(c, uid, imap.StoreFlagsDel, imap.FlagSeen)
	case kind > 2:
		return w.flag(c, uid, imap.StoreFlagsAdd, imap.FlagFlagged, imap.Flag(fmt.Sprint("by", k)))
	}
	return nil
}

func (w *together) note(in map[int]bool, uid imap.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	in[w.uids[uid]] = true
}

func (w *together) flag(c *imapclient.Client, uid imap.UID, op imap.StoreFlagsOp, flags ...imap.Flag) error {
	if err := storeFlags(c, imap.UIDSetNum(uid), op, flags...); err != nil {
		return fmt.Errorf("STORE: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.uids[uid]
	if w.flags[i] == nil {
		w.flags[i] = map[string]bool{}
	}
	for _, f := range flags {
		if w.flags[i][string(f)] = true; op == imap.StoreFlagsDel {
			delete(w.flags[i], string(f))
		}
	}
	return nil
}

// verify compares what both servers show in the end.
func (w *together) verify(t *testing.T, servers []*dovecot) {
	t.Helper()
	var shown [2][]string
	for h, d := range servers {
		check := newCheck(w.set)
		client := d.login(t, togetherUser, nil)
		for _, box := range []string{"INBOX", "Work"} {
			data, err := client.Select(box, nil).Wait()
			ok(t, "SELECT", err)
			if box == "INBOX" {
				ok(t, box, w.sameValidity(data.UIDValidity))
			}
			shown[h] = append(shown[h], w.verifyBox(t, client, box, check)...)
		}
		for i, n := range check.seen {
			want := 1
			if w.gone[i] {
				want = 0
			}
			if n != want {
				t.Errorf("host %d has message %s %d times, not %d", h, w.set[i].ID, n, want)
			}
		}
	}
	if !slices.Equal(shown[0], shown[1]) {
		t.Errorf("the hosts differ:\n%q\n%q", shown[0], shown[1])
	}
	t.Logf("%d messages, of them %d in Work and %d expunged", len(w.set), len(w.work), len(w.gone))
}

// verifyBox lists a mailbox as "UID flags digest".
func (w *together) verifyBox(t *testing.T, client *imapclient.Client, box string, check *check) (shown []string) {
	t.Helper()
	cmd := client.Fetch(all(), &imap.FetchOptions{UID: true, Flags: true, BodySection: []*imap.FetchItemBodySection{whole}})
	for m := cmd.Next(); m != nil; m = cmd.Next() {
		buf, err := m.Collect()
		ok(t, "FETCH", err)
		text := fromWire(buf.FindBodySection(whole))
		check.stored(t, fmt.Sprintf("%s, UID %d", box, buf.UID), text)
		i, err := check.which(text)
		ok(t, box, err)
		flags := map[string]bool{}
		for _, f := range buf.Flags {
			if f != "\\Recent" {
				flags[string(f)] = true
			}
		}
		if !maps.Equal(flags, w.flags[i]) {
			t.Errorf("%s, UID %d, message %s: flags %v, not %v", box, buf.UID, w.set[i].ID, flags, w.flags[i])
		}
		if inWork := box == "Work"; inWork != w.work[i] {
			t.Errorf("message %s is in %s", w.set[i].ID, box)
		} else if !inWork {
			if err := w.same(buf.UID, i); err != nil {
				t.Errorf("UID %d: %v", buf.UID, err)
			}
		}
		shown = append(shown, fmt.Sprint(box, " ", buf.UID, " ", slices.Sorted(maps.Keys(flags)), sha256.Sum256(text)))
	}
	ok(t, "FETCH", cmd.Close())
	return shown
}
