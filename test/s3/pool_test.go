package s3

import (
	"testing"

	"pillarbox/objstore/pool/pooltest"
	"pillarbox/objstore/pool/s3pool"
)

// settings are those of a pool in a bucket of the site.
func (s *site) settings(bucket, prefix string) map[string]string {
	return map[string]string{
		"endpoint": s.url(), "bucket": bucket, "prefix": prefix, "path_style": "true",
		"access_key": s.access, "secret_key": s.secret,
	}
}

// TestPool: the gateway is an outside store as any other.
func TestPool(t *testing.T) {
	s := newSite(t)
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
