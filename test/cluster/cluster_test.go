// Package cluster runs monitors, OSDs and mounts as processes of their own, and
// kills them under load.
package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(lockerEnv); path != "" {
		os.Exit(beLocker(path))
	}
	if words := os.Getenv(tortureEnv); words != "" {
		os.Exit(beTorturer(words))
	}
	os.Exit(harness.Main(m))
}

// daemon is a process of the cluster.
type daemon struct {
	name string
	args []string
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
}

type cluster struct {
	t     *testing.T
	bin   string
	dir   string
	admin string
	all   []*daemon

	osdArgs []string // of every OSD, besides the usual ones
	metrics string   // where mon.a serves them
	net     *network // each daemon has its host in; nil: all are on this one
}

// bareCluster has no daemon yet.
func bareCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, bin: harness.Binary(t), dir: t.TempDir()}
	c.admin = filepath.Join(c.dir, "admin")
	t.Cleanup(c.end)
	return c
}

func newCluster(t *testing.T, osds int) *cluster {
	t.Helper()
	c := bareCluster(t)
	c.found(osds)
	return c
}

// found makes the first monitor and some OSDs.
func (c *cluster) found(osds int) {
	c.t.Helper()
	if _, err := c.tryOn("mon.a", "init", "--data", c.path("mon.a"), "--addr", c.addr("mon.a"), "--peer-addr", c.addr("mon.a"), "--conf", c.admin); err != nil {
		c.t.Fatal(err)
	}
	c.metrics = harness.FreePort(c.t) // served to its own host only
	c.start("mon.a", "mon", "--data", c.path("mon.a"), "--metrics", c.metrics)
	c.eventually("the monitor answers", func() bool { _, err := c.try("status", "--conf", c.admin); return err == nil })
	for i := range osds {
		c.addOSD(i)
	}
}

// addMon joins a further monitor.
func (c *cluster) addMon(name string) *daemon {
	c.t.Helper()
	token := c.run("token", "create", "mon", name, "--conf", c.admin)
	d := c.start(name, "mon", "--data", c.path(name), "--addr", c.addr(name), "--peer-addr", c.addr(name), "--token", token)
	c.eventually(name+" is in the quorum", func() bool {
		for _, mon := range c.status().Mons {
			if mon.Name == name {
				return true
			}
		}
		return false
	})
	return d
}

// addr is an address for a daemon to listen on.
func (c *cluster) addr(daemon string) string {
	c.t.Helper()
	if c.net != nil {
		return c.net.addr(daemon)
	}
	return harness.FreePort(c.t)
}

// command makes a command that runs on a host, which this machine is without a network.
func (c *cluster) command(host string, args ...string) *exec.Cmd {
	c.t.Helper()
	if c.net != nil {
		return c.net.command(host, append([]string{c.bin}, args...)...)
	}
	return exec.Command(c.bin, args...)
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) try(args ...string) (string, error) { return c.tryOn("admin", args...) }

