package objstore

import "testing"

func TestFullness(t *testing.T) {
	for _, c := range []struct {
		used uint64 // of 1000
		was  Fullness
		want Fullness
	}{
		{0, "", ""}, {849, "", ""}, {850, "", NearFull}, {899, "", NearFull}, {900, "", BackfillFull}, {949, "", BackfillFull}, {950, "", Full}, {1000, "", Full},
		{945, Full, Full}, {939, Full, BackfillFull}, {895, BackfillFull, BackfillFull}, {889, BackfillFull, NearFull}, {889, Full, NearFull},
		{895, Full, BackfillFull}, {895, NearFull, NearFull}, {845, NearFull, NearFull}, {839, NearFull, ""}, {100, Full, ""},
	} {
		if got := (Ratios{}).Fullness(1000, 1000-c.used, c.was); got != c.want {
			t.Errorf("%d of 1000 in use, before %q: %q, want %q", c.used, c.was, got, c.want)
		}
	}
	if r := (Ratios{Full: 0.5}); r.fault() == "" || (Ratios{Full: 1.5}).fault() == "" || (Ratios{NearFull: 0.5, Full: 0.6}).fault() != "" {
		t.Error("what is at fault in ratios")
	}
	if u := (Ratios{Full: 0.88}).Used(); u.BackfillFull != 0.88 || (Ratios{BackfillFull: 0.8}).fault() == "" || (Ratios{BackfillFull: 0.96}).fault() == "" {
		t.Errorf("%+v", u)
	}
	if room := (Ratios{Full: 0.75, NearFull: 0.5}).Room(1000, 300); room != 50 {
		t.Errorf("room of %d", room)
	}
}
