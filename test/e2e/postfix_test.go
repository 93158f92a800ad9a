package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type postfix struct {
	port int
	log  string
	base string
}

// startPostfix runs Postfix for the virtual users of example.org and for the
// local users of local.test.
func startPostfix(t *testing.T, s *site, virtual []string) *postfix {
	t.Helper()
	p := &postfix{port: freePort(t), base: filepath.Join(s.base, "postfix"), log: filepath.Join(s.base, "postfix", "log")}
	lib := serversRoot + "/usr/lib/postfix"
	mkdir(t, p.base, 0, 0o755)
	mkdir(t, p.base+"/conf", 0, 0o755)
	postfixUID, postdropGID := id(t, "-u", "postfix"), groupID(t, "postdrop")
	mkdir(t, p.base+"/data", postfixUID, 0o700)
	mkdir(t, p.base+"/queue", 0, 0o755)
	mkdir(t, p.base+"/queue/pid", 0, 0o755)
	for _, dir := range []string{"active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming",
		"private", "saved", "trace", "maildrop", "public"} {
		mkdir(t, p.base+"/queue/"+dir, postfixUID, 0o700)
	}
	for dir, mode := range map[string]os.FileMode{"maildrop": 0o730, "public": 0o710} {
		path := p.base + "/queue/" + dir
		if err := os.Chown(path, postfixUID, postdropGID); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	var users strings.Builder
	for _, user := range virtual {
		fmt.Fprintf(&users, "%s@example.org example.org/%s/Maildir/\n", user, user)
	}
	write(t, p.base+"/conf/users", users.String(), 0o644)
	write(t, p.base+"/conf/main.cf", fmt.Sprintf(`
compatibility_level = 3.6
%[1]s
# What follows only sets the test apart from a server of the machine.
mydestination = local.test
myhostname = mx.test
alias_maps =
local_recipient_maps =
inet_interfaces = 127.0.0.1
mynetworks = 127.0.0.0/8
local_header_rewrite_clients =
message_drop_headers =
virtual_mailbox_limit = 0
mailbox_size_limit = 0
message_size_limit = 0
hopcount_limit = 1000
queue_run_delay = 5s
minimal_backoff_time = 5s
maximal_backoff_time = 10s
queue_directory = %[2]s/queue
data_directory = %[2]s/data
daemon_directory = %[3]s/sbin
shlib_directory = %[3]s
command_directory = %[4]s/usr/sbin
mailq_path = %[4]s/usr/bin/mailq
maillog_file = %[2]s/log
maillog_file_prefixes = %[2]s
import_environment = MAIL_CONFIG MAIL_DEBUG MAIL_LOGTAG TZ LANG=C %[5]s
`, strings.ReplaceAll(s.sample(t, "`/etc/postfix/main.cf`"), "/etc/postfix", p.base+"/conf"), p.base, lib, serversRoot, libraryPath()), 0o644)
	write(t, p.base+"/conf/master.cf", fmt.Sprintf(`
127.0.0.1:%d inet n - n - - smtpd
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
verify    unix - - n - 1 verify
flush     unix n - n 1000? 0 flush
proxymap  unix - - n - - proxymap
smtp      unix - - n - - smtp
relay     unix - - n - - smtp
showq     unix n - n - - showq
error     unix - - n - - error
retry     unix - - n - - error
discard   unix - - n - - discard
local     unix - n n - - local
virtual   unix - n n - - virtual
anvil     unix - - n - 1 anvil
scache    unix - - n - 1 scache
tlsmgr    unix - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1 postlogd
`, p.port), 0o644)
	start(t, s, "postfix", []string{libraryPath()}, lib+"/sbin/master", "-c", p.base+"/conf", "-d")
	t.Cleanup(func() {
		if text, err := os.ReadFile(p.log); t.Failed() && err == nil {
			t.Logf("Postfix's log ends:\n%s", tail(text))
		}
	})
	waitPort(t, p.port)
	return p
}

// delivered waits until Postfix has nothing left in its queue.
func (p *postfix) delivered(t *testing.T, limit time.Duration) {
	t.Helper()
	waitFor(t, "Postfix to deliver what it has queued", limit, func() bool {
		for _, dir := range []string{"incoming", "active", "deferred"} {
			left := 0
			// Hashed queue directories are directories of directories; a file
			// that goes away meanwhile is being delivered.
			_ = filepath.WalkDir(filepath.Join(p.base, "queue", dir), func(_ string, e os.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					left++
				}
				return nil
			})
			if left > 0 {
				return false
			}
		}
		return true
	})
}

func (p *postfix) checkLog(t *testing.T) {
	t.Helper()
	cleanLog(t, p.log, nil, "fatal:", "panic:", "error:", "warning:", "status=deferred", "status=bounced")
}

func TestPostfixVirtual(t *testing.T) {
	s, set := newSite(t), loadMail(t, 0)
	var users, dirs []string
	for i := range 8 {
		users = append(users, fmt.Sprintf("user%d", i))
		dirs = append(dirs, filepath.Join(s.account(t, "example.org", users[i], vmailID), "Maildir"))
	}
	p := startPostfix(t, s, users)
	inject(t, p.port, "EHLO", 8, set, func(i int) string { return users[i%len(users)] + "@example.org" })
	p.delivered(t, 5*time.Minute)
	c := newCheck(set)
	c.maildirs(t, dirs...)
	c.complete(t, 1)
	p.checkLog(t)
}

func TestPostfixLocal(t *testing.T) {
	s, set := newSite(t), loadMail(t, 2000)
	users := []string{"pbalice", "pbbob"}
	dirs := []string{
		s.account(t, "local.test", users[0], aliceID) + "/Maildir",
		s.account(t, "local.test", users[1], bobID) + "/Maildir",
	}
	homes(t, filepath.Join(s.mail, "local.test"))
	p := startPostfix(t, s, nil)
	inject(t, p.port, "EHLO", 8, set, func(i int) string { return users[i%2] + "@local.test" })
	p.delivered(t, 5*time.Minute)
	c := newCheck(set)
	c.maildirs(t, dirs...)
	c.complete(t, 1)
	p.checkLog(t)
	for i, uid := range []int{aliceID, bobID} {
		if out := must(t, 0, "find", dirs[i], "!", "-uid", fmt.Sprint(uid)); out != "" {
			t.Errorf("not owned by %d: %s", uid, out)
		}
	}
}

// homes makes the local users live in dir while the test runs.
func homes(t *testing.T, dir string) {
	t.Helper()
	mkdir(t, filepath.Dir(localHomes), 0, 0o755)
	// A run that was killed leaves its link behind.
	if err := os.Remove(localHomes); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, localHomes); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(localHomes); err != nil {
			t.Error(err)
		}
	})
}

func id(t *testing.T, args ...string) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscan(must(t, 0, append([]string{"id"}, args...)...), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func groupID(t *testing.T, name string) int {
	t.Helper()
	fields := strings.Split(must(t, 0, "getent", "group", name), ":")
	var n int
	if _, err := fmt.Sscan(fields[2], &n); err != nil {
		t.Fatal(err)
	}
	return n
}
