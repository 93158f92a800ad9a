package s3

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// theVersion is the version that a request means.
func (q *request) theVersion() (*version, error) { return q.find(q.b, q.key, q.query.Get("versionId")) }

func (q *request) find(b *bucket, key, id string) (*version, error) {
	var v *version
	var err error
	if id != "" {
		v, err = b.byID(q.ctx, key, id)
	} else {
		v, err = b.latest(q.ctx, key)
	}
	if err != nil {
		return nil, err
	}
	code := "NoSuchKey"
	if id != "" {
		code = "NoSuchVersion"
	}
	if v == nil {
		save := q.b
		q.b = b
		defer func() { q.b = save }()
		err := q.missing(key, code)
		err.Headers = map[string]string{"X-Amz-Delete-Marker": "false"}
		return nil, err
	}
	if !v.Marker {
		return v, nil
	}
	e := fail(code)
	if id != "" {
		e = fail("MethodNotAllowed")
	}
	e.Headers = map[string]string{"X-Amz-Delete-Marker": "true", "X-Amz-Version-Id": v.id()}
	if id != "" {
		e.Headers["Last-Modified"] = v.httpTime()
	}
	return nil, e
}

// getObject serves GET and HEAD.
func (q *request) getObject() error {
	v, err := q.theVersion()
	if err != nil {
		return err
	}
	if err := q.mayObject(versionAction(q, "s3:GetObject"), v, permRead); err != nil {
		return err
	}
	etag, err := q.b.etag(q.ctx, v)
	if err != nil {
		return err
	}
	if err := q.readConditions(v, etag, "", false); err != nil {
		return err
	}
	q.size = int64(v.attr.Size)
	off, n, partial := uint64(0), v.attr.Size, false
	sum := v.Sum
	if s := q.query.Get("partNumber"); s != "" {
		if off, n, sum, err = v.partRange(s); err != nil {
			return err
		}
		if len(v.Parts) > 0 {
			q.w.Header().Set("X-Amz-Mp-Parts-Count", strconv.Itoa(len(v.Parts)))
		}
		partial = true
	} else if s := q.r.Header.Get("Range"); s != "" {
		var ok bool
		if off, n, ok, err = parseRange(s, v.attr.Size); err != nil {
			return err
		}
		if partial = ok; partial {
			sum = nil
		}
	}
	q.objectHeaders(v, etag, sum)
	h := q.w.Header()
	h.Set("Content-Length", strconv.FormatUint(n, 10))
	status := http.StatusOK
	if partial {
		status = http.StatusPartialContent
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, v.attr.Size))
		if n == 0 {
			h.Del("Content-Range")
		}
	}
	if q.r.Method == http.MethodHead || n == 0 || v.attr.IsDir() {
		q.w.WriteHeader(status)
		return nil
	}
	f, err := q.b.ns.Open(q.ctx, v.attr.Ino)
	if err != nil {
		return err
	}
	defer f.Release()
	return readFile(q.ctx, f, off, n, func(p []byte) error {
		if q.w.status == 0 {
			q.w.WriteHeader(status)
		}
		q.patience()
		_, err := q.w.Write(p)
		return err
	})
}

// objectHeaders tells about an object.
func (q *request) objectHeaders(v *version, etag string, sum *checksum) {
	h := q.w.Header()
	h.Set("ETag", `"`+etag+`"`)
	h.Set("Last-Modified", v.httpTime())
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Type", "binary/octet-stream")
	for k, s := range v.Headers {
		h.Set(k, s)
	}
	for k, s := range v.User {
		h[strings.ToLower(metaPrefix)+k] = []string{string(s)} // clients take the name as it is written
	}
	if v.Redirect != "" {
		h.Set("X-Amz-Website-Redirect-Location", v.Redirect)
	}
	if n := len(v.Tags); n > 0 {
		h.Set("X-Amz-Tagging-Count", strconv.Itoa(n))
	}
	q.versionHeader(v)
	if v.Mode != "" {
		h.Set("X-Amz-Object-Lock-Mode", v.Mode)
		h.Set("X-Amz-Object-Lock-Retain-Until-Date", v.Until.UTC().Format(xmlTime))
	}
	if v.Hold {
		h.Set("X-Amz-Object-Lock-Legal-Hold", "ON")
	}
	if s := q.b.expiration(v); s != "" && v.latest {
		h.Set("X-Amz-Expiration", s)
	}
	if sum != nil && strings.EqualFold(q.r.Header.Get("X-Amz-Checksum-Mode"), "ENABLED") {
		h.Set(sumHeader(sum.Algorithm), sum.Value)
		h.Set("X-Amz-Checksum-Type", sum.kind())
	}
	for _, name := range []string{"content-type", "content-language", "expires", "cache-control", "content-disposition", "content-encoding"} {
		if s := q.query.Get("response-" + name); s != "" {
			h.Set(name, s)
		}
	}
}

// parseRange reads a Range header; ok is false if it is to be passed over.
func parseRange(s string, size uint64) (off, n uint64, ok bool, err error) {
	spec, isBytes := strings.CutPrefix(s, "bytes=")
	from, to, dash := strings.Cut(strings.TrimSpace(spec), "-")
	if !isBytes || !dash || strings.Contains(spec, ",") {
		return 0, size, false, nil
	}
	bad := func() (uint64, uint64, bool, error) {
		e := fail("InvalidRange")
		e.Headers = map[string]string{"Content-Range": fmt.Sprintf("bytes */%d", size)}
		return 0, 0, false, e
	}
	if from == "" {
		n, err := strconv.ParseUint(to, 10, 63)
		if err != nil {
			return 0, size, false, nil
		}
		if n == 0 || size == 0 {
			return bad()
		}
		n = min(n, size)
		return size - n, n, true, nil
	}
	if off, err = strconv.ParseUint(from, 10, 63); err != nil {
		return 0, size, false, nil
	}
	end := size - 1
	if to != "" {
		last, err := strconv.ParseUint(to, 10, 63)
		if err != nil || last < off {
			return 0, size, false, nil
		}
		end = min(end, last)
	}
	if size == 0 || off >= size {
		return bad()
	}
	return off, end - off + 1, true, nil
}

// partRange is where a part of a multipart object lies, and its checksum.
func (v *version) partRange(s string) (off, n uint64, sum *checksum, err error) {
	number, err := strconv.Atoi(s)
	if err != nil || number < 1 || number > maxParts {
		return 0, 0, nil, failWith("InvalidArgument", "Part number must be an integer between 1 and 10000.")
	}
	if len(v.Parts) == 0 && number == 1 {
		return 0, v.attr.Size, v.Sum, nil
	}
	for _, p := range v.Parts {
		if p.Number == number {
			if v.Sum != nil && p.Sum != "" {
				sum = &checksum{v.Sum.Algorithm, p.Sum, v.Sum.Composite}
			}
			return off, p.Size, sum, nil
		}
		off += p.Size
	}
	return 0, 0, nil, fail("InvalidPart")
}
