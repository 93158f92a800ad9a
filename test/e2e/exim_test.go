package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"
)

type exim struct {
	port      int
	conf, log string
}

const eximBinary = serversRoot + "/usr/sbin/exim4"

// startExim runs Exim for the users whose directories the site has. Its
// deliveries run as vmail. The daemon drops root and is not set-uid here: it
// only takes mail in, and deliver starts queue runners.
func startExim(t *testing.T, s *site) *exim {
	t.Helper()
	base := filepath.Join(s.base, "exim")
	e := &exim{port: freePort(t), conf: base + "/exim.conf", log: base + "/log/main"}
	user := id(t, "-u", "Debian-exim")
	mkdir(t, base, user, 0o755)
	mkdir(t, base+"/spool", user, 0o750)
	mkdir(t, base+"/log", user, 0o750)
	write(t, e.conf, fmt.Sprintf(`
# What comes first only sets the test apart from a server of the machine.
exim_path = %[3]s
spool_directory = %[2]s/spool
log_file_path = %[2]s/log/%%s
pid_file_path = %[2]s/pid
primary_hostname = mx.test
local_interfaces = 127.0.0.1
daemon_smtp_ports = %[4]d
tls_advertise_hosts =
queue_only
queue_run_max = 4
smtp_accept_max = 100
message_size_limit = 0
received_headers_max = 1000
return_path_remove = false
envelope_to_remove = false
delivery_date_remove = false
rfc1413_query_timeout = 0s
acl_smtp_rcpt = accept

begin acl
accept:
  accept

begin routers
%[1]s
begin transports
%[5]s
begin retry
* * F,1m,1s
`, s.sample(t, "`/etc/exim4/exim4.conf`, routers"), base, eximBinary, e.port,
		s.sample(t, "`/etc/exim4/exim4.conf`, transports")), 0o644)
	start(t, s, "exim", nil, eximBinary, "-C", e.conf, "-bdf")
	t.Cleanup(func() {
		if text, err := os.ReadFile(e.log); t.Failed() && err == nil {
			t.Logf("Exim's log ends:\n%s", tail(text))
		}
	})
	waitPort(t, e.port)
	return e
}

// deliver runs the queue four times at once: each message is one runner's.
func (e *exim) deliver(t *testing.T) {
	t.Helper()
	var group errgroup.Group
	for range 4 {
		group.Go(func() error {
			if out, err := command(0, eximBinary, "-C", e.conf, "-q").CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, tail(out))
			}
			return nil
		})
	}
	ok(t, "running Exim's queue", group.Wait())
}

func TestExim(t *testing.T) {
	s, set := newSite(t), loadMail(t, 1500)
	var users, dirs []string
	for i := range 4 {
		user := fmt.Sprintf("user%d", i)
		users = append(users, user+"@exim.test")
		dirs = append(dirs, s.account(t, "exim.test", user, vmailID)+"/Maildir")
	}
	e := startExim(t, s)
	inject(t, e.port, "EHLO", 4, set, func(i int) string { return users[i%len(users)] })
	e.deliver(t)
	c := newCheck(set)
	c.maildirs(t, dirs...)
	c.complete(t, 1)
	cleanLog(t, e.log, nil, " == ", " ** ", "panic", "failed", "Frozen")
	if _, err := os.Stat(filepath.Join(filepath.Dir(e.log), "panic")); err == nil {
		t.Error("Exim wrote to its panic log")
	}
}
