package guard

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestLines: all is counted, and each reason logged once a minute.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		c := New(slog.New(slog.NewTextHandler(&out, nil)))
		for range 50 {
			c.Drop(Handshake, "192.0.2.1:1", io.ErrUnexpectedEOF)
			c.Drop(Role, "192.0.2.1:1", io.ErrUnexpectedEOF)
		}
		if n := strings.Count(out.String(), "\n"); n != 2 {
			t.Errorf("%d lines:\n%s", n, &out)
		}
		time.Sleep(quiet)
		c.Drop(Handshake, "192.0.2.1:1", io.ErrUnexpectedEOF)
		if !strings.Contains(out.String(), "more_since_last_line=49") {
			t.Errorf("the log does not tell of those it left out:\n%s", &out)
		}
		if n := c.Counts(); n["handshake"] != 51 || n["role"] != 50 || n["too_long"] != 0 || len(n) != len(Reasons()) {
			t.Errorf("counted %v", n)
		}
	})
}

// TestGreeting: what begins as HTTP/2 passes, in whatever pieces it comes.
func TestGreeting(t *testing.T) {
	for text, good := range map[string]bool{greeting + "more": true, "GET / HTTP/1.1\r\n\r\n": false, greeting[:10] + "x": false} {
		for piece := 1; piece < 30; piece += 7 {
			c := New(slog.New(slog.DiscardHandler))
			a, b := net.Pipe()
			go func() {
				defer a.Close()
				for rest := text; rest != ""; rest = rest[min(piece, len(rest)):] {
					if _, err := a.Write([]byte(rest[:min(piece, len(rest))])); err != nil {
						return
					}
				}
			}()
			got, err := io.ReadAll(&greeted{Conn: b, c: c})
			b.Close()
			if bad := errors.Is(err, errGreeting); bad == good || good && string(got) != text || c.Counts()["malformed"] > 0 == good {
				t.Errorf("%q in pieces of %d: %q, %v, %v", text, piece, got, err, c.Counts())
			}
		}
	}
}
