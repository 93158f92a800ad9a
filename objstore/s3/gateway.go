package s3

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// User is somebody with keys.
type User struct {
	ID, Name, Email string
	Uid, Gid        uint32            // of the directories of buckets that the user makes
	Suspended       bool              // no key works
	Grants          map[string]string // by bucket: "read" or "write", for directories that S3 did not make
	Quota           uint64            // bytes over all the user's buckets; 0: no limit
}

// ErrNoKey and ErrNoUser say that there is none such.
var (
	ErrNoKey  = errors.New("no such access key")
	ErrNoUser = errors.New("no such user")
)

// Users knows all users.
type Users interface {
	ByKey(ctx context.Context, accessKey string) (u *User, secret string, err error) // ErrNoKey
	ByID(ctx context.Context, id string) (*User, error)                              // ErrNoUser
	ByEmail(ctx context.Context, email string) (*User, error)                        // ErrNoUser
}

// Access is one request for the access log.
type Access struct {
	Time               time.Time
	Remote, User, ID   string
	Operation          string // as "PutObject"; for metrics
	Bucket, Key        string
	Method, URI        string
	Status             int
	Code               string // of the error; empty: none
	Sent, Size         int64  // bytes; Size of the object
	Took               time.Duration
	Referer, UserAgent string
	Version, Host      string
	SigKind, SigHow    string
}

// Options of a Gateway.
type Options struct {
	Users   Users
	Domains []string     // of virtual-host style requests: bucket.DOMAIN
	Region  string       // what clients are told; us-east-1
	Log     *slog.Logger // slog.Default()
	Access  func(Access) // called for every request; may be nil
}

// Gateway is an http.Handler that speaks S3.
type Gateway struct {
	ns    Namespace
	opt   Options
	log   *slog.Logger
	usage usage

	listings listings
}

// New makes a gateway to a namespace.
func New(ns Namespace, o Options) *Gateway {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	return &Gateway{ns: ns, opt: o, log: o.Log}
}

// request is one on its way.
type request struct {
	g      *Gateway
	ctx    context.Context
	w      *recorder
	r      *http.Request
	id     string
	now    time.Time
	query  url.Values
	bucket string
	key    string
	op     *operation
	signed signed
	user   *User // nil: anonymous
	b      *bucket
	size   int64 // of the object, for the log
}

// recorder notes what was answered.
type recorder struct {
	http.ResponseWriter
	status int
	sent   int64
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// randomHex is n random bytes in hex.
func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &request{g: g, ctx: r.Context(), w: &recorder{ResponseWriter: w}, r: r, id: strings.ToUpper(randomHex(8)), now: time.Now(), size: -1}
	q.w.Header().Set("X-Amz-Request-Id", q.id)
	q.w.Header().Set("X-Amz-Id-2", q.id)
	q.w.Header().Set("Server", "Pillarbox")
	q.patience()
	err := q.serve()
	code := ""
	if err != nil {
		code = q.answerError(err)
	}
	if g.opt.Access != nil {
		g.opt.Access(q.access(code))
	}
}

// maxSilence is how long a client may send nothing, or take nothing, within a
// request.
const maxSilence = time.Minute

// patience counts the client's time anew.
func (q *request) patience() {
	c := http.NewResponseController(q.w)
	until := time.Now().Add(maxSilence)
	// A connection without deadlines, as in tests, has no clients to wait for.
	_ = c.SetReadDeadline(until)
	_ = c.SetWriteDeadline(until)
}

func (q *request) access(code string) Access {
	a := Access{
		Time: q.now, Remote: q.remote(), ID: q.id, Bucket: q.bucket, Key: q.key, Method: q.r.Method, URI: unsigned(q.r.RequestURI),
		Status: q.w.status, Code: code, Sent: q.w.sent, Size: q.size, Took: time.Since(q.now), Referer: q.r.Referer(),
		UserAgent: q.r.UserAgent(), Version: q.query.Get("versionId"), Host: q.r.Host, SigKind: q.signed.kind, SigHow: q.signed.how, Operation: "Unknown",
	}
	if q.op != nil {
		a.Operation = q.op.name
	}
	if q.user != nil {
		a.User = q.user.ID
	}
	return a
}

// unsigned blots out what makes a presigned URL good, for a log must let nobody
// repeat the request.
func unsigned(uri string) string {
	path, query, _ := strings.Cut(uri, "?")
	if query == "" {
		return uri
	}
	params := strings.Split(query, "&")
	for i, param := range params {
		name, _, _ := strings.Cut(param, "=")
		plain, err := url.QueryUnescape(name)
		if err != nil {
			plain = name
		}
		switch strings.ToLower(plain) {
		case "signature", "x-amz-signature", "x-amz-security-token":
			params[i] = name + "=..."
		}
	}
	return path + "?" + strings.Join(params, "&")
}

func (q *request) remote() string {
	host, _, err := net.SplitHostPort(q.r.RemoteAddr)
	if err != nil {
		return q.r.RemoteAddr
	}
	return host
}

