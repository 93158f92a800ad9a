package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pillarbox/objstore/pool"
	"pillarbox/test/harness"
)

// TestOutsidePool: two hosts keep large bodies in somebody's bucket and read each
// other's; what one removes is removed there; a host without the credentials has the rest.
func TestOutsidePool(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	bodies, settings := c.provider()
	provider := c.all[len(c.all)-1]
	config := c.path("cloud.json")
	if err := os.WriteFile(config, settings, 0o600); err != nil {
		t.Fatal(err)
	}
	keys := c.path("keys")
	c.run("key", "create", "--key-file", keys)
	a, _ := c.mount("mx1", "key-file="+keys, "encrypt", "pool=cloud="+config)
	cache := c.path("cache")
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	cached := []string{"key-file=" + keys, "pool=cloud=" + config, "cache-dir=" + cache, "cache-free=1MiB"}
	b, bd := c.mount("mx2", cached...)
	bare, _ := c.mount("mx3", "key-file="+keys)
	c.run("pool", "create", "cloud", "--type", "s3", "--config", config, "--conf", c.admin)
	c.run("pool", "set", "/", "cloud", "--conf", c.admin)
	if out := c.run("pool", "ls", "--format", "json", "--conf", c.admin); !strings.Contains(out, "bodies") || strings.Contains(out, "secret_key") {
		t.Errorf("pool ls: %s", out)
	}
	dir := func(point string) string { return filepath.Join(point, "example.org", "alice") }
	if err := os.MkdirAll(dir(a), 0o700); err != nil {
		t.Fatal(err)
	}
	large, small := bytes.Repeat([]byte("a large body\n"), 500_000), []byte("a small body\n")
	// The hosts hear of the pool a moment after it is made.
	c.eventually("bodies go to the bucket", func() bool {
		if err := os.WriteFile(dir(a)+"/large", large, 0o600); err != nil {
			t.Fatal(err)
		}
		return objects(t, bodies) == 2
	})
	if err := os.WriteFile(dir(b)+"/small", small, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, point := range []string{a, b} {
		if got, err := os.ReadFile(dir(point) + "/large"); err != nil || !bytes.Equal(got, large) {
			t.Errorf("%s: %d bytes, %v", point, len(got), err)
		}
	}
	if got, err := os.ReadFile(dir(bare) + "/small"); err != nil || !bytes.Equal(got, small) {
		t.Errorf("a small body without the pool: %q, %v", got, err)
	}
	if _, err := os.ReadFile(dir(bare) + "/large"); err == nil {
		t.Error("a large body was read without credentials")
	}
	// What mx2 has read it has near, sealed, also after a start, and with the provider away.
	c.eventually("the bodies are in the disk cache", func() bool { return len(bodiesIn(cache)) == 3 })
	for _, path := range bodiesIn(cache) {
		if b, err := os.ReadFile(path); err != nil || bytes.Contains(b, large[:13]) || bytes.Contains(b, small) {
			t.Errorf("%s in the cache of encrypted mail: %v, or plain text", path, err)
		}
	}
	c.stop(bd)
	if err := unix.Kill(provider.cmd.Process.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b, _ = c.mount("mx2", cached...)
	if got, err := os.ReadFile(dir(b) + "/large"); err != nil || !bytes.Equal(got, large) {
		t.Errorf("with the provider away: %d bytes, %v", len(got), err)
	}
	if err := unix.Kill(provider.cmd.Process.Pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir(b) + "/large"); err != nil {
		t.Fatal(err)
	}
	c.eventually("what was removed goes from the bucket", func() bool { return objects(t, bodies) == 0 })
	if _, err := c.try("pool", "rm", "cloud", "--conf", c.admin); err == nil {
		t.Error("a pool that may hold something was removed")
	}
}

// provider starts a store of one host that serves S3; it returns where its bucket
// can be seen, and the settings of a pool in it.
func (c *cluster) provider() (bucket string, settings []byte) {
	c.t.Helper()
	data, point, addr := c.path("provider"), c.path("mnt.provider"), harness.FreePort(c.t)
	if err := os.Mkdir(point, 0o755); err != nil {
		c.t.Fatal(err)
	}
	c.start("mount.provider", "up", "--data", data, "--s3", addr, point)
	c.eventually("the provider answers", func() bool { return mounted(point) })
	var key struct {
		Access string `json:"access_key"`
		Secret string `json:"secret_key"`
	}
	var out string
	c.eventually("the provider makes a user", func() (ok bool) {
		var err error
		out, err = c.try("s3", "user", "create", "--format", "json", "--data", data, "mail")
		return err == nil
	})
	if err := json.Unmarshal([]byte(out), &key); err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/aws", "--endpoint-url", "http://"+addr, "s3", "mb", "s3://bodies")
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+key.Access, "AWS_SECRET_ACCESS_KEY="+key.Secret, "AWS_DEFAULT_REGION=us-east-1", "HOME="+c.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("make the bucket: %v\n%s", err, out)
	}
	settings, err := json.Marshal(map[string]string{
		"type": "s3", "endpoint": "http://" + addr, "bucket": "bodies", "path_style": "true", "access_key": key.Access, "secret_key": key.Secret,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return filepath.Join(point, "bodies"), settings
}

// objects counts the bodies in a bucket.
func objects(t *testing.T, bucket string) (n int) {
	t.Helper()
	err := filepath.WalkDir(bucket, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.HasPrefix(e.Name(), ".") {
			return fs.SkipDir
		}
		if err == nil && e.Type().IsRegular() && e.Name() != pool.OwnerName {
			n++
		}
		if errors.Is(err, unix.ENOENT) { // it went while we looked
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
