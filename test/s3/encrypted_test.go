package s3

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"

	"pillarbox/test/harness"
)

// TestEncrypted: objects of an encrypted store are put and got as others, and
// without the key refused.
func TestEncrypted(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	if out, err := exec.Command(harness.Binary(t), "key", "create", "--key-file", keys).CombinedOutput(); err != nil {
		t.Fatalf("key create: %v\n%s", err, out)
	}
	s := newSite(t, "--key-file", keys, "--encrypt")
	body := bytes.Repeat([]byte("an object that nobody may read\n"), 300_000)
	file := s.write("body", body)
	s.aws("s3", "mb", "s3://sealed")
	s.aws("s3", "cp", file, "s3://sealed/dir/object") // in several parts
	back := filepath.Join(s.dir, "back")
	s.aws("s3", "cp", "s3://sealed/dir/object", back)
	s.same(back, body)
	s.same(filepath.Join(s.node.Mount, "sealed/dir/object"), body)
	s.node.Term()
	s.node = harness.Start(t, harness.Options{Data: s.node.Data, Mount: s.node.Mount, Args: []string{"--s3", s.addr}})
	s.refused("AccessDenied", "s3api", "get-object", "--bucket", "sealed", "--key", "dir/object", back)
	small := s.write("small", body[:500]) // sent before it is refused
	s.refused("AccessDenied", "s3api", "put-object", "--bucket", "sealed", "--key", "other", "--body", small)
	s.refused("AccessDenied", "s3api", "create-bucket", "--bucket", "another")
}
