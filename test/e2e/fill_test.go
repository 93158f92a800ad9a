package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pillarbox/test/mailset"
)

// fill puts messages into A's Maildir, the same names, times and owners on
// every call.
func fill(t *testing.T, s *site, set []mailset.Message) {
	t.Helper()
	maildir := filepath.Join(s.mail, "example.org", "a", "Maildir")
	mkdir(t, maildir, vmailID, 0o700)
	for _, sub := range []string{"cur", "new", "tmp"} {
		mkdir(t, filepath.Join(maildir, sub), vmailID, 0o700)
	}
	at := func(i int) time.Time { return time.Date(2002, 8, 1, 0, 0, i, 123456789, time.UTC) }
	for i, m := range set {
		path := write(t, filepath.Join(maildir, "cur", fmt.Sprintf("%04d.pb,S=%d:2,%s", i, len(m.Raw), []string{"", "S", "RS"}[i%3])), string(m.Stored()), 0o600)
		ok(t, "chown", os.Chown(path, vmailID, vmailID))
		ok(t, "setting times", os.Chtimes(path, at(i), at(i)))
	}
	for i, dir := range []string{"cur", "new", "tmp", "."} {
		ok(t, "setting times", os.Chtimes(filepath.Join(maildir, dir), at(i), at(i)))
	}
}
