package s3

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	v4Algorithm     = "AWS4-HMAC-SHA256"
	unsignedPayload = "UNSIGNED-PAYLOAD"
	streamPrefix    = "STREAMING-"
	maxSkew         = 15 * time.Minute
	maxExpires      = 7 * 24 * time.Hour
	amzTime         = "20060102T150405Z"
)

// signed is what is known of a request's signature.
type signed struct {
	user    *User  // nil: nobody signed it
	kind    string // for the access log: SigV4, SigV2 or -
	how     string // AuthHeader, QueryString or -
	payload string // x-amz-content-sha256
	chunks  *chunkSigner
}

// authenticate finds out whose a request is. A request without a signature is
// nobody's.
func (g *Gateway) authenticate(ctx context.Context, r *http.Request, query url.Values, now time.Time) (signed, error) {
	header := r.Header.Get("Authorization")
	switch {
	case strings.HasPrefix(header, v4Algorithm):
		return g.checkV4(ctx, r, header, query, now)
	case strings.HasPrefix(header, "AWS "):
		return g.checkV2(ctx, r, header, query, now)
	case header != "":
		return signed{}, failWith("InvalidArgument", "Unsupported authorization type.")
	case query.Has("X-Amz-Algorithm") || query.Has("X-Amz-Signature"):
		return g.checkPresigned(ctx, r, query, now)
	case query.Has("Signature") && query.Has("AWSAccessKeyId"):
		return g.checkPresignedV2(ctx, r, query, now)
	}
	return signed{kind: "-", how: "-", payload: r.Header.Get("X-Amz-Content-Sha256")}, nil
}

// credential is the scope of a version 4 signature.
type credential struct{ key, date, region, service string }

func (c credential) scope() string {
	return strings.Join([]string{c.date, c.region, c.service, "aws4_request"}, "/")
}

func parseCredential(s string) (c credential, err error) {
	parts := strings.Split(s, "/")
	if len(parts) < 5 || parts[len(parts)-1] != "aws4_request" {
		return c, failWith("AuthorizationHeaderMalformed", "The credential is malformed.")
	}
	n := len(parts)
	return credential{strings.Join(parts[:n-4], "/"), parts[n-4], parts[n-3], parts[n-2]}, nil
}

func (g *Gateway) checkV4(ctx context.Context, r *http.Request, header string, query url.Values, now time.Time) (s signed, err error) {
	fields := map[string]string{}
	for _, f := range strings.Split(strings.TrimPrefix(header, v4Algorithm), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(f), "=")
		fields[name] = value
	}
	cred, err := parseCredential(fields["Credential"])
	if err != nil {
		return s, err
	}
	names := strings.Split(fields["SignedHeaders"], ";")
	if fields["Signature"] == "" || !slices.Contains(names, "host") {
		return s, fail("AuthorizationHeaderMalformed")
	}
	at, err := requestTime(r)
	if err != nil {
		return s, err
	}
	if d := now.Sub(at); d > maxSkew || d < -maxSkew {
		return s, fail("RequestTimeTooSkewed")
	}
	if at.Format("20060102") != cred.date {
		return s, failWith("AuthorizationHeaderMalformed", "The date of the credential is not the request's.")
	}
	user, secret, err := g.lookKey(ctx, cred.key)
	if err != nil {
		return s, err
	}
	s = signed{user: user, kind: "SigV4", how: "AuthHeader", payload: r.Header.Get("X-Amz-Content-Sha256")}
	if s.payload == "" {
		s.payload = emptySHA256
	}
	if !same(signV4(secret, cred, at, r, names, query, s.payload), fields["Signature"]) {
		return s, fail("SignatureDoesNotMatch")
	}
	if strings.HasPrefix(s.payload, streamPrefix+v4Algorithm) {
		s.chunks = newChunkSigner(secret, cred, at, fields["Signature"])
	}
	return s, nil
}

const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// requestTime is when a request says it was made.
func requestTime(r *http.Request) (time.Time, error) {
	if s := r.Header.Get("X-Amz-Date"); s != "" {
		for _, layout := range []string{amzTime, http.TimeFormat, time.RFC1123Z, time.RFC1123} {
			if t, err := time.Parse(layout, s); err == nil {
				return t, nil
			}
		}
	} else if t, err := http.ParseTime(r.Header.Get("Date")); err == nil {
		return t, nil
	} else if t, err := time.Parse(time.RFC1123Z, r.Header.Get("Date")); err == nil {
		return t, nil
	}
	return time.Time{}, failWith("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header.")
}

// signV4 is the signature that a request should have ("Create a signed AWS API
// request" in the IAM user guide). The SDK's signer does not serve here: it signs
// what it would send itself, and not, say, a Content-Length of 0 or a Date, which
// other clients sign.
func signV4(secret string, c credential, at time.Time, r *http.Request, names []string, query url.Values, payload string) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n" + escapePath(r.URL.Path) + "\n" + canonicalQuery(query) + "\n")
	for _, n := range names {
		b.WriteString(strings.ToLower(n) + ":" + signedHeader(r, n) + "\n")
	}
	b.WriteString("\n" + strings.ToLower(strings.Join(names, ";")) + "\n" + payload)
	sum := sha256.Sum256([]byte(b.String()))
	text := v4Algorithm + "\n" + at.UTC().Format(amzTime) + "\n" + c.scope() + "\n" + hex.EncodeToString(sum[:])
	return hex.EncodeToString(hmacSHA256(signingKey(secret, c), text))
}

