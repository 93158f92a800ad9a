package guard

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"

	"google.golang.org/grpc/credentials"
)

// Creds are a server's TLS, with handshakes that fail counted. One that ends
// before it began, as checks of open ports do, is not.
func (c *Counter) Creds(cfg *tls.Config) credentials.TransportCredentials {
	return &creds{credentials.NewTLS(cfg), c}
}

type creds struct {
	credentials.TransportCredentials
	c *Counter
}

func (t *creds) Clone() credentials.TransportCredentials {
	return &creds{t.TransportCredentials.Clone(), t.c}
}

func (t *creds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			t.c.Drop(Handshake, raw.RemoteAddr().String(), err)
		}
		return conn, info, err
	}
	return &greeted{Conn: conn, c: t.c}, info, nil
}

// greeting is what a client of HTTP/2 says first (RFC 9113, section 3.4).
const greeting = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// greeted is a connection that must begin as HTTP/2 does. gRPC cuts off those that
// do not and tells nobody. Only one goroutine reads.
type greeted struct {
	net.Conn
	c *Counter
	n int // bytes of the greeting that came
}

var errGreeting = errors.New("not HTTP/2")

func (g *greeted) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if rest := greeting[min(g.n, len(greeting)):]; rest != "" && n > 0 {
		k := min(n, len(rest))
		if !bytes.Equal(p[:k], []byte(rest[:k])) {
			g.c.Drop(Malformed, g.RemoteAddr().String(), errGreeting)
			return 0, errGreeting
		}
		g.n += k
	}
	return n, err
}
