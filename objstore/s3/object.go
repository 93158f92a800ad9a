package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"pillarbox/objstore"
)

const (
	maxObject   = 5 << 40 // bytes
	maxPut      = 5 << 30 // bytes in one request
	maxMetadata = 16 << 10
)

// param is a header, or the query parameter that stands for it in a signed URL.
func (q *request) param(name string) string {
	if v := q.r.Header.Get(name); v != "" {
		return v
	}
	return q.query.Get(strings.ToLower(name))
}

// kept are the headers that come back as they were put.
var kept = []string{"Content-Type", "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires"}

// newObject takes what a request says of an object that it makes.
func (q *request) newObject() (*object, error) {
	h := q.r.Header
	for name := range h {
		if strings.HasPrefix(name, "X-Amz-Server-Side-Encryption") {
			return nil, failWith("NotImplemented", "Encryption by S3's headers is not offered.")
		}
	}
	if c := q.param("X-Amz-Storage-Class"); c != "" && c != "STANDARD" {
		return nil, failWith("InvalidStorageClass", "The only storage class is STANDARD.")
	}
	o := &object{Headers: map[string]string{}, Owner: q.userID(), Redirect: h.Get("X-Amz-Website-Redirect-Location")}
	for _, name := range kept {
		v := h.Get(name)
		if name == "Content-Encoding" {
			v = withoutChunked(v)
		}
		if v != "" {
			o.Headers[name] = v
		}
	}
	if err := o.takeMetadata(h); err != nil {
		return nil, err
	}
	if s := q.param("X-Amz-Tagging"); s != "" {
		var err error
		if o.Tags, err = parseTags(s); err != nil {
			return nil, err
		}
	}
	if err := q.lockHeaders(o); err != nil {
		return nil, err
	}
	return o, q.setOwner(o)
}

// setOwner gives a new object its owner and ACL.
func (q *request) setOwner(o *object) error {
	grants, given, err := q.requestACL(o.Owner, q.b.rec.Owner)
	if err != nil {
		return err
	}
	switch q.b.rec.Ownership {
	case ownerEnforced:
		if given && q.param("X-Amz-Acl") != "bucket-owner-full-control" {
			return failWith("AccessControlListNotSupported", "The bucket does not allow ACLs.")
		}
		o.Owner = q.b.rec.Owner
		grants = nil
	case "BucketOwnerPreferred":
		if q.param("X-Amz-Acl") == "bucket-owner-full-control" {
			o.Owner = q.b.rec.Owner
			if grants, err = canned("private", o.Owner, o.Owner); err != nil {
				return err
			}
		}
	}
	o.Grants = grants
	if given {
		return q.checkPublic(grants)
	}
	return nil
}

func withoutChunked(v string) string {
	var out []string
	for _, e := range strings.Split(v, ",") {
		if e = strings.TrimSpace(e); e != "" && e != "aws-chunked" {
			out = append(out, e)
		}
	}
	return strings.Join(out, ", ")
}

const metaPrefix = "X-Amz-Meta-"

func (o *object) takeMetadata(h http.Header) error {
	total := 0
	for name, values := range h {
		if rest, ok := strings.CutPrefix(name, metaPrefix); ok && rest != "" {
			if o.User == nil {
				o.User = map[string][]byte{}
			}
			v := strings.Join(values, ",")
			o.User[strings.ToLower(rest)] = []byte(v)
			total += len(rest) + len(v)
		}
	}
	if total > maxMetadata {
		return fail("MetadataTooLarge")
	}
	return nil
}

func parseTags(s string) ([]tag, error) {
	values, err := url.ParseQuery(s)
	if err != nil {
		return nil, failWith("InvalidArgument", "The tags are malformed.")
	}
	var tags []tag
	for k, v := range values {
		if len(v) > 1 {
			return nil, fail("InvalidTag")
		}
		tags = append(tags, tag{k, v[0]})
	}
	slices.SortFunc(tags, func(a, b tag) int { return strings.Compare(a.Key, b.Key) })
	return tags, checkTags(tags, maxObjectTags)
}

