// Package layer is what every outside store needs above its driver, each a
// pool.Store over another: Measure counts requests, Limit makes only as many at a
// time as the store takes, Retry makes them again, and Hedge asks twice for what
// takes unusually long. Over puts them together.
package layer

import "pillarbox/objstore/pool"

// Over puts all layers over a driver. Each request that is made is measured, also
// those made again.
func Over(s pool.Store, name string, m *Metrics) pool.Store {
	return Hedge(Retry(Limit(m.Measure(s, name))))
}
