package mon

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"pillarbox/mon/pki"
	"pillarbox/objstore"
)

// Report is what an OSD tells with its signs of life.
type Report struct {
	Epoch     uint64 `json:"epoch"` // of the map it goes by
	Total     uint64 `json:"total"` // bytes of its disk
	Free      uint64 `json:"free"`  // bytes the store may still use of it
	Groups    int    `json:"groups"`
	Leads     int    `json:"leads"`
	Degraded  int    `json:"degraded"`            // groups it leads that lack members
	Missing   uint64 `json:"missing"`             // chunks it still has to bring to where they belong
	Lost      uint64 `json:"lost,omitempty"`      // of these, shards that nobody holds, made again from others
	Bad       int    `json:"bad,omitempty"`       // chunks that scrub could not heal
	Unchecked bool   `json:"unchecked,omitempty"` // it has yet to see which these are
	Seen      uint64 `json:"seen,omitempty"`      // while unchecked: chunks that it has been through
	Moved     uint64 `json:"moved,omitempty"`     // bytes of chunks that it has given to others since it started

	Dropped map[string]uint64 `json:"dropped,omitempty"` // what came to its port and was not for it, by reason (package guard)

	Pools map[int]PoolUse `json:"pools,omitempty"` // what it holds of each data pool
}

const (
	prefixBeat = "pillarbox/beat/"

	// beatTTL is how long an OSD may be silent, in seconds, before it is down.
	beatTTL = 3
	// judgeEvery is how often the leading monitor looks who is there.
	judgeEvery = 500 * time.Millisecond
	// settleTime is how long a monitor that has just begun to lead waits before it
	// judges: OSDs have to find their way to the monitors first.
	settleTime = 5 * time.Second
	// OutAfter is how long an OSD is down before its data are brought elsewhere.
	OutAfter = 10 * time.Minute
	// minIn is the part of the OSDs that stay in whatever happens.
	minIn = 0.5
)

// AllotOSD adds a new OSD to the map: in, but not up before it boots.
func (m *Monitor) allotOSD(ctx context.Context, o objstore.OSDInfo) (int, error) {
	id := -1
	_, err := m.Update(ctx, func(cm *objstore.Map) error {
		for i := range cm.OSDs {
			if cm.OSDs[i].UUID == o.UUID { // joined before, and did not hear the answer
				id = cm.OSDs[i].ID
				return nil
			}
		}
		id = 0
		for cm.OSD(id) != nil {
			id++
		}
		o.ID = id
		cm.OSDs = append(cm.OSDs, o)
		return nil
	})
	return id, err
}

// JoinRequest is what a daemon or client asks with a token.
type JoinRequest struct {
	TokenHash string
	Request   []byte // for a certificate; PEM
	OSD       objstore.OSDInfo
	PeerAddr  string // of a monitor
}

// Joined answers it.
type Joined struct {
	Identity pki.Identity
	OSD      int // of an OSD
	CA, Cert []byte
	Map      *objstore.Map
	Initial  string // of a monitor: for Peer.Initial
}

// Join trades a token for a certificate.
func (m *Monitor) Join(ctx context.Context, r JoinRequest) (*Joined, error) {
	t, err := m.lookToken(ctx, r.TokenHash)
	if err != nil {
		return nil, err
	}
	j := &Joined{Identity: pki.Identity{Role: t.Role, Name: t.Name}, OSD: -1}
	if t.Role == pki.OSD {
		if err := checkOSD(r.OSD); err != nil {
			return nil, err
		}
	}
	if t.Role == pki.Mon { // which may fail for now, and is done once however often it is asked
		if j.Initial, err = m.addMember(ctx, j.Identity.Name, r.PeerAddr); err != nil {
			return nil, err
		}
	}
	if err := m.spendToken(ctx, r.TokenHash); err != nil {
		return nil, err
	}
	if t.Role == pki.OSD {
		if j.OSD, err = m.allotOSD(ctx, r.OSD); err != nil {
			return nil, err
		}
		j.Identity.Name = "osd." + strconv.Itoa(j.OSD)
	}
	if j.Cert, j.CA, err = m.sign(ctx, r.Request, j.Identity); err != nil {
		return nil, err
	}
	j.Map, err = m.Map(ctx)
	return j, err
}

// checkOSD refuses what an OSD may not say of itself.
func checkOSD(o objstore.OSDInfo) error {
	if len(o.UUID) != 36 {
		return fmt.Errorf("OSD with uuid %q: %w", o.UUID, objstore.Invalid)
	}
	if o.Host == "" || !(o.Weight > 0 && o.Weight <= maxWeight) || len(o.Addr) > 255 {
		return fmt.Errorf("OSD with host %q and weight %v: %w", o.Host, o.Weight, objstore.Invalid)
	}
	if err := checkPlace(o.Host); err != nil {
		return err
	}
	return checkPlace(o.Rack)
}

// Boot marks an OSD up at an address. The first one ever becomes the founder,
// which makes the placement groups. A directory other than the one known is
// refused: an empty disk must not be taken for a full one.
func (m *Monitor) Boot(ctx context.Context, b objstore.OSDInfo) (*objstore.Map, error) {
	return m.Update(ctx, func(cm *objstore.Map) error {
		o := cm.OSD(b.ID)
		switch {
		case o == nil:
			return fmt.Errorf("osd.%d was removed from the map: %w", b.ID, objstore.NotPermitted)
		case o.UUID != "" && o.UUID != b.UUID:
			return fmt.Errorf("osd.%d has directory %s, not %s: %w", b.ID, o.UUID, b.UUID, objstore.NotPermitted)
		}
		if cm.Founder == "" {
			cm.Founder = b.UUID
		}
		o.UUID, o.Addr, o.Up, o.DownAt = b.UUID, b.Addr, true, 0
		if o.AutoOut {
			o.In, o.AutoOut = true, false
		}
		return nil
	})
}

