package provider

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ncw/swift/v2"
)

//go:embed swiftserver.py
var swiftServer []byte

// Swift starts OpenStack Swift with a container, and returns the settings of a pool in
// it.
func Swift(t *testing.T) map[string]string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "swiftserver.py")
	if err := os.WriteFile(program, swiftServer, 0o600); err != nil {
		t.Fatal(err)
	}
	addr := serve(t, `listening on (http://\S+)`, exec.Command("/usr/bin/python3", program, t.TempDir()))
	settings := map[string]string{"auth_url": addr + "/auth/v1.0", "auth_version": "1", "user": "mail:store", "key": "secret", "container": "bodies"}
	c := &swift.Connection{AuthUrl: settings["auth_url"], UserName: settings["user"], ApiKey: settings["key"]}
	if err := c.ContainerCreate(t.Context(), "bodies", nil); err != nil {
		t.Fatal(err)
	}
	return settings
}
