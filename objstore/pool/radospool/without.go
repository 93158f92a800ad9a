//go:build !rados

package radospool

import (
	"fmt"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

// Open says how to get a program that has the driver.
func Open(map[string]string) (pool.Store, error) {
	return nil, fmt.Errorf("this program was built without pools of type rados: install librados-dev and build with `make build TAGS=rados`: %w", objstore.Unsupported)
}
