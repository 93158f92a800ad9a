package s3

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// v2Resources are the parts of a query that version 2 signs, in the order in
// which it does.
var v2Resources = []string{
	"accelerate", "acl", "analytics", "cors", "defaultObjectAcl", "delete", "encryption", "inventory", "legal-hold", "lifecycle",
	"location", "logging", "metrics", "notification", "object-lock", "ownershipControls", "partNumber", "policy", "policyStatus",
	"publicAccessBlock", "replication", "requestPayment", "response-cache-control", "response-content-disposition",
	"response-content-encoding", "response-content-language", "response-content-type", "response-expires", "restore", "retention",
	"select", "select-type", "tagging", "torrent", "uploadId", "uploads", "versionId", "versioning", "versions", "website",
}

// stringToSignV2 is what AWS signature version 2 signs (RESTAuthentication).
func (g *Gateway) stringToSignV2(r *http.Request, query url.Values, date, slash string) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n" + r.Header.Get("Content-Md5") + "\n" + r.Header.Get("Content-Type") + "\n" + date + "\n")
	var names []string
	for n := range r.Header {
		if l := strings.ToLower(n); strings.HasPrefix(l, "x-amz-") {
			names = append(names, l)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		var values []string
		for _, v := range r.Header[http.CanonicalHeaderKey(n)] {
			values = append(values, strings.Join(strings.Fields(v), " "))
		}
		b.WriteString(n + ":" + strings.Join(values, ",") + "\n")
	}
	path := r.URL.EscapedPath() + slash
	if bucket := g.hostBucket(r.Host); bucket != "" {
		path = "/" + bucket + path
	}
	b.WriteString(path)
	sep := byte('?')
	for _, n := range v2Resources {
		if v, ok := query[n]; ok {
			b.WriteByte(sep)
			sep = '&'
			b.WriteString(n)
			if len(v) > 0 && v[0] != "" {
				b.WriteString("=" + v[0])
			}
		}
	}
	return b.String()
}

// signedV2 checks a signature. Of a bucket's path clients sign "/bucket" or
// "/bucket/", whatever they send.
func (g *Gateway) signedV2(r *http.Request, query url.Values, secret, date, signature string) bool {
	if same(signV2(secret, g.stringToSignV2(r, query, date, "")), signature) {
		return true
	}
	return strings.Count(r.URL.Path, "/") == 1 && same(signV2(secret, g.stringToSignV2(r, query, date, "/")), signature)
}

func signV2(secret, text string) string {
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func (g *Gateway) checkV2(ctx context.Context, r *http.Request, header string, query url.Values, now time.Time) (s signed, err error) {
	key, signature, ok := strings.Cut(strings.TrimPrefix(header, "AWS "), ":")
	if !ok {
		return s, failWith("InvalidArgument", "The authorization header is malformed.")
	}
	user, secret, err := g.lookKey(ctx, key)
	if err != nil {
		return s, err
	}
	date := r.Header.Get("Date")
	amz, ok := r.Header["X-Amz-Date"]
	if ok {
		date = ""
	}
	at, err := requestTime(r)
	if err != nil || ok && amz[0] == "" || at.Year() < 1970 {
		return s, failWith("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header.")
	}
	if d := now.Sub(at); d > maxSkew || d < -maxSkew {
		return s, fail("RequestTimeTooSkewed")
	}
	if !g.signedV2(r, query, secret, date, signature) {
		return s, fail("SignatureDoesNotMatch")
	}
	return signed{user: user, kind: "SigV2", how: "AuthHeader", payload: r.Header.Get("X-Amz-Content-Sha256")}, nil
}

func (g *Gateway) checkPresignedV2(ctx context.Context, r *http.Request, query url.Values, now time.Time) (s signed, err error) {
	user, secret, err := g.lookKey(ctx, query.Get("AWSAccessKeyId"))
	if err != nil {
		return s, err
	}
	expires, err := strconv.ParseInt(query.Get("Expires"), 10, 64)
	if err != nil {
		return s, failWith("AccessDenied", "Invalid date (should be seconds since epoch).")
	}
	if now.Unix() > expires {
		return s, failWith("AccessDenied", "Request has expired.")
	}
	if !g.signedV2(r, query, secret, query.Get("Expires"), query.Get("Signature")) {
		return s, fail("SignatureDoesNotMatch")
	}
	return signed{user: user, kind: "SigV2", how: "QueryString"}, nil
}
