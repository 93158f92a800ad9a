//go:build ceph && rados

package e2e

import (
	"path/filepath"
	"testing"

	"pillarbox/test/harness"
	"pillarbox/test/provider"
)

// TestOutsideOnCeph is TestOutside for Ceph's gateway and for Ceph itself.
func TestOutsideOnCeph(t *testing.T) {
	c := harness.StartCeph(t, true)
	t.Run("s3", func(t *testing.T) {
		mailOutside(t, "s3", provider.S3(t, c.Gateway, harness.CephAccess, harness.CephSecret), 240)
	})
	t.Run("rados", func(t *testing.T) {
		c.Run("ceph", "osd", "pool", "create", "mail", "8")
		keyring := filepath.Join(t.TempDir(), "keyring")
		c.Run("ceph", "auth", "get-or-create", "client.mail", "mon", "allow r", "osd", "allow rw pool=mail namespace=mx", "-o", keyring)
		mailOutside(t, "rados", map[string]string{"conf": c.Conf, "pool": "mail", "namespace": "mx", "user": "client.mail", "keyring": keyring}, 240)
	})
}
