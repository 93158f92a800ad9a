package e2e

import (
	"os"
	"strings"
	"testing"
)

// sample is a configuration of docs/mail-servers.md, with this site's mount in
// place of /mail: the code block below a line that ends in the title and a colon.
func (s *site) sample(t *testing.T, title string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/mail-servers.md")
	ok(t, "reading the samples", err)
	_, behind, found := strings.Cut(string(page), title+":\n")
	if !found {
		t.Fatalf("docs/mail-servers.md has no sample %q", title)
	}
	text, isCode := strings.CutPrefix(behind, "\n```\n")
	text, _, ended := strings.Cut(text, "```")
	if !isCode || !ended {
		t.Fatalf("docs/mail-servers.md has no code block after %q", title)
	}
	return strings.ReplaceAll(text, "/mail", s.mail)
}