// tagExtras is what policies see of the tags that a request brings.
func (q *request) tagExtras() map[string][]string {
	tags, err := parseTags(q.param("X-Amz-Tagging"))
	if err != nil {
		return nil
	}
	extra := map[string][]string{}
	for _, t := range tags {
		extra["s3:RequestObjectTag/"+t.Key] = []string{t.Value}
		extra["s3:RequestObjectTagKeys"] = append(extra["s3:RequestObjectTagKeys"], t.Key)
	}
	return extra
}

func (q *request) putObject() error {
	if err := q.mayWrite("s3:PutObject", q.key, q.tagExtras()); err != nil {
		return err
	}
	o, err := q.newObject()
	if err != nil {
		return err
	}
	body, err := q.openBody()
	if err != nil {
		return err
	}
	switch {
	case body.size < 0 && body.chunked == nil && len(q.r.TransferEncoding) == 0:
		return fail("MissingContentLength")
	case body.size > maxPut:
		return fail("EntityTooLarge")
	}
	cond, err := q.putConditions()
	if err != nil {
		return err
	}
	v, err := q.write(q.key, o, body, cond)
	if err != nil {
		return err
	}
	q.putHeaders(v)
	return q.done(http.StatusOK)
}

// putHeaders tells what was made.
func (q *request) putHeaders(v *version) {
	h := q.w.Header()
	h.Set("ETag", `"`+v.ETag+`"`)
	q.madeHeader(v)
	if v.Sum != nil {
		h.Set(sumHeader(v.Sum.Algorithm), v.Sum.Value)
		h.Set("X-Amz-Checksum-Type", v.Sum.kind())
	}
	if s := q.b.expiration(v); s != "" {
		h.Set("X-Amz-Expiration", s)
	}
	q.size = int64(v.attr.Size)
}

func (q *request) versionHeader(v *version) {
	if q.b.versioned() {
		q.w.Header().Set("X-Amz-Version-Id", v.id())
	}
}

// madeHeader tells the version of an object just made.
func (q *request) madeHeader(v *version) {
	if q.b.rec.Versioning == "Enabled" {
		q.w.Header().Set("X-Amz-Version-Id", v.id())
	}
}

// pending is a file without a name that becomes an object.
type pending struct {
	ino  objstore.Ino
	f    File
	off  uint64
	dgst *digest
}

// begin makes the file of an object that key will name.
func (b *bucket) begin(ctx context.Context, key, algorithm string) (*pending, error) {
	for try := 0; ; try++ {
		p, err := b.locate(ctx, key)
		if err != nil {
			return nil, err
		}
		a, f, err := b.create(ctx, p.dir)
		if isGone(err) && try < maxTries {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("begin object %s/%s: %w", b.name, key, err)
		}
		return &pending{ino: a.Ino, f: f, dgst: newDigest(algorithm)}, nil
	}
}

func (p *pending) add(ctx context.Context, b []byte) error {
	p.dgst.Write(b)
	for len(b) > 0 {
		n, err := p.f.Write(ctx, b, p.off)
		if err != nil {
			return err
		}
		p.off += uint64(n)
		b = b[n:]
	}
	return nil
}