// signedHeader is a header's value as it is signed. net/http keeps some apart.
func signedHeader(r *http.Request, name string) string {
	switch name = http.CanonicalHeaderKey(name); name {
	case "Host":
		return r.Host
	case "Content-Length":
		return strconv.FormatInt(max(r.ContentLength, 0), 10)
	case "Transfer-Encoding":
		return strings.Join(r.TransferEncoding, ",")
	}
	var values []string
	for _, v := range r.Header[name] {
		values = append(values, strings.Join(strings.Fields(v), " "))
	}
	return strings.Join(values, ",")
}

// canonicalQuery is the query as it is signed.
func canonicalQuery(query url.Values) string {
	escape := func(s string) string { return strings.ReplaceAll(escapePath(s), "/", "%2F") }
	var list [][2]string
	for k, values := range query {
		for _, v := range values {
			list = append(list, [2]string{escape(k), escape(v)})
		}
	}
	// By name first: "select" comes before "select-type", though "-" is below "=".
	slices.SortFunc(list, func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	var b strings.Builder
	for i, p := range list {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(p[0] + "=" + p[1])
	}
	return b.String()
}

// escapePath escapes a path as version 4 signatures do.
func escapePath(s string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.~/", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hexDigits[c>>4])
		b.WriteByte(hexDigits[c&15])
	}
	return b.String()
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func (g *Gateway) checkPresigned(ctx context.Context, r *http.Request, query url.Values, now time.Time) (s signed, err error) {
	cred, err := parseCredential(query.Get("X-Amz-Credential"))
	if err != nil {
		return s, fail("AuthorizationQueryParametersError")
	}
	at, err := time.Parse(amzTime, query.Get("X-Amz-Date"))
	if err != nil || query.Get("X-Amz-Algorithm") != v4Algorithm || at.Format("20060102") != cred.date {
		return s, fail("AuthorizationQueryParametersError")
	}
	seconds, err := strconv.ParseInt(query.Get("X-Amz-Expires"), 10, 64)
	if err != nil || seconds <= 0 || seconds > int64(maxExpires/time.Second) {
		e := failWith("AuthorizationQueryParametersError", "X-Amz-Expires must be a number of seconds from 1 to 604800.")
		e.Status = http.StatusForbidden
		return s, e
	}
	if now.Before(at.Add(-maxSkew)) || now.After(at.Add(time.Duration(seconds)*time.Second)) {
		return s, failWith("AccessDenied", "Request has expired.")
	}
	user, secret, err := g.lookKey(ctx, cred.key)
	if err != nil {
		return s, err
	}
	s = signed{user: user, kind: "SigV4", how: "QueryString", payload: r.Header.Get("X-Amz-Content-Sha256")}
	if s.payload == "" {
		s.payload = query.Get("X-Amz-Content-Sha256")
	}
	if s.payload == "" {
		s.payload = unsignedPayload
	}
	rest := url.Values{}
	for k, v := range query {
		if k != "X-Amz-Signature" {
			rest[k] = v
		}
	}
	names := strings.Split(query.Get("X-Amz-SignedHeaders"), ";")
	if !slices.Contains(names, "host") {
		return s, fail("AuthorizationQueryParametersError")
	}
	if !same(signV4(secret, cred, at, r, names, rest, s.payload), query.Get("X-Amz-Signature")) {
		return s, fail("SignatureDoesNotMatch")
	}
	return s, nil
}

// lookKey finds the user of an access key, and the secret.
func (g *Gateway) lookKey(ctx context.Context, key string) (*User, string, error) {
	user, secret, err := g.opt.Users.ByKey(ctx, key)
	if errors.Is(err, ErrNoKey) || err == nil && user.Suspended {
		return nil, "", fail("InvalidAccessKeyId")
	}
	return user, secret, err
}

func hmacSHA256(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// signingKey is the key of a day, region and service (Signature Version 4).
func signingKey(secret string, c credential) []byte {
	k := []byte("AWS4" + secret)
	for _, s := range []string{c.date, c.region, c.service, "aws4_request"} {
		k = hmacSHA256(k, s)
	}
	return k
}

// chunkSigner checks the chain of signatures of a body sent in chunks.
type chunkSigner struct {
	key   []byte
	scope string
	at    string
	last  string // signature
}

func newChunkSigner(secret string, c credential, at time.Time, seed string) *chunkSigner {
	return &chunkSigner{signingKey(secret, c), c.scope(), at.UTC().Format(amzTime), seed}
}

// check takes the next signature: of a chunk's hash, or of the trailer's.
func (s *chunkSigner) check(kind, signature string, sum []byte) error {
	text := v4Algorithm + "-" + kind + "\n" + s.at + "\n" + s.scope + "\n" + s.last + "\n"
	if kind == "PAYLOAD" {
		text += emptySHA256 + "\n"
	}
	s.last = hex.EncodeToString(hmacSHA256(s.key, text+hex.EncodeToString(sum)))
	if !same(s.last, signature) {
		return fail("SignatureDoesNotMatch")
	}
	return nil
}
