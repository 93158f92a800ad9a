package osdrpc

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
	"pillarbox/osd"
)

// authority signs certificates, as a cluster's does.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

// config is a configuration for both sides, with a certificate of a role.
func (a *authority) config(t testing.TB, role, name string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name, OrganizationalUnit: []string{role}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: a.pool, ClientCAs: a.pool,
	}
}

// fake is a Backend that answers every call by one function.
type fake struct {
	call func(ctx context.Context, name string, args ...any) (any, error)
	step func(from int, ms []osd.RaftMessage) error
	pull func(ctx context.Context, pg uint32, send func(osd.GroupPiece) error) error
}

func ret[T any](v any, err error) (T, error) {
	out, _ := v.(T)
	return out, err
}

func (f *fake) Lookup(ctx context.Context, pg uint32, dir objstore.Ino, name string) (objstore.DirEntry, error) {
	return ret[objstore.DirEntry](f.call(ctx, "Lookup", pg, dir, name))
}

func (f *fake) Hold(ctx context.Context, pg uint32, vols []objstore.VolumeID, held []locks.Held) (bool, error) {
	return ret[bool](f.call(ctx, "Hold", pg, vols, held))
}

func (f *fake) Lock(ctx context.Context, pg uint32, r locks.Request) (locks.Answer, error) {
	return ret[locks.Answer](f.call(ctx, "Lock", pg, r))
}

func (f *fake) Waits(ctx context.Context) ([]locks.Waiting, error) {
	return ret[[]locks.Waiting](f.call(ctx, "Waits"))
}

func (f *fake) Scrub(ctx context.Context) (osd.Scrubbed, error) {
	return ret[osd.Scrubbed](f.call(ctx, "Scrub"))
}

func (f *fake) Subscribe(session uint64) (*osd.Subscription, error) {
	return ret[*osd.Subscription](f.call(context.Background(), "Subscribe", session))
}

func (f *fake) GetAttr(ctx context.Context, pg uint32, ino objstore.Ino) (objstore.Attr, error) {
	return ret[objstore.Attr](f.call(ctx, "GetAttr", pg, ino))
}

func (f *fake) ReadDir(ctx context.Context, pg uint32, dir objstore.Ino, after uint64, max int, attrs bool) ([]objstore.DirEntry, error) {
	return ret[[]objstore.DirEntry](f.call(ctx, "ReadDir", pg, dir, after, max, attrs))
}

func (f *fake) Readlink(ctx context.Context, pg uint32, ino objstore.Ino) (string, error) {
	return ret[string](f.call(ctx, "Readlink", pg, ino))
}

func (f *fake) GetXattr(ctx context.Context, pg uint32, ino objstore.Ino, name string) ([]byte, error) {
	return ret[[]byte](f.call(ctx, "GetXattr", pg, ino, name))
}

func (f *fake) ListXattr(ctx context.Context, pg uint32, ino objstore.Ino) ([]string, error) {
	return ret[[]string](f.call(ctx, "ListXattr", pg, ino))
}

func (f *fake) Extents(ctx context.Context, pg uint32, ino objstore.Ino, off, n uint64) ([]objstore.Extent, error) {
	return ret[[]objstore.Extent](f.call(ctx, "Extents", pg, ino, off, n))
}

func (f *fake) Pending(ctx context.Context, pg uint32) ([]objstore.VolumeID, error) {
	return ret[[]objstore.VolumeID](f.call(ctx, "Pending", pg))
}

func (f *fake) Orphans(ctx context.Context, pg uint32, vol objstore.VolumeID, max int) ([]objstore.Ino, error) {
	return ret[[]objstore.Ino](f.call(ctx, "Orphans", pg, vol, max))
}

func (f *fake) Freed(ctx context.Context, pg uint32, max int) ([]objstore.ChunkID, error) {
	return ret[[]objstore.ChunkID](f.call(ctx, "Freed", pg, max))
}

func (f *fake) Apply(ctx context.Context, pg uint32, r objstore.Request, c objstore.Change, p objstore.Promise) (objstore.Result, error) {
	return ret[objstore.Result](f.call(ctx, "Apply", pg, r, c, p))
}

func (f *fake) Sync(ctx context.Context, pg uint32) error {
	_, err := f.call(ctx, "Sync", pg)
	return err
}

func (f *fake) ReadChunk(ctx context.Context, pg uint32, id objstore.ChunkID, off uint32, p []byte) error {
	v, err := f.call(ctx, "ReadChunk", pg, id, off, len(p))
	b, _ := v.([]byte)
	copy(p, b)
	return err
}

func (f *fake) PutChunk(ctx context.Context, id objstore.ChunkID, data []byte) error {
	_, err := f.call(ctx, "PutChunk", id, data)
	return err
}

func (f *fake) Space(ctx context.Context) (objstore.Disk, error) {
	return ret[objstore.Disk](f.call(ctx, "Space"))
}

func (f *fake) HasChunks(ctx context.Context, ids []objstore.ChunkID) ([]bool, error) {
	return ret[[]bool](f.call(ctx, "HasChunks", ids))
}

func (f *fake) HeldShards(ctx context.Context, ids []objstore.ChunkID) ([]int, error) {
	return ret[[]int](f.call(ctx, "HeldShards", ids))
}

func (f *fake) FetchChunk(ctx context.Context, id objstore.ChunkID) ([]byte, error) {
	return ret[[]byte](f.call(ctx, "FetchChunk", id))
}

func (f *fake) DropChunks(ctx context.Context, ids []objstore.ChunkID) error {
	_, err := f.call(ctx, "DropChunks", ids)
	return err
}

func (f *fake) Leftovers(ctx context.Context, pg uint32, ids []objstore.ChunkID) ([]bool, error) {
	return ret[[]bool](f.call(ctx, "Leftovers", pg, ids))
}

func (f *fake) WantedChunks(ctx context.Context, pg uint32, ids []objstore.ChunkID) ([]bool, error) {
	return ret[[]bool](f.call(ctx, "WantedChunks", pg, ids))
}

type members struct {
	term uint64
	osds []int
}

func (f *fake) Members(ctx context.Context, pg uint32) (term uint64, osds []int, err error) {
	m, err := ret[members](f.call(ctx, "Members", pg))
	return m.term, m.osds, err
}

func (f *fake) Step(_ context.Context, from int, ms []osd.RaftMessage) error { return f.step(from, ms) }

func (f *fake) PullGroup(ctx context.Context, pg uint32, send func(osd.GroupPiece) error) error {
	return f.pull(ctx, pg, send)
}

// serve runs a Server for a backend as osd.id and says where. addr may be empty.
func serve(t testing.TB, a *authority, id int, addr string, b Backend, opt ServerOptions) (*Server, string) {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, a, id, l, b, opt), l.Addr().String()
}

func serveOn(t testing.TB, a *authority, id int, l net.Listener, b Backend, opt ServerOptions) *Server {
	t.Helper()
	opt.TLS = a.config(t, roleOSD, osdName(id))
	s, err := NewServer(b, opt)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

func connect(t testing.TB, addr string, id int, cfg *tls.Config) *Conn {
	t.Helper()
	c, err := Dial(addr, id, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// await waits for something that a channel tells.
func await[T any](t testing.TB, ch <-chan T, within time.Duration, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(within):
		t.Fatalf("%s: not within %v", what, within)
		panic("unreachable")
	}
}
