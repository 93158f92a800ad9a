package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2/imapclient"
)

// newHosts is some sites that share one store: a cluster of a monitor and three
// OSDs, mounted for each, as mail hosts would.
func newHosts(t *testing.T, n int) (sites []*site) {
	t.Helper()
	if plain() {
		sites = append(sites, newSite(t))
		for len(sites) < n {
			sites = append(sites, &site{base: newBase(t), mail: sites[0].mail})
		}
		return sites
	}
	return newCluster(t).hosts(n)
}

// hosts mounts the cluster's store for some hosts.
func (c *cluster) hosts(n int) (sites []*site) {
	t := c.t
	t.Helper()
	daemons := append([]*daemon{c.mon}, c.osds[:]...)
	for i := range n {
		name := fmt.Sprint("mx", i+1)
		s := &site{base: newBase(t)}
		s.mail = filepath.Join(s.base, "mail")
		mkdir(t, s.mail, 0, 0o755)
		before := device(t, s.mail)
		client := filepath.Join(s.base, "conf")
		c.run("join", "--conf", client, c.run("token", "create", "client", "client."+name, "--conf", c.conf))
		daemons = append(daemons, start(t, s, "pillarbox", clusterEnv, c.program, "up", "--conf", client, s.mail))
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
	return sites
}

// cluster is a monitor and three OSDs.
type cluster struct {
	t             *testing.T
	site          *site  // for what the daemons print
	program, conf string // an admin's
	mon           *daemon
	osds          [3]*daemon
}

var clusterEnv = []string{"HOME=/nonexistent"}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	program, err := buildProgram()
	ok(t, "building", err)
	s := &site{base: newBase(t)}
	c := &cluster{t: t, site: s, program: program, conf: filepath.Join(s.base, "admin")}
	c.run("init", "--data", s.base+"/mon", "--addr", address(freePort(t)), "--peer-addr", address(freePort(t)), "--conf", c.conf)
	c.mon = start(t, s, "mon", clusterEnv, program, "mon", "--data", s.base+"/mon")
	waitFor(t, "the monitor", 30*time.Second, func() bool { return command(0, program, "status", "--conf", c.conf).Run() == nil })
	for i := range c.osds {
		c.osds[i] = start(t, s, fmt.Sprint("osd", i), clusterEnv, program, "osd", "--data", fmt.Sprintf("%s/osd%d", s.base, i), "--addr", address(freePort(t)),
			"--host", fmt.Sprint("h", i), "--weight", "1", "--token", c.run("token", "create", "osd", "--conf", c.conf))
		// Ids are given in the order of joining.
		waitFor(t, fmt.Sprintf("osd.%d to join", i), time.Minute, func() bool { _, up := c.up(); return up[i] })
	}
	c.healthy()
	return c
}

func (c *cluster) run(args ...string) string {
	c.t.Helper()
	return strings.TrimSpace(must(c.t, 0, append([]string{c.program}, args...)...))
}

// up is the health and which OSDs are up; none when no monitor answers.
func (c *cluster) up() (health string, up [3]bool) {
	var st struct {
		Health string
		OSDs   []struct{ Up bool }
	}
	out, err := command(0, c.program, "status", "--format", "json", "--conf", c.conf).Output()
	if err != nil || json.Unmarshal(out, &st) != nil {
		return "", up
	}
	for i := range min(len(up), len(st.OSDs)) {
		up[i] = st.OSDs[i].Up
	}
	return st.Health, up
}

func (c *cluster) healthy() {
	c.t.Helper()
	waitFor(c.t, "a healthy cluster", 3*time.Minute, func() bool {
		health, up := c.up()
		return health == "HEALTH_OK" && up == [3]bool{true, true, true}
	})
}

// idler is a client in IDLE.
type idler struct {
	user  string
	heard chan heard
}

type heard struct {
	messages uint32
	at       time.Time
}

// TestIdleAcrossHosts has clients in IDLE on one host while mail comes on another,
// and tells how long after its delivery was acknowledged they hear of it.
func TestIdleAcrossHosts(t *testing.T) {
	const clients, rounds = 5, 12
	hosts := newHosts(t, 2)
	set := loadMail(t, rounds+1)
	da, db := startDovecot(t, hosts[0]), startDovecot(t, hosts[1])
	deliver := func(user string, i int) time.Time {
		inject(t, da.lmtp, "LHLO", 1, set[i:i+1], func(int) string { return user })
		return time.Now()
	}
	var idlers []*idler
	for k := range clients {
		name := fmt.Sprint("user", k)
		hosts[0].account(t, "idle.test", name, vmailID)
		c := &idler{user: name + "@idle.test", heard: make(chan heard, 10*rounds)}
		deliver(c.user, 0)
		defer c.idle(t, db)()
		idlers = append(idlers, c)
	}
	var took []time.Duration
	for i := 1; i <= rounds; i++ {
		var acked []time.Time
		for _, c := range idlers {
			acked = append(acked, deliver(c.user, i))
		}
		for k, c := range idlers {
			hear(t, c.heard, func(h heard) bool {
				if h.messages != uint32(i+1) {
					return false
				}
				took = append(took, max(0, h.at.Sub(acked[k])))
				return true
			})
		}
	}
	slices.Sort(took)
	t.Logf("clients in IDLE on another host heard of %d messages %v after the delivery at the median, %v at the 99th percentile",
		len(took), took[len(took)/2], took[len(took)*99/100])
	da.checkLog(t)
	db.checkLog(t)
}

// idle begins IDLE in the INBOX; what it returns ends it.
func (i *idler) idle(t *testing.T, d *dovecot) (end func()) {
	t.Helper()
	c := d.login(t, i.user, &imapclient.Options{UnilateralDataHandler: &imapclient.UnilateralDataHandler{
		Mailbox: func(data *imapclient.UnilateralDataMailbox) {
			if data.NumMessages != nil {
				i.heard <- heard{*data.NumMessages, time.Now()}
			}
		},
	}})
	selectBox(t, c, "INBOX")
	idle, err := c.Idle()
	ok(t, "IDLE", err)
	return func() {
		ok(t, "DONE", idle.Close())
		ok(t, "IDLE", idle.Wait())
	}
}
