package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestEncrypted delivers real mail by Dovecot's LMTP into an encrypted store, reads
// it back, and looks through every byte of the data directory for any of it.
func TestEncrypted(t *testing.T) {
	if plain() {
		t.Skip("a plain directory is not encrypted")
	}
	program, err := buildProgram()
	ok(t, "building", err)
	keys := filepath.Join(newBase(t), "keys")
	if out, err := exec.Command(program, "key", "create", "--key-file", keys).CombinedOutput(); err != nil {
		t.Fatalf("key create: %v\n%s", err, out)
	}
	s, set := newSite(t, "--encrypt", "--key-file", keys), loadMail(t, 120)
	dir := s.account(t, "sealed.test", "user", vmailID) + "/Maildir"
	d := startDovecot(t, s)
	inject(t, d.lmtp, "LHLO", 4, set, func(int) string { return "user@sealed.test" })
	byFile, byIMAP := newCheck(set), newCheck(set)
	byFile.maildirs(t, dir)
	byFile.complete(t, 1)
	c := d.login(t, "user@sealed.test", nil)
	selectBox(t, c, "INBOX")
	byIMAP.fetchAll(t, c)
	ok(t, "LOGOUT", c.Logout().Wait())
	byIMAP.complete(t, 1)
	d.checkLog(t)

	secrets := [][]byte{[]byte("Subject:"), []byte("Received: "), []byte("Return-Path:"), []byte("@sealed.test")}
	subject := regexp.MustCompile(`(?m)^Subject: (.{12,})$`)
	for _, m := range set {
		if found := subject.FindSubmatch(m.Stored()); found != nil {
			secrets = append(secrets, found[1])
		}
	}
	if len(secrets) < 50 {
		t.Fatalf("only %d secrets to look for", len(secrets))
	}
	if !lookThrough(t, s.data, [][]byte{[]byte("Maildir")}) {
		t.Error("not even names were found: the search does not work")
	}
	if lookThrough(t, s.data, secrets) {
		t.Error("mail shows in the data directory")
	}
}

// lookThrough says whether any of the texts is in any file below dir.
func lookThrough(t *testing.T, dir string, texts [][]byte) (found bool) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if os.IsNotExist(err) { // recycled meanwhile
			return nil
		}
		for _, text := range texts {
			if bytes.Contains(b, text) {
				t.Logf("%s holds %q", path, text)
				found = true
			}
		}
		return err
	})
	ok(t, "looking through the data directory", err)
	return found
}