// fill takes a body to its end.
func (p *pending) fill(ctx context.Context, body io.Reader, most uint64) error {
	buf := make([]byte, copyBuffer)
	for {
		n, err := io.ReadFull(body, buf)
		if p.off+uint64(n) > most {
			return fail("EntityTooLarge")
		}
		if werr := p.add(ctx, buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n > 0 {
			return nil // whether it was all, finish tells
		}
		if err != nil {
			return err
		}
	}
}

// write makes an object of a body.
func (q *request) write(key string, o *object, body *body, cond conditions) (*version, error) {
	if _, dir, ok := nicePath(key); ok && dir && body.size == 0 && !q.b.versioned() {
		return q.writeDir(key, o, body, cond)
	}
	p, err := q.b.begin(q.ctx, key, "")
	if err != nil {
		return nil, err
	}
	defer p.f.Release()
	if body.size > 0 { // refused before it is sent, if the client says how much it is
		if err := q.checkQuota(uint64(body.size)); err != nil {
			return nil, err
		}
	}
	if err := p.fill(q.ctx, body, maxPut); err != nil {
		return nil, err
	}
	if err := body.finish(); err != nil {
		return nil, err
	}
	if body.size < 0 {
		if err := q.checkQuota(p.off); err != nil {
			return nil, err
		}
	}
	o.ETag = p.dgst.etag()
	if body.sum != nil {
		o.Sum = &checksum{Algorithm: body.algorithm, Value: body.checksum()}
	}
	return q.commit(key, o, p, cond)
}

// writeDir puts an empty object whose key is a directory's.
func (q *request) writeDir(key string, o *object, body *body, cond conditions) (*version, error) {
	if _, err := io.Copy(io.Discard, body); err != nil {
		return nil, readFailure(err)
	}
	if err := body.finish(); err != nil {
		return nil, err
	}
	cur, err := q.b.current(q.ctx, key)
	if err == nil {
		err = cond.check(q.b, q.ctx, cur)
	}
	if err != nil {
		return nil, err
	}
	parts, _, _ := nicePath(key)
	o.ETag, o.Mtime = emptyMD5, moment()
	for try := 0; ; try++ {
		dir, ok, err := makePath(q.ctx, q.b.ns, q.b.dir, parts, true)
		if err == nil && !ok {
			p, err := q.b.begin(q.ctx, key, "")
			if err != nil {
				return nil, err
			}
			defer p.f.Release()
			return q.commit(key, o, p, cond)
		}
		if err == nil {
			err = writeRecord(q.ctx, q.b.ns, dir, objectAttr, o)
		}
		if err == nil {
			err = q.b.ns.RemoveXattr(q.ctx, objstore.RemoveXattr{Ino: dir, Name: implicitAttr})
			if errors.Is(err, objstore.NoAttr) {
				err = nil
			}
		}
		if err == nil {
			err = q.b.ns.Sync(q.ctx, dir)
		}
		if isGone(err) && try < maxTries {
			continue
		}
		return &version{key: key, object: *o, latest: true}, err
	}
}

// commit names a file that is complete. See the package comment.
func (q *request) commit(key string, o *object, p *pending, cond conditions) (*version, error) {
	b, ctx := q.b, q.ctx
	switch b.rec.Versioning {
	case "Enabled":
		o.Version = newVersion()
	case "Suspended":
		o.Version = versionAt(moment()) + nullName
	}
	a, err := b.ns.GetAttr(ctx, p.ino)
	if err != nil {
		return nil, err
	}
	o.Size, o.Mtime = a.Size, a.Mtime
	o.fit()
	if err := writeRecord(ctx, b.ns, p.ino, objectAttr, o); err != nil {
		return nil, err
	}
	for range maxTries {
		at, err := b.locate(ctx, key)
		if err != nil {
			return nil, err
		}
		var cur *version
		if at.exists() {
			if cur, err = b.load(ctx, key, at); isGone(err) {
				continue
			} else if err != nil {
				return nil, err
			}
		}
		if err := cond.check(b, ctx, cur); err != nil {
			return nil, err
		}
		if cur != nil && (b.rec.Versioning == "Enabled" || b.rec.Versioning == "Suspended" && !isNull(cur.Version)) {
			if err := b.archive(ctx, cur); isGone(err) {
				continue
			} else if err != nil {
				return nil, err
			}
		}
		if b.rec.Versioning == "Suspended" {
			if err := b.dropNull(ctx, key); err != nil {
				return nil, err
			}
		}
		a, err := b.ns.Link(ctx, objstore.Link{Ino: p.ino, Parent: at.dir, Name: at.name, Over: at.attr.Ino})
		if errors.Is(err, objstore.Exist) || isGone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("name object %s/%s: %w", b.name, key, err)
		}
		at.attr = a
		return &version{key: key, place: at, object: *o, latest: true}, nil
	}
	return nil, errBusy(b, key)
}

