package cluster

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

// load puts, gets and lists through a load balancer with a client's usual
// retries, and prints the MD5 of every object whose put was answered.
const load = `
import sys, json, time, hashlib, threading, random, boto3
from botocore.config import Config
from botocore.exceptions import ResponseStreamingError
url, access, secret, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
known, errors, broken, lock, end = {}, [], [], threading.Lock(), time.time() + seconds
def get(c, key):
    try:
        return c.get_object(Bucket="avail", Key=key)["Body"].read()
    except ResponseStreamingError: # the body had begun, so that nobody but the client can ask again
        with lock:
            broken.append(time.time())
        return c.get_object(Bucket="avail", Key=key)["Body"].read()
def work(n):
    with lock: # botocore's sessions are not for several threads at once
        c = boto3.client("s3", endpoint_url=url, aws_access_key_id=access, aws_secret_access_key=secret, region_name="us-east-1",
            config=Config(retries={"max_attempts": 8, "mode": "standard"}, connect_timeout=3, read_timeout=20))
    r, i = random.Random(n), 0
    while time.time() < end:
        i += 1
        key, body = f"w{n}/{i % 40}", r.randbytes(r.choice([10, 5000, 200000, 5000000]))
        try:
            c.put_object(Bucket="avail", Key=key, Body=body)
            sum = hashlib.md5(body).hexdigest()
            with lock:
                known[key] = sum
            got = get(c, key)
            assert hashlib.md5(got).hexdigest() == sum, key
            if i % 10 == 0:
                assert key in [o["Key"] for o in c.list_objects_v2(Bucket="avail", Prefix=f"w{n}/")["Contents"]], key
        except Exception as e:
            with lock:
                errors.append(f"{key}: {e!r}")
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(json.dumps({"known": known, "errors": errors, "broken": broken}))
`

// TestGateways: of two gateways behind HAProxy one is killed, and later one
// stopped in good order, under load; no client hears of it but who reads a body
// from the first when it is killed, and a mount shows every object.
func TestGateways(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	var key struct {
		Access string `json:"access_key"`
		Secret string `json:"secret_key"`
	}
	if err := json.Unmarshal([]byte(c.run("s3", "user", "create", "--format", "json", "--conf", c.admin, "alice")), &key); err != nil {
		t.Fatal(err)
	}
	cfg, err := os.ReadFile("../../docs/haproxy.cfg")
	if err != nil {
		t.Fatal(err)
	}
	text, front := string(cfg), harness.FreePort(t)
	set := func(old, addr string) {
		if !strings.Contains(text, old) {
			t.Fatalf("docs/haproxy.cfg has no %s", old)
		}
		text = strings.ReplaceAll(text, old, addr)
	}
	set("127.0.0.1:8080", front)
	var gateways []*daemon
	for _, name := range []string{"gw1", "gw2"} {
		conf, addr := c.path("client."+name), harness.FreePort(t)
		c.run("join", "--conf", conf, c.run("token", "create", "client", "client."+name, "--conf", c.admin))
		gateways = append(gateways, c.start("s3."+name, "s3", "--conf", conf, "--addr", addr, "--s3-access-log", c.path(name+".access")))
		set(map[string]string{"gw1": "127.0.0.1:7481", "gw2": "127.0.0.1:7482"}[name], addr)
		c.eventually(name+" is healthy", func() bool {
			res, err := http.Get("http://" + addr + "/healthz")
			if err != nil {
				return false
			}
			res.Body.Close()
			return res.StatusCode == http.StatusOK
		})
	}
	path := c.path("haproxy.cfg")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(c.path("haproxy.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	proxy := exec.Command("/usr/sbin/haproxy", "-db", "-f", path)
	proxy.Stdout, proxy.Stderr, proxy.SysProcAttr = log, log, &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { proxy.Process.Kill(); proxy.Wait() }()
	point, _ := c.mount("mx1")
	aws := func(args ...string) error {
		cmd := exec.Command("/usr/bin/aws", append([]string{"--endpoint-url", "http://" + front}, args...)...)
		cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+key.Access, "AWS_SECRET_ACCESS_KEY="+key.Secret, "AWS_DEFAULT_REGION=us-east-1", "AWS_CA_BUNDLE=")
		return cmd.Run()
	}
	c.eventually("a bucket", func() bool { return aws("s3", "mb", "s3://avail") == nil })
	cmd := exec.Command("/usr/bin/python3", "-c", load, "http://"+front, key.Access, key.Secret, "14")
	cmd.Env = append(os.Environ(), "AWS_CA_BUNDLE=")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	c.kill(gateways[0])
	killed := time.Now()
	time.Sleep(4 * time.Second)
	c.restart(gateways[0])
	time.Sleep(3 * time.Second)
	c.stop(gateways[1])
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Known  map[string]string
		Errors []string
		Broken []float64 // when bodies were; seconds
	}
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Errors) > 0 || len(got.Known) < 20 {
		t.Errorf("%d objects; errors: %v", len(got.Known), got.Errors)
	}
	for _, at := range got.Broken {
		if after := time.Unix(0, int64(at*1e9)).Sub(killed); after < -time.Second || after > 3*time.Second {
			t.Errorf("a body was cut short %v after the gateway was killed", after)
		}
	}
	for name, sum := range got.Known {
		b, err := os.ReadFile(filepath.Join(point, "avail", name))
		if has := md5.Sum(b); err != nil || hex.EncodeToString(has[:]) != sum {
			t.Errorf("the mount shows another %s: %v", name, err)
		}
	}
	if b, err := os.ReadFile(c.path("gw1.access")); err != nil || !strings.Contains(string(b), " REST.PUT.PutObject w") {
		t.Errorf("the access log says %.200q, %v", b, err)
	}
}
