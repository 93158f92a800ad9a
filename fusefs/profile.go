package fusefs

import (
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pillarbox/objstore"
)

// By says what a profile tells apart besides the kinds of request.
type By string

// What a profile can tell apart.
const (
	ByNothing By = ""
	ByVolume  By = "account"
	ByUID     By = "uid"
	ByPID     By = "pid"
)

// maxRows bounds the memory of a profile: what comes later is counted together.
const maxRows = 10_000

// Profile counts the requests of a mount while it is going.
type Profile struct {
	by By

	mu   sync.Mutex // a leaf
	rows map[rowKey]*counter
	rest [ops]*counter // what there were too many rows for
}

type rowKey struct {
	op op
	of uint64
}

// Row is what a profile counted of one kind of request, of one volume, user or process.
type Row struct {
	Op    string
	Of    uint64 // volume, user or process, as the profile is by
	Other bool   // instead: of all those that there were too many of
	Times
}

// StartProfile begins to count. Stop ends it.
func (m *Mounted) StartProfile(by By) (p *Profile, stop func()) {
	p = &Profile{by: by, rows: map[rowKey]*counter{}}
	me := &m.raw.meter
	me.change(func(list []*Profile) []*Profile { return append(list, p) })
	return p, func() {
		me.change(func(list []*Profile) []*Profile {
			return slices.DeleteFunc(list, func(q *Profile) bool { return q == p })
		})
	}
}

// change replaces the list of profiles, which requests read without a lock.
func (m *meter) change(f func([]*Profile) []*Profile) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []*Profile
	if old := m.profiles.Load(); old != nil {
		list = slices.Clone(*old)
	}
	if list = f(list); len(list) == 0 {
		m.profiles.Store(nil)
		return
	}
	m.profiles.Store(&list)
}

func (p *Profile) add(o op, in *fuse.InHeader, d time.Duration, failed bool) {
	k := rowKey{op: o}
	switch p.by {
	case ByVolume:
		k.of = uint64(objstore.Ino(in.NodeId).Volume())
	case ByUID:
		k.of = uint64(in.Uid)
	case ByPID:
		k.of = uint64(in.Pid)
	}
	p.mu.Lock()
	c := p.rows[k]
	switch {
	case c != nil:
	case len(p.rows) < maxRows:
		c = new(counter)
		p.rows[k] = c
	default:
		if p.rest[o] == nil {
			p.rest[o] = new(counter)
		}
		c = p.rest[o]
	}
	p.mu.Unlock()
	c.add(d, failed)
}

// Rows are what was counted so far, most time first.
func (p *Profile) Rows() []Row {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]Row, 0, len(p.rows))
	for k, c := range p.rows {
		list = append(list, Row{Op: opNames[k.op], Of: k.of, Times: c.times()})
	}
	for o, c := range p.rest {
		if c != nil {
			list = append(list, Row{Op: opNames[o], Other: true, Times: c.times()})
		}
	}
	slices.SortFunc(list, func(a, b Row) int { return int(b.Total - a.Total) })
	return list
}
