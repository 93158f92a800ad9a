package objstore

import "fmt"

// Fullness is how near to full an OSD's disk is.
type Fullness string

// The degrees of fullness, each above the one before; an empty one is none of them.
const (
	NearFull     Fullness = "nearfull"     // a warning
	BackfillFull Fullness = "backfillfull" // it is given nothing to make up for what others lost
	Full         Fullness = "full"         // it takes nothing that grows
)

// Ratios are the parts of its disk in use from which on an OSD is near full, too full
// for recovery, or full. 0: as by default.
type Ratios struct {
	NearFull     float64 `json:"nearfull,omitempty"`
	BackfillFull float64 `json:"backfillfull,omitempty"`
	Full         float64 `json:"full,omitempty"`
}

const (
	defaultNearFull     = 0.85
	defaultBackfillFull = 0.90
	defaultFull         = 0.95

	// fullMargin is by how much less must be in use before an OSD is less full
	// again: each change makes a map, and looks for chunks to move.
	fullMargin = 0.01
)

// Used fills in the defaults.
func (r Ratios) Used() Ratios {
	if r.NearFull == 0 {
		r.NearFull = defaultNearFull
	}
	if r.Full == 0 {
		r.Full = defaultFull
	}
	if r.BackfillFull == 0 {
		r.BackfillFull = min(max(defaultBackfillFull, r.NearFull), r.Full)
	}
	return r
}

func (r Ratios) fault() string {
	if u := r.Used(); !(u.NearFull > 0 && u.NearFull <= u.BackfillFull && u.BackfillFull <= u.Full && u.Full <= 1) {
		return fmt.Sprintf("ratios of nearfull %v, backfillfull %v and full %v", u.NearFull, u.BackfillFull, u.Full)
	}
	return ""
}

// Fullness is how near to full a disk is that was so full before. Sizes are in
// bytes; free is what the store may still use.
func (r Ratios) Fullness(total, free uint64, was Fullness) Fullness {
	if total == 0 {
		return was
	}
	r = r.Used()
	used, atLeast := 1-float64(free)/float64(total), false
	for _, d := range []struct {
		how  Fullness
		from float64
	}{{Full, r.Full}, {BackfillFull, r.BackfillFull}, {NearFull, r.NearFull}} {
		atLeast = atLeast || was == d.how
		if used >= d.from || atLeast && used > d.from-fullMargin {
			return d.how
		}
	}
	return ""
}

// Room is how much of what is free on a disk may be used before it is full.
func (r Ratios) Room(total, free uint64) uint64 {
	return free - min(free, uint64((1-r.Used().Full)*float64(total)))
}

// FullOSD says whether the map has an OSD as full.
func (m *Map) FullOSD(id int) bool {
	o := m.OSD(id)
	return o != nil && o.Full == Full
}

// NoBackfill says whether the map has an OSD as too full to be given what others lost,
// or what is moved.
func (m *Map) NoBackfill(id int) bool {
	o := m.OSD(id)
	return o != nil && (o.Full == Full || o.Full == BackfillFull)
}
