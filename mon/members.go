package mon

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"pillarbox/objstore"
)

// prefixMon begins the keys that say which monitors are there, by name.
const prefixMon = "pillarbox/mon/"

// monTTL is how long a monitor may be silent before it counts as down, in seconds.
const monTTL = 5

// addMember adds a monitor as a learner, which becomes a voter once it is there
// and has caught up (Serve). It returns the members for etcd to begin with. Done
// again it changes nothing.
func (m *Monitor) addMember(ctx context.Context, name, addr string) (initial string, err error) {
	if _, _, err := net.SplitHostPort(addr); err != nil || len(addr) > 255 {
		return "", fmt.Errorf("monitor %s at %q: %w", name, addr, objstore.Invalid)
	}
	list, err := m.client.MemberList(ctx)
	if err != nil {
		return "", fmt.Errorf("list the monitors: %w", m.cause(err))
	}
	at := peerURL(addr)
	known := func(mem *etcdserverpb.Member) bool { return slices.Contains(mem.PeerURLs, at) }
	members := list.Members
	if !slices.ContainsFunc(members, known) {
		res, err := m.client.MemberAddAsLearner(ctx, []string{at})
		if err != nil {
			return "", fmt.Errorf("add monitor %s: %w", name, m.cause(err)) // as right after another change
		}
		members = res.Members
	}
	var parts []string
	for _, mem := range members {
		n := mem.Name
		if known(mem) {
			n = name
		}
		for _, u := range mem.PeerURLs {
			parts = append(parts, n+"="+u)
		}
	}
	return strings.Join(parts, ","), nil
}

// cmdMonRemove: mon rm NAME
func (m *Monitor) cmdMonRemove(ctx context.Context, args []string, _ map[string]string) (any, error) {
	name := args[0]
	list, err := m.client.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the monitors: %w", m.cause(err))
	}
	for _, mem := range list.Members {
		if mem.Name != name {
			continue
		}
		if len(list.Members) == 1 {
			return nil, fmt.Errorf("%s is the only monitor: %w", name, objstore.NotPermitted)
		}
		// Etcd refuses what would leave the others without a majority.
		if _, err := m.client.MemberRemove(ctx, mem.ID); err != nil {
			return nil, fmt.Errorf("remove monitor %s: %w", name, m.cause(err))
		}
	}
	return m.change(ctx, func(cm *objstore.Map) error {
		cm.Mons = slices.DeleteFunc(cm.Mons, func(o objstore.MonInfo) bool { return o.Name == name })
		return nil
	})
}

// Announce makes the map say where the monitor's service is.
func (m *Monitor) Announce(ctx context.Context, info objstore.MonInfo) error {
	cm, err := m.Map(ctx)
	if err != nil || slices.Contains(cm.Mons, info) {
		return err
	}
	_, err = m.Update(ctx, func(cm *objstore.Map) error {
		cm.Mons = slices.DeleteFunc(cm.Mons, func(o objstore.MonInfo) bool { return o.Name == info.Name })
		cm.Mons = append(cm.Mons, info)
		return nil
	})
	return err
}

// Serve does what a monitor does besides answering, until ctx ends: it becomes a
// voter, says that it is there, and, when it leads, judges the OSDs.
func (m *Monitor) Serve(ctx context.Context, info objstore.MonInfo) error {
	done := make(chan error, 1)
	go func() { done <- m.Judge(ctx) }()
	announced := false
	var lease clientv3.LeaseID
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := m.present(ctx, info, &announced, &lease); err != nil && ctx.Err() == nil {
			m.log.Debug("not in the quorum", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return <-done
		}
	}
}

func (m *Monitor) present(ctx context.Context, info objstore.MonInfo, announced *bool, lease *clientv3.LeaseID) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if !*announced {
		if m.etcd.Server.IsLearner() {
			if _, err := m.client.MemberPromote(ctx, uint64(m.etcd.Server.MemberID())); err != nil {
				return err
			}
		}
		if err := m.Announce(ctx, info); err != nil {
			return err
		}
		*announced = true
		m.log.Info("in the quorum", "name", info.Name)
	}
	if *lease != 0 {
		if _, err := m.client.KeepAliveOnce(ctx, *lease); err == nil {
			return nil
		}
	}
	res, err := m.client.Grant(ctx, monTTL)
	if err != nil {
		return err
	}
	key := prefixMon + info.Name
	_, err = m.client.Put(ctx, key, seal(key, []byte(info.Addr)), clientv3.WithLease(res.ID))
	if err == nil {
		*lease = res.ID
	}
	return err
}

// monsThere are the names of the monitors that are there.
func (m *Monitor) monsThere(ctx context.Context) (map[string]bool, error) {
	res, err := m.client.Get(ctx, prefixMon, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("look for monitors: %w", m.cause(err))
	}
	there := map[string]bool{}
	for _, kv := range res.Kvs {
		there[strings.TrimPrefix(string(kv.Key), prefixMon)] = true
	}
	return there, nil
}
