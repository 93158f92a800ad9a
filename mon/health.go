package mon

import (
	"context"
	"fmt"
	"slices"

	"pillarbox/objstore"
)

// Status is the cluster at a glance.
type Status struct {
	FSID   string              `json:"fsid"`
	Epoch  uint64              `json:"epoch"`
	Health string              `json:"health"` // HEALTH_OK, HEALTH_WARN or HEALTH_ERR
	Checks []HealthCheck       `json:"checks"`
	Mons   []objstore.MonInfo  `json:"mons"`
	Away   []string            `json:"mons_away,omitempty"` // those of them that are down
	OSDs   []OSDStatus         `json:"osds"`
	Pools  []objstore.Pool     `json:"pools"`
	Rules  []objstore.PoolRule `json:"pool_rules,omitempty"`
	Flags  []string            `json:"flags,omitempty"`
	Ratios objstore.Ratios     `json:"ratios"` // of full disks
	Total  uint64              `json:"total_bytes"`
	Free   uint64              `json:"free_bytes"`
}

// HealthCheck is one thing that is not as it should be. Codes are stable.
type HealthCheck struct {
	Code     string   `json:"code"`
	Severity string   `json:"severity"` // HEALTH_WARN or HEALTH_ERR
	Summary  string   `json:"summary"`
	Detail   []string `json:"detail,omitempty"`
}

// OSDStatus is an OSD as the map has it, with its last report.
type OSDStatus struct {
	objstore.OSDInfo
	Report *Report `json:"report,omitempty"` // nil: it is not there
}

// The severities of health.
const (
	HealthOK   = "HEALTH_OK"
	HealthWarn = "HEALTH_WARN"
	HealthErr  = "HEALTH_ERR"
)

func (m *Monitor) cmdStatus(ctx context.Context, _ []string, _ map[string]string) (any, error) {
	return m.Status(ctx)
}

// Status looks at the cluster.
func (m *Monitor) Status(ctx context.Context) (*Status, error) {
	cm, err := m.Map(ctx)
	if err != nil {
		return nil, err
	}
	there, err := m.reports(ctx)
	if err != nil {
		return nil, err
	}
	mons, err := m.monsThere(ctx)
	if err != nil {
		return nil, err
	}
	st := &Status{FSID: cm.FSID, Epoch: cm.Epoch, Mons: cm.Mons, Pools: cm.Pools, Rules: cm.Rules, Flags: cm.Flags, Ratios: cm.Ratios.Used(), Checks: []HealthCheck{}}
	for _, o := range cm.OSDs {
		s := OSDStatus{OSDInfo: o}
		if r, ok := there[o.ID]; ok {
			s.Report = &r
			st.Total += r.Total
			st.Free += r.Free
		}
		st.OSDs = append(st.OSDs, s)
	}
	slices.SortFunc(st.OSDs, func(a, b OSDStatus) int { return a.ID - b.ID })
	var away []string
	for _, mon := range cm.Mons {
		if !mons[mon.Name] {
			away = append(away, mon.Name+" at "+mon.Addr+" is down")
			st.Away = append(st.Away, mon.Name)
		}
	}
	st.note("MON_DOWN", HealthWarn, "%d monitors down", away)
	st.check(cm)
	return st, nil
}

