package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"pillarbox/mon/monrpc/monv1"
	"pillarbox/mon/pki"
	"pillarbox/osd/osdrpc/osdv1"
)

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (rawCodec) Unmarshal(b []byte, v any) error { *v.(*[]byte) = b; return nil }

func (rawCodec) Name() string { return "proto" }

// deadline is when a daemon must have answered, or cut the connection.
const deadline = time.Minute

// throw sends bytes to a port and waits for the end of the connection.
func throw(t *testing.T, network, addr string, garbage []byte) {
	t.Helper()
	conn, err := net.Dial(network, addr)
	if err != nil {
		t.Fatalf("a port that does not serve: %v", err)
	}
	throwOn(conn, garbage)
}

func throwOn(conn net.Conn, garbage []byte) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(deadline))
	conn.Write(garbage) // what does not take it all has cut us off
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	io.Copy(io.Discard, conn)
}

// throwTLS does the same inside of TLS.
func throwTLS(t *testing.T, addr string, cfg *tls.Config, garbage []byte) {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("a port that does not serve: %v", err)
	}
	cfg = cfg.Clone()
	cfg.InsecureSkipVerify, cfg.NextProtos = true, []string{"h2"}
	throwOn(tls.Client(raw, cfg), garbage)
}

// foreign is a certificate of another cluster.
func foreign(t *testing.T) *tls.Config {
	t.Helper()
	ca, err := pki.NewCA("another")
	if err != nil {
		t.Fatal(err)
	}
	key, request, err := pki.Request()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(request, pki.Identity{Role: pki.Admin, Name: "admin"})
	if err != nil {
		t.Fatal(err)
	}
	pem, _, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := (&pki.Credentials{CA: pem, Cert: cert, Key: key}).TLS()
	if err != nil {
		t.Fatal(err)
	}
	// Shown although the daemon asks for one of another authority.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cfg.Certificates[0], nil }
	return cfg
}

// throwBytes throws all that needs no certificate of the cluster.
func (c *cluster) throwBytes(addr string) {
	noise := make([]byte, 64<<10)
	rand.NewChaCha8([32]byte{7}).Read(noise)
	for _, garbage := range [][]byte{noise, noise[:1], []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), append([]byte{22, 3, 1, 2, 0}, noise[:512]...)} {
		throw(c.t, "tcp", addr, garbage)
	}
	throwTLS(c.t, addr, &tls.Config{}, noise)
	throwTLS(c.t, addr, foreign(c.t), noise)
}

// caller connects as one of the cluster's clients does.
func (c *cluster) caller(conf, addr string) (*grpc.ClientConn, *tls.Config) {
	c.t.Helper()
	creds, err := pki.Load(conf)
	if err != nil {
		c.t.Fatal(err)
	}
	cfg, err := creds.TLS()
	if err != nil {
		c.t.Fatal(err)
	}
	open := cfg.Clone()
	open.InsecureSkipVerify = true
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(open)))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return conn, cfg
}

