package mon

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"pillarbox/objstore"
)

const (
	keyMap     = "pillarbox/map"
	keySession = "pillarbox/session"

	maxSession = objstore.MaxSession
)

// ErrClosed is the cause of failures after Close.
var ErrClosed = errors.New("monitor closed")

// Monitor is an open monitor.
type Monitor struct {
	log      *slog.Logger
	etcd     *embed.Etcd
	client   *clientv3.Client
	outAfter time.Duration
	run      context.Context // of the watches; ends with Close
	cancel   context.CancelCauseFunc

	mu      sync.Mutex // orders Watch and Close; a leaf
	closed  bool
	watches sync.WaitGroup
}

// Open opens a monitor, making a new store's map if its directory is new.
// Corrupt: the directory is damaged. Unsupported: the map is of a newer format.
func Open(ctx context.Context, opt Options) (*Monitor, error) {
	opt = opt.withDefaults()
	if err := opt.Validate(); err != nil {
		return nil, fmt.Errorf("monitor options: %w", err)
	}
	log := opt.Log.With("mon", 0)
	if err := Check(opt.Dir); err != nil {
		return nil, fmt.Errorf("open the monitor in %s: %w", opt.Dir, err)
	}
	e, err := startEtcd(ctx, opt.Dir, opt.Peer, log)
	if err != nil {
		return nil, err
	}
	m := &Monitor{log: log, etcd: e, client: v3client.New(e.Server), outAfter: opt.OutAfter}
	m.run, m.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := m.bootstrap(ctx, opt); err != nil {
		return nil, errors.Join(fmt.Errorf("open the monitor in %s: %w", opt.Dir, err), m.Close())
	}
	return m, nil
}

// bootstrap writes the map of a new store; an old one is only looked at.
func (m *Monitor) bootstrap(ctx context.Context, opt Options) error {
	fresh, err := newMap(opt)
	if err != nil {
		return err
	}
	session := uint64(0)
	if opt.Seed != nil {
		fresh, session = opt.Seed.Map, opt.Seed.Session
		if err := fresh.Validate(); err != nil {
			return err
		}
	}
	b, err := json.Marshal(fresh)
	if err != nil {
		return fmt.Errorf("encode the cluster map: %w", err)
	}
	res, err := m.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(keyMap), "=", 0), clientv3.Compare(clientv3.CreateRevision(keySession), "=", 0)).
		Then(clientv3.OpPut(keyMap, seal(keyMap, b)), clientv3.OpPut(keySession, seal(keySession, strconv.AppendUint(nil, session, 10)))).Commit()
	if err != nil {
		return fmt.Errorf("make the cluster map: %w", err)
	}
	if res.Succeeded {
		m.log.Info("made a new store", "fsid", fresh.FSID, "volume_depth", fresh.VolumeDepth)
		return nil
	}
	_, err = m.Map(ctx)
	return err
}

// newMap is the map of a new store: in one process, or of a cluster that its
// OSDs have yet to join.
func newMap(opt Options) (*objstore.Map, error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name of this host: %w", err)
	}
	if opt.Cluster {
		m := &objstore.Map{
			FSID: opt.FSID, Epoch: 1, Format: objstore.FirstMapFormat, VolumeDepth: opt.VolumeDepth,
			Pools: []objstore.Pool{
				{ID: 0, Name: "meta", Kind: objstore.MetaPool, Size: 3, MinSize: 2, PGs: 64},
				{ID: 1, Name: "data", Kind: objstore.DataPool, Size: 3, MinSize: 2, PGs: 128, ChunkSize: objstore.ChunkSize},
			},
		}
		return m, m.Validate()
	}
	m := &objstore.Map{
		FSID: opt.FSID, Epoch: 1, Format: objstore.FirstMapFormat, VolumeDepth: opt.VolumeDepth,
		OSDs: []objstore.OSDInfo{{ID: 0, Host: host, Weight: 1, Up: true, In: true}},
		Pools: []objstore.Pool{
			{ID: 0, Name: "meta", Kind: objstore.MetaPool, Size: 1, MinSize: 1, PGs: 64},
			{ID: 1, Name: "data", Kind: objstore.DataPool, Size: 1, MinSize: 1, PGs: 128, ChunkSize: objstore.ChunkSize},
		},
	}
	return m, m.Validate()
}

