package outside

import (
	"maps"
	"os/exec"
	"testing"

	"github.com/ncw/swift/v2"

	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/pooltest"
	"pillarbox/objstore/pool/swiftpool"
)

// openstack starts OpenStack Swift with a container, and returns the settings of a
// pool in it.
func openstack(t *testing.T) (map[string]string, *swift.Connection) {
	t.Helper()
	addr := serve(t, `listening on (http://\S+)`, exec.Command("/usr/bin/python3", "swiftserver.py", t.TempDir()))
	settings := map[string]string{"auth_url": addr + "/auth/v1.0", "auth_version": "1", "user": "mail:store", "key": "secret", "container": "bodies"}
	c := &swift.Connection{AuthUrl: settings["auth_url"], UserName: settings["user"], ApiKey: settings["key"]}
	if err := c.ContainerCreate(t.Context(), "bodies", nil); err != nil {
		t.Fatal(err)
	}
	return settings, c
}

func TestSwift(t *testing.T) {
	settings, _ := openstack(t)
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
