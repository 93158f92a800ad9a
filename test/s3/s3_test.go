// Package s3 runs real S3 clients against a store that is mounted at the same
// time, and compares what both show.
package s3

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// site is a store that is mounted and serves S3, and one user's keys.
type site struct {
	t              *testing.T
	node           *harness.Node
	addr           string
	access, secret string
	dir            string // scratch
}

func newSite(t *testing.T, args ...string) *site {
	t.Helper()
	s := &site{t: t, addr: harness.FreePort(t), dir: t.TempDir()}
	s.node = harness.Start(t, harness.Options{Args: append([]string{"--s3", s.addr}, args...)})
	s.newKey("s3", "user", "create", "alice")
	return s
}

func (s *site) url() string { return "http://" + s.addr }

func (s *site) pillarbox(args ...string) string {
	s.t.Helper()
	out, err := exec.Command(harness.Binary(s.t), append(args, "--data", s.node.Data)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("pillarbox %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// newKey goes over to a new access key.
func (s *site) newKey(words ...string) {
	s.t.Helper()
	var k struct {
		Access string `json:"access_key"`
		Secret string `json:"secret_key"`
	}
	out, err := exec.Command(harness.Binary(s.t), append(words, "--format", "json", "--data", s.node.Data)...).Output()
	if err == nil {
		err = json.Unmarshal(out, &k)
	}
	if err != nil {
		s.t.Fatalf("pillarbox %v: %v", words, err)
	}
	s.access, s.secret = k.Access, k.Secret
}

// client runs an S3 client's program.
func (s *site) client(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "HOME="+s.dir, "AWS_ACCESS_KEY_ID="+s.access, "AWS_SECRET_ACCESS_KEY="+s.secret,
		"AWS_DEFAULT_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true", "AWS_MAX_ATTEMPTS=1", "AWS_PAGER=", "AWS_CA_BUNDLE=",
		"RCLONE_CONFIG_PB_TYPE=s3", "RCLONE_CONFIG_PB_PROVIDER=Other", "RCLONE_CONFIG_PB_ENDPOINT="+s.url(),
		"RCLONE_CONFIG_PB_ACCESS_KEY_ID="+s.access, "RCLONE_CONFIG_PB_SECRET_ACCESS_KEY="+s.secret)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %v: %w\n%s%s", name, args, err, out.String(), errs.String())
	}
	return out.String(), nil
}

func (s *site) aws(args ...string) string {
	s.t.Helper()
	out, err := s.client("/usr/bin/aws", append([]string{"--endpoint-url", s.url()}, args...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (s *site) refused(code string, args ...string) {
	s.t.Helper()
	out, err := s.client("/usr/bin/aws", append([]string{"--endpoint-url", s.url()}, args...)...)
	if err == nil || !strings.Contains(err.Error(), "("+code+")") {
		s.t.Errorf("aws %v: want %s, got %v %s", args, code, err, out)
	}
}

func (s *site) write(name string, data []byte) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *site) same(path string, want []byte) {
	s.t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		s.t.Errorf("%s: %d bytes, want %d, %v", path, len(got), len(want), err)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 7))
	for i := 0; i+8 <= n; i += 8 {
		v := r.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b
}

// TestBothWays: what a client puts is a file, what is written on the mount is an
// object, whatever the client.
func TestBothWays(t *testing.T) {
	s := newSite(t)
	s.aws("s3", "mb", "s3://both")
	small, large := random(3000), random(40<<20)
	s.aws("s3", "cp", "--quiet", s.write("small", small), "s3://both/a/b/small")
	s.aws("s3", "cp", "--quiet", s.write("large", large), "s3://both/large")
	s.same(filepath.Join(s.node.Mount, "both/a/b/small"), small)
	s.same(filepath.Join(s.node.Mount, "both/large"), large)

	// A name that the kernel knows to be absent, and a listing it keeps.
	late := filepath.Join(s.node.Mount, "both/a/late")
	if _, err := os.Stat(late); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if l, err := os.ReadDir(filepath.Dir(late)); err != nil || len(l) != 1 {
		t.Fatal(l, err)
	}
	s.aws("s3", "cp", "--quiet", s.write("x", []byte("one")), "s3://both/a/late")
	s.same(late, []byte("one"))
	if l, err := os.ReadDir(filepath.Dir(late)); err != nil || len(l) != 2 {
		t.Error(l, err)
	}
	s.aws("s3", "cp", "--quiet", s.write("x", []byte("another")), "s3://both/a/late")
	s.same(late, []byte("another"))
	if err := os.WriteFile(late, []byte("from the mount"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.aws("s3", "cp", "--quiet", "s3://both/a/late", "-"); got != "from the mount" {
		t.Errorf("%q", got)
	}
	sum := md5.Sum([]byte("from the mount"))
	if got := s.aws("s3api", "head-object", "--bucket", "both", "--key", "a/late", "--query", "ETag", "--output", "text"); got != `"`+hex.EncodeToString(sum[:])+`"` {
		t.Errorf("ETag %s", got)
	}
	s.aws("s3", "rm", "--quiet", "s3://both/a/late")
	if _, err := os.Stat(late); !os.IsNotExist(err) {
		t.Error(err)
	}

	// The directories went with their last object.
	s.aws("s3", "rm", "--quiet", "s3://both/a/b/small")
	if _, err := os.Stat(filepath.Join(s.node.Mount, "both/a")); !os.IsNotExist(err) {
		t.Error(err)
	}

	tree := filepath.Join(s.dir, "tree")
	for i := range 60 {
		p := filepath.Join(tree, fmt.Sprint("d", i%7), fmt.Sprint("f ü&", i))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, random(i*997), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range [][]string{
		{"rclone", "sync", tree, "pb:both/rclone"},
		{"s3cmd", "--no-check-certificate", "--host=" + s.addr, "--host-bucket=" + s.addr, "--no-ssl", "--access_key=" + s.access,
			"--secret_key=" + s.secret, "--no-progress", "sync", tree + "/", "s3://both/s3cmd/"},
		{"/usr/bin/aws", "--endpoint-url", s.url(), "s3", "sync", "--quiet", tree, "s3://both/aws"},
	} {
		if _, err := s.client(c[0], c[1:]...); err != nil {
			t.Fatal(err)
		}
		on := filepath.Join(s.node.Mount, "both", strings.TrimSuffix(filepath.Base(c[0]), "/"))
		if out, err := exec.Command("diff", "-r", tree, on).CombinedOutput(); err != nil {
			t.Errorf("%s: %s", c[0], out)
		}
	}
	// And back, of what the mount copied.
	if out, err := exec.Command("cp", "-r", tree, filepath.Join(s.node.Mount, "both/copied")).CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	if _, err := s.client("rclone", "sync", "--checksum", "pb:both/copied", "back"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("diff", "-r", tree, filepath.Join(s.dir, "back")).CombinedOutput(); err != nil {
		t.Errorf("%s", out)
	}
}

// TestS3FS: a filesystem over S3 sees the same tree as the mount.
func TestS3FS(t *testing.T) {
	s := newSite(t)
	s.aws("s3", "mb", "s3://files")
	point, pw := filepath.Join(s.dir, "s3fs"), s.write("pw", []byte(s.access+":"+s.secret))
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("s3fs", "files", point, "-f", "-o", "passwd_file="+pw, "-o", "url="+s.url(), "-o", "use_path_request_style")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Unmount(point, unix.MNT_DETACH)
		cmd.Process.Kill()
		cmd.Wait()
	})
	s.eventually("s3fs answers", func() bool {
		var st unix.Statfs_t
		return unix.Statfs(point, &st) == nil && st.Type == 0x65735546
	})
	large := random(21 << 20)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(point, "dir"), 0o755))
	must(os.WriteFile(filepath.Join(point, "dir/a"), []byte("hello"), 0o600))
	must(os.WriteFile(filepath.Join(point, "dir/large"), large, 0o600))
	must(os.Rename(filepath.Join(point, "dir/a"), filepath.Join(point, "dir/b")))
	must(os.Chmod(filepath.Join(point, "dir/b"), 0o640))
	on := filepath.Join(s.node.Mount, "files/dir")
	s.same(filepath.Join(on, "b"), []byte("hello"))
	s.same(filepath.Join(on, "large"), large)
	must(os.WriteFile(filepath.Join(on, "back"), []byte("from the mount"), 0o600))
	s.same(filepath.Join(point, "dir/back"), []byte("from the mount"))
	must(os.RemoveAll(filepath.Join(point, "dir")))
	if _, err := os.Stat(on); !os.IsNotExist(err) {
		t.Error(err)
	}
}

// TestMailDomain: a directory that S3 did not make is nobody's until the admin
// opens it; mail in it is objects.
func TestMailDomain(t *testing.T) {
	s := newSite(t)
	dir := filepath.Join(s.node.Mount, "example.org/bob/Maildir/new")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 5001, 5001); err != nil {
		t.Fatal(err)
	}
	mail := []byte("Subject: hello\n\nhello\n")
	if err := os.WriteFile(filepath.Join(dir, "1700000000.M1P1.mx:2,S"), mail, 0o600); err != nil {
		t.Fatal(err)
	}
	s.refused("AccessDenied", "s3api", "list-objects-v2", "--bucket", "example.org")
	s.pillarbox("s3", "grant", "--data", s.node.Data, "example.org", "alice", "read")
	s.eventually("the grant", func() bool {
		_, err := s.client("/usr/bin/aws", "--endpoint-url", s.url(), "s3api", "list-objects-v2", "--bucket", "example.org")
		return err == nil
	})
	key := "bob/Maildir/new/1700000000.M1P1.mx:2,S"
	if got := s.aws("s3api", "list-objects-v2", "--bucket", "example.org", "--query", "Contents[].Key", "--output", "text"); got != key {
		t.Errorf("%q", got)
	}
	if got := s.aws("s3", "cp", "--quiet", "s3://example.org/"+key, "-"); got != strings.TrimSpace(string(mail)) {
		t.Errorf("%q", got)
	}
	s.refused("AccessDenied", "s3api", "put-object", "--bucket", "example.org", "--key", "bob/x")
	s.pillarbox("s3", "grant", "--data", s.node.Data, "example.org", "alice", "write")
	put := filepath.Join(dir, "from-s3")
	s.eventually("the grant to write", func() bool {
		_, err := s.client("/usr/bin/aws", "--endpoint-url", s.url(), "s3", "cp", "--quiet", s.write("m", mail), "s3://example.org/bob/Maildir/new/from-s3")
		return err == nil
	})
	s.same(put, mail)
	var st unix.Stat_t
	if err := unix.Stat(put, &st); err != nil || st.Uid != 5001 || st.Mode&0o777 != 0o600 {
		t.Errorf("uid %d, mode %o, %v", st.Uid, st.Mode, err)
	}
	s.refused("AccessDenied", "s3api", "delete-bucket", "--bucket", "example.org")
	s.pillarbox("s3", "user", "suspend", "--data", s.node.Data, "alice")
	s.eventually("suspended", func() bool {
		_, err := s.client("/usr/bin/aws", "--endpoint-url", s.url(), "s3", "ls")
		return err != nil && strings.Contains(err.Error(), "InvalidAccessKeyId")
	})
}

func (s *site) eventually(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not in time: %s", what)
		}
	}
}

