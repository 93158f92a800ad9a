package s3

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// body is that of a request, decoded, and checked against everything that the
// client said of it: length, MD5, SHA-256, a checksum in a header or a trailer.
type body struct {
	r        io.Reader
	size     int64  // -1: not known before its end
	patience func() // called before each read: how long a client may take is counted anew
	read     int64
	chunked  *chunkedReader

	md5       hash.Hash
	wantMD5   []byte
	sha       hash.Hash
	wantSHA   string
	algorithm string // the client's checksum
	value     string // base64; empty: in a trailer, or not said
	sum       hash.Hash
}

// openBody begins to read a request's body.
func (q *request) openBody() (*body, error) {
	h := q.r.Header
	b := &body{r: q.r.Body, size: q.r.ContentLength, patience: q.patience}
	var err error
	if b.algorithm, b.value, err = wantedSum(h); err != nil {
		return nil, err
	}
	b.sum = newHash(b.algorithm)
	// net/http tells a client to go on when the body is read. botocore wants to be
	// told so of an empty body, too, or it does not understand the answer.
	if q.r.ContentLength == 0 && strings.EqualFold(h.Get("Expect"), "100-continue") {
		q.w.ResponseWriter.WriteHeader(http.StatusContinue)
	}
	if s, ok := h["Content-Md5"]; ok {
		if b.wantMD5, err = base64.StdEncoding.DecodeString(s[0]); err != nil || len(b.wantMD5) != md5.Size {
			return nil, fail("InvalidDigest")
		}
		b.md5 = md5.New()
	}
	payload := q.signed.payload
	switch {
	case strings.HasPrefix(payload, streamPrefix):
		trailing := strings.HasSuffix(payload, "-TRAILER")
		if q.signed.chunks == nil && payload != "STREAMING-UNSIGNED-PAYLOAD-TRAILER" {
			return nil, failWith("InvalidRequest", "The payload's kind is not known, or the request is not signed.")
		}
		b.chunked = newChunkedReader(q.r.Body, q.signed.chunks, trailing)
		b.r, b.size = b.chunked, -1
		if s := h.Get("X-Amz-Decoded-Content-Length"); s != "" {
			if b.size, err = strconv.ParseInt(s, 10, 64); err != nil || b.size < 0 {
				return nil, failWith("InvalidArgument", "x-amz-decoded-content-length is malformed.")
			}
		}
	case payload != "" && payload != unsignedPayload:
		if len(payload) != 2*sha256.Size {
			return nil, failWith("InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-..., or a SHA-256.")
		}
		b.wantSHA, b.sha = payload, sha256.New()
	}
	return b, nil
}

func (b *body) Read(p []byte) (int, error) {
	if b.patience != nil {
		b.patience()
	}
	n, err := b.r.Read(p)
	for _, h := range []hash.Hash{b.md5, b.sha, b.sum} {
		if h != nil {
			h.Write(p[:n])
		}
	}
	b.read += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = readFailure(err)
	}
	return n, err
}

// finish checks the body, which was read to its end.
func (b *body) finish() error {
	switch {
	case b.size >= 0 && b.read != b.size:
		return fail("IncompleteBody")
	case b.md5 != nil && string(b.md5.Sum(nil)) != string(b.wantMD5):
		return fail("BadDigest")
	case b.sha != nil && !same(hex.EncodeToString(b.sha.Sum(nil)), strings.ToLower(b.wantSHA)):
		return fail("XAmzContentSHA256Mismatch")
	}
	if b.sum == nil {
		return nil
	}
	want := b.value
	if want == "" && b.chunked != nil {
		want = b.chunked.trailer.Get(sumHeader(b.algorithm))
	}
	if want != "" && want != b.checksum() {
		return failWith("BadDigest", "The "+b.algorithm+" you specified did not match the calculated checksum.")
	}
	return nil
}

func (b *body) checksum() string {
	if b.sum == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(b.sum.Sum(nil))
}

// readFailure is the error of a body that broke off.
func readFailure(err error) error {
	var e *Error
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &e), errors.As(err, &big):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fail("IncompleteBody")
	}
	return fail("RequestTimeout")
}