// check fills in health.
func (st *Status) check(cm *objstore.Map) {
	var down, near, tooFull, full, degraded, moving, unknown, bad []string
	led := 0
	for _, o := range st.OSDs {
		name := fmt.Sprintf("osd.%d", o.ID)
		if !o.Up && o.In {
			down = append(down, name+" on host "+o.Host+" is down")
		}
		r := o.Report
		if r == nil || r.Total == 0 {
			continue
		}
		how := fmt.Sprintf("%s is %.0f %% full", name, 100*(1-float64(r.Free)/float64(r.Total)))
		switch cm.Ratios.Fullness(r.Total, r.Free, o.Full) {
		case objstore.Full:
			full = append(full, how)
		case objstore.BackfillFull:
			tooFull = append(tooFull, how)
		case objstore.NearFull:
			near = append(near, how)
		}
		led += r.Leads
		if r.Epoch < cm.Epoch {
			unknown = append(unknown, fmt.Sprintf("%s has not reported on epoch %d yet", name, cm.Epoch))
		}
		if r.Degraded > 0 {
			degraded = append(degraded, fmt.Sprintf("%d placement groups led by %s lack members", r.Degraded, name))
		}
		if r.Lost > 0 {
			degraded = append(degraded, fmt.Sprintf("%s has %d shards to make again", name, r.Lost))
		}
		if r.Bad > 0 {
			bad = append(bad, fmt.Sprintf("%s has %d damaged chunks that no other OSD has a good copy of", name, r.Bad))
		}
		switch {
		case r.Missing > 0:
			moving = append(moving, fmt.Sprintf("%s has %d chunks to bring where they belong", name, r.Missing))
		case r.Unchecked:
			moving = append(moving, name+" looks for chunks to bring where they belong")
		}
	}
	if n := cm.Meta().PGs - led; n > 0 && len(st.OSDs) > 0 {
		unknown = append(unknown, fmt.Sprintf("%d of %d placement groups have no leader", n, cm.Meta().PGs))
	}
	st.note("OSD_DOWN", HealthWarn, "%d OSDs down", down)
	st.note("OSD_NEARFULL", HealthWarn, "%d OSDs near full", near)
	st.note("OSD_BACKFILLFULL", HealthWarn, "%d OSDs too full for recovery", tooFull)
	st.note("OSD_FULL", HealthErr, "%d OSDs full", full)
	st.note("POOL_FULL", HealthErr, "%d pools with full placement groups", fullPools(cm))
	st.note("OSD_SCRUB_ERRORS", HealthErr, "%d OSDs have damaged chunks", bad)
	st.note("PG_AVAILABILITY", HealthWarn, "reduced availability of volumes, or not known (%d reasons)", unknown)
	for i := range cm.Pools {
		if p := &cm.Pools[i]; p.Kind == objstore.DataPool && len(down) > 0 {
			if groups, lacking := st.lacking(cm, p); groups > 0 {
				degraded = append(degraded, fmt.Sprintf("pool %s: %d of %d placement groups lack %d of %d %s", p.Name, groups, p.PGs, lacking, p.PGs*p.Size, p.Pieces()))
			}
		}
	}
	st.note("PG_DEGRADED", HealthWarn, "degraded placement groups (%d reasons)", degraded)
	st.note("CHUNKS_MISPLACED", HealthWarn, "%d OSDs have chunks to move", moving)
	st.note("OSDMAP_FLAGS", HealthWarn, "%d flags set", st.Flags)
	var few []string
	for i := range cm.Pools {
		p := &cm.Pools[i]
		if p.Outside != nil {
			continue
		}
		short := 0
		for pg := range uint32(p.PGs) {
			found := 0
			for _, id := range cm.Acting(p, pg) {
				if id >= 0 {
					found++
				}
			}
			if found < p.Size {
				short++
			}
		}
		if short > 0 {
			few = append(few, fmt.Sprintf("pool %s of size %d: %d of %d placement groups find too few failure domains (%s)", p.Name, p.Size, short, p.PGs, p.Domain()))
		}
	}
	st.note("POOL_TOO_FEW_OSDS", HealthWarn, "%d pools have too few OSDs", few)
	st.Health = HealthOK
	for _, c := range st.Checks {
		if st.Health == HealthOK || c.Severity == HealthErr {
			st.Health = c.Severity
		}
	}
}

// fullPools tells the pools with placement groups that take nothing that grows:
// of volumes, whose first OSD is full; of chunks, with too few others.
func fullPools(cm *objstore.Map) (list []string) {
	if !slices.ContainsFunc(cm.OSDs, func(o objstore.OSDInfo) bool { return o.Full == objstore.Full }) {
		return nil // computing where every group lies is for when it can matter
	}
	for i := range cm.Pools {
		p := &cm.Pools[i]
		groups := 0
		for pg := range uint32(p.PGs) {
			acting := cm.Acting(p, pg)
			if p.Kind == objstore.MetaPool {
				acting = acting[:min(1, len(acting))]
			}
			full, left := 0, 0
			for _, id := range acting {
				switch {
				case cm.FullOSD(id):
					full++
				case id >= 0:
					left++
				}
			}
			if full > 0 && (p.Kind == objstore.MetaPool || left < p.MinSize) {
				groups++
			}
		}
		if groups > 0 {
			list = append(list, fmt.Sprintf("pool %s: %d of %d placement groups take nothing that grows", p.Name, groups, p.PGs))
		}
	}
	return list
}

// lacking counts the placement groups of a data pool with places on OSDs that
// are down, and these places.
func (st *Status) lacking(cm *objstore.Map, p *objstore.Pool) (groups, places int) {
	for pg := range uint32(p.PGs) {
		down := 0
		for _, id := range cm.Acting(p, pg) {
			if id >= 0 && !cm.OSD(id).Up {
				down++
			}
		}
		if down > 0 {
			groups++
			places += down
		}
	}
	return groups, places
}

func (st *Status) note(code, severity, summary string, detail []string) {
	if len(detail) > 0 {
		st.Checks = append(st.Checks, HealthCheck{code, severity, fmt.Sprintf(summary, len(detail)), detail})
	}
}