// TestKeys: keys that are no paths are objects all the same, in order, and none
// leaves its bucket.
func TestKeys(t *testing.T) {
	s := newSite(t)
	s.aws("s3", "mb", "s3://keys")
	keys := []string{
		"a", "a/b", "a/b/", "a-b", "a//b", "/a", "//", "./x", "../x", "../../etc/passwd", "a/../b", "..", ".", ".s3/x", ".s3",
		"dir/", "dir/x", "ü/ö", "with space", "plus+", "per%cent", "nl\nx", strings.Repeat("k", 1024), strings.Repeat("d/", 400) + "end", strings.Repeat("n", 256),
	}
	py := `
import sys, json, boto3
from botocore.config import Config
url, keys = sys.argv[1], json.load(sys.stdin)
c = boto3.client("s3", endpoint_url=url, config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}))
for k in keys:
    c.put_object(Bucket="keys", Key=k, Body=b"" if k.endswith("/") else k.encode())
for k in keys:
    got = c.get_object(Bucket="keys", Key=k)["Body"].read()
    assert got == (b"" if k.endswith("/") else k.encode()), (k, got)
want = sorted(keys, key=lambda k: k.encode())
for size in (1000, 3):
    got, args = [], {}
    while True:
        r = c.list_objects_v2(Bucket="keys", MaxKeys=size, **args)
        got += [o["Key"] for o in r.get("Contents", [])]
        if not r["IsTruncated"]:
            break
        args = {"ContinuationToken": r["NextContinuationToken"]}
    assert got == want, (size, got, want)
for k in keys:
    c.delete_object(Bucket="keys", Key=k)
assert "Contents" not in c.list_objects_v2(Bucket="keys")
c.delete_bucket(Bucket="keys")
`
	in, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", "-c", py, s.url())
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+s.access, "AWS_SECRET_ACCESS_KEY="+s.secret, "AWS_DEFAULT_REGION=us-east-1")
	cmd.Stdin = bytes.NewReader(in)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if l, err := os.ReadDir(s.node.Mount); err != nil || len(l) > 0 {
		t.Errorf("left on the mount: %v, %v", l, err)
	}
}