// saveObject keeps what was changed about a version.
func (b *bucket) saveObject(ctx context.Context, v *version) error {
	o := v.object
	if isFile(&v.attr) {
		o.Size, o.Mtime = v.attr.Size, v.attr.Mtime
	}
	if v.Version == "" || strings.HasSuffix(v.Version, nullName) && !b.versioned() {
		o.Version = ""
	}
	o.fit()
	return writeRecord(ctx, b.ns, v.attr.Ino, objectAttr, &o)
}

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

// conditions are those of a request that writes.
type conditions struct {
	match, noneMatch string
	unmodified       time.Time
	size             int64 // -1: any
	modified         time.Time
	removing         bool
}

func (q *request) putConditions() (conditions, error) {
	c := conditions{match: q.r.Header.Get("If-Match"), noneMatch: q.r.Header.Get("If-None-Match"), size: -1}
	return c, nil
}

func (c conditions) check(b *bucket, ctx context.Context, cur *version) error {
	if c.match == "" && c.noneMatch == "" && c.size < 0 && c.modified.IsZero() {
		return nil
	}
	etag := ""
	if cur != nil && !cur.Marker {
		var err error
		if etag, err = b.etag(ctx, cur); err != nil {
			return err
		}
	} else if c.match != "" || c.size >= 0 || !c.modified.IsZero() {
		switch {
		case !c.removing:
			return fail("NoSuchKey")
		case cur == nil || c.match == "*":
			return nil // there is nothing to remove, whatever it was to be
		}
		return fail("PreconditionFailed")
	}
	switch {
	case c.match != "" && !etagMatches(c.match, etag),
		c.noneMatch != "" && etag != "" && etagMatches(c.noneMatch, etag),
		c.size >= 0 && uint64(c.size) != cur.attr.Size,
		!c.modified.IsZero() && !cur.modified().Truncate(time.Second).Equal(c.modified.Truncate(time.Second)):
		return fail("PreconditionFailed")
	}
	return nil
}

func etagMatches(list, etag string) bool {
	for _, e := range strings.Split(list, ",") {
		if e = strings.Trim(strings.TrimPrefix(strings.TrimSpace(e), "W/"), `"`); e == "*" || e == etag {
			return true
		}
	}
	return false
}