// refusedCall fails unless a call is answered with an error.
func refusedCall(t *testing.T, what string, call func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := call(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func (c *cluster) throwCalls(conn *grpc.ClientConn, service, method string) {
	c.t.Helper()
	invoke := func(method string, b []byte) func(context.Context) error {
		return func(ctx context.Context) error {
			var answer []byte
			return conn.Invoke(ctx, "/"+service+"/"+method, &b, &answer, grpc.ForceCodec(rawCodec{}), grpc.MaxCallSendMsgSize(1<<30))
		}
	}
	refusedCall(c.t, "bytes that are no message", invoke(method, bytes.Repeat([]byte{0xff}, 100)))
	refusedCall(c.t, "a message of 32 MiB", invoke(method, make([]byte, 32<<20)))
	refusedCall(c.t, "a call that nobody knows", invoke("Nonsense", nil))
	refusedCall(c.t, "a service that nobody knows", func(ctx context.Context) error {
		var b, answer []byte
		return conn.Invoke(ctx, "/no.such.Service/Call", &b, &answer, grpc.ForceCodec(rawCodec{}))
	})
}

// TestGarbage throws what is none of their business at the ports of all daemons,
// which count it and go on serving.
func TestGarbage(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	mount, d := c.mount("mx1")
	conf := c.path("client.mx1")
	load := c.load(mount, 1, 1)
	osd, mon := flagOf(c.all[1], "--addr"), c.mon()

	c.throwBytes(osd)
	conn, cfg := c.caller(conf, osd)
	throwTLS(t, osd, cfg, []byte("GET / HTTP/1.1\r\n\r\n"))
	c.throwCalls(conn, "pillarbox.osd.v1.OSD", "Lookup")
	refusedCall(t, "an OSD's call by a client", func(ctx context.Context) error {
		_, err := osdv1.NewPeerClient(conn).DropChunks(ctx, &osdv1.ChunkList{})
		return err
	})
	refusedCall(t, "a name of 300 bytes", func(ctx context.Context) error {
		_, err := osdv1.NewOSDClient(conn).Lookup(ctx, &osdv1.LookupRequest{Dir: 1, Name: make([]byte, 300)})
		return err
	})
	want := map[string]int{"handshake": 6, "role": 1, "malformed": 3, "too_long": 1, "unknown": 2}
	c.eventually("health detail tells of it", func() bool {
		out, _ := c.try("health", "detail", "--conf", c.admin)
		for reason, n := range want {
			if !strings.Contains(out, fmt.Sprintf("INFO osd.0 dropped at its port: %d of reason %s\n", n, reason)) {
				return false
			}
		}
		return strings.HasPrefix(out, "HEALTH_OK")
	})
	if text := c.log(c.all[1]); strings.Count(text, "reason=handshake") != 1 {
		t.Error("the log does not tell of handshakes once")
	}

	c.throwBytes(mon)
	conn, cfg = c.caller(conf, mon)
	throwTLS(t, mon, cfg, []byte("GET / HTTP/1.1\r\n\r\n"))
	c.throwCalls(conn, "pillarbox.mon.v1.Mon", "Session")
	refusedCall(t, "an OSD's call by a client", func(ctx context.Context) error {
		_, err := monv1.NewMonClient(conn).Boot(ctx, &monv1.BootRequest{})
		return err
	})
	res, err := http.Get("http://" + c.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	// Whoever joins has no certificate, so that its garbage comes one step further.
	for reason, n := range map[string]int{"handshake": 5, "role": 1, "malformed": 3, "too_long": 1, "unknown": 2} {
		if line := fmt.Sprintf("pillarbox_dropped_total{reason=%q} %d\n", reason, n); !strings.Contains(string(text), line) {
			t.Errorf("the monitor's metrics lack %q: %q", line, regexp.MustCompile(`(?m)^pillarbox_dropped.*$`).FindAllString(string(text), -1))
		}
	}

	c.throwAtGateway()
	load.goesOn(c, "after all that")
	load.end()
	load.verify(mount)
	c.healthy(3)
	c.stop(d)
}

// throwAtGateway throws at an S3 gateway and at an admin socket.
func (c *cluster) throwAtGateway() {
	c.t.Helper()
	_, settings := c.provider()
	_, rest, _ := strings.Cut(string(settings), "http://")
	addr, _, _ := strings.Cut(rest, `"`)
	c.throwBytes(addr)
	throw(c.t, "tcp", addr, append([]byte("GET / HTTP/1.1\r\nX: "), bytes.Repeat([]byte("x"), 4<<20)...))
	sock := filepath.Join(c.path("provider"), "admin.sock")
	for _, garbage := range [][]byte{{0}, []byte("nonsense\r\n\r\n"), append([]byte("POST /command HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"), "{\"words\":"...)} {
		throw(c.t, "unix", sock, garbage)
	}
	res, err := http.Get("http://" + addr + "/")
	if err != nil || res.StatusCode != http.StatusOK {
		c.t.Errorf("the gateway: %+v, %v", res, err)
	}
	if err == nil {
		res.Body.Close()
	}
	c.run("status", "--data", c.path("provider"))
}

// flagOf is the value of a daemon's flag.
func flagOf(d *daemon, name string) string {
	for i, a := range d.args {
		if a == name {
			return d.args[i+1]
		}
	}
	return ""
}

// mon is the address of the first monitor.
func (c *cluster) mon() string {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.admin, "cluster.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), `"mons": [`)
	_, rest, _ = strings.Cut(rest, `"`)
	addr, _, _ := strings.Cut(rest, `"`)
	return addr
}
