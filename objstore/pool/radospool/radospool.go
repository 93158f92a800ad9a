// Package radospool keeps a pool's objects in a pool of Ceph, or a namespace of one,
// through librados. That is C: the driver is there only in a program that was built
// with the tag rados (make build TAGS=rados), for which Debian's librados-dev must be
// installed; without it Open says so.
//
// What Ceph's own clients are told by /etc/ceph, the driver is, too: monitors and
// everything else come from ceph.conf, the key from a keyring.
package radospool

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"pillarbox/objstore/pool"
)

// Type is the driver.
func Type() pool.Type {
	return pool.Type{
		Settings: map[string]pool.Setting{
			"pool": {Needed: true}, "namespace": {}, "prefix": {Check: pool.Prefix},
			"user": {Check: user}, "conf": {Check: absolute}, "keyring": {Check: absolute},
		},
		Open: func(_ context.Context, settings map[string]string) (pool.Store, error) { return Open(settings) },
	}
}

// user checks the name of a client of Ceph, as in client.mail.
func user(value string) error {
	if value != "" && (!strings.HasPrefix(value, "client.") || value == "client.") {
		return fmt.Errorf("%q: must be as client.NAME", value)
	}
	return nil
}

func absolute(value string) error {
	if value != "" && !filepath.IsAbs(value) {
		return fmt.Errorf("%q: must be an absolute path", value)
	}
	return nil
}
