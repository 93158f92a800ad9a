// Package pki is the cluster's own certificate authority: who may speak to whom,
// and as what. Every daemon and client has a certificate whose organizational
// unit is its role and whose common name is its name; addresses do not matter.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Role is what a certificate's holder may do.
type Role string

// The roles.
const (
	Mon    Role = "mon"
	OSD    Role = "osd"
	Client Role = "client" // a mount or gateway
	Admin  Role = "admin"
)

// Valid says whether the role is one of those known.
func (r Role) Valid() bool { return slices.Contains([]Role{Mon, OSD, Client, Admin}, r) }

// Identity is who a certificate is for.
type Identity struct {
	Role Role
	Name string // mon.a, osd.3, client.mx1, admin
}

func (id Identity) String() string { return fmt.Sprintf("%s (%s)", id.Name, id.Role) }

// Check refuses identities that no certificate may have.
func (id Identity) Check() error {
	prefix := string(id.Role) + "."
	switch {
	case !id.Role.Valid():
		return fmt.Errorf("role %q: must be mon, osd, client or admin", id.Role)
	case id.Role == Admin && id.Name == "admin":
		return nil
	case !strings.HasPrefix(id.Name, prefix) || len(id.Name) == len(prefix) || len(id.Name) > 64:
		return fmt.Errorf("name %q: must be %sNAME, of up to 64 bytes", id.Name, prefix)
	}
	for _, c := range id.Name {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_') {
			return fmt.Errorf("name %q: letters, digits, '.', '-' and '_' only", id.Name)
		}
	}
	return nil
}

// lifetime of certificates; daemons renew theirs long before (Renew).
const (
	caLifetime   = 20 * 365 * 24 * time.Hour
	certLifetime = 5 * 365 * 24 * time.Hour
)

// CA is a certificate authority with its key. Only monitors have one.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes the authority of a new cluster.
func NewCA(fsid string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the authority's key: %w", err)
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Pillarbox " + fsid},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	return &CA{cert, key}, err
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return n
}

// PEM is the authority as files hold it: certificate and key.
func (ca *CA) PEM() (cert, key []byte, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the authority's key: %w", err)
	}
	return encode("CERTIFICATE", ca.cert.Raw), encode("PRIVATE KEY", der), nil
}

// ParseCA reads what PEM wrote.
func ParseCA(cert, key []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("the authority's certificate and key: %w", err)
	}
	c, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("the authority's certificate: %w", err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !c.IsCA {
		return nil, errors.New("the authority's certificate: it is not an authority's")
	}
	return &CA{c, signer}, nil
}

// Sign makes a certificate for the key that a request proves to have. Who it is
// for is the caller's to say, not the request's. PEM in and out.
func (ca *CA) Sign(request []byte, id Identity) ([]byte, error) {
	if err := id.Check(); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("no certificate request")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{OrganizationalUnit: []string{string(id.Role)}, CommonName: id.Name},
		NotBefore: now.Add(-time.Hour), NotAfter: minTime(now.Add(certLifetime), ca.cert.NotAfter),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames: dnsNames(id), // for libraries that insist on a host's name
	}, ca.cert, req.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", id, err)
	}
	return encode("CERTIFICATE", der), nil
}

// MonHost is a name that all monitors' certificates have, and no others.
const MonHost = "monitor.pillarbox.internal"

func dnsNames(id Identity) []string {
	if id.Role == Mon {
		return []string{id.Name, MonHost}
	}
	return []string{id.Name}
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Request makes a key and a request for a certificate. PEM.
func Request() (key, request []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a key: %w", err)
	}
	req, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return encode("PRIVATE KEY", der), encode("CERTIFICATE REQUEST", req), nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Credentials are what a daemon or client proves itself with. PEM.
type Credentials struct {
	CA   []byte // the authority's certificate
	Cert []byte
	Key  []byte
}

// The files of credentials in a directory.
const (
	CAFile   = "ca.crt"
	CertFile = "tls.crt"
	KeyFile  = "tls.key"
)

// Save writes credentials to a directory, for nobody else to read. The key
// comes last, so that a directory with a key is whole.
func (c *Credentials) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save credentials: %w", err)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{CAFile, c.CA}, {CertFile, c.Cert}, {KeyFile, c.Key}} {
		if err := writeFile(filepath.Join(dir, f.name), f.data); err != nil {
			return fmt.Errorf("save credentials: %w", err)
		}
	}
	return nil
}

// writeFile puts a file in place whole, readable by its owner alone.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // made with mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Load reads credentials from a directory. A key that others can read is refused.
func Load(dir string) (*Credentials, error) {
	c := &Credentials{}
	for name, to := range map[string]*[]byte{CAFile: &c.CA, CertFile: &c.Cert, KeyFile: &c.Key} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("credentials: %w", err)
		}
		*to = b
	}
	st, err := os.Stat(filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("credentials: %s can be read by others (mode %04o); chmod 600 it", filepath.Join(dir, KeyFile), st.Mode().Perm())
	}
	if _, err := c.TLS(); err != nil {
		return nil, fmt.Errorf("credentials in %s: %w", dir, err)
	}
	return c, nil
}