// hostBucket is the bucket that a virtual-host style request names.
func (g *Gateway) hostBucket(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	for _, d := range g.opt.Domains {
		if b, ok := strings.CutSuffix(host, "."+d); ok && b != "" {
			return b
		}
	}
	return ""
}

// serve finds out what a request wants, and of whom it is, and does it.
func (q *request) serve() (err error) {
	q.query, err = url.ParseQuery(q.r.URL.RawQuery)
	if err != nil {
		return fail("InvalidURI")
	}
	path := strings.TrimPrefix(q.r.URL.Path, "/")
	if q.bucket = q.g.hostBucket(q.r.Host); q.bucket != "" {
		q.key = path
	} else {
		q.bucket, q.key, _ = strings.Cut(path, "/")
	}
	switch {
	case !utf8.ValidString(q.bucket) || !utf8.ValidString(q.key):
		return failWith("InvalidURI", "Couldn't parse the specified URI.")
	case len(q.key) > maxKey:
		return fail("KeyTooLongError")
	}
	if q.r.Method == http.MethodOptions {
		return q.preflight()
	}
	q.op = findOperation(q)
	if q.op == nil {
		return fail("MethodNotAllowed")
	}
	if q.op.name == "PostObject" {
		return q.op.do(q) // the form says whose it is
	}
	if q.signed, err = q.g.authenticate(q.ctx, q.r, q.query, q.now); err != nil {
		return err
	}
	q.user = q.signed.user
	if q.op.do == nil {
		return fail("NotImplemented")
	}
	if q.bucket == "" {
		return q.op.do(q)
	}
	if q.op.name != "CreateBucket" {
		if q.b, err = q.g.loadBucket(q.ctx, q.bucket); err != nil {
			return err
		}
		q.corsHeaders()
		if want := q.r.Header.Get("X-Amz-Expected-Bucket-Owner"); want != "" && want != q.b.rec.Owner {
			return fail("AccessDenied")
		}
		if q.op.perm != "" {
			if err := q.mayBucket(q.op.action, q.op.perm); err != nil {
				return err
			}
		}
	}
	return q.op.do(q)
}

// answerError tells a failure, and returns its code.
func (q *request) answerError(err error) string {
	e := toError(err)
	if e.Status >= 500 && e.Code != "NotImplemented" {
		q.g.log.Error("an S3 request failed", "id", q.id, "method", q.r.Method, "bucket", q.bucket, "key", q.key, "err", err)
	}
	if q.w.status != 0 { // too late: who reads sees the connection end early
		if q.ctx.Err() == nil {
			panic(http.ErrAbortHandler)
		}
		return e.Code
	}
	for k, v := range e.Headers {
		q.w.Header().Set(k, v)
	}
	// What is left of a body would be taken for the next request. A client that
	// asked first is not to send it at all.
	switch {
	case q.r.Header.Get("Expect") != "", e.Code == "BadDigest", e.Code == "IncompleteBody":
		q.w.Header().Set("Connection", "close")
	case q.r.ContentLength != 0 && e.Status != http.StatusNotModified:
		if n, _ := io.CopyN(io.Discard, q.r.Body, maxDrain); n == maxDrain {
			q.w.Header().Set("Connection", "close")
		}
	}
	if q.r.Method == http.MethodHead || e.Status == http.StatusNotModified {
		q.w.WriteHeader(e.Status)
		return e.Code
	}
	q.answerXML(e.Status, &errorXML{
		Code: e.Code, Message: e.Message, BucketName: q.bucket, Key: q.key, Resource: q.r.URL.Path, RequestId: q.id, HostId: q.id,
	})
	return e.Code
}

// maxDrain is how much of a body nobody wants is read, in bytes.
const maxDrain = 256 << 10

// answerXML sends a document.
func (q *request) answerXML(status int, v any) error {
	body, err := xml.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	body = append([]byte(xml.Header), body...)
	q.w.Header().Set("Content-Type", "application/xml")
	q.w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	q.w.WriteHeader(status)
	_, err = q.w.Write(body)
	return err
}

// done answers without a body.
func (q *request) done(status int) error {
	if status != http.StatusNoContent {
		q.w.Header().Set("Content-Length", "0")
	}
	q.w.WriteHeader(status)
	return nil
}

const xmlns = "http://s3.amazonaws.com/doc/2006-03-01/"

// maxDocument is how large a document in a request may be, in bytes.
const maxDocument = 2 << 20

// document reads the body of a request that is XML or JSON.
func (q *request) document() ([]byte, error) {
	body, err := q.openBody()
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(body, maxDocument+1))
	if err != nil {
		return nil, readFailure(err)
	}
	if len(b) > maxDocument {
		return nil, failWith("MalformedXML", "The document is too large.")
	}
	return b, body.finish()
}

// parseXML decodes the body, which must be one element. encoding/xml knows no
// entities but the standard ones, so that none expands.
func (q *request) parseXML(v any) error {
	b, err := q.document()
	if err != nil {
		return err
	}
	return unmarshalXML(b, v)
}

func unmarshalXML(b []byte, v any) error {
	if err := xml.Unmarshal(b, v); err != nil {
		return fail("MalformedXML")
	}
	return nil
}
