package radospool

import (
	"errors"
	"testing"

	"pillarbox/objstore"
)

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		settings map[string]string
		good     bool
	}{
		{map[string]string{"pool": "mail"}, true},
		{map[string]string{"pool": "mail", "namespace": "mx", "prefix": "a/b", "user": "client.mail", "conf": "/etc/ceph/ceph.conf", "keyring": "/etc/ceph/k"}, true},
		{map[string]string{"namespace": "mx"}, false},
		{map[string]string{"pool": "mail", "user": "mail"}, false},
		{map[string]string{"pool": "mail", "user": "client."}, false},
		{map[string]string{"pool": "mail", "conf": "ceph.conf"}, false},
		{map[string]string{"pool": "mail", "key": "secret"}, false},
	} {
		if err := Type().Check(c.settings); (err == nil) != c.good || err != nil && !errors.Is(err, objstore.Invalid) {
			t.Errorf("%v: %v", c.settings, err)
		}
	}
}
