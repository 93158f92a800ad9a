package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pillarbox/test/mailset"
	"pillarbox/test/provider"
)

// random is mail that does not compress much.
func random(n int) []mailset.Message {
	set := make([]mailset.Message, n)
	for i := range set {
		b := fmt.Appendf(nil, "Subject: message %d\n\n", i)
		for x := uint64(i + 1); len(b) < 30_000; {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			b = fmt.Appendf(b, "%016x\n", x)
		}
		set[i].ID, set[i].Raw = fmt.Sprint("random/", i), b
	}
	return set
}

// TestBacklog: when as much waits for an outside pool as may, Postfix and Dovecot's
// LMTP keep the mail that comes, for it is a temporary error; all of it is delivered when the
// provider is back.
func TestBacklog(t *testing.T) {
	if plain() {
		t.Skip("a plain directory has no pools")
	}
	settings, _ := provider.Pillarbox(t)
	origin, err := url.Parse(settings["endpoint"])
	ok(t, "parsing the provider's address", err)
	var gone atomic.Bool
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(origin); r.Out.Host = r.In.Host }}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if gone.Load() {
			panic(http.ErrAbortHandler)
		}
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()
	settings["endpoint"] = front.URL
	a, set := newAway(t, "s3", settings, "--backlog", "1MiB"), random(400)
	virtual, lmtp := a.account(t, "example.org", "by-postfix", vmailID), a.account(t, "example.org", "by-dovecot", vmailID)
	p := startPostfix(t, a.site, []string{"by-postfix"})
	d := startDovecot(t, a.site)
	inject(t, p.port, "EHLO", 1, set[:1], func(int) string { return "by-postfix@example.org" })
	p.delivered(t, 3*time.Minute)

	gone.Store(true)
	// A large message has to go outside at once.
	posted := []mailset.Message{set[0], set[1], {ID: "large", Raw: bytes.Repeat(set[2].Raw, 5)}}
	smtp, err := dialTransfer(address(p.port), "EHLO")
	ok(t, "dialing SMTP", err)
	defer smtp.Close()
	ok(t, "sending", smtp.send(sender(2), "by-postfix@example.org", posted[2].Wire()))
	p.deferred(t, "Resource temporarily unavailable", 1)
	c, err := dialTransfer(address(d.lmtp), "LHLO")
	ok(t, "dialing LMTP", err)
	defer c.Close()
	taken := 0
	for ; err == nil && taken < len(set); taken++ {
		err = c.send(sender(taken), "by-dovecot@example.org", set[taken].Wire())
	}
	taken--
	var answer *textproto.Error
	if !errors.As(err, &answer) || answer.Code < 400 || answer.Code > 499 {
		t.Errorf("after %d messages Dovecot answers: %v", taken, err)
	}
	t.Logf("after %d messages Dovecot answers: %v", taken, err)
	inject(t, p.port, "EHLO", 1, posted[:2], func(int) string { return "by-postfix@example.org" })
	p.deferred(t, "No space left on device", 2)

	gone.Store(false)
	waitFor(t, "Dovecot to take mail again", 3*time.Minute, func() bool {
		return c.send(sender(taken), "by-dovecot@example.org", set[taken].Wire()) == nil
	})
	p.delivered(t, 3*time.Minute)
	byPostfix, byLMTP := newCheck(posted), newCheck(set[:taken+1])
	byPostfix.maildirs(t, virtual+"/Maildir")
	if !slices.Equal(byPostfix.seen, []int{2, 1, 1}) {
		t.Errorf("Postfix delivered %v", byPostfix.seen)
	}
	byLMTP.maildirs(t, lmtp+"/Maildir")
	byLMTP.complete(t, 1)
}

// deferred waits until Postfix has put off so many deliveries for a reason, and
// returned no mail to its sender.
func (p *postfix) deferred(t *testing.T, why string, n int) {
	t.Helper()
	waitFor(t, "Postfix to put mail off: "+why, 3*time.Minute, func() bool {
		text, err := os.ReadFile(p.log)
		ok(t, "reading Postfix's log", err)
		if bytes.Contains(text, []byte("status=bounced")) {
			t.Fatal("Postfix has returned mail to its sender")
		}
		return bytes.Count(text, []byte(why)) >= n
	})
}
