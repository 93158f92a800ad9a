package s3

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pillarbox/objstore"
)

// bare is a namespace with one bucket, which is open to everybody and takes
// nothing.
type bare struct{}

var bareBucket = objstore.Attr{Ino: objstore.VolumeRoot(7), Mode: objstore.ModeDir | 0o700, HasXattr: true}

func (bare) Lookup(_ context.Context, dir objstore.Ino, name string) (objstore.Attr, error) {
	if dir == topDir && name == "open" {
		return bareBucket, nil
	}
	return objstore.Attr{}, objstore.NotFound
}
func (bare) GetAttr(_ context.Context, ino objstore.Ino) (objstore.Attr, error) {
	if ino == bareBucket.Ino {
		return bareBucket, nil
	}
	return objstore.Attr{}, objstore.Stale
}
func (bare) ReadDir(context.Context, objstore.Ino, uint64, int, bool) ([]objstore.DirEntry, error) {
	return nil, nil
}
func (bare) GetXattr(_ context.Context, ino objstore.Ino, name string) ([]byte, error) {
	if name == bucketAttr {
		return []byte(`{"owner":"alice","grants":[{"g":"` + groupAll + `","p":"FULL_CONTROL"}]}`), nil
	}
	return nil, objstore.NoAttr
}
func (bare) SetXattr(context.Context, objstore.SetXattr) error       { return nil }
func (bare) RemoveXattr(context.Context, objstore.RemoveXattr) error { return nil }
func (bare) Make(context.Context, objstore.Create) (objstore.Attr, error) {
	return objstore.Attr{}, objstore.NoSpace
}
func (bare) MakeAccount(context.Context, objstore.Create) (objstore.Attr, error) {
	return objstore.Attr{}, objstore.NoSpace
}
func (bare) Create(context.Context, objstore.Create) (objstore.Attr, File, error) {
	return objstore.Attr{}, nil, objstore.NoSpace
}
func (bare) Open(context.Context, objstore.Ino) (File, error) { return nil, objstore.Stale }
func (bare) Share(context.Context, objstore.Share) error      { return objstore.Stale }
func (bare) Link(context.Context, objstore.Link) (objstore.Attr, error) {
	return objstore.Attr{}, objstore.NoSpace
}
func (bare) Remove(context.Context, objstore.Remove) error { return objstore.NotFound }
func (bare) Sync(context.Context, objstore.Ino) error      { return nil }

// one is a table of users with one user, alice.
type one struct{}

var alice = &User{ID: "alice", Name: "Alice", Email: "alice@example.org"}

func (one) ByKey(_ context.Context, key string) (*User, string, error) {
	if key == "AK" {
		return alice, "secret", nil
	}
	return nil, "", ErrNoKey
}
func (one) ByID(_ context.Context, id string) (*User, error) {
	if id == alice.ID {
		return alice, nil
	}
	return nil, ErrNoUser
}
func (one) ByEmail(context.Context, string) (*User, error) { return nil, ErrNoUser }

func bareGateway() *Gateway {
	return New(bare{}, Options{Users: one{}, Domains: []string{"s3.test"}, Log: slog.New(slog.DiscardHandler)})
}

// FuzzRequest: whatever comes as a request, the gateway answers it, and nobody
// who is not alice is taken for her.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: AWS4-HMAC-SHA256 Credential=AK/20261123/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=00\r\nX-Amz-Date: 20261123T000000Z\r\n\r\n",
		"GET /open?list-type=2&prefix=a%2F&delimiter=/&max-keys=2&continuation-token=YQ HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /open?versions&key-marker=a&version-id-marker=b HTTP/1.1\r\nHost: x\r\n\r\n",
		"PUT /open/k HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-Amz-Acl: public-read\r\nX-Amz-Tagging: a=b&c=d\r\nX-Amz-Checksum-Crc32: AAAAAA==\r\n\r\nabc",
		"PUT /open/k HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\nX-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\nX-Amz-Trailer: x-amz-checksum-crc32\r\n\r\n3\r\nabc\r\n0\r\nx-amz-checksum-c",
		"PUT /open/k HTTP/1.1\r\nHost: x\r\nX-Amz-Copy-Source: /open/%2e%2e/x?versionId=1\r\nContent-Length: 0\r\n\r\n",
		"POST /open?delete HTTP/1.1\r\nHost: x\r\nContent-Length: 64\r\n\r\n<Delete><Object><Key>../x</Key></Object><Quiet>1</Quiet></Delete>",
		"POST /open HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 90\r\n\r\n--b\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n--b\r\nContent-Disposition: form-data",
		"GET /k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK%2F20261123%2Fr%2Fs3%2Faws4_request&X-Amz-Date=20261123T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=0 HTTP/1.1\r\nHost: open.s3.test\r\n\r\n",
		"GET /open/k?AWSAccessKeyId=AK&Expires=99999999999&Signature=x HTTP/1.1\r\nHost: x\r\nRange: bytes=1-\r\n\r\n",
		"OPTIONS /open HTTP/1.1\r\nHost: x\r\nOrigin: http://a\r\nAccess-Control-Request-Method: GET\r\n\r\n",
		"POST /open/k?uploads HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		"POST /open/k?uploadId=00000000000000000000000000000000 HTTP/1.1\r\nHost: x\r\nContent-Length: 51\r\n\r\n<CompleteMultipartUpload></CompleteMultipartUpload>",
		"PUT /open?lifecycle HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n<a><b></a>",
	} {
		f.Add([]byte(s))
	}
	g := bareGateway()
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			return
		}
		var said Access
		g.opt.Access = func(a Access) { said = a }
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		if w.Code < 200 || w.Code == http.StatusInternalServerError {
			t.Fatalf("%q is answered with %d %s", in, w.Code, w.Body)
		}
		if said.User != "" {
			t.Fatalf("%q is taken for %s", in, said.User)
		}
	})
}

