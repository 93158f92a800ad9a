//go:build ceph

package s3

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const cephConf = `[global]
fsid = 8a8ef7b4-6f0c-4c5c-9d31-4f7c7a1f2b11
mon host = %[2]s
auth cluster required = none
auth service required = none
auth client required = none
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

// ceph is a cluster of one monitor, one manager, one OSD and a gateway, from
// Debian's packages, each a process, all below one directory.
type ceph struct {
	t    *testing.T
	dir  string
	addr string
}

func newCeph(t *testing.T) *ceph {
	t.Helper()
	c := &ceph{t: t, dir: t.TempDir(), addr: freePort(t)}
	mon := freePort(t)
	for _, d := range []string{"mon", "mgr", "osd", "rgw"} {
		if err := os.Mkdir(filepath.Join(c.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	conf := fmt.Sprintf(cephConf, c.dir, "v2:"+mon)
	if err := os.WriteFile(c.file("ceph.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	c.run("monmaptool", "--create", "--fsid", "8a8ef7b4-6f0c-4c5c-9d31-4f7c7a1f2b11", "--addv", "a", "[v2:"+mon+"]", c.file("monmap"))
	c.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", c.file("monmap"))
	c.start("ceph-mon", "-i", "a")
	c.start("ceph-mgr", "-i", "x")
	const id = "2f3c5a0e-64b5-4b55-8a55-6f40a9cf5a01"
	c.run("ceph", "osd", "new", id)
	c.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", id)
	c.start("ceph-osd", "-i", "0")
	c.eventually("the OSD is up", func() bool { return strings.Contains(c.try("ceph", "osd", "stat"), "1 up") })
	c.start("radosgw", "-n", "client.rgw.a", "--rgw-frontends", "beast endpoint="+c.addr)
	c.eventually("the gateway answers", func() bool {
		res, err := http.Get("http://" + c.addr)
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
	c.run("radosgw-admin", "user", "create", "--uid", "bench", "--display-name", "bench", "--access-key", "benchmark", "--secret-key", "benchmark-secret")
	return c
}

func (c *ceph) file(name string) string { return filepath.Join(c.dir, name) }

func (c *ceph) command(name string, args ...string) *exec.Cmd {
	return exec.Command(name, append([]string{"-c", c.file("ceph.conf")}, args...)...)
}

func (c *ceph) run(name string, args ...string) {
	c.t.Helper()
	cmd := c.command(name, args...)
	if name == "monmaptool" {
		cmd = exec.Command(name, args...)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (c *ceph) try(name string, args ...string) string {
	out, _ := c.command(name, args...).CombinedOutput()
	return string(out)
}

// start starts a daemon, which ends with the test.
func (c *ceph) start(name string, args ...string) {
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

func (c *ceph) eventually(what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("%s: not within two minutes", what)
		}
	}
}

var each = flag.Duration("each", 4*time.Second, "how long each of three measurements of a row takes")

// TestBesideCeph measures both gateways in turns, on one disk, and prints what
// docs/s3.md has.
func TestBesideCeph(t *testing.T) {
	theirs := newCeph(t)
	ours := newSite(t)
	ours.pillarbox("s3", "user", "create", "bench", "--access-key", "benchmark", "--secret-key-file", ours.write("secret", []byte("benchmark-secret")))
	ours.access, ours.secret = "benchmark", "benchmark-secret"
	var loads []*load
	for _, addr := range []string{ours.addr, theirs.addr} {
		if out, err := ours.client("/usr/bin/aws", "--endpoint-url", "http://"+addr, "s3api", "create-bucket", "--bucket", "bench", "--acl", "public-read-write"); err != nil {
			t.Fatal(err, out)
		}
		loads = append(loads, newLoad("http://"+addr+"/bench"))
	}
	t.Logf("%-12s %8s %12s %12s %6s", "", "clients", "Pillarbox/s", "Ceph/s", "ratio")
	for _, size := range []int{4 << 10, 75 << 10, 64 << 20} {
		for _, clients := range []int{8, 32} {
			if size == 64<<20 {
				if clients == 32 {
					continue
				}
				clients = 4
			}
			for _, l := range loads {
				if err := l.fill(size, clients); err != nil {
					t.Fatal(err)
				}
			}
			for _, method := range []string{http.MethodPut, http.MethodGet} {
				var figures [2][]float64
				for range 3 {
					for i, l := range loads {
						n, err := l.during(method, size, clients, *each)
						if err != nil {
							t.Fatal(err)
						}
						figures[i] = append(figures[i], n)
					}
				}
				a, b := median(figures[0]), median(figures[1])
				t.Logf("%s %4d KiB %8d %12.1f %12.1f %6.2f", method, size>>10, clients, a, b, a/b)
			}
		}
	}
}

// during is how many requests a second so many clients made. Before objects are
// got for the first time, all must have been put.
func (l *load) during(method string, size, clients int, d time.Duration) (float64, error) {
	body := random(size)
	if method == http.MethodGet {
		body = nil
	}
	begin := time.Now()
	n, err := l.all(clients, func(int64) bool { return time.Since(begin) < d }, func(i int64) error {
		return l.do(method, name(size, i), body)
	})
	return float64(n) / time.Since(begin).Seconds(), err
}

// fill puts all objects of a size.
func (l *load) fill(size, clients int) error {
	_, err := l.all(clients, func(i int64) bool { return i < names(size) }, func(i int64) error {
		return l.do(http.MethodPut, name(size, i), random(size))
	})
	return err
}

// names is how many objects of a size there are.
func names(size int) int64 { return int64(max(4, min(1000, 64<<20/size))) }

func name(size int, i int64) string { return fmt.Sprintf("%d/%d", size, i%names(size)) }

// all calls fn from so many goroutines while there is more, and says how often.
func (l *load) all(clients int, more func(int64) bool, fn func(int64) error) (int64, error) {
	var next, done atomic.Int64
	var g errgroup.Group
	for range clients {
		g.Go(func() error {
			for {
				i := next.Add(1) - 1
				if !more(i) {
					return nil
				}
				if err := fn(i); err != nil {
					return err
				}
				done.Add(1)
			}
		})
	}
	err := g.Wait()
	return done.Load(), err
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}
