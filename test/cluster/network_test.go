package cluster

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// network joins the hosts of a cluster, each a network namespace of its own, by
// a switch in a further one, so that a test can cut and slow the links between
// them. The namespaces have no names: they live as long as the process that
// holds each, and those die with the test's process whatever happens to it.
type network struct {
	t       *testing.T
	fabric  *exec.Cmd // holds the switch's namespace
	hosts   map[string]*netHost
	holders []*exec.Cmd
}

type netHost struct {
	ip     string
	holder *exec.Cmd
	ports  int // that are in use
	slow   bool
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{t: t, hosts: map[string]*netHost{}}
	t.Cleanup(n.end)
	n.fabric = n.hold()
	n.in(n.fabric, "ip", "link", "add", "switch", "type", "bridge")
	n.in(n.fabric, "ip", "link", "set", "switch", "up")
	return n
}

// hold makes a namespace.
func (n *network) hold() *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		n.t.Fatalf("make a network namespace: %v", err)
	}
	n.holders = append(n.holders, cmd)
	return cmd
}

func (n *network) end() {
	for _, h := range n.holders {
		h.Process.Kill()
		h.Wait()
	}
}

// enter makes a command that runs in a namespace. Its process is the command's.
func enter(holder *exec.Cmd, words ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", holder.Process.Pid), "--"}, words...)...)
}

func (n *network) in(holder *exec.Cmd, words ...string) {
	n.t.Helper()
	if out, err := enter(holder, words...).CombinedOutput(); err != nil {
		n.t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
}

// host is a host by name, made when it is first asked for.
func (n *network) host(name string) *netHost {
	n.t.Helper()
	if h := n.hosts[name]; h != nil {
		return h
	}
	i := len(n.hosts) + 1
	h := &netHost{ip: fmt.Sprint("10.77.0.", i), holder: n.hold()}
	port := fmt.Sprint("port", i)
	n.in(n.fabric, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(h.holder.Process.Pid))
	n.in(n.fabric, "ip", "link", "set", port, "master", "switch", "up")
	n.in(h.holder, "ip", "link", "set", "lo", "up")
	n.in(h.holder, "ip", "address", "add", h.ip+"/24", "dev", "eth0")
	n.in(h.holder, "ip", "link", "set", "eth0", "up")
	n.in(h.holder, "nft", "add table ip fault; add set ip fault deaf { type ipv4_addr; }; "+
		"add chain ip fault in { type filter hook input priority 0; }; add rule ip fault in ip saddr @deaf drop")
	n.hosts[name] = h
	return h
}

// addr is an address of a host that no other daemon has.
func (n *network) addr(host string) string {
	n.t.Helper()
	h := n.host(host)
	h.ports++
	return fmt.Sprint(h.ip, ":", 7100+h.ports)
}

// command makes a command that runs on a host.
func (n *network) command(host string, words ...string) *exec.Cmd {
	n.t.Helper()
	return enter(n.host(host).holder, words...)
}

// cut drops without a word what one host sends to another, until heal.
func (n *network) cut(from, to string) {
	n.t.Helper()
	n.in(n.host(to).holder, "nft", "add element ip fault deaf { "+n.host(from).ip+" }")
}

// part cuts some hosts off from all others, in both directions.
func (n *network) part(hosts ...string) {
	n.t.Helper()
	for other := range n.hosts {
		if slices.Contains(hosts, other) {
			continue
		}
		for _, h := range hosts {
			n.cut(h, other)
			n.cut(other, h)
		}
	}
}

// slow lets a host send no more than so many kilobits per second. What waits
// longer than two seconds for its turn is lost.
func (n *network) slow(host string, kbit int) {
	n.t.Helper()
	h := n.host(host)
	n.in(h.holder, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", fmt.Sprint(kbit, "kbit"), "burst", "32kb", "latency", "2s")
	h.slow = true
}

// heal undoes every cut and slow.
func (n *network) heal() {
	n.t.Helper()
	for _, h := range n.hosts {
		n.in(h.holder, "nft", "flush set ip fault deaf")
		if h.slow {
			n.in(h.holder, "tc", "qdisc", "del", "dev", "eth0", "root")
			h.slow = false
		}
	}
}
