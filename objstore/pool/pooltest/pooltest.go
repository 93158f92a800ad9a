// Package pooltest checks that a driver does what pool.Store says.
package pooltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

// Run checks a store that is empty, and leaves it so. other is one beside it,
// such as under another prefix, whose objects must not show.
func Run(t *testing.T, s, other pool.Store) {
	ctx := t.Context()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	names := func(s pool.Store) (list []string) {
		t.Helper()
		must("list", s.List(ctx, func(o pool.Object) error { list = append(list, o.Name); return nil }))
		slices.Sort(list)
		return list
	}
	if got := names(s); len(got) > 0 {
		t.Fatalf("the store is not empty: %q", got)
	}
	must("put beside", other.Put(ctx, "ab/beside", []byte("beside")))
	rnd := rand.NewChaCha8([32]byte{1})
	bodies := map[string][]byte{}
	for i, n := range []int{1, 100, 70 << 10, objstore.StoredMax} {
		b := make([]byte, n)
		rnd.Read(b)
		bodies[fmt.Sprintf("%02x/object-%d", i, n)] = b
	}
	var g errgroup.Group
	for name, b := range bodies {
		g.Go(func() error { return s.Put(ctx, name, b) })
	}
	must("put", g.Wait())
	for name, b := range bodies {
		for _, r := range [][2]int{{0, len(b)}, {0, 1}, {len(b) / 2, len(b) - len(b)/2}, {len(b) - 1, 1}} {
			p := make([]byte, r[1])
			must("get", s.Get(ctx, name, int64(r[0]), p))
			if !bytes.Equal(p, b[r[0]:r[0]+r[1]]) {
				t.Errorf("%s: other bytes at %d", name, r[0])
			}
		}
		for _, r := range [][2]int{{0, len(b) + 1}, {len(b), 1}, {len(b) + 10, 5}} {
			if err := s.Get(ctx, name, int64(r[0]), make([]byte, r[1])); !errors.Is(err, objstore.Corrupt) {
				t.Errorf("%s: %d bytes at %d of %d: %v", name, r[1], r[0], len(b), err)
			}
		}
	}
	if err := s.Get(ctx, "no/such", 0, make([]byte, 1)); !errors.Is(err, objstore.NotFound) {
		t.Errorf("an object that is not there: %v", err)
	}
	must("list", s.List(ctx, func(o pool.Object) error {
		if b, ok := bodies[o.Name]; !ok || o.Size != int64(len(b)) || o.Modified.IsZero() {
			t.Errorf("listed: %+v", o)
		}
		return nil
	}))
	if got := len(names(s)); got != len(bodies) {
		t.Errorf("%d objects listed of %d", got, len(bodies))
	}
	stop := errors.New("stop")
	if err := s.List(ctx, func(pool.Object) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a listing that was to stop: %v", err)
	}
	must("put again", s.Put(ctx, "00/object-1", []byte("later")))
	p := make([]byte, 5)
	if must("get", s.Get(ctx, "00/object-1", 0, p)); string(p) != "later" {
		t.Errorf("put again, and got %q", p)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Put(canceled, "00/never", p); err == nil {
		t.Error("a put whose context had ended was made")
	}
	gone := []string{"no/such"}
	for name := range bodies {
		gone = append(gone, name)
	}
	for range 2 { // doing it again changes nothing
		must("delete", s.Delete(ctx, gone))
	}
	must("delete nothing", s.Delete(ctx, nil))
	if got := names(s); len(got) > 0 {
		t.Errorf("left after the delete: %q", got)
	}
	if got := names(other); !slices.Equal(got, []string{"ab/beside"}) {
		t.Errorf("beside there is %q", got)
	}
	must("delete beside", other.Delete(ctx, []string{"ab/beside"}))
}