// TestBrokenUpload: an upload that breaks off leaves nothing.
func TestBrokenUpload(t *testing.T) {
	s := newSite(t)
	s.aws("s3", "mb", "s3://cut")
	url := s.aws("s3", "presign", "s3://cut/whole")
	res, err := http.Get(url)
	if err != nil || res.StatusCode != http.StatusNotFound {
		t.Fatal(res, err)
	}
	res.Body.Close()
	py := `
import boto3, sys
from botocore.config import Config
print(boto3.client("s3", endpoint_url=sys.argv[1], config=Config(signature_version="s3v4")).generate_presigned_url("put_object", Params={"Bucket": "cut", "Key": sys.argv[2]}))`
	presign := func(key string) string {
		cmd := exec.Command("/usr/bin/python3", "-c", py, s.url(), key)
		cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+s.access, "AWS_SECRET_ACCESS_KEY="+s.secret, "AWS_DEFAULT_REGION=us-east-1")
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	target := presign("torn")
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 10000000\r\n\r\n%s", strings.TrimPrefix(target, s.url()), s.addr, random(5_000_000))
	conn.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	conn.Close()
	if err != nil || !bytes.Contains(answer, []byte("IncompleteBody")) {
		t.Errorf("%q, %v", answer, err)
	}
	s.refused("NoSuchKey", "s3api", "get-object", "--bucket", "cut", "--key", "torn", filepath.Join(s.dir, "out"))
	if l, err := os.ReadDir(filepath.Join(s.node.Mount, "cut")); err != nil || len(l) > 0 {
		t.Errorf("left: %v, %v", l, err)
	}
	// A changed target is not what was signed.
	for _, bad := range []string{strings.Replace(target, "/torn", "/other", 1), target + "0", strings.Replace(target, "Expires=3600", "Expires=3601", 1)} {
		req, err := http.NewRequest(http.MethodPut, bad, strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil || res.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %v, %v", bad, res, err)
		}
		res.Body.Close()
	}
}