// readConditions checks those of a GET, HEAD or, with a prefix, of a copy's source.
func (q *request) readConditions(v *version, etag, prefix string, copying bool) error {
	h := q.r.Header
	when := func(name string) (time.Time, bool) {
		t, err := http.ParseTime(h.Get(prefix + name))
		return t, err == nil
	}
	last := v.modified().Truncate(time.Second)
	if s := h.Get(prefix + "If-Match"); s != "" {
		if !etagMatches(s, etag) {
			return fail("PreconditionFailed")
		}
	} else if t, ok := when("If-Unmodified-Since"); ok && last.After(t) {
		return fail("PreconditionFailed")
	}
	not := fail("NotModified")
	if copying {
		not = fail("PreconditionFailed")
	} else {
		not.Headers = map[string]string{"ETag": `"` + etag + `"`, "Last-Modified": v.httpTime()}
	}
	if s := h.Get(prefix + "If-None-Match"); s != "" {
		if etagMatches(s, etag) {
			return not
		}
	} else if t, ok := when("If-Modified-Since"); ok && !last.After(t) {
		return not
	}
	return nil
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

// deleteObject removes an object, or a version of one.
func (q *request) deleteObject() error {
	cond, err := deleteConditions(q.r.Header.Get("If-Match"), q.r.Header.Get("X-Amz-If-Match-Last-Modified-Time"), q.r.Header.Get("X-Amz-If-Match-Size"))
	if err != nil {
		return err
	}
	d, err := q.remove(q.key, q.query.Get("versionId"), cond)
	if err != nil {
		return err
	}
	h := q.w.Header()
	if d.marker {
		h.Set("X-Amz-Delete-Marker", "true")
	}
	if d.version != "" {
		h.Set("X-Amz-Version-Id", d.version)
	}
	return q.done(http.StatusNoContent)
}

func deleteConditions(match, modified, size string) (c conditions, err error) {
	c = conditions{match: match, size: -1, removing: true}
	if size != "" {
		if c.size, err = strconv.ParseInt(size, 10, 64); err != nil || c.size < 0 {
			return c, failWith("InvalidArgument", "The size is malformed.")
		}
	}
	if modified != "" {
		if c.modified, err = http.ParseTime(modified); err != nil {
			if c.modified, err = time.Parse(time.RFC3339, modified); err != nil {
				return c, failWith("InvalidArgument", "The time is malformed.")
			}
		}
	}
	return c, nil
}

// deleted says what a removal did.
type deleted struct {
	marker  bool   // a delete marker was made, or removed
	version string // the marker's, or the one removed
}

// remove removes a key's object, or puts a delete marker, or removes a version.
func (q *request) remove(key, id string, cond conditions) (d deleted, err error) {
	b, ctx := q.b, q.ctx
	action := "s3:DeleteObject"
	if id != "" {
		action = "s3:DeleteObjectVersion"
	}
	if err := q.mayWrite(action, key, nil); err != nil {
		return d, err
	}
	if id != "" {
		v, err := b.byID(ctx, key, id)
		if err != nil {
			return d, err
		}
		d.version = id
		if v == nil {
			return d, cond.check(b, ctx, nil)
		}
		d.marker = v.Marker
		if err := cond.check(b, ctx, v); err != nil {
			return d, err
		}
		if err := q.mayDestroy(v); err != nil {
			return d, err
		}
		if !b.versioned() {
			return deleted{}, b.removeOnly(ctx, v)
		}
		return d, b.removeVersion(ctx, v)
	}
	if b.versioned() {
		m, err := q.mark(key, func(cur *version) error { return cond.check(b, ctx, cur) })
		if err != nil {
			return d, err
		}
		return deleted{true, m.id()}, nil
	}
	for range maxTries {
		v, err := b.current(ctx, key)
		if err != nil {
			return d, err
		}
		if err := cond.check(b, ctx, v); err != nil {
			return d, err
		}
		if v == nil {
			return d, nil
		}
		if err := q.mayDestroy(v); err != nil {
			return d, err
		}
		err = b.removeOnly(ctx, v)
		if errors.Is(err, objstore.Exist) {
			continue
		}
		return d, err
	}
	return d, errBusy(b, key)
}

// removeOnly removes the object of a bucket that keeps no versions.
func (b *bucket) removeOnly(ctx context.Context, v *version) error {
	if v.attr.IsDir() {
		parts, _, _ := nicePath(v.key)
		err := b.ns.SetXattr(ctx, objstore.SetXattr{Ino: v.attr.Ino, Name: implicitAttr, Value: []byte{1}})
		if err == nil {
			err = b.ns.RemoveXattr(ctx, objstore.RemoveXattr{Ino: v.attr.Ino, Name: objectAttr})
		}
		if err != nil && !errors.Is(err, objstore.NoAttr) && !isGone(err) {
			return err
		}
		b.prune(ctx, parts)
		return nil
	}
	err := b.ns.Remove(ctx, objstore.Remove{Parent: v.dir, Name: v.name, Only: v.attr.Ino})
	if err != nil && !isGone(err) {
		return err
	}
	b.prune(ctx, dirsOf(v.key, v.place))
	return nil
}

type deleteXML struct {
	XMLName xml.Name `xml:"Delete"`
	Quiet   bool
	Objects []struct {
		Key              string
		VersionId        string
		ETag             string
		LastModifiedTime string
		Size             string
	} `xml:"Object"`
}

type deletedXML struct {
	Key                   string
	VersionId             string `xml:",omitempty"`
	DeleteMarker          bool   `xml:",omitempty"`
	DeleteMarkerVersionId string `xml:",omitempty"`
}

type deleteErrorXML struct {
	Key       string
	VersionId string `xml:",omitempty"`
	Code      string
	Message   string
}

type deleteResultXML struct {
	XMLName xml.Name         `xml:"DeleteResult"`
	Xmlns   string           `xml:"xmlns,attr"`
	Deleted []deletedXML     `xml:"Deleted"`
	Errors  []deleteErrorXML `xml:"Error"`
}

const maxDelete = 1000

func (q *request) deleteObjects() error {
	var doc deleteXML
	if err := q.parseXML(&doc); err != nil {
		return err
	}
	if len(doc.Objects) == 0 || len(doc.Objects) > maxDelete {
		return fail("MalformedXML")
	}
	out := deleteResultXML{Xmlns: xmlns}
	for _, o := range doc.Objects {
		cond, err := deleteConditions(o.ETag, o.LastModifiedTime, o.Size)
		var d deleted
		switch {
		case err != nil:
		case o.Key == "" || len(o.Key) > maxKey:
			err = fail("KeyTooLongError")
		default:
			d, err = q.remove(o.Key, o.VersionId, cond)
		}
		if err != nil {
			e := toError(err)
			out.Errors = append(out.Errors, deleteErrorXML{o.Key, o.VersionId, e.Code, e.Message})
			continue
		}
		if doc.Quiet {
			continue
		}
		x := deletedXML{Key: o.Key, VersionId: o.VersionId, DeleteMarker: d.marker}
		if d.marker {
			x.DeleteMarkerVersionId = d.version
		}
		out.Deleted = append(out.Deleted, x)
	}
	return q.answerXML(http.StatusOK, &out)
}

// source finds what a copy is to be made of.
func (q *request) source() (*bucket, *version, error) {
	s := strings.TrimPrefix(q.r.Header.Get("X-Amz-Copy-Source"), "/")
	s, rawQuery, _ := strings.Cut(s, "?")
	id := ""
	if rest, ok := strings.CutPrefix(rawQuery, "versionId="); ok {
		id = rest
	}
	path, err := url.PathUnescape(s)
	if err != nil {
		return nil, nil, failWith("InvalidArgument", "The copy source is malformed.")
	}
	name, key, ok := strings.Cut(path, "/")
	if !ok || key == "" {
		return nil, nil, failWith("InvalidArgument", "The copy source must be a bucket and a key.")
	}
	b := q.b
	if name != q.b.name {
		if b, err = q.g.loadBucket(q.ctx, name); err != nil {
			return nil, nil, err
		}
	}
	if want := q.r.Header.Get("X-Amz-Source-Expected-Bucket-Owner"); want != "" && want != b.rec.Owner {
		return nil, nil, fail("AccessDenied")
	}
	v, err := q.find(b, key, id)
	if err != nil {
		var e *Error
		if id != "" && errors.As(err, &e) && e.Code == "MethodNotAllowed" {
			err = failWith("InvalidRequest", "The source of a copy request may not specifically refer to a delete marker by version id.")
		}
		return nil, nil, err
	}
	if err := q.mayObjectIn(b, "s3:GetObject", v, permRead); err != nil {
		return nil, nil, err
	}
	etag, err := b.etag(q.ctx, v)
	if err != nil {
		return nil, nil, err
	}
	return b, v, q.readConditions(v, etag, "X-Amz-Copy-Source-", true)
}

type copyXML struct {
	XMLName           xml.Name
	Xmlns             string `xml:"xmlns,attr"`
	ETag              string
	LastModified      string
	ChecksumCRC32     string `xml:",omitempty"`
	ChecksumCRC32C    string `xml:",omitempty"`
	ChecksumCRC64NVME string `xml:",omitempty"`
	ChecksumSHA1      string `xml:",omitempty"`
	ChecksumSHA256    string `xml:",omitempty"`
}

func (q *request) copyObject() error {
	extra := q.tagExtras()
	if err := q.mayWrite("s3:PutObject", q.key, extra); err != nil {
		return err
	}
	src, v, err := q.source()
	if err != nil {
		return err
	}
	replace := strings.EqualFold(q.r.Header.Get("X-Amz-Metadata-Directive"), "REPLACE")
	o, err := q.newObject()
	if err != nil {
		return err
	}
	if src.name == q.b.name && v.key == q.key && v.latest && !replace && q.r.Header.Get("X-Amz-Storage-Class") == "" && o.Redirect == "" {
		return failWith("InvalidRequest", "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.")
	}
	if !replace {
		o.Headers, o.User = v.Headers, v.User
	}
	if !strings.EqualFold(q.r.Header.Get("X-Amz-Tagging-Directive"), "REPLACE") {
		o.Tags = v.Tags
	}
	algorithm, _, err := wantedSum(q.r.Header)
	if err != nil {
		return err
	}
	if algorithm == "" && v.Sum != nil {
		algorithm = v.Sum.Algorithm
	}
	cond, err := q.putConditions()
	if err != nil {
		return err
	}
	var made *version
	if v.attr.IsDir() {
		made, err = q.write(q.key, o, &body{r: http.NoBody}, cond)
	} else {
		made, err = q.copyFrom(v, o, algorithm, cond)
	}
	if err != nil {
		return err
	}
	if src.versioned() {
		q.w.Header().Set("X-Amz-Copy-Source-Version-Id", v.id())
	}
	q.madeHeader(made)
	x := copyXML{XMLName: xml.Name{Local: "CopyObjectResult"}, Xmlns: xmlns, ETag: `"` + made.ETag + `"`, LastModified: made.modified().Format(xmlTime)}
	x.setSum(made.Sum)
	return q.answerXML(http.StatusOK, &x)
}

func (x *copyXML) setSum(s *checksum) {
	if s == nil {
		return
	}
	switch s.Algorithm {
	case "CRC32":
		x.ChecksumCRC32 = s.Value
	case "CRC32C":
		x.ChecksumCRC32C = s.Value
	case "CRC64NVME":
		x.ChecksumCRC64NVME = s.Value
	case "SHA1":
		x.ChecksumSHA1 = s.Value
	case "SHA256":
		x.ChecksumSHA256 = s.Value
	}
}

func (q *request) copyFrom(v *version, o *object, algorithm string, cond conditions) (*version, error) {
	f, err := q.b.ns.Open(q.ctx, v.attr.Ino)
	if err != nil {
		return nil, err
	}
	defer f.Release()
	if err := q.checkQuota(v.attr.Size); err != nil {
		return nil, err
	}
	p, err := q.b.begin(q.ctx, q.key, algorithm)
	if err != nil {
		return nil, err
	}
	defer p.f.Release()
	if err := readFile(q.ctx, f, 0, v.attr.Size, func(b []byte) error { q.patience(); return p.add(q.ctx, b) }); err != nil {
		return nil, err
	}
	o.ETag = p.dgst.etag()
	if algorithm != "" {
		o.Sum = &checksum{Algorithm: algorithm, Value: p.dgst.checksum()}
	}
	return q.commit(q.key, o, p, cond)
}
