package locks

import (
	"math"
	"math/rand/v2"
	"testing"

	"pillarbox/objstore"
)

// TestModel compares the table with one that keeps a lock for every byte.
func TestModel(t *testing.T) {
	const size = 24
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	owners := []Owner{{1, 1, false}, {1, 2, false}, {2, 1, false}, {1, 1, true}, {2, 1, true}}
	for range 300 {
		var table Table
		model := map[Owner]*[size]byte{} // 0: none, 1: read, 2: write
		for _, o := range owners {
			model[o] = &[size]byte{}
		}
		for step := range 200 {
			o := owners[r.IntN(len(owners))]
			a, b := uint64(r.IntN(size)), uint64(r.IntN(size))
			l := Lock{Owner: o, Write: r.IntN(2) == 0, Start: min(a, b), End: max(a, b)}
			kind := byte(1)
			if l.Write {
				kind = 2
			}
			free := true
			for other, bytes := range model {
				for i := l.Start; i <= l.End && other != o && other.Flock == o.Flock; i++ {
					free = free && (bytes[i] == 0 || bytes[i] == 1 && kind == 1)
				}
			}
			if _, conflict := table.Conflict(7, l); conflict == free {
				t.Fatalf("step %d: %+v: conflict %v", step, l, conflict)
			}
			if got := len(table.Blockers(7, l)) == 0; got != free {
				t.Fatalf("step %d: %+v: no blockers %v", step, l, got)
			}
			switch n := r.IntN(20); {
			case n == 0:
				table.DropSession(o.Session)
				for other, bytes := range model {
					if other.Session == o.Session {
						clear(bytes[:])
					}
				}
			case n < 6:
				did := false
				for i := l.Start; i <= l.End; i++ {
					did = did || model[o][i] != 0
					model[o][i] = 0
				}
				if got := table.Clear(7, o, l.Start, l.End); got != did {
					t.Fatalf("step %d: cleared %v, not %v", step, got, did)
				}
			case free:
				table.Set(7, l)
				for i := l.Start; i <= l.End; i++ {
					model[o][i] = kind
				}
			}
			any := false
			for o, bytes := range model {
				var got [size]byte
				for _, l := range table.Of(7, o) {
					for i := l.Start; i <= l.End; i++ {
						if got[i] != 0 {
							t.Fatalf("step %d: two locks of one owner at %d", step, i)
						}
						got[i] = 1
						if l.Write {
							got[i] = 2
						}
					}
				}
				if got != *bytes {
					t.Fatalf("step %d: %+v has %v, not %v", step, o, got, *bytes)
				}
				any = any || got != [size]byte{}
			}
			if table.Any(7) != any || len(table.All(func(objstore.Ino) bool { return true })) > 0 != any {
				t.Fatalf("step %d: any %v", step, !any)
			}
		}
	}
}

func TestToTheEnd(t *testing.T) {
	var table Table
	o, p := Owner{Session: 1, ID: 1}, Owner{Session: 2, ID: 1}
	table.Set(7, Lock{Owner: o, Write: true, Start: 10, End: math.MaxUint64})
	table.Set(7, Lock{Owner: o, Write: true, Start: 0, End: 9})
	if l := table.Of(7, o); len(l) != 1 || l[0].Start != 0 || l[0].End != math.MaxUint64 {
		t.Errorf("%+v", l)
	}
	table.Clear(7, o, 100, math.MaxUint64)
	if _, conflict := table.Conflict(7, Lock{Owner: p, Start: 100, End: math.MaxUint64}); conflict {
		t.Error("what was cleared conflicts")
	}
	if l, conflict := table.Conflict(7, Lock{Owner: p, Start: 99, End: 99}); !conflict || l.Owner != o {
		t.Error("no conflict")
	}
}