// TestVersions: a bucket with versions gives back what was overwritten and removed.
func TestVersions(t *testing.T) {
	s := newSite(t)
	s.aws("s3", "mb", "s3://vers")
	s.aws("s3api", "put-object", "--bucket", "vers", "--key", "k", "--body", s.write("f", []byte("null")))
	s.aws("s3api", "put-bucket-versioning", "--bucket", "vers", "--versioning-configuration", "Status=Enabled")
	put := func(text string) string {
		return s.aws("s3api", "put-object", "--bucket", "vers", "--key", "k", "--body", s.write("f", []byte(text)), "--query", "VersionId", "--output", "text")
	}
	v1, v2 := put("one"), put("two")
	marker := s.aws("s3api", "delete-object", "--bucket", "vers", "--key", "k", "--query", "VersionId", "--output", "text")
	file := filepath.Join(s.node.Mount, "vers/k")
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Error(err)
	}
	s.refused("NoSuchKey", "s3api", "get-object", "--bucket", "vers", "--key", "k", filepath.Join(s.dir, "out"))
	get := func(id string) string {
		s.aws("s3api", "get-object", "--bucket", "vers", "--key", "k", "--version-id", id, filepath.Join(s.dir, "out"))
		b, _ := os.ReadFile(filepath.Join(s.dir, "out"))
		return string(b)
	}
	if get("null") != "null" || get(v1) != "one" || get(v2) != "two" {
		t.Error("the versions are mixed up")
	}
	s.aws("s3api", "delete-object", "--bucket", "vers", "--key", "k", "--version-id", marker)
	s.same(file, []byte("two"))
	s.aws("s3api", "delete-object", "--bucket", "vers", "--key", "k", "--version-id", v2)
	s.same(file, []byte("one"))
	if got := s.aws("s3api", "list-object-versions", "--bucket", "vers", "--query", "Versions[].[VersionId,IsLatest]", "--output", "text"); got != v1+"\tTrue\nnull\tFalse" {
		t.Errorf("%q", got)
	}
	s.refused("BucketNotEmpty", "s3api", "delete-bucket", "--bucket", "vers")
	s.aws("s3api", "delete-object", "--bucket", "vers", "--key", "k", "--version-id", v1)
	s.aws("s3api", "delete-object", "--bucket", "vers", "--key", "k", "--version-id", "null")
	s.aws("s3api", "delete-bucket", "--bucket", "vers")
}

