// Package mailset is the real mail of the tests: the SpamAssassin corpus, about
// 6,000 messages with broken headers, 8-bit text, bare carriage returns and
// lines of any length, as `make test-deps` leaves it below .cache/spam-assassin.
//
// A Message's bytes are shared by all who load it; nobody may change them.
package mailset

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// Message is one message of the set.
type Message struct {
	// ID names it in all runs, for example "easy-ham-1/00042".
	ID string
	// Raw is the message as collected, without the line "From ..." that a mbox
	// puts between messages.
	Raw []byte
}

// Stored is the message as a Maildir keeps it once it came by SMTP: lines end
// in LF, the last one included. A CR elsewhere than before a LF stays.
func (m Message) Stored() []byte { return Stored(m.Raw) }

// Stored gives raw the line ends described at Message.Stored.
func Stored(raw []byte) []byte {
	out := bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n"))
	if !bytes.HasSuffix(out, []byte("\n")) {
		out = append(bytes.Clone(out), '\n')
	}
	return out
}

// Wire is the message as SMTP, LMTP or IMAP APPEND sends it: lines end in CRLF.
// Dots are not doubled.
func (m Message) Wire() []byte { return bytes.ReplaceAll(m.Stored(), []byte("\n"), []byte("\r\n")) }

// Load reads the whole set in order of ID. The set lies in the module that the
// working directory belongs to; that it is missing is an error.
func Load() ([]Message, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(root, ".cache", "spam-assassin")
	if _, err := os.Stat(filepath.Join(dir, ".done")); err != nil {
		return nil, fmt.Errorf("the real mail is missing, run `make test-deps`: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.txt"))
	if err != nil {
		return nil, fmt.Errorf("listing the real mail: %w", err)
	}
	sort.Strings(files)
	set := make([]Message, 0, len(files))
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading the real mail: %w", err)
		}
		number, _, _ := strings.Cut(filepath.Base(file), ".")
		set = append(set, Message{ID: filepath.Base(filepath.Dir(file)) + "/" + number, Raw: withoutSeparator(raw)})
	}
	return set, nil
}

// withoutSeparator drops a first line "From address date".
func withoutSeparator(raw []byte) []byte {
	if !bytes.HasPrefix(raw, []byte("From ")) {
		return raw
	}
	_, rest, _ := bytes.Cut(raw, []byte("\n"))
	return rest
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the module: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}
