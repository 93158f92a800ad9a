package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"pillarbox/test/mailset"
)

// trace are the fields servers put in front of a message they deliver.
var trace = map[string]bool{
	"return-path": true, "received": true, "delivered-to": true, "x-original-to": true,
	"envelope-to": true, "delivery-date": true,
}

// check holds which messages of a set have been seen, and what differed.
type check struct {
	set      []mailset.Message
	seen     []int
	mended   int
	mentions int
	exact    map[string][]int
}

func newCheck(set []mailset.Message) *check { return &check{set: set, seen: make([]int, len(set))} }

// stored compares a delivered message, line ends as in a Maildir, with the one
// that its Return-Path names: trace fields, then exactly what was injected.
func (c *check) stored(t *testing.T, where string, got []byte) {
	t.Helper()
	i, err := c.which(got)
	if err != nil {
		c.complain(t, "%s: %v\n%.300q", where, err, got)
		return
	}
	c.seen[i]++
	want := c.set[i].Stored()
	if prefix, ok := bytes.CutSuffix(got, want); ok {
		if err := traceOnly(prefix); err != nil {
			c.complain(t, "%s (%s): %v", where, c.set[i].ID, err)
		}
		return
	}
	// RFC 5321 forbids a CR that is not before a LF, and each server has its own
	// way to get rid of one. Only messages that hold such a CR may differ.
	if bytes.Contains(want, []byte("\r")) {
		got := crs.ReplaceAll(got, []byte("\n"))
		for _, mended := range withoutCR(want) {
			if prefix, ok := bytes.CutSuffix(got, mended); ok && traceOnly(prefix) == nil {
				c.mended++
				return
			}
		}
	}
	c.complain(t, "%s (%s) differs: %s", where, c.set[i].ID, difference(got, want))
}

func (c *check) complain(t *testing.T, format string, args ...any) {
	t.Helper()
	if c.mentions++; c.mentions <= 10 {
		t.Errorf(format, args...)
	}
}

func (c *check) which(got []byte) (int, error) {
	line, _, _ := bytes.Cut(got, []byte("\n"))
	addr, ok := bytes.CutPrefix(line, []byte("Return-Path: "))
	if !ok {
		if addr, ok = bytes.CutPrefix(line, []byte("Return-path: ")); !ok {
			return 0, fmt.Errorf("does not begin with Return-Path")
		}
	}
	i, err := senderOf(string(addr))
	if err == nil && (i < 0 || i >= len(c.set)) {
		err = fmt.Errorf("names message %d of %d", i, len(c.set))
	}
	return i, err
}

// complete fails unless every message was seen so many times.
func (c *check) complete(t *testing.T, times int) {
	t.Helper()
	for i, n := range c.seen {
		if n != times {
			c.complain(t, "message %s is there %d times, not %d", c.set[i].ID, n, times)
		}
	}
	if c.mentions > 10 {
		t.Errorf("%d differences in all", c.mentions)
	}
	t.Logf("%d messages compared, %d of them with bare CRs that the server replaced", len(c.set), c.mended)
}

var field = regexp.MustCompile(`^([!-9;-~]+)[ \t]*:`)

// traceOnly says whether a text consists of whole trace fields.
func traceOnly(prefix []byte) error {
	if len(prefix) == 0 {
		return nil
	}
	if prefix[len(prefix)-1] != '\n' {
		return fmt.Errorf("what is in front ends within a line: %q", prefix)
	}
	for _, line := range bytes.Split(prefix[:len(prefix)-1], []byte("\n")) {
		if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
			continue
		}
		m := field.FindSubmatch(line)
		if m == nil || !trace[strings.ToLower(string(m[1]))] {
			return fmt.Errorf("a line in front is no trace field: %q", line)
		}
	}
	return nil
}

// crs are CRs at the end of a line.
var crs = regexp.MustCompile("\r+\n")

// withoutCR is what servers may make of a message with bare CRs: left alone, a
// space or a line end each; those at the end of a line dropped.
func withoutCR(msg []byte) [][]byte {
	cr, ends := []byte("\r"), crs.ReplaceAll(msg, []byte("\n"))
	return [][]byte{ends, bytes.ReplaceAll(ends, cr, []byte(" ")), bytes.ReplaceAll(msg, cr, []byte("\n"))}
}

// same compares a delivered message with the one of the set that is equal to
// it: for deliveries that put nothing in front.
func (c *check) same(t *testing.T, where string, got []byte) {
	t.Helper()
	if c.exact == nil {
		c.exact = map[string][]int{}
		for i, m := range c.set {
			c.exact[string(m.Stored())] = append(c.exact[string(m.Stored())], i)
		}
	}
	// The set holds some messages twice.
	best := -1
	for _, i := range c.exact[string(got)] {
		if best < 0 || c.seen[i] < c.seen[best] {
			best = i
		}
	}
	if best < 0 {
		c.complain(t, "%s is no message of the set:\n%.300q", where, got)
		return
	}
	c.seen[best]++
}

// difference shows where two messages part, from their ends.
func difference(got, want []byte) string {
	n := 0
	for n < len(got) && n < len(want) && got[len(got)-1-n] == want[len(want)-1-n] {
		n++
	}
	return fmt.Sprintf("the last %d bytes agree, before them is\n got %q\nwant %q", n,
		got[max(0, len(got)-n-160):min(len(got), len(got)-n+40)], want[max(0, len(want)-n-160):min(len(want), len(want)-n+40)])
}

// maildirFiles are the messages in new and cur of a Maildir.
func maildirFiles(t *testing.T, maildir string) []string {
	t.Helper()
	var files []string
	for _, sub := range []string{"new", "cur"} {
		entries, err := os.ReadDir(filepath.Join(maildir, sub))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			files = append(files, filepath.Join(maildir, sub, e.Name()))
		}
	}
	return files
}

// maildirs compares every message of some Maildirs.
func (c *check) maildirs(t *testing.T, dirs ...string) {
	t.Helper()
	c.eachFile(t, c.stored, dirs)
}

// eachFile gives every message of some Maildirs to compare.
func (c *check) eachFile(t *testing.T, compare func(*testing.T, string, []byte), dirs []string) {
	t.Helper()
	for _, dir := range dirs {
		for _, file := range maildirFiles(t, dir) {
			got, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, file, got)
		}
		if tmp, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(tmp) > 0 {
			t.Errorf("%s/tmp is not empty: %d files, %v", dir, len(tmp), err)
		}
	}
}

// fromWire turns what IMAP or POP3 sends into the line ends of a Maildir.
func fromWire(msg []byte) []byte { return bytes.ReplaceAll(msg, []byte("\r\n"), []byte("\n")) }