// TestQuota: a user's buckets hold no more than they may.
func TestQuota(t *testing.T) {
	s := newSite(t)
	s.aws("s3", "mb", "s3://small")
	s.pillarbox("s3", "quota", "set", "alice", "10MiB")
	file := s.write("f", random(3<<20))
	put := func(key string) error {
		_, err := s.client("/usr/bin/aws", "--endpoint-url", s.url(), "s3api", "put-object", "--bucket", "small", "--key", key, "--body", file)
		return err
	}
	if out := s.pillarbox("s3", "user", "ls"); !strings.Contains(out, "10 MiB") {
		t.Error(out)
	}
	// A key that the gateway does not know makes it ask for the users again.
	s.newKey("s3", "key", "create", "alice")
	for i := range 3 {
		if err := put(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := put("more"); err == nil || !strings.Contains(err.Error(), "QuotaExceeded") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(s.node.Mount, "small/more")); !os.IsNotExist(err) {
		t.Error(err)
	}
}

// TestTogether: clients and programs on the mount write, replace, rename and
// remove the same names; whoever reads sees one whole body or none.
func TestTogether(t *testing.T) {
	s := newSite(t)
	s.aws("s3", "mb", "s3://mix")
	s.aws("s3api", "put-bucket-acl", "--bucket", "mix", "--acl", "public-read-write")
	dir := filepath.Join(s.node.Mount, "mix")
	bodies := map[string]bool{}
	body := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 1000+i*30000) }
	for i := range 8 {
		bodies[string(body(i))] = true
	}
	const names = 4
	var wg sync.WaitGroup
	end := time.Now().Add(5 * time.Second)
	do := func(seed uint64, fn func(r *rand.Rand, name string) error) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 3))
			for n := 0; time.Now().Before(end); n++ {
				if err := fn(r, fmt.Sprint("n", r.IntN(names))); err != nil {
					t.Errorf("worker %d: %v", seed, err)
					return
				}
			}
		})
	}
	request := func(method, name string, b []byte) (int, []byte, error) {
		req, err := http.NewRequest(method, s.url()+"/mix/"+name, bytes.NewReader(b))
		if err != nil {
			return 0, nil, err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, nil, err
		}
		defer res.Body.Close()
		got, err := io.ReadAll(res.Body)
		return res.StatusCode, got, err
	}
	for i := range uint64(3) {
		do(i, func(r *rand.Rand, name string) error {
			code, got, err := request(http.MethodPut, name, body(r.IntN(8)))
			if err == nil && code != 200 {
				err = fmt.Errorf("PUT %d %s", code, got)
			}
			return err
		})
	}
	do(10, func(r *rand.Rand, name string) error {
		code, got, err := request(http.MethodDelete, name, nil)
		if err == nil && code != 204 {
			err = fmt.Errorf("DELETE %d %s", code, got)
		}
		return err
	})
	do(11, func(r *rand.Rand, name string) error {
		tmp := filepath.Join(dir, fmt.Sprint("tmp", r.Uint64()))
		if err := os.WriteFile(tmp, body(r.IntN(8)), 0o600); err != nil {
			return err
		}
		return os.Rename(tmp, filepath.Join(dir, name))
	})
	do(12, func(r *rand.Rand, name string) error {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if os.IsNotExist(err) {
			return nil
		}
		if err == nil && !bodies[string(b)] {
			err = fmt.Errorf("the mount shows %d bytes that nobody wrote", len(b))
		}
		return err
	})
	do(13, func(r *rand.Rand, name string) error {
		req, err := http.NewRequest(http.MethodGet, s.url()+"/mix?list-type=2", nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if _, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 200 {
			return fmt.Errorf("LIST %d %w", res.StatusCode, err)
		}
		return nil
	})
	wg.Wait()
	var left []string
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		left = append(left, e.Name())
	}
	got := strings.Fields(s.aws("s3api", "list-objects-v2", "--bucket", "mix", "--query", "Contents[].Key", "--output", "text"))
	got = slices.DeleteFunc(got, func(k string) bool { return k == "None" })
	if !slices.Equal(got, left) {
		t.Errorf("S3 lists %v, the mount %v", got, left)
	}
	s.node.Term()
	s.node.Fsck()
}
