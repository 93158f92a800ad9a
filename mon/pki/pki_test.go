package pki

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func credentials(t *testing.T, ca *CA, id Identity) *Credentials {
	t.Helper()
	key, req, err := Request()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(req, id)
	if err != nil {
		t.Fatal(err)
	}
	caPEM, _, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	return &Credentials{CA: caPEM, Cert: cert, Key: key}
}

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// talk connects the two and returns what the server learns of the client, and
// either side's error.
func talk(t *testing.T, server, client *tls.Config) (who Identity, err error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type result struct {
		id  Identity
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- result{err: err}
			return
		}
		defer c.Close()
		s := tls.Server(c, server)
		if err := s.Handshake(); err != nil {
			got <- result{err: err}
			return
		}
		s.Write([]byte("x"))
		id, err := Caller(s.ConnectionState())
		got <- result{id, err}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1)) // a client's certificate is judged after its handshake
		c.Close()
	}
	r := <-got
	if err == nil {
		err = r.err
	}
	return r.id, err
}

func mustTLS(t *testing.T, c *Credentials) *tls.Config {
	t.Helper()
	cfg, err := c.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestMutualTLS(t *testing.T) {
	ca := newCA(t)
	mon := mustTLS(t, credentials(t, ca, Identity{Mon, "mon.a"}))
	osd := mustTLS(t, credentials(t, ca, Identity{OSD, "osd.3"}))
	if id, err := talk(t, mon, Expect(osd, Mon)); err != nil || id != (Identity{OSD, "osd.3"}) {
		t.Errorf("%v, %v", id, err)
	}
	if _, err := talk(t, osd, Expect(osd, Mon)); err == nil || !strings.Contains(err.Error(), "not a mon") {
		t.Errorf("an OSD in a monitor's place: %v", err)
	}
	other := mustTLS(t, credentials(t, newCA(t), Identity{OSD, "osd.3"}))
	if _, err := talk(t, mon, Expect(other, Mon)); err == nil {
		t.Error("another cluster's server is trusted")
	}
	other.RootCAs = osd.RootCAs
	if _, err := talk(t, mon, Expect(other, Mon)); err == nil {
		t.Error("another cluster's client is trusted")
	}
	if _, err := talk(t, mon, Expect(&tls.Config{RootCAs: osd.RootCAs}, Mon)); err == nil {
		t.Error("a client without certificate is let in")
	}
}

func TestJoinByFingerprint(t *testing.T) {
	ca := newCA(t)
	c := credentials(t, ca, Identity{Mon, "mon.a"})
	c.Cert = append(c.Cert, c.CA...) // a monitor shows its authority
	cfg := mustTLS(t, c)
	cfg.ClientAuth = tls.VerifyClientCertIfGiven
	print, err := Fingerprint(c.CA)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := talk(t, cfg, ExpectCA(print)); err == nil || !strings.Contains(err.Error(), "no verified certificate") {
		t.Errorf("got %v, want a connection without a name", err)
	}
	if _, err := talk(t, cfg, ExpectCA(strings.Repeat("0", 64))); err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("wrong fingerprint: %v", err)
	}
}

func TestIdentities(t *testing.T) {
	for _, id := range []Identity{{OSD, "osd."}, {OSD, "mon.a"}, {"root", "root.a"}, {Client, "client.a b"}, {Client, "client.\n"}, {Admin, "root"}, {Client, "client." + strings.Repeat("a", 80)}} {
		if id.Check() == nil {
			t.Errorf("%v is taken", id)
		}
	}
	ca := newCA(t)
	if _, err := ca.Sign([]byte("rubbish"), Identity{OSD, "osd.1"}); err == nil {
		t.Error("rubbish is signed")
	}
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	c := credentials(t, newCA(t), Identity{Client, "client.mx1"})
	if err := c.Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := got.Identity(); err != nil || id != (Identity{Client, "client.mx1"}) {
		t.Errorf("%v, %v", id, err)
	}
	if err := os.Chmod(filepath.Join(dir, KeyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a key that others can read is taken")
	}
}

func TestCARoundTrip(t *testing.T) {
	ca := newCA(t)
	cert, key, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseCA(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	mon := mustTLS(t, credentials(t, ca, Identity{Mon, "mon.a"}))
	osd := mustTLS(t, credentials(t, again, Identity{OSD, "osd.1"}))
	if _, err := talk(t, mon, Expect(osd, Mon)); err != nil {
		t.Error(err)
	}
}

func TestToken(t *testing.T) {
	a := NewToken(strings.Repeat("a", 64), []string{"10.0.0.1:6789", "[::1]:6789"})
	b, err := ParseToken(" " + a.String() + "\n")
	if err != nil || b.Secret != a.Secret || b.Fingerprint != a.Fingerprint || len(b.Addrs) != 2 || b.Hash() != a.Hash() {
		t.Errorf("%+v, %v", b, err)
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken(strings.Repeat("a", 64), []string{"h:1"}).String())
	f.Add("pbx1.")
	f.Fuzz(func(t *testing.T, s string) {
		if tok, err := ParseToken(s); err == nil {
			if again, err := ParseToken(tok.String()); err != nil || again.Hash() != tok.Hash() {
				t.Errorf("%+v becomes %+v, %v", tok, again, err)
			}
		}
	})
}
