package cluster

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sys/unix"
)

// TestHistories has clients on three hosts act at random on the same few names while
// OSDs and hosts are killed, frozen and cut off. What all of them were told, with
// when, must be what one filesystem could have said to one after the other.
func TestHistories(t *testing.T) {
	seed := *faultSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	b := &broken{cluster: bareCluster(t), r: rand.New(rand.NewPCG(seed, 0))}
	b.net = newNetwork(t)
	b.found(3)
	b.mons, b.osds = b.all[:1:1], b.all[1:4:4]
	b.healthy(3)
	h := &histories{t: t, began: time.Now(), done: map[string][]porcupine.Operation{}, inos: map[uint64]string{}}
	var hosts []*host
	for i := range historyHosts {
		point, d := b.cluster.mount(fmt.Sprint("mx", i), "timeout=10s")
		hosts, b.mounts = append(hosts, &host{id: i, point: point}), append(b.mounts, d)
	}
	h.newDirs(b, hosts[0], 0)
	var clients sync.WaitGroup
	for id := range historyClients {
		c := &historian{histories: h, id: id, on: hosts[id%historyHosts], r: rand.New(rand.NewPCG(seed, uint64(id)+1))}
		clients.Go(c.run)
	}
	h.goOn(b, "at first")
	faults := []func() string{b.killOSD, b.partMount, b.freezeOSD, func() string { return b.killMount(hosts) }, b.partOSD, b.freezeMount, b.deafOSD, b.muteOSD}
	b.r.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	for round := range *historyRounds {
		h.newDirs(b, hosts[0], round+1)
		t.Logf("%s: %s", time.Now().Format(time.TimeOnly), faults[round%len(faults)]())
		h.goAbout(300, time.Duration(2+b.r.IntN(3))*time.Second)
		if round%4 == 3 { // longer than a lease
			h.goAbout(1000, 12*time.Second)
		}
		for _, repair := range b.repair {
			repair()
		}
		b.repair = nil
		h.goOn(b, "after it was repaired")
	}
	h.over.Store(true)
	clients.Wait()
	b.healthy(3)
	for _, on := range hosts {
		h.lookAtAll(on)
	}
	h.check()
	for _, d := range b.mounts {
		b.stop(d)
	}
}

// newDirs makes directories of two accounts, and has the clients go over to them.
func (h *histories) newDirs(b *broken, on *host, round int) {
	h.t.Helper()
	var dirs []string
	for i := range historyDirs {
		key := fmt.Sprintf("example.org/user%d/%d.%d", i%2, round, i)
		dir := filepath.Join(on.point, key)
		b.eventually("a directory is made", func() bool {
			err := os.MkdirAll(dir, 0o755)
			for _, name := range []string{"attribute", "value"} {
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, name), nil, 0o600)
				}
			}
			return err == nil
		})
		dirs = append(dirs, key)
	}
	h.dirs.Store(&dirs)
}

// goOn waits until every client has clear replies.
func (h *histories) goOn(b *broken, what string) {
	h.t.Helper()
	for id := range historyClients {
		from := h.clear[id].Load()
		b.eventually(fmt.Sprint("client ", id, " goes on ", what), func() bool { return h.clear[id].Load() > from+5 })
	}
}

// goAbout returns after so many clear replies, or some time.
func (h *histories) goAbout(acts int64, most time.Duration) {
	end := time.Now().Add(most)
	for from := h.all(); h.all() < from+acts && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
}

func (b *broken) freezeMount() string { return b.frozen(b.any(b.mounts)) }

// killMount kills a mount's process; later its host gets another.
func (b *broken) killMount(hosts []*host) string {
	i := b.r.IntN(len(hosts))
	on, d := hosts[i], b.mounts[i]
	on.dead.Store(true)
	b.kill(d)
	b.later(func() {
		on.use.Lock()
		defer on.use.Unlock()
		if err := unix.Unmount(on.point, unix.MNT_DETACH); err != nil {
			b.t.Errorf("unmount %s: %v", on.point, err)
		}
		_, b.mounts[i] = b.cluster.mount(fmt.Sprint("mx", i), "timeout=10s")
		on.dead.Store(false)
	})
	return "kill -9 " + d.name
}

// lookAtAll adds to all histories what a host shows in the end.
func (h *histories) lookAtAll(on *host) {
	c := &historian{histories: h, id: historyClients + on.id, on: on, r: rand.New(rand.NewPCG(0, 0))}
	for key := range h.done {
		dir := filepath.Join(on.point, key)
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			continue
		}
		for n := range shared {
			c.look(key, dir, n)
		}
	}
}

// check finds histories that no filesystem has.
func (h *histories) check() {
	h.t.Helper()
	acts, unclear := 0, 0
	for key, list := range h.done {
		acts += len(list)
		for _, op := range list {
			if op.Output.(reply).err == errUnclear {
				unclear++
			}
		}
		switch porcupine.CheckOperationsTimeout(namesModel, list, 30*time.Second) {
		case porcupine.Illegal:
			h.t.Errorf("%s: no filesystem has this history:\n%s", key, story(list))
		case porcupine.Unknown:
			h.t.Logf("%s: not decided in time whether %d acts are a filesystem's", key, len(list))
		}
	}
	h.t.Logf("%d acts, %d of them unclear, in %d histories", acts, unclear, len(h.done))
}

// story tells a history.
func story(list []porcupine.Operation) (s string) {
	for _, op := range list {
		a, r := op.Input.(act), op.Output.(reply)
		s += fmt.Sprintf("%12d %20d client %d: %v n%d to n%d %d: %d %v\n", op.Call, op.Return, op.ClientId, a.verb, a.name, a.to, a.ino, r.ino, r.err)
	}
	return s
}
