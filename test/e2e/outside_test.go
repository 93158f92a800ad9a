package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/types"
	"pillarbox/test/harness"
	"pillarbox/test/mailset"
	"pillarbox/test/provider"
)

// TestOutside: real mail comes by Postfix and by Dovecot's LMTP into a store with an
// outside pool of each type, the host burns, and the store that is rebuilt from the
// pool has every message; the provider can read nothing of it.
func TestOutside(t *testing.T) {
	if plain() {
		t.Skip("a plain directory has no pools")
	}
	for _, c := range []struct {
		kind     string
		messages int
		start    func(*testing.T) map[string]string
	}{
		{"s3", 240, func(t *testing.T) map[string]string { settings, _ := provider.Pillarbox(t); return settings }},
		{"azure", 40, func(t *testing.T) map[string]string { settings, _ := provider.Azurite(t); return settings }},
		{"swift", 40, provider.Swift},
	} {
		t.Run(c.kind, func(t *testing.T) { mailOutside(t, c.kind, c.start(t), c.messages) })
	}
}

// away is a site whose store has a pool outside.
type away struct {
	*site
	node         *harness.Node
	config, keys string
	args         []string
}

func newAway(t *testing.T, kind string, settings map[string]string, args ...string) *away {
	t.Helper()
	base := newBase(t)
	a := &away{site: &site{base: base, mail: filepath.Join(base, "mail")}, config: filepath.Join(base, "pool.json"), keys: filepath.Join(base, "keys")}
	mkdir(t, a.mail, 0, 0o755)
	own := maps.Clone(settings)
	own["type"] = kind
	text, err := json.Marshal(own)
	ok(t, "encoding the settings", err)
	write(t, a.config, string(text), 0o600)
	a.run(t, "key", "create", "--key-file", a.keys)
	a.args = append([]string{"--s3", "off", "--encrypt", "--key-file", a.keys, "--pool", "cloud=" + a.config}, args...)
	a.serve(t, filepath.Join(t.TempDir(), "data"))
	return a
}

func (a *away) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(harness.Binary(t), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("pillarbox %v: %v\n%s", args, err, tail(out))
	}
	return string(out)
}

func (a *away) serve(t *testing.T, data string) {
	t.Helper()
	a.data = data
	a.node = harness.Start(t, harness.Options{Data: data, Mount: a.mail, Args: a.args})
	ok(t, "chmod of the mount", os.Chmod(a.mail, 0o755))
}

// burn waits until all is outside, then ends the host as if it burnt, and rebuilds it.
func (a *away) burn(t *testing.T) {
	t.Helper()
	waitFor(t, "everything to be outside", 3*time.Minute, func() bool {
		var st struct {
			Shipped struct {
				Behind int64 `json:"behind_bytes"`
				Whole  bool
			}
		}
		ok(t, "reading the status", json.Unmarshal([]byte(a.run(t, "status", "--data", a.data, "--format", "json")), &st))
		return st.Shipped.Whole && st.Shipped.Behind == 0
	})
	a.node.Kill9()
	a.node.Unmount()
	ok(t, "burning the host", os.RemoveAll(a.data))
	data := filepath.Join(t.TempDir(), "data")
	a.run(t, "rebuild", "--from", a.config, "--key-file", a.keys, "--data", data)
	a.serve(t, data)
}

// withAttachments is real mail, of which some has an attachment that does not lie
// with the metadata.
func withAttachments(t *testing.T, n int) []mailset.Message {
	set := loadMail(t, n)
	for i := 0; i < len(set); i += 20 {
		line := fmt.Sprintf("attachment %d of nobody else's business: %%060d\n", i)
		b := bytes.Clone(set[i].Stored())
		for k := 0; len(b) < 100_000+i*1_000; k++ {
			b = fmt.Appendf(b, line, k*k)
		}
		set[i].Raw = b
	}
	return set
}

// mailOutside is TestOutside for one type.
func mailOutside(t *testing.T, kind string, settings map[string]string, messages int) {
	a, set := newAway(t, kind, settings), withAttachments(t, messages)
	virtual, lmtp := a.account(t, "example.org", "by-postfix", vmailID), a.account(t, "example.org", "by-dovecot", vmailID)
	p := startPostfix(t, a.site, []string{"by-postfix"})
	d := startDovecot(t, a.site)
	half := len(set) / 2
	inject(t, p.port, "EHLO", 4, set[:half], func(int) string { return "by-postfix@example.org" })
	inject(t, d.lmtp, "LHLO", 4, set[half:], func(int) string { return "by-dovecot@example.org" })
	p.delivered(t, 3*time.Minute)
	c := d.login(t, "by-dovecot@example.org", nil)
	selectBox(t, c, "INBOX") // which brings it from new to cur
	ok(t, "LOGOUT", c.Logout().Wait())
	p.checkLog(t)
	d.checkLog(t)

	a.burn(t)
	byPostfix, byLMTP, byIMAP := newCheck(set[:half]), newCheck(set[half:]), newCheck(set[half:])
	byPostfix.maildirs(t, virtual+"/Maildir")
	byPostfix.complete(t, 1)
	byLMTP.maildirs(t, lmtp+"/Maildir")
	byLMTP.complete(t, 1)
	c = d.login(t, "by-dovecot@example.org", nil)
	if n := selectBox(t, c, "INBOX"); n != len(set)-half {
		t.Errorf("Dovecot finds %d messages of %d", n, len(set)-half)
	}
	byIMAP.fetchAll(t, c)
	ok(t, "LOGOUT", c.Logout().Wait())
	byIMAP.complete(t, 1)
	unreadable(t, kind, settings, set)
}

// unreadable sees that a pool has bodies and what was shipped, and nothing that can
// be read.
func unreadable(t *testing.T, kind string, settings map[string]string, set []mailset.Message) {
	t.Helper()
	s, err := types.All()[kind].Open(t.Context(), settings)
	ok(t, "opening the pool", err)
	secrets := []string{"Subject:", "Received:", "Return-Path:", "example.org", "by-postfix", "by-dovecot", "Maildir", "nobody else's"}
	subject := regexp.MustCompile(`(?m)^Subject: (.{12,})$`)
	for _, m := range set {
		if found := subject.FindSubmatch(m.Stored()); found != nil {
			secrets = append(secrets, string(found[1]))
		}
	}
	bodies, others := 0, 0
	err = pool.Each(t.Context(), s, func(o pool.Object) error {
		b := make([]byte, o.Size)
		if err := s.Get(t.Context(), o.Name, 0, b); errors.Is(err, objstore.NotFound) { // removed since
			return nil
		} else if err != nil {
			return err
		}
		if _, body := pool.ParseName(o.Name); body {
			bodies++
		} else {
			others++
		}
		for _, text := range secrets {
			if bytes.Contains(b, []byte(text)) || strings.Contains(o.Name, text) {
				t.Errorf("object %s shows %q", o.Name, text)
			}
		}
		return nil
	})
	ok(t, "reading the pool", err)
	if bodies < len(set)/20 || others < 3 {
		t.Errorf("%d bodies and %d other objects in the pool", bodies, others)
	}
}
