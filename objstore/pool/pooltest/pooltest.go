// Package pooltest checks that a driver does what pool.Store says.
package pooltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

// many is more than what goes into one list or one request that removes.
const (
	many  = 300
	atOne = 16 // requests at a time
)

// suite checks one store.
type suite struct {
	*testing.T
	s pool.Store
}

func (t *suite) must(what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (t *suite) names(s pool.Store) (list []string) {
	t.Helper()
	t.must("list", pool.Each(t.Context(), s, func(o pool.Object) error { list = append(list, o.Name); return nil }))
	slices.Sort(list)
	return list
}

func (t *suite) put(bodies map[string][]byte) {
	t.Helper()
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(atOne)
	for name, b := range bodies {
		g.Go(func() error { return t.s.Put(ctx, name, b) })
	}
	t.must("put", g.Wait())
}

// remove removes objects, some of which are not there, and then all again.
func (t *suite) remove(bodies map[string][]byte) {
	t.Helper()
	gone := append(slices.Collect(maps.Keys(bodies)), "no/such")
	for range 2 {
		t.must("delete", t.s.Delete(t.Context(), gone))
	}
	if got := t.names(t.s); len(got) > 0 {
		t.Fatalf("left after the delete: %q", got)
	}
}

// Run checks a store that is empty, and leaves it so. other is one beside it,
// such as under another prefix, whose objects must not show.
func Run(t *testing.T, s, other pool.Store) {
	suite := &suite{t, s}
	if got := suite.names(s); len(got) > 0 {
		t.Fatalf("the store is not empty: %q", got)
	}
	suite.must("put beside", other.Put(t.Context(), "ab/beside", []byte("beside")))
	suite.bodies()
	suite.again()
	suite.canceled()
	suite.many()
	if got := suite.names(other); !slices.Equal(got, []string{"ab/beside"}) {
		t.Errorf("beside there is %q", got)
	}
	suite.must("delete beside", other.Delete(t.Context(), []string{"ab/beside"}))
}

// bodies: what is put is got, in pieces, too, and listed.
func (t *suite) bodies() {
	rnd := rand.NewChaCha8([32]byte{1})
	bodies := map[string][]byte{}
	for i, n := range []int{1, 100, 70 << 10, objstore.StoredMax} {
		b := make([]byte, n)
		rnd.Read(b)
		bodies[fmt.Sprintf("%02x/object-%d", i, n)] = b
	}
	bodies["top.level_name"] = []byte("no folder")
	t.put(bodies)
	for name, b := range bodies {
		for _, r := range [][2]int{{0, len(b)}, {0, 1}, {len(b) / 2, len(b) - len(b)/2}, {len(b) - 1, 1}} {
			p := make([]byte, r[1])
			t.must("get", t.s.Get(t.Context(), name, int64(r[0]), p))
			if !bytes.Equal(p, b[r[0]:r[0]+r[1]]) {
				t.Errorf("%s: other bytes at %d", name, r[0])
			}
		}
		for _, r := range [][2]int{{0, len(b) + 1}, {len(b), 1}, {len(b) + 10, 5}} {
			if err := t.s.Get(t.Context(), name, int64(r[0]), make([]byte, r[1])); !errors.Is(err, objstore.Corrupt) {
				t.Errorf("%s: %d bytes at %d of %d: %v", name, r[1], r[0], len(b), err)
			}
		}
	}
	for _, name := range []string{"no/such", "00", "00/object"} {
		if err := t.s.Get(t.Context(), name, 0, make([]byte, 1)); !errors.Is(err, objstore.NotFound) {
			t.Errorf("%s, which is not there: %v", name, err)
		}
	}
	t.must("list", pool.Each(t.Context(), t.s, func(o pool.Object) error {
		if b, ok := bodies[o.Name]; !ok || o.Size != int64(len(b)) || o.Modified.IsZero() {
			t.Errorf("listed: %+v", o)
		}
		return nil
	}))
	if got := len(t.names(t.s)); got != len(bodies) {
		t.Errorf("%d objects listed of %d", got, len(bodies))
	}
	stop := errors.New("stop")
	if err := pool.Each(t.Context(), t.s, func(pool.Object) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a listing that was to stop: %v", err)
	}
	t.remove(bodies)
}

// again: the later of two bodies is there, also when it is shorter; the caller's
// slice is his own again.
func (t *suite) again() {
	b := []byte("at first there was more")
	t.must("put", t.s.Put(t.Context(), "a/b", b))
	copy(b, "later")
	t.must("put again", t.s.Put(t.Context(), "a/b", b[:5]))
	copy(b, "never")
	p := make([]byte, 5)
	if t.must("get", t.s.Get(t.Context(), "a/b", 0, p)); string(p) != "later" {
		t.Errorf("put again, and got %q", p)
	}
	if err := t.s.Get(t.Context(), "a/b", 0, make([]byte, 6)); !errors.Is(err, objstore.Corrupt) {
		t.Errorf("more than what was put again: %v", err)
	}
	t.remove(map[string][]byte{"a/b": nil})
	if err := t.s.Get(t.Context(), "a/b", 0, p); !errors.Is(err, objstore.NotFound) {
		t.Errorf("removed, and then: %v", err)
	}
}

// canceled: nothing is done for whose context has ended.
func (t *suite) canceled() {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := t.s.Put(ctx, "00/never", []byte("x")); err == nil {
		t.Error("a put whose context had ended was made")
	}
	if err := t.s.Get(ctx, "00/never", 0, make([]byte, 1)); err == nil || errors.Is(err, objstore.NotFound) {
		t.Errorf("a get whose context had ended: %v", err)
	}
	if _, _, err := t.s.List(ctx, ""); err == nil {
		t.Error("a list whose context had ended was made")
	}
	t.must("delete nothing", t.s.Delete(t.Context(), nil))
}

// many: more objects than go into one request are listed and removed.
func (t *suite) many() {
	bodies := map[string][]byte{}
	for i := range many {
		bodies[fmt.Sprintf("%02x/many-%d", i%256, i)] = []byte{1}
	}
	t.put(bodies)
	if got := t.names(t.s); !slices.Equal(got, slices.Sorted(maps.Keys(bodies))) {
		t.Errorf("%d objects listed of %d", len(got), many)
	}
	t.remove(bodies)
}
