//go:build ceph && rados

package s3

import (
	"errors"
	"testing"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/pooltest"
	"pillarbox/objstore/pool/radospool"
	"pillarbox/test/harness"
)

// TestPoolOnRados: a pool of Ceph is an outside store, as are namespaces in it, for
// clients that may use nothing else.
func TestPoolOnRados(t *testing.T) {
	c := harness.StartCeph(t, true)
	c.Run("ceph", "osd", "pool", "create", "mail", "8")
	keyring := t.TempDir() + "/keyring"
	c.Run("ceph", "auth", "get-or-create", "client.mail", "mon", "allow r", "osd", "allow rw pool=mail namespace=one", "-o", keyring)
	open := func(settings map[string]string) pool.Store {
		t.Helper()
		settings["conf"], settings["pool"] = c.Conf, "mail"
		if err := radospool.Type().Check(settings); err != nil {
			t.Fatal(err)
		}
		s, err := radospool.Open(settings)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	pooltest.Run(t, open(map[string]string{"namespace": "one", "user": "client.mail", "keyring": keyring}), open(map[string]string{"namespace": "one-more"}))
	pooltest.Run(t, open(map[string]string{"prefix": "one"}), open(map[string]string{"prefix": "one-more"}))
	for what, settings := range map[string]map[string]string{
		"a client without rights": {"namespace": "another", "user": "client.mail", "keyring": keyring},
		"a client without a key":  {"user": "client.mail", "keyring": t.TempDir() + "/none"},
	} {
		if err := open(settings).Put(t.Context(), "a", []byte("x")); err == nil || errors.Is(err, objstore.NotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