// Beats is an OSD's presence: it is up while somebody beats.
type Beats struct {
	m     *Monitor
	key   string
	lease clientv3.LeaseID
	last  string
}

// BeginBeats notes that an OSD is there.
func (m *Monitor) BeginBeats(ctx context.Context, id int) (*Beats, error) {
	lease, err := m.client.Grant(ctx, beatTTL)
	if err != nil {
		return nil, fmt.Errorf("osd.%d beats: %w", id, m.cause(err))
	}
	return &Beats{m: m, key: prefixBeat + strconv.Itoa(id), lease: lease.ID}, nil
}

// Beat passes on a sign of life.
func (b *Beats) Beat(ctx context.Context, r Report) error {
	if _, err := b.m.client.KeepAliveOnce(ctx, b.lease); err != nil {
		return fmt.Errorf("%s: %w", b.key, b.m.cause(err))
	}
	v, err := json.Marshal(r)
	if err != nil || string(v) == b.last {
		return err
	}
	if _, err := b.m.client.Put(ctx, b.key, seal(b.key, v), clientv3.WithLease(b.lease)); err != nil {
		return fmt.Errorf("%s: %w", b.key, b.m.cause(err))
	}
	b.last = string(v)
	return nil
}

// End says that the OSD's connection broke. It is not down for that alone: it
// may be coming back, or be with another monitor by now.
func (b *Beats) End(ctx context.Context) {
	b.m.client.Revoke(ctx, b.lease) // else it ends by itself
}

// reports are the last reports of those OSDs that are there.
func (m *Monitor) reports(ctx context.Context) (map[int]Report, error) {
	res, err := m.client.Get(ctx, prefixBeat, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("look for OSDs: %w", m.cause(err))
	}
	out := map[int]Report{}
	for _, kv := range res.Kvs {
		id, err := strconv.Atoi(strings.TrimPrefix(string(kv.Key), prefixBeat))
		var r Report
		var b []byte
		if err == nil {
			b, err = unseal(string(kv.Key), kv.Value)
		}
		if err == nil && json.Unmarshal(b, &r) == nil {
			out[id] = r
		}
	}
	return out, nil
}

// Judge marks OSDs down and out, as long as this monitor leads, until ctx ends.
func (m *Monitor) Judge(ctx context.Context) error {
	tick := time.NewTicker(judgeEvery)
	defer tick.Stop()
	var since time.Time // this monitor leads
	missing := map[int]bool{}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		s := m.etcd.Server
		if s.Leader() != s.MemberID() {
			since = time.Time{}
			continue
		}
		if since.IsZero() {
			since = time.Now()
			clear(missing)
		}
		if time.Since(since) < settleTime {
			continue
		}
		if err := m.judge(ctx, missing); err != nil && ctx.Err() == nil {
			m.log.Warn("judge the OSDs", "err", err)
		}
	}
}

func (m *Monitor) judge(ctx context.Context, missing map[int]bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	there, err := m.reports(ctx)
	if err != nil {
		return err
	}
	cm, err := m.Map(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	down, out := []int{}, []int{}
	in := 0
	for _, o := range cm.OSDs {
		if o.In {
			in++
		}
	}
	for _, o := range cm.OSDs {
		_, ok := there[o.ID]
		switch {
		case ok || o.Addr == "":
			delete(missing, o.ID)
		case o.Up && missing[o.ID] && !cm.HasFlag(objstore.FlagNoDown):
			down = append(down, o.ID) // missed twice
		case o.Up:
			missing[o.ID] = true
		case o.In && o.DownAt > 0 && now.Sub(time.Unix(o.DownAt, 0)) > m.outAfter && !cm.HasFlag(objstore.FlagNoOut):
			if float64(in-1) >= minIn*float64(len(cm.OSDs)) {
				out = append(out, o.ID)
				in--
			}
		}
	}
	full := fullness(cm, there)
	if len(down)+len(out)+len(full) == 0 {
		return nil
	}
	_, err = m.Update(ctx, func(cm *objstore.Map) error {
		for i := range cm.OSDs {
			o := &cm.OSDs[i]
			if slices.Contains(down, o.ID) {
				markDown(o)
			}
			if slices.Contains(out, o.ID) && !o.Up {
				o.In, o.AutoOut = false, true
			}
			if how, ok := full[o.ID]; ok {
				o.Full = how
			}
		}
		return nil
	})
	if err == nil {
		m.log.Warn("OSDs marked", "down", down, "out", out, "full", full)
	}
	return err
}

// fullness tells the OSDs whose disks are more or less full than the map has it.
func fullness(cm *objstore.Map, there map[int]Report) map[int]objstore.Fullness {
	changed := map[int]objstore.Fullness{}
	for _, o := range cm.OSDs {
		r, ok := there[o.ID]
		if !ok {
			continue
		}
		if how := cm.Ratios.Fullness(r.Total, r.Free, o.Full); how != o.Full {
			changed[o.ID] = how
		}
	}
	return changed
}