// Identity is whom the certificate is for.
func (c *Credentials) Identity() (Identity, error) {
	block, _ := pem.Decode(c.Cert)
	if block == nil {
		return Identity{}, errors.New("no certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Identity{}, fmt.Errorf("certificate: %w", err)
	}
	return identityOf(cert)
}

func identityOf(cert *x509.Certificate) (Identity, error) {
	if len(cert.Subject.OrganizationalUnit) != 1 {
		return Identity{}, fmt.Errorf("certificate of %q has no role", cert.Subject.CommonName)
	}
	id := Identity{Role(cert.Subject.OrganizationalUnit[0]), cert.Subject.CommonName}
	return id, id.Check()
}

// TLS is a configuration for both sides: it shows the certificate, and trusts
// the authority and nobody else. Whom a connection is with is checked by Expect
// on the client's side and Caller on the server's.
func (c *Credentials) TLS() (*tls.Config, error) {
	pair, err := tls.X509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.CA) {
		return nil, errors.New("no authority's certificate")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair},
		RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}, nil
}

// Expect is a client's configuration that speaks only to holders of a role's
// certificate, whatever their address.
func Expect(cfg *tls.Config, role Role) *tls.Config {
	cfg = cfg.Clone()
	cfg.InsecureSkipVerify = true // host names do not matter; the rest is verified here
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the server shows no certificate")
		}
		opt := x509.VerifyOptions{Roots: cfg.RootCAs, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		if _, err := s.PeerCertificates[0].Verify(opt); err != nil {
			return fmt.Errorf("the server's certificate: %w", err)
		}
		id, err := identityOf(s.PeerCertificates[0])
		if err != nil {
			return err
		}
		if id.Role != role {
			return fmt.Errorf("the server is %s, not a %s", id, role)
		}
		return nil
	}
	return cfg
}

// Caller says who is at the other end of a connection that a server took.
func Caller(s tls.ConnectionState) (Identity, error) {
	if len(s.VerifiedChains) == 0 || len(s.VerifiedChains[0]) == 0 {
		return Identity{}, errors.New("no verified certificate")
	}
	return identityOf(s.VerifiedChains[0][0])
}

// Fingerprint names an authority's certificate in a token.
func Fingerprint(ca []byte) (string, error) {
	block, _ := pem.Decode(ca)
	if block == nil {
		return "", errors.New("no authority's certificate")
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:]), nil
}

// ExpectCA is the configuration of one that has no certificate yet, to speak to
// a monitor whose authority it knows by fingerprint. The chain that the monitor
// shows must end in that authority.
func ExpectCA(fingerprint string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // verified here
		VerifyConnection: func(s tls.ConnectionState) error {
			n := len(s.PeerCertificates)
			if n < 2 {
				return errors.New("the monitor does not show its authority")
			}
			ca := s.PeerCertificates[n-1]
			if sum := sha256.Sum256(ca.Raw); hex.EncodeToString(sum[:]) != fingerprint {
				return errors.New("the monitor belongs to another cluster than the token")
			}
			roots := x509.NewCertPool()
			roots.AddCert(ca)
			if _, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
				return fmt.Errorf("the monitor's certificate: %w", err)
			}
			id, err := identityOf(s.PeerCertificates[0])
			if err == nil && id.Role != Mon {
				err = fmt.Errorf("the server is %s, not a monitor", id)
			}
			return err
		},
	}
}

// Token is a one-time permission to join, as an admin copies it from one
// terminal to another.
type Token struct {
	Fingerprint string   // of the authority
	Addrs       []string // of monitors
	Secret      string
}

const tokenPrefix = "pbx1."

// NewToken makes a token; the monitors keep only its Hash.
func NewToken(fingerprint string, addrs []string) Token {
	var b [24]byte
	rand.Read(b[:]) // never fails
	return Token{fingerprint, addrs, base64.RawURLEncoding.EncodeToString(b[:])}
}

func (t Token) String() string {
	return tokenPrefix + base64.RawURLEncoding.EncodeToString([]byte(strings.Join(append([]string{t.Fingerprint, t.Secret}, t.Addrs...), "\n")))
}

// Hash is what the monitors know a token by.
func (t Token) Hash() string {
	sum := sha256.Sum256([]byte(t.Secret))
	return hex.EncodeToString(sum[:])
}

// maxToken bounds a token's length, in bytes.
const maxToken = 4096

// ParseToken reads a token.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	body, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok || len(s) > maxToken {
		return Token{}, fmt.Errorf("not a token: it must begin with %s", tokenPrefix)
	}
	b, err := base64.RawURLEncoding.DecodeString(body)
	parts := strings.Split(string(b), "\n")
	if err != nil || len(parts) < 3 || len(parts[0]) != 64 || len(parts[1]) != 32 {
		return Token{}, errors.New("not a token: it is incomplete")
	}
	return Token{parts[0], parts[2:], parts[1]}, nil
}
