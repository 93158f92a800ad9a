//go:build ceph

package s3

import (
	"testing"

	"pillarbox/objstore/pool/pooltest"
	"pillarbox/objstore/pool/s3pool"
	"pillarbox/test/harness"
)

// TestPoolOnCeph: Ceph's gateway is an outside store.
func TestPoolOnCeph(t *testing.T) {
	c := harness.StartCeph(t, false)
	s := &site{t: t, addr: c.Gateway, access: harness.CephAccess, secret: harness.CephSecret, dir: t.TempDir()}
	s.aws("s3", "mb", "s3://pool")
	a, err := s3pool.Open(t.Context(), s.settings("pool", "one"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s3pool.Open(t.Context(), s.settings("pool", "one-more"))
	if err != nil {
		t.Fatal(err)
	}
	pooltest.Run(t, a, b)
}
