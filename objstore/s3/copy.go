package s3

import (
	"encoding/xml"
	"errors"
	"net/http"
	"net/url"
	"strings"
)

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
	XMLName      xml.Name
	Xmlns        string `xml:"xmlns,attr"`
	ETag         string
	LastModified string
	sumsOf
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

// copyFrom makes an object of another's bytes, which are shared where both are in
// one volume. What was known of them holds for the copy.
func (q *request) copyFrom(v *version, o *object, algorithm string, cond conditions) (*version, error) {
	if err := q.checkQuota(v.attr.Size); err != nil {
		return nil, err
	}
	p, err := q.b.begin(q.ctx, q.key, algorithm)
	if err != nil {
		return nil, err
	}
	defer p.f.Release()
	etag, err := q.b.etag(q.ctx, v)
	if err != nil {
		return nil, err
	}
	known := algorithm == "" || v.Sum != nil && v.Sum.Algorithm == algorithm
	if err := q.copyRange(p, v.attr.Ino, 0, v.attr.Size, !known); err != nil {
		return nil, err
	}
	if err := q.unchanged(v); err != nil {
		return nil, err
	}
	o.ETag, o.Parts = etag, v.Parts
	switch {
	case known:
		o.Sum = v.Sum
	default:
		o.Sum = &checksum{Algorithm: algorithm, Value: p.dgst.checksum()}
	}
	return q.commit(q.key, o, p, cond)
}

// unchanged fails if a source's bytes may not be those that its ETag is about.
func (q *request) unchanged(v *version) error {
	a, err := q.b.ns.GetAttr(q.ctx, v.attr.Ino)
	if err != nil {
		return err
	}
	if a.Size != v.attr.Size || a.Mtime != v.attr.Mtime {
		return errBusy(q.b, v.key)
	}
	return nil
}
