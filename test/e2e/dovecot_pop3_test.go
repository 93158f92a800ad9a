package e2e

import (
	"bytes"
	"fmt"
	"net/textproto"
	"strings"
	"testing"
)

// pop3 is one POP3 connection, logged in.
type pop3 struct{ *textproto.Conn }

func (d *dovecot) popLogin(t *testing.T, user string) *pop3 {
	t.Helper()
	conn, err := textproto.Dial("tcp", address(d.pop3))
	ok(t, "connecting by POP3", err)
	t.Cleanup(func() { conn.Close() })
	p := &pop3{conn}
	_, err = p.answer()
	ok(t, "greeting", err)
	for _, line := range []string{"USER " + user, "PASS " + dovecotPassword} {
		_, err := p.ask("%s", line)
		ok(t, line, err)
	}
	return p
}

func (p *pop3) ask(format string, args ...any) (string, error) {
	if err := p.PrintfLine(format, args...); err != nil {
		return "", err
	}
	return p.answer()
}

func (p *pop3) answer() (string, error) {
	line, err := p.ReadLine()
	if err == nil && !strings.HasPrefix(line, "+OK") {
		err = fmt.Errorf("POP3 says %q", line)
	}
	return line, err
}

// retrieve returns a message with the line ends of a Maildir.
func (p *pop3) retrieve(n int) ([]byte, error) {
	if _, err := p.ask("RETR %d", n); err != nil {
		return nil, err
	}
	return p.ReadDotBytes()
}

// TestDovecotPOP3 retrieves every message, deletes every second one, and finds
// the others, with the same ids, in the next session.
func TestDovecotPOP3(t *testing.T) {
	s, set := newSite(t), loadMail(t, 1500)
	dir := s.account(t, "pop.test", "user", vmailID) + "/Maildir"
	d := startDovecot(t, s)
	inject(t, d.lmtp, "LHLO", 4, set, func(int) string { return "user@pop.test" })
	p := d.popLogin(t, "user@pop.test")
	var messages, octets int
	line, err := p.ask("STAT")
	ok(t, "STAT", err)
	if _, err := fmt.Sscanf(line, "+OK %d %d", &messages, &octets); err != nil || messages != len(set) {
		t.Fatalf("STAT says %q, want %d messages", line, len(set))
	}
	c := newCheck(set)
	for n := 1; n <= messages; n++ {
		got, err := p.retrieve(n)
		ok(t, "RETR", err)
		c.stored(t, fmt.Sprintf("POP3 message %d", n), got)
	}
	c.complete(t, 1)
	ids := p.list(t, "UIDL")
	for n := 1; n <= messages; n += 2 {
		_, err := p.ask("DELE %d", n)
		ok(t, "DELE", err)
	}
	_, err = p.ask("QUIT")
	ok(t, "QUIT", err)

	p = d.popLogin(t, "user@pop.test")
	left := p.list(t, "UIDL")
	if len(left) != messages/2 || len(maildirFiles(t, dir)) != messages/2 {
		t.Fatalf("%d messages and %d files are left, want %d", len(left), len(maildirFiles(t, dir)), messages/2)
	}
	for i, line := range left {
		_, id, _ := bytes.Cut(line, []byte(" "))
		_, old, _ := bytes.Cut(ids[2*i+1], []byte(" "))
		if !bytes.Equal(id, old) {
			t.Fatalf("message %d has the id %q, before it had %q", i+1, id, old)
		}
	}
	_, err = p.ask("QUIT")
	ok(t, "QUIT", err)
	d.checkLog(t)
}

// list is the answer to a command that lists all messages.
func (p *pop3) list(t *testing.T, command string) [][]byte {
	t.Helper()
	_, err := p.ask("%s", command)
	ok(t, command, err)
	text, err := p.ReadDotBytes()
	ok(t, command, err)
	return bytes.Split(bytes.TrimSpace(text), []byte("\n"))
}