func (c *cluster) tryOn(host string, args ...string) (string, error) {
	c.t.Helper()
	cmd := c.command(host, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("pillarbox %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return string(out), err
}

func (c *cluster) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// start runs a daemon. It dies with the test's process, whatever happens.
func (c *cluster) start(name string, args ...string) *daemon {
	c.t.Helper()
	d := &daemon{name: name, args: args}
	c.all = append(c.all, d)
	c.restart(d)
	return d
}

func (c *cluster) restart(d *daemon) {
	c.t.Helper()
	log, err := os.OpenFile(c.path(d.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	d.log, d.done = log, make(chan struct{})
	d.cmd = c.command(d.name, d.args...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	done := d.done
	go func() {
		d.cmd.Wait()
		log.Close()
		close(done)
	}()
}

func (c *cluster) kill(d *daemon) {
	d.cmd.Process.Kill()
	<-d.done
}

// stop ends a daemon in good order.
func (c *cluster) stop(d *daemon) {
	c.t.Helper()
	d.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-d.done:
		if code := d.cmd.ProcessState.ExitCode(); code != 0 {
			c.t.Errorf("%s ended with exit code %d:\n%s", d.name, code, c.tail(d))
		}
	case <-time.After(60 * time.Second):
		c.t.Errorf("%s does not end:\n%s", d.name, c.tail(d))
		c.kill(d)
	}
}

func (c *cluster) log(d *daemon) string {
	b, _ := os.ReadFile(c.path(d.name + ".log")) // it may not be there yet
	return string(b)
}

func (c *cluster) tail(d *daemon) string {
	b := c.log(d)
	return b[max(0, len(b)-4000):]
}

// end kills and unmounts what is left.
func (c *cluster) end() {
	for _, d := range c.all {
		select {
		case <-d.done:
			continue
		default:
		}
		d.cmd.Process.Kill()
		<-d.done
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], c.dir) {
			unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	if c.t.Failed() {
		for _, d := range c.all {
			c.t.Logf("%s printed at last:\n%s", d.name, c.tail(d))
		}
	}
}

func (c *cluster) addOSD(i int) *daemon {
	c.t.Helper()
	token := c.run("token", "create", "osd", "--conf", c.admin)
	name := fmt.Sprint("osd.", i)
	d := c.start(name, append([]string{"osd", "--data", c.path(name), "--addr", c.addr(name), "--host", fmt.Sprint("host", i), "--weight", "1", "--token", token}, c.osdArgs...)...)
	c.eventually(name+" is up", func() bool {
		st := c.status()
		return len(st.OSDs) > i && st.OSDs[i].Up
	})
	return d
}

// mount joins a client, unless it has joined, and mounts with some options.
func (c *cluster) mount(name string, options ...string) (point string, d *daemon) {
	c.t.Helper()
	conf, point := c.path("client."+name), c.path("mnt."+name)
	if _, err := os.Stat(conf); errors.Is(err, fs.ErrNotExist) {
		c.run("join", "--conf", conf, c.run("token", "create", "client", "client."+name, "--conf", c.admin))
		if err := os.Mkdir(point, 0o755); err != nil {
			c.t.Fatal(err)
		}
	}
	d = c.start("mount."+name, "up", "--conf", conf, "-o", strings.Join(options, ","), point)
	c.eventually("the mount answers", func() bool { return mounted(point) })
	return point, d
}

type osdStatus struct {
	ID     int  `json:"id"`
	Up     bool `json:"up"`
	In     bool `json:"in"`
	Report *struct {
		Groups int `json:"groups"`
	} `json:"report"`
}

type status struct {
	Health string `json:"health"`
	Checks []struct {
		Code string `json:"code"`
	} `json:"checks"`
	OSDs []osdStatus `json:"osds"`
	Mons []struct {
		Name string `json:"name"`
	} `json:"mons"`
}

func (c *cluster) status() (st status) {
	out, err := c.try("status", "--format", "json", "--conf", c.admin)
	if err == nil {
		err = json.Unmarshal([]byte(out), &st)
	}
	if err != nil {
		return status{Health: err.Error()}
	}
	return st
}

func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(3 * time.Minute); !ok(); {
		if time.Now().After(end) {
			c.t.Fatalf("not in time: %s; the cluster says %+v", what, c.status())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (c *cluster) healthy(osds int) {
	c.t.Helper()
	c.eventually("HEALTH_OK", func() bool {
		st := c.status()
		up := 0
		for _, o := range st.OSDs {
			if o.Up && o.Report != nil {
				up++
			}
		}
		return st.Health == "HEALTH_OK" && up == osds
	})
}

// mail remembers every message that was acknowledged.
type mail struct {
	t       *testing.T
	mu      sync.Mutex
	files   map[string][32]byte // by path below the mount
	longest time.Duration
	stop    chan struct{}
	wg      sync.WaitGroup
}

func body(r *rand.Rand) []byte {
	n := 200 + r.IntN(20000)
	switch r.IntN(10) {
	case 0:
		n = 100<<10 + r.IntN(200<<10)
	case 1:
		n = 60<<10 + r.IntN(10<<10)
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// load delivers as Postfix does, from some workers, until end.
func (c *cluster) load(mount string, workers int, seed uint64) *mail {
	c.t.Helper()
	m := &mail{t: c.t, files: map[string][32]byte{}, stop: make(chan struct{})}
	for w := range workers {
		dir := filepath.Join("example.org", fmt.Sprint("user", w), "Maildir")
		for _, sub := range []string{"tmp", "new", "cur"} {
			if err := os.MkdirAll(filepath.Join(mount, dir, sub), 0o755); err != nil {
				c.t.Fatal(err)
			}
		}
		m.wg.Add(1)
		go func() {
			defer m.wg.Done()
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for i := 0; ; i++ {
				select {
				case <-m.stop:
					return
				default:
				}
				start := time.Now()
				if err := m.deliver(mount, dir, fmt.Sprintf("%d.%d", seed, i), body(r)); err != nil {
					c.t.Errorf("worker %d: %v", w, err)
					return
				}
				m.mu.Lock()
				m.longest = max(m.longest, time.Since(start))
				m.mu.Unlock()
			}
		}()
	}
	return m
}

func (m *mail) deliver(mount, dir, name string, data []byte) error {
	tmp, path := filepath.Join(mount, dir, "tmp", name), filepath.Join(dir, "new", name)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp, filepath.Join(mount, path)); err != nil {
		return err
	}
	m.mu.Lock()
	m.files[path] = sha256.Sum256(data)
	m.mu.Unlock()
	return os.Remove(tmp)
}

func (m *mail) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.files)
}

func (m *mail) end() {
	close(m.stop)
	m.wg.Wait()
}

// goesOn waits until more messages have been acknowledged.
func (m *mail) goesOn(c *cluster, what string) {
	c.t.Helper()
	n := m.count()
	c.eventually("deliveries go on "+what, func() bool { return m.count() > n+20 || m.t.Failed() })
	if m.t.Failed() {
		m.t.FailNow()
	}
}

// verify reads all back and looks for what nobody delivered.
func (m *mail) verify(mount string) {
	m.t.Helper()
	found := 0
	err := filepath.WalkDir(filepath.Join(mount, "example.org"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(mount, path)
		want, ok := m.files[rel]
		if !ok {
			m.t.Errorf("%s: nobody was told that it is there", rel)
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if sha256.Sum256(b) != want {
			m.t.Errorf("%s: other content than was delivered", rel)
		}
		found++
		return nil
	})
	if err != nil || found != len(m.files) {
		m.t.Errorf("%d of %d messages found, %v", found, len(m.files), err)
	}
}

// TestLoseOSDs kills each OSD in turn under load, freezes one, and reads
// everything back through a second mount.
func TestLoseOSDs(t *testing.T) {
	c := newCluster(t, 3)
	osds := c.all[1:4]
	c.healthy(3)
	mount, d := c.mount("mx1")
	m := c.load(mount, 4, 1)
	m.goesOn(c, "at first")
	for _, osd := range osds {
		c.kill(osd)
		killed := time.Now()
		c.eventually("it is marked down", func() bool {
			return slices.ContainsFunc(c.status().OSDs, func(o osdStatus) bool { return fmt.Sprint("osd.", o.ID) == osd.name && !o.Up })
		})
		t.Logf("%s was marked down %v after kill -9", osd.name, time.Since(killed).Round(100*time.Millisecond))
		m.goesOn(c, "without "+osd.name)
		c.restart(osd)
		c.healthy(3)
		m.goesOn(c, "with "+osd.name+" again")
	}
	frozen := osds[1]
	frozen.cmd.Process.Signal(unix.SIGSTOP)
	m.goesOn(c, "with "+frozen.name+" frozen")
	frozen.cmd.Process.Signal(unix.SIGCONT)
	c.healthy(3)
	m.end()
	t.Logf("%d messages, the longest delivery took %v", m.count(), m.longest)
	c.stop(d)
	mount, d = c.mount("mx2")
	m.verify(mount)
	c.stop(d)
	for _, osd := range osds {
		c.stop(osd)
	}
}

// TestMonitors loses the only monitor, then one and two of three.
func TestMonitors(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	mount, d := c.mount("mx1")
	m := c.load(mount, 2, 2)
	m.goesOn(c, "at first")
	a := c.all[0]
	c.kill(a)
	m.goesOn(c, "without a monitor")
	c.restart(a)
	c.healthy(3)
	var others []*daemon
	for _, name := range []string{"mon.b", "mon.c"} {
		others = append(others, c.addMon(name))
	}
	c.kill(a)
	c.eventually("two of three serve", func() bool { _, err := c.try("set", "noout", "--conf", c.admin); return err == nil })
	c.kill(others[0])
	if out, err := c.try("unset", "noout", "--conf", c.admin); err == nil || !strings.Contains(err.Error(), "quorum") {
		t.Errorf("one monitor of three takes a change: %q, %v", out, err)
	}
	m.goesOn(c, "without a quorum")
	c.restart(a)
	c.eventually("two of three serve again", func() bool { _, err := c.try("unset", "noout", "--conf", c.admin); return err == nil })
	c.restart(others[0])
	c.healthy(3)
	for _, mon := range append(others, a) {
		c.stop(mon)
		before := strings.Count(c.log(mon), "in the quorum")
		c.restart(mon)
		c.eventually(mon.name+" is in the quorum again", func() bool { return strings.Count(c.log(mon), "in the quorum") > before })
	}
	c.healthy(3)
	m.end()
	m.verify(mount)
	c.stop(d)
}

// TestGrow begins with one OSD and ends with three, of which the first is lost.
func TestGrow(t *testing.T) {
	c := newCluster(t, 1)
	for _, pool := range []string{"meta", "data"} {
		c.run("pool", "set", pool, "size", "1", "--force", "--conf", c.admin)
	}
	mount, d := c.mount("mx1")
	m := c.load(mount, 2, 3)
	m.goesOn(c, "on one OSD")
	c.addOSD(1)
	c.addOSD(2)
	for _, pool := range []string{"meta", "data"} {
		c.run("pool", "set", pool, "size", "3", "--conf", c.admin)
		c.run("pool", "set", pool, "min_size", "2", "--conf", c.admin)
	}
	c.eventually("all groups on all OSDs", func() bool {
		st := c.status()
		for _, o := range st.OSDs {
			if o.Report == nil || o.Report.Groups != 64 {
				return false
			}
		}
		return st.Health == "HEALTH_OK"
	})
	m.goesOn(c, "on three OSDs")
	m.end()
	c.healthy(3) // recovery has made the replicas of what was written to one OSD alone
	c.kill(c.all[1])
	m.verify(mount)
	c.stop(d)
}

// TestRefusals: what must not work does not.
func TestRefusals(t *testing.T) {
	c := newCluster(t, 1)
	token := c.run("token", "create", "client", "client.mx1", "--conf", c.admin)
	conf := c.path("client.mx1")
	c.run("join", "--conf", conf, token)
	for what, args := range map[string][]string{
		"used":               {"join", "--conf", c.path("again"), token},
		"not a token":        {"join", "--conf", c.path("again"), "nonsense"},
		"may not call":       {"osd", "out", "0", "--conf", conf},
		"belongs to no":      {"osd", "tree", "--conf", c.path("nowhere")},
		"is up":              {"osd", "rm", "0", "--conf", c.admin},
		"not found":          {"osd", "out", "17", "--conf", c.admin},
		"has joined already": {"osd", "--data", c.path("client.mx1")},
	} {
		out, err := c.try(args...)
		if what == "has joined already" {
			what = "no OSD"
		}
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v: %q, %v; want an error with %q", args, out, err, what)
		}
	}
	st, err := os.Stat(filepath.Join(conf, "tls.key"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", st.Mode(), err)
	}
	addr := ""
	for _, a := range c.all[1].args {
		if strings.HasPrefix(a, "127.0.0.1:") {
			addr = a
		}
	}
	for range 20 { // garbage on the port
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(bytes.Repeat([]byte{0x16, 3, 1, 0xff}, 1000))
		conn.Close()
	}
	c.eventually("the OSD is up all the same", func() bool { st := c.status(); return len(st.OSDs) == 1 && st.OSDs[0].Up })
}
