package e2e

import (
	"bytes"
	"fmt"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"pillarbox/test/mailset"
)

// loadMail returns the first n messages, spread over the whole set; 0 is all.
func loadMail(t *testing.T, n int) []mailset.Message {
	t.Helper()
	set, err := mailset.Load()
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 || n >= len(set) {
		return set
	}
	some := make([]mailset.Message, n)
	for i := range some {
		some[i] = set[i*len(set)/n]
	}
	return some
}

// transfer is one SMTP or LMTP connection.
type transfer struct{ *textproto.Conn }

func dialTransfer(addr, hello string) (*transfer, error) {
	conn, err := textproto.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &transfer{conn}
	_, _, err = c.ReadResponse(220)
	if err == nil {
		err = c.ask(250, "%s client.test", hello)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("greeting %s: %w", addr, err)
	}
	return c, nil
}

func (c *transfer) ask(code int, format string, args ...any) error {
	if _, err := c.Cmd(format, args...); err != nil {
		return err
	}
	_, _, err := c.ReadResponse(code)
	return err
}

// send transmits one message, which ends in CRLF; the server has taken responsibility on return.
func (c *transfer) send(from, to string, wire []byte) error {
	if err := c.ask(250, "MAIL FROM:<%s>", from); err != nil {
		return fmt.Errorf("sender %s: %w", from, err)
	}
	if err := c.ask(250, "RCPT TO:<%s>", to); err != nil {
		return fmt.Errorf("recipient %s: %w", to, err)
	}
	if err := c.ask(354, "DATA"); err != nil {
		return err
	}
	// textproto's DotWriter adds a CR to a line that ends in two.
	if bytes.HasPrefix(wire, []byte(".")) {
		wire = append([]byte("."), wire...)
	}
	wire = bytes.ReplaceAll(wire, []byte("\r\n."), []byte("\r\n.."))
	if _, err := c.W.Write(wire); err != nil {
		return err
	}
	if err := c.PrintfLine("."); err != nil {
		return err
	}
	_, _, err := c.ReadResponse(250)
	return err
}

// sender is the envelope address that names message i, and senderOf reads it back.
func sender(i int) string { return fmt.Sprintf("m%d@origin.test", i) }

func senderOf(addr string) (int, error) {
	local, ok := strings.CutSuffix(strings.Trim(addr, "<> \t\r\n"), "@origin.test")
	if !ok || !strings.HasPrefix(local, "m") {
		return 0, fmt.Errorf("%q is not a sender of the tests", addr)
	}
	return strconv.Atoi(local[1:])
}

// inject sends every message over parallel connections, the i-th one to to(i).
func inject(t *testing.T, port int, hello string, connections int, set []mailset.Message, to func(i int) string) {
	t.Helper()
	var (
		group errgroup.Group
		mu    sync.Mutex
		next  int
	)
	for range connections {
		group.Go(func() error {
			c, err := dialTransfer(address(port), hello)
			if err != nil {
				return err
			}
			defer c.Close()
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= len(set) {
					return c.ask(221, "QUIT")
				}
				if err := c.send(sender(i), to(i), set[i].Wire()); err != nil {
					return fmt.Errorf("message %s: %w", set[i].ID, err)
				}
			}
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatalf("injecting: %v", err)
	}
}
