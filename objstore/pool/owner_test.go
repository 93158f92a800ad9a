package pool_test

import (
	"errors"
	"testing"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/pooltest"
)

// TestOwned: of two stores that were given one place, the second changes nothing.
func TestOwned(t *testing.T) {
	place := pooltest.NewMemory()
	a, again, b := pool.Owned(place, "store-a"), pool.Owned(place, "store-a"), pool.Owned(place, "store-b-with-a-longer-id")
	for _, s := range []pool.Store{a, again} {
		if err := s.Put(t.Context(), "x", []byte("mine")); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Put(t.Context(), "x", []byte("ours")); !errors.Is(err, objstore.NotPermitted) {
		t.Errorf("put by another: %v", err)
	}
	if err := b.Delete(t.Context(), []string{"x"}); !errors.Is(err, objstore.NotPermitted) {
		t.Errorf("delete by another: %v", err)
	}
	if err := pool.Claim(t.Context(), place, "store-c"); !errors.Is(err, objstore.NotPermitted) {
		t.Errorf("claimed by another: %v", err)
	}
	p := make([]byte, 4)
	if err := b.Get(t.Context(), "x", 0, p); err != nil || string(p) != "mine" {
		t.Errorf("%q, %v", p, err)
	}
}
