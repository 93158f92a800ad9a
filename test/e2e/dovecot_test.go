package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

const dovecotPassword = "secret"

type dovecot struct {
	imap, pop3, lmtp int
	conf, log        string
}

// startDovecot serves the users of all domains of the site: /domain/user is
// the home, its Maildir the mail, with indexes beside the mail and default
// settings for them. Every user exists; the password is dovecotPassword.
func startDovecot(t *testing.T, s *site) *dovecot {
	t.Helper()
	base := filepath.Join(s.base, "dovecot")
	d := &dovecot{imap: freePort(t), pop3: freePort(t), lmtp: freePort(t), conf: base + "/dovecot.conf", log: base + "/log"}
	mkdir(t, base, 0, 0o755)
	mkdir(t, base+"/run", 0, 0o755)
	mkdir(t, base+"/state", 0, 0o755)
	// dovecot-lda writes to the same log, under the user's uid.
	write(t, d.log, "", 0o666)
	write(t, d.conf, fmt.Sprintf(`
%[1]s
# What follows only sets the test apart from a server of the machine.
base_dir = %[2]s/run
state_dir = %[2]s/state
log_path = %[3]s
ssl = no
protocol imap {
  mail_max_userip_connections = 50
  # Else every 30 seconds, and a test could not tell that nothing woke a client.
  mailbox_idle_check_interval = 1 hour
}
disable_plaintext_auth = no
passdb {
  driver = static
  args = password=%[4]s
}
protocols = imap pop3 lmtp
listen = 127.0.0.1
service imap-login {
  inet_listener imap {
    port = %[5]d
  }
  inet_listener imaps {
    port = 0
  }
}
service pop3-login {
  inet_listener pop3 {
    port = %[6]d
  }
  inet_listener pop3s {
    port = 0
  }
}
service lmtp {
  inet_listener lmtp {
    address = 127.0.0.1
    port = %[7]d
  }
}
service auth {
  unix_listener auth-userdb {
    mode = 0666
  }
}
service stats {
  unix_listener stats-writer {
    mode = 0666
  }
}
`, s.sample(t, "`/etc/dovecot/dovecot.conf`"), base, d.log, dovecotPassword, d.imap, d.pop3, d.lmtp), 0o644)
	start(t, s, "dovecot-server", nil, "/usr/sbin/dovecot", "-F", "-c", d.conf)
	t.Cleanup(func() {
		if text, err := os.ReadFile(d.log); t.Failed() && err == nil {
			t.Logf("Dovecot's log ends:\n%s", tail(text))
		}
	})
	for _, port := range []int{d.imap, d.pop3, d.lmtp} {
		waitPort(t, port)
	}
	return d
}

// slow are warnings that only say how long something took, on a busy machine.
var slow = regexp.MustCompile(`Warning: .*(took \d+ seconds|was locked for \d+ seconds|Time moved forwards)`)

func (d *dovecot) checkLog(t *testing.T) {
	t.Helper()
	cleanLog(t, d.log, slow, "Error:", "Corrupted", "Panic:", "Fatal:", "Warning:")
}

// login opens an IMAP connection that ends with the test.
func (d *dovecot) login(t *testing.T, user string, options *imapclient.Options) *imapclient.Client {
	t.Helper()
	c, err := d.dial(user, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (d *dovecot) dial(user string, options *imapclient.Options) (*imapclient.Client, error) {
	c, err := imapclient.DialInsecure(address(d.imap), options)
	if err != nil {
		return nil, fmt.Errorf("connecting by IMAP: %w", err)
	}
	if err := c.Login(user, dovecotPassword).Wait(); err != nil {
		c.Close()
		return nil, fmt.Errorf("logging in as %s: %w", user, err)
	}
	return c, nil
}

func (d *dovecot) doveadm(t *testing.T, args ...string) string {
	t.Helper()
	return must(t, 0, append([]string{"doveadm", "-c", d.conf}, args...)...)
}

// whole asks for a message without setting \Seen.
var whole = &imap.FetchItemBodySection{Peek: true}

// all is the set of every message of a mailbox.
func all() imap.SeqSet { return imap.SeqSet{imap.SeqRange{Start: 1, Stop: 0}} }

// selectBox selects a mailbox and returns how many messages it has.
func selectBox(t *testing.T, c *imapclient.Client, name string) int {
	t.Helper()
	data, err := c.Select(name, nil).Wait()
	if err != nil {
		t.Fatalf("SELECT %s: %v", name, err)
	}
	return int(data.NumMessages)
}

// fetchAll compares every message of the selected mailbox.
func (c *check) fetchAll(t *testing.T, client *imapclient.Client) {
	t.Helper()
	cmd := client.Fetch(all(), &imap.FetchOptions{UID: true, BodySection: []*imap.FetchItemBodySection{whole}})
	for {
		msg := cmd.Next()
		if msg == nil {
			break
		}
		buf, err := msg.Collect()
		if err != nil {
			t.Fatalf("FETCH: %v", err)
		}
		c.stored(t, fmt.Sprintf("IMAP uid %d", buf.UID), fromWire(buf.FindBodySection(whole)))
	}
	if err := cmd.Close(); err != nil {
		t.Fatalf("FETCH: %v", err)
	}
}

// storeFlags changes flags and waits for the answer.
func storeFlags(c *imapclient.Client, set imap.NumSet, op imap.StoreFlagsOp, flags ...imap.Flag) error {
	return c.Store(set, &imap.StoreFlags{Op: op, Flags: flags, Silent: true}, nil).Close()
}

// search counts the messages that match.
func search(t *testing.T, c *imapclient.Client, criteria *imap.SearchCriteria) []imap.UID {
	t.Helper()
	data, err := c.UIDSearch(criteria, nil).Wait()
	if err != nil {
		t.Fatalf("SEARCH: %v", err)
	}
	return data.AllUIDs()
}

func ok(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// awake is how soon a client in IDLE must hear of new mail. Dovecot would look by
// itself only once in an hour, so this shows that it was woken.
const awake = time.Minute
