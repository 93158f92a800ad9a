package mon

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"pillarbox/objstore"
)

// Watch sends the map as it is now and then each newer one, in the order of
// their epochs. A reader that falls behind misses those in between, never the
// newest. The channel closes when ctx or the monitor ends, or, told in the log,
// when the map cannot be followed any more.
func (m *Monitor) Watch(ctx context.Context) (<-chan *objstore.Map, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("watch the cluster map: %w", ErrClosed)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	unlink := context.AfterFunc(m.run, func() { cancel(ErrClosed) })
	cm, rev, err := m.get(ctx)
	if err != nil {
		unlink()
		cancel(nil)
		return nil, fmt.Errorf("watch: %w", err)
	}
	out := make(chan *objstore.Map)
	m.watches.Go(func() {
		defer close(out)
		defer cancel(nil)
		defer unlink()
		m.follow(ctx, cm, rev, out)
	})
	return out, nil
}

// follow keeps the newest map at hand while the reader is busy.
func (m *Monitor) follow(ctx context.Context, next *objstore.Map, rev int64, out chan<- *objstore.Map) {
	events := m.client.Watch(ctx, keyMap, clientv3.WithRev(rev+1))
	for {
		send := out
		if next == nil {
			send = nil
		}
		select {
		case <-ctx.Done():
			return
		case send <- next:
			next = nil
		case res, ok := <-events:
			switch {
			case ctx.Err() != nil:
				return
			case res.CompactRevision > 0: // fell so far behind that history is gone
				cm, at, err := m.get(ctx)
				if err != nil {
					m.log.Error("cannot follow the cluster map", "err", err)
					return
				}
				next = cm
				events = m.client.Watch(ctx, keyMap, clientv3.WithRev(at+1))
			case !ok || res.Err() != nil:
				m.log.Error("cannot follow the cluster map", "err", res.Err())
				return
			default:
				if len(res.Events) == 0 {
					continue
				}
				kv := res.Events[len(res.Events)-1].Kv
				cm, err := parseMap(kv.Value)
				if err != nil {
					m.log.Error("cannot follow the cluster map", "err", err)
					return
				}
				next = cm
			}
		}
	}
}
