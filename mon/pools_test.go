package mon

import (
	"errors"
	"strings"
	"testing"

	"pillarbox/objstore"
)

func TestPoolCommands(t *testing.T) {
	m := open(t, t.TempDir())
	cm, err := m.Map(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if cm.Format != objstore.FirstMapFormat {
		t.Errorf("a new store's map has format %d", cm.Format)
	}
	do := func(want error, line string, options ...string) {
		t.Helper()
		opt := map[string]string{}
		for _, o := range options {
			k, v, _ := strings.Cut(o, "=")
			opt[k] = v
		}
		if _, err := m.Command(t.Context(), strings.Fields(line), opt); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%s %v: %v, want %v", line, options, err, want)
		}
	}
	do(objstore.Invalid, "pool create wide", "k=1", "m=2", "force=true")
	do(objstore.Invalid, "pool create wide", "k=2", "force=true")
	do(objstore.Invalid, "pool create wide", "k=4", "m=2", "size=6", "force=true")
	do(objstore.Invalid, "pool create wide", "k=4", "m=2", "min_size=3", "force=true")
	do(objstore.NotPermitted, "pool create wide", "k=4", "m=2") // there is one host
	do(nil, "pool create fast", "size=2", "pgs=32", "failure_domain=osd")
	do(nil, "pool create fast", "size=2", "pgs=32", "failure_domain=osd") // again
	do(objstore.Exist, "pool create fast", "size=3")
	do(objstore.Invalid, "pool create /x")
	do(objstore.Invalid, "pool create x", "size=many")
	do(objstore.Invalid, "pool create x", "failure_domain=planet")
	do(objstore.Invalid, "pool create x", "min_size=4")
	do(objstore.NotPermitted, "pool create single", "size=1")
	do(nil, "pool create single", "size=1", "force=true")
	do(objstore.NotFound, "pool rule set 7 /example.org none")
	do(objstore.Invalid, "pool rule set 7 /example.org meta")
	do(objstore.Invalid, "pool rule set 7 example.org fast")
	do(nil, "pool rule set 7 /example.org fast")
	do(nil, "pool rule set 1 / single")
	if cm, err = m.Map(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cm.Format != objstore.PoolsMapFormat || cm.Data().Name != "single" || len(cm.Rules) != 2 {
		t.Errorf("the map is now %+v", cm)
	}
	if p := cm.Pool(2); p == nil || p.Name != "fast" || p.Size != 2 || p.MinSize != 2 || p.PGs != 32 || p.ChunkSize != objstore.ChunkSize {
		t.Errorf("the pool is %+v", p)
	}

	do(objstore.NotPermitted, "pool rm meta", "force=true")
	do(objstore.NotPermitted, "pool rm single") // what is written goes there
	do(objstore.NotPermitted, "pool rm fast")   // its rule
	do(nil, "pool rule rm /example.org 7")
	do(objstore.NotPermitted, "pool rm fast") // osd.0 has not reported
	use := func(chunks uint64) {
		t.Helper()
		cm, err := m.Map(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b, err := m.BeginBeats(t.Context(), 0)
		if err == nil {
			err = b.Beat(t.Context(), Report{Epoch: cm.Epoch, Pools: map[int]PoolUse{2: {Chunks: chunks}}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	use(3)
	do(objstore.NotPermitted, "pool rm fast")
	use(0)
	do(nil, "pool rm fast")
	do(nil, "pool rm fast")
	do(nil, "pool rm data", "force=true")
	do(objstore.NotPermitted, "pool rm single", "force=true") // the last
	do(nil, "pool create again")
	if cm, err = m.Map(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, err := findPool(cm, "again"); err != nil || p.ID != 1 || cm.Format != objstore.PoolsMapFormat {
		t.Errorf("%+v, %v", cm, err)
	}
	do(nil, "pool rule rm /")
	if cm, err = m.Map(t.Context()); err != nil || cm.Data().Name != "single" {
		t.Errorf("%+v, %v", cm, err)
	}
}

func TestCodedPool(t *testing.T) {
	m := open(t, t.TempDir())
	for range 2 { // the second time nothing is left to do
		if _, err := m.Command(t.Context(), []string{"pool", "create", "wide"}, map[string]string{"k": "4", "m": "2", "pgs": "16", "force": "true"}); err != nil {
			t.Fatal(err)
		}
	}
	cm, err := m.Map(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := cm.PoolNamed("wide")
	if p == nil || p.Coding == nil || *p.Coding != (objstore.Coding{K: 4, M: 2}) || p.Size != 6 || p.MinSize != 5 || cm.Format != objstore.CodedFormat {
		t.Errorf("the pool is %+v, the map has format %d", p, cm.Format)
	}
	for line, want := range map[string]error{
		"pool set wide size 5": objstore.Invalid, "pool set wide min_size 3": objstore.Invalid, "pool set wide min_size 4": nil,
	} {
		if _, err := m.Command(t.Context(), strings.Fields(line), nil); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}
