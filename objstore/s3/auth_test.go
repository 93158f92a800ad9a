package s3

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// The examples of the S3 API reference: "Authenticating Requests: Using the
// Authorization Header", "Using Query Parameters", and RESTAuthentication.
func TestSignatures(t *testing.T) {
	const secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	cred := credential{"AKIAIOSFODNN7EXAMPLE", "20130524", "us-east-1", "s3"}
	at := time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	request := func(method, target string, headers ...string) *http.Request {
		u, err := url.Parse("http://examplebucket.s3.amazonaws.com" + target)
		if err != nil {
			t.Fatal(err)
		}
		r := &http.Request{Method: method, URL: u, Host: "examplebucket.s3.amazonaws.com", Header: http.Header{}}
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		return r
	}
	r := request("GET", "/test.txt", "Range", "bytes=0-9", "X-Amz-Content-Sha256", emptySHA256, "X-Amz-Date", "20130524T000000Z")
	if got := signV4(secret, cred, at, r, strings.Split("host;range;x-amz-content-sha256;x-amz-date", ";"), r.URL.Query(), emptySHA256); got !=
		"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41" {
		t.Errorf("header: %s", got)
	}
	r = request("GET", "/?max-keys=2&prefix=J", "X-Amz-Content-Sha256", emptySHA256, "X-Amz-Date", "20130524T000000Z")
	if got := signV4(secret, cred, at, r, strings.Split("host;x-amz-content-sha256;x-amz-date", ";"), r.URL.Query(), emptySHA256); got !=
		"34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7" {
		t.Errorf("query: %s", got)
	}
	r = request("GET", "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host")
	if got := signV4(secret, cred, at, r, []string{"host"}, r.URL.Query(), unsignedPayload); got !=
		"aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404" {
		t.Errorf("presigned: %s", got)
	}
	g := New(nil, Options{Domains: []string{"s3.amazonaws.com"}})
	r = request("GET", "/photos/puppy.jpg", "Date", "Tue, 27 Mar 2007 19:36:42 +0000")
	r.Host = "awsexamplebucket1.us-west-1.s3.amazonaws.com"
	g.opt.Domains = []string{"us-west-1.s3.amazonaws.com"}
	if got := signV2(secret, g.stringToSignV2(r, r.URL.Query(), r.Header.Get("Date"), "")); got != "qgk2+6Sv9/oM7G3qLEjTH1a1l1g=" {
		t.Errorf("version 2: %s", got)
	}
}

func TestV2ResourcesAreInOrder(t *testing.T) {
	if !slices.IsSorted(v2Resources) {
		t.Fatal("version 2 signs the parts of a query in the order of their names")
	}
}

func TestCanonicalQuery(t *testing.T) {
	got := canonicalQuery(url.Values{"select-type": {"2"}, "select": {""}, "b": {"2", "1"}, "a/": {"x y"}})
	if want := "a%2F=x%20y&b=1&b=2&select=&select-type=2"; got != want {
		t.Fatalf("%q, want %q", got, want)
	}
}

// TestLogsNoSignature: nobody who reads the access log can repeat a presigned request.
func TestLogsNoSignature(t *testing.T) {
	for uri, want := range map[string]string{
		"/b/k":                          "/b/k",
		"/b/k?":                         "/b/k?",
		"/b/k?versionId=1&partNumber=2": "/b/k?versionId=1&partNumber=2",
		"/b/k?AWSAccessKeyId=A&Signature=s%3D&E=1": "/b/k?AWSAccessKeyId=A&Signature=...&E=1",
		"/b/k?X-Amz-Expires=9&X-Amz-Signature=00":  "/b/k?X-Amz-Expires=9&X-Amz-Signature=...",
		"/b/k?x-amz-signatur%65=00&%zz=1":          "/b/k?x-amz-signatur%65=...&%zz=1",
		"/b/k?X-Amz-Security-Token=t?u=v":          "/b/k?X-Amz-Security-Token=...",
	} {
		if got := unsigned(uri); got != want {
			t.Errorf("%s is logged as %s, want %s", uri, got, want)
		}
	}
}
