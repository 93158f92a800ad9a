package mon

import (
	"errors"
	"strings"
	"testing"

	"pillarbox/objstore"
)

// TestFullOSDs: the ratios of full disks, what the map and health make of reports.
func TestFullOSDs(t *testing.T) {
	m := open(t, t.TempDir())
	for line, want := range map[string]error{
		"osd set-full-ratio 1.1": objstore.Invalid, "osd set-full-ratio 0.5": objstore.Invalid, // below nearfull
		"osd set-nearfull-ratio 0": objstore.Invalid, "osd set-nearfull-ratio 0.6": nil,
		"osd set-backfillfull-ratio 0.5": objstore.Invalid,
	} {
		if _, err := m.Command(t.Context(), strings.Fields(line), nil); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	if _, err := m.Command(t.Context(), strings.Fields("osd set-full-ratio 0.8"), nil); err != nil {
		t.Fatal(err)
	}
	cm, err := m.Map(t.Context())
	if err != nil || cm.Format != objstore.RatiosFormat {
		t.Fatalf("format %d, %v", cm.Format, err)
	}
	if _, err := m.Command(t.Context(), strings.Fields("osd set-backfillfull-ratio 0.7"), nil); err != nil {
		t.Fatal(err)
	}
	if cm, err = m.Map(t.Context()); err != nil || cm.Format != objstore.BackfillFormat {
		t.Fatalf("format %d, %v", cm.Format, err)
	}
	b, err := m.BeginBeats(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		free  uint64 // of 1000
		want  objstore.Fullness
		codes string
	}{
		{410, "", ""}, {390, objstore.NearFull, "OSD_NEARFULL "}, {290, objstore.BackfillFull, "OSD_BACKFILLFULL "}, {200, objstore.Full, "OSD_FULL POOL_FULL "},
		{205, objstore.Full, "OSD_FULL POOL_FULL "}, {305, objstore.BackfillFull, "OSD_BACKFILLFULL "}, {350, objstore.NearFull, "OSD_NEARFULL "}, {800, "", ""},
	} {
		if err := b.Beat(t.Context(), Report{Total: 1000, Free: c.free}); err != nil {
			t.Fatal(err)
		}
		if err := m.judge(t.Context(), map[int]bool{}); err != nil {
			t.Fatal(err)
		}
		st, err := m.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		codes := ""
		for _, ch := range st.Checks {
			if strings.HasSuffix(ch.Code, "FULL") {
				codes += ch.Code + " "
			}
		}
		if st.OSDs[0].Full != c.want || codes != c.codes {
			t.Errorf("%d of 1000 free: %q in the map, health says %q", c.free, st.OSDs[0].Full, codes)
		}
	}
}