// NewFSID makes an identity for a new store: a random UUID (version 4).
func NewFSID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Map is the cluster map as a majority of the monitors has it now.
func (m *Monitor) Map(ctx context.Context) (*objstore.Map, error) {
	cm, _, err := m.get(ctx)
	return cm, err
}

// get returns the map and the revision of the last change of its key.
func (m *Monitor) get(ctx context.Context) (*objstore.Map, int64, error) {
	res, err := m.client.Get(ctx, keyMap)
	if err != nil {
		return nil, 0, fmt.Errorf("read the cluster map: %w", m.cause(err))
	}
	if len(res.Kvs) == 0 {
		return nil, 0, fmt.Errorf("read the cluster map: it is missing: %w", objstore.Corrupt)
	}
	cm, err := parseMap(res.Kvs[0].Value)
	return cm, res.Kvs[0].ModRevision, err
}

func parseMap(sealed []byte) (*objstore.Map, error) {
	b, err := unseal(keyMap, sealed)
	if err != nil {
		return nil, fmt.Errorf("read the cluster map: %w", err)
	}
	return objstore.ParseMap(b)
}

// Update changes the map with fn and gives it the next epoch; it returns the
// new map. fn may be called several times, for others change it, too. An error
// of fn is returned and changes nothing.
func (m *Monitor) Update(ctx context.Context, fn func(*objstore.Map) error) (*objstore.Map, error) {
	for {
		cm, rev, err := m.get(ctx)
		if err != nil {
			return nil, err
		}
		epoch := cm.Epoch
		if err := fn(cm); err != nil {
			return nil, err
		}
		cm.Epoch = epoch + 1
		cm.Format = max(cm.Format, cm.NeededFormat())
		if err := cm.Validate(); err != nil {
			return nil, err
		}
		b, err := json.Marshal(cm)
		if err != nil {
			return nil, fmt.Errorf("encode the cluster map: %w", err)
		}
		ok, err := m.swap(ctx, keyMap, rev, b)
		if err != nil {
			return nil, fmt.Errorf("change the cluster map: %w", err)
		}
		if ok {
			return cm, nil
		}
	}
}

// NewSession gives out a session id: greater than every one before it, for the
// life of the store.
func (m *Monitor) NewSession(ctx context.Context) (uint64, error) {
	for {
		res, err := m.client.Get(ctx, keySession)
		if err != nil {
			return 0, fmt.Errorf("new session: %w", m.cause(err))
		}
		if len(res.Kvs) == 0 {
			return 0, fmt.Errorf("new session: the counter is missing: %w", objstore.Corrupt)
		}
		b, err := unseal(keySession, res.Kvs[0].Value)
		if err != nil {
			return 0, fmt.Errorf("new session: %w", err)
		}
		last, err := strconv.ParseUint(string(b), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("new session: counter %q: %w", b, objstore.Corrupt)
		}
		if last >= maxSession {
			return 0, fmt.Errorf("new session: all %d ids are used up: %w", uint64(maxSession), objstore.NoSpace)
		}
		ok, err := m.swap(ctx, keySession, res.Kvs[0].ModRevision, strconv.AppendUint(nil, last+1, 10))
		if err != nil {
			return 0, fmt.Errorf("new session: %w", err)
		}
		if ok {
			return last + 1, nil
		}
	}
}

// swap sets a key unless it has changed since revision rev. On return it is in
// the log and in the database, so that a log that loses it is found out.
func (m *Monitor) swap(ctx context.Context, key string, rev int64, value []byte) (bool, error) {
	res, err := m.client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).
		Then(clientv3.OpPut(key, seal(key, value))).Commit()
	if err != nil {
		return false, m.cause(err)
	}
	m.etcd.Server.Backend().ForceCommit()
	return res.Succeeded, nil
}

// cause says that the monitor is closed where that is why err came. Else the
// monitors are too few or about to elect a leader, and another try may do.
func (m *Monitor) cause(err error) error {
	if c := context.Cause(m.run); c != nil {
		return fmt.Errorf("%w: %w", c, err)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", objstore.Unavailable, err)
}

// Close ends the monitor and waits for everything it started. A later call
// does nothing.
func (m *Monitor) Close() error {
	m.mu.Lock()
	was := m.closed
	m.closed = true
	m.mu.Unlock()
	if was {
		return nil
	}
	m.cancel(ErrClosed)
	m.watches.Wait()
	err := m.client.Close()
	m.etcd.Close()
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the monitor's client: %w", err)
	}
	return nil
}