func TestHostile(t *testing.T) {
	g := bareGateway()
	ask := func(method, target, body string, headers ...string) (int, string) {
		r := httptest.NewRequest(method, "http://host/", strings.NewReader(body))
		r.URL.Path, r.URL.RawQuery, _ = strings.Cut(target, "?")
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	bomb := `<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><Delete><Object><Key>&b;</Key></Object></Delete>`
	signed := func(at time.Time) string {
		c := credential{"AK", at.Format("20060102"), "us-east-1", "s3"}
		r := httptest.NewRequest("GET", "http://host/open", nil)
		r.Header.Set("X-Amz-Date", at.Format(amzTime))
		names := []string{"host", "x-amz-date"}
		return fmt.Sprintf("%s Credential=AK/%s, SignedHeaders=host;x-amz-date, Signature=%s", v4Algorithm, c.scope(), signV4("secret", c, at, r, names, r.URL.Query(), emptySHA256))
	}
	now, old := time.Now().UTC(), time.Now().UTC().Add(-time.Hour)
	for _, c := range []struct {
		method, target, body string
		headers              []string
		status               int
		code                 string
	}{
		{"GET", "/open", "", []string{"Authorization", signed(now), "X-Amz-Date", now.Format(amzTime)}, 200, "ListBucketResult"},
		{"GET", "/open", "", []string{"Authorization", signed(now) + "0", "X-Amz-Date", now.Format(amzTime)}, 403, "SignatureDoesNotMatch"},
		{"GET", "/other", "", []string{"Authorization", signed(now), "X-Amz-Date", now.Format(amzTime)}, 403, "SignatureDoesNotMatch"},
		{"GET", "/open", "", []string{"Authorization", signed(old), "X-Amz-Date", old.Format(amzTime)}, 403, "RequestTimeTooSkewed"},
		{"GET", "/open", "", []string{"Authorization", strings.Replace(signed(now), "=AK/", "=BK/", 1), "X-Amz-Date", now.Format(amzTime)}, 403, "InvalidAccessKeyId"},
		{"GET", "/open", "", []string{"Authorization", v4Algorithm + " Credential=AK"}, 400, "AuthorizationHeaderMalformed"},
		{"GET", "/open", "", []string{"Authorization", "Basic YTpi"}, 400, "InvalidArgument"},
		{"POST", "/open?delete", bomb, nil, 400, "MalformedXML"},
		{"POST", "/open?delete", strings.Repeat("<a>", 1<<20), nil, 400, "MalformedXML"},
		{"GET", "/open/../../etc/passwd", "", nil, 404, "NoSuchKey"},
		{"GET", "/../etc/passwd", "", nil, 404, "NoSuchBucket"},
		{"GET", "/.s3/x", "", nil, 404, "NoSuchBucket"},
		{"GET", "/open/\xff\xfe", "", nil, 400, "InvalidURI"},
		{"GET", "/open/" + strings.Repeat("k", 1025), "", nil, 400, "KeyTooLongError"},
		{"PUT", "/open?website", "", nil, 501, "NotImplemented"},
		{"PUT", "/open/k", "x", []string{"X-Amz-Server-Side-Encryption", "AES256"}, 501, "NotImplemented"},
		{"PUT", "/open/k", "x", []string{"Content-Md5", "nonsense"}, 400, "InvalidDigest"},
		{"PUT", "/open/k", "x", []string{"X-Amz-Meta-Long", strings.Repeat("m", 20000)}, 400, "MetadataTooLarge"},
		{"PUT", "/open/k", "x", []string{"X-Amz-Tagging", "a=1&a=2"}, 400, "InvalidTag"},
		{"PUT", "/open/k", "x", nil, 507, "InsufficientCapacity"},
		{"BREW", "/open", "", nil, 405, "MethodNotAllowed"},
	} {
		if status, body := ask(c.method, c.target, c.body, c.headers...); status != c.status || !strings.Contains(body, c.code) {
			t.Errorf("%s %.60q: %d %.300s; want %d %s", c.method, c.target, status, body, c.status, c.code)
		}
	}
}
