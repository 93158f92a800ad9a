package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"golang.org/x/sync/errgroup"
)

// newHosts is two sites that share one store: a cluster of a monitor and three
// OSDs, mounted twice, as two mail hosts would.
func newHosts(t *testing.T) (a, b *site) {
	t.Helper()
	if plain() {
		a, b = newSite(t), &site{base: newBase(t)}
		b.mail = a.mail
		return a, b
	}
	program, err := buildProgram()
	ok(t, "building", err)
	base := newBase(t)
	c := &site{base: base}
	conf := filepath.Join(base, "admin")
	run := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(must(t, 0, append([]string{program}, args...)...))
	}
	env := []string{"HOME=/nonexistent"}
	run("init", "--data", base+"/mon", "--addr", address(freePort(t)), "--peer-addr", address(freePort(t)), "--conf", conf)
	var daemons []*daemon
	daemons = append(daemons, start(t, c, "mon", env, program, "mon", "--data", base+"/mon"))
	waitFor(t, "the monitor", 30*time.Second, func() bool { return command(0, program, "status", "--conf", conf).Run() == nil })
	for i := range 3 {
		data := fmt.Sprintf("%s/osd%d", base, i)
		daemons = append(daemons, start(t, c, fmt.Sprint("osd", i), env, program, "osd", "--data", data, "--addr", address(freePort(t)),
			"--host", fmt.Sprint("h", i), "--weight", "1", "--token", run("token", "create", "osd", "--conf", conf)))
	}
	waitFor(t, "a healthy cluster", 60*time.Second, func() bool {
		var st struct {
			Health string
			OSDs   []struct{ Up bool }
		}
		out, err := command(0, program, "status", "--format", "json", "--conf", conf).Output()
		return err == nil && json.Unmarshal(out, &st) == nil && st.Health == "HEALTH_OK" && len(st.OSDs) == 3
	})
	var sites []*site
	for _, name := range []string{"mx1", "mx2"} {
		s := &site{base: newBase(t)}
		s.mail = filepath.Join(s.base, "mail")
		mkdir(t, s.mail, 0, 0o755)
		before := device(t, s.mail)
		client := filepath.Join(s.base, "conf")
		run("join", "--conf", client, run("token", "create", "client", "client."+name, "--conf", conf))
		daemons = append(daemons, start(t, s, "pillarbox", env, program, "up", "--conf", client, s.mail))
		waitFor(t, "the store to be mounted", 60*time.Second, func() bool { return device(t, s.mail) != before })
		ok(t, "chmod of the mount", os.Chmod(s.mail, 0o755))
		sites = append(sites, s)
	}
	t.Cleanup(func() {
		for _, d := range slices.Backward(daemons) {
			if err := d.stop(t); err != nil {
				t.Errorf("%s ended with: %v", d.name, err)
			}
		}
	})
	return sites[0], sites[1]
}

// TestTwoHosts has one user's mailbox open through Dovecot on two hosts, while
// both deliver to it, flag, move and expunge: every message is there once, and
// no index is damaged.
func TestTwoHosts(t *testing.T) {
	const clients = 2 // on each host
	a, b := newHosts(t)
	set := loadMail(t, 160)
	a.account(t, "many.test", "user", vmailID)
	da, db := startDovecot(t, a), startDovecot(t, b)
	half := len(set) / 2
	var mu sync.Mutex
	next := 0
	deliver := func(d *dovecot, until int) error {
		c, err := dialTransfer(address(d.lmtp), "LHLO")
		if err != nil {
			return err
		}
		defer c.Close()
		for {
			mu.Lock()
			i := next
			if i < until {
				next++
			}
			mu.Unlock()
			if i >= until {
				return c.ask(221, "QUIT")
			}
			if err := c.send(sender(i), "user@many.test", set[i].Wire()); err != nil {
				return fmt.Errorf("message %s: %w", set[i].ID, err)
			}
		}
	}
	var group errgroup.Group
	for _, d := range []*dovecot{da, db} {
		group.Go(func() error { return deliver(d, half) })
	}
	ok(t, "delivering on two hosts", group.Wait())
	admin := db.login(t, "user@many.test", nil)
	ok(t, "CREATE", admin.Create("Work", nil).Wait())
	if n := selectBox(t, admin, "INBOX"); n != half {
		t.Fatalf("%d messages of %d", n, half)
	}
	uids := search(t, admin, &imap.SearchCriteria{})
	for h, d := range []*dovecot{da, db} {
		for k := range clients {
			var mine []imap.UID
			for i := clients*h + k; i < len(uids); i += 2 * clients {
				mine = append(mine, uids[i])
			}
			group.Go(func() error { return workOn(d, mine, uids[0]) })
		}
		group.Go(func() error { return deliver(d, len(set)) })
	}
	ok(t, "working at once", group.Wait())
	for _, d := range []*dovecot{da, db} {
		c := newCheck(set)
		client := d.login(t, "user@many.test", nil)
		inbox := selectBox(t, client, "INBOX")
		c.fetchAll(t, client)
		work := selectBox(t, client, "Work")
		c.fetchAll(t, client)
		c.complete(t, 1)
		if inbox+work != len(set) {
			t.Errorf("INBOX has %d and Work %d messages, want %d in all", inbox, work, len(set))
		}
		d.checkLog(t)
	}
}

// TestIdleAcrossHosts has clients in IDLE on one host while mail comes on another.
func TestIdleAcrossHosts(t *testing.T) {
	a, b := newHosts(t)
	set := loadMail(t, 20)
	a.account(t, "idle.test", "user", vmailID)
	da, db := startDovecot(t, a), startDovecot(t, b)
	inject(t, da.lmtp, "LHLO", 1, set[:1], func(int) string { return "user@idle.test" })
	exists := make(chan uint32, 100)
	c := db.login(t, "user@idle.test", &imapclient.Options{UnilateralDataHandler: &imapclient.UnilateralDataHandler{
		Mailbox: func(data *imapclient.UnilateralDataMailbox) {
			if data.NumMessages != nil {
				exists <- *data.NumMessages
			}
		},
	}})
	selectBox(t, c, "INBOX")
	idle, err := c.Idle()
	ok(t, "IDLE", err)
	var took []time.Duration
	for i := 1; i < len(set); i++ {
		inject(t, da.lmtp, "LHLO", 1, set[i:i+1], func(int) string { return "user@idle.test" })
		start := time.Now()
		hear(t, exists, func(n uint32) bool { return n == uint32(i+1) })
		took = append(took, time.Since(start))
	}
	ok(t, "DONE", idle.Close())
	ok(t, "IDLE", idle.Wait())
	slices.Sort(took)
	t.Logf("a client in IDLE on another host heard after %v at the median, %v at the latest", took[len(took)/2], took[len(took)-1])
	da.checkLog(t)
	db.checkLog(t)
}
