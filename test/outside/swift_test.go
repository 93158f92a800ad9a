package outside

import (
	"maps"
	"testing"

	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/pooltest"
	"pillarbox/objstore/pool/swiftpool"
	"pillarbox/test/provider"
)

func TestSwift(t *testing.T) {
	settings := provider.Swift(t)
	open := func(prefix string) pool.Store {
		own := maps.Clone(settings)
		own["prefix"] = prefix
		s, err := swiftpool.Open(own)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	pooltest.Run(t, open("one"), open("one-more"))
	mailOn(t, "swift", settings)
}
