//go:build ceph

package harness

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const cephConf = `[global]
fsid = 8a8ef7b4-6f0c-4c5c-9d31-4f7c7a1f2b11
mon host = %[2]s
auth cluster required = %[3]s
auth service required = %[3]s
auth client required = %[3]s
keyring = %[1]s/keyring
ms mon client mode = crc
run dir = %[1]s
log file = %[1]s/$name.log
admin socket = %[1]s/$name.asok
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data = %[1]s/mon
mgr data = %[1]s/mgr
osd data = %[1]s/osd
osd objectstore = bluestore
bluestore block size = 21474836480
rgw enable usage log = false
rgw enable ops log = false
rgw data = %[1]s/rgw
`

// Ceph is a cluster of one monitor, one manager, one OSD and a gateway, from Debian's
// packages, each a process, all below one directory. It ends with the test.
type Ceph struct {
	Conf    string // its ceph.conf
	Keyring string // with the keys of all, if Secure
	Gateway string // the address of its gateway, where CephAccess and CephSecret are known

	t   *testing.T
	dir string
}

// The keys of a user of the gateway.
const (
	CephAccess = "benchmark"
	CephSecret = "benchmark-secret"
)

// StartCeph starts one. secure: who has no key is refused.
func StartCeph(t *testing.T, secure bool) *Ceph {
	t.Helper()
	c := &Ceph{t: t, dir: t.TempDir(), Gateway: FreePort(t)}
	c.Conf, c.Keyring = c.file("ceph.conf"), c.file("keyring")
	mon, auth := FreePort(t), "none"
	if secure {
		auth = "cephx"
	}
	for _, d := range []string{"mon", "mgr", "osd", "rgw"} {
		if err := os.Mkdir(c.file(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(c.Conf, fmt.Appendf(nil, cephConf, c.dir, "v2:"+mon, auth), 0o644); err != nil {
		t.Fatal(err)
	}
	c.makeKeys()
	c.tool("monmaptool", "--create", "--fsid", "8a8ef7b4-6f0c-4c5c-9d31-4f7c7a1f2b11", "--addv", "a", "[v2:"+mon+"]", c.file("monmap"))
	c.Run("ceph-mon", "-i", "a", "--mkfs", "--monmap", c.file("monmap"), "--keyring", c.Keyring)
	c.start("ceph-mon", "-i", "a")
	c.Run("ceph", "auth", "import", "-i", c.Keyring)
	c.start("ceph-mgr", "-i", "x")
	const id = "2f3c5a0e-64b5-4b55-8a55-6f40a9cf5a01"
	c.Run("ceph", "osd", "new", id)
	c.Run("ceph", "auth", "import", "-i", c.Keyring)
	c.Run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", id)
	c.start("ceph-osd", "-i", "0")
	c.eventually("the OSD is up", func() bool { return strings.Contains(c.try("ceph", "osd", "stat"), "1 up") })
	c.start("radosgw", "-n", "client.rgw.a", "--rgw-frontends", "beast endpoint="+c.Gateway)
	c.eventually("the gateway answers", func() bool {
		res, err := http.Get("http://" + c.Gateway)
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
	c.Run("radosgw-admin", "user", "create", "--uid", "bench", "--display-name", "bench", "--access-key", CephAccess, "--secret-key", CephSecret)
	return c
}

// makeKeys makes the keys of all daemons and of client.admin.
func (c *Ceph) makeKeys() {
	c.t.Helper()
	c.tool("ceph-authtool", "--create-keyring", c.Keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
	for _, name := range []string{"client.admin", "mgr.x", "osd.0", "client.rgw.a"} {
		c.tool("ceph-authtool", c.Keyring, "--gen-key", "-n", name, "--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
	}
}

func (c *Ceph) file(name string) string { return filepath.Join(c.dir, name) }

func (c *Ceph) command(name string, args ...string) *exec.Cmd {
	return exec.Command(name, append([]string{"-c", c.Conf}, args...)...)
}

// Run runs one of Ceph's programs, which must succeed.
func (c *Ceph) Run(name string, args ...string) {
	c.t.Helper()
	c.must(c.command(name, args...))
}

// tool is Run of a program that needs no ceph.conf.
func (c *Ceph) tool(name string, args ...string) {
	c.t.Helper()
	c.must(exec.Command(name, args...))
}

func (c *Ceph) must(cmd *exec.Cmd) {
	c.t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}

func (c *Ceph) try(name string, args ...string) string {
	out, _ := c.command(name, args...).CombinedOutput()
	return string(out)
}

// start starts a daemon, which ends with the test.
func (c *Ceph) start(name string, args ...string) {
	c.t.Helper()
	cmd := c.command(name, append(args, "-f")...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		err := errors.Join(cmd.Process.Kill(), ignore(cmd.Wait()))
		if c.t.Failed() {
			c.t.Logf("%s: %v\n%s", name, err, out.String())
		}
	})
}

func ignore(error) error { return nil }

func (c *Ceph) eventually(what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("%s: not within two minutes", what)
		}
	}
}
