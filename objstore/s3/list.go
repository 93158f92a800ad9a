package s3

import (
	"context"
	"encoding/base64"
	"encoding/xml"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"pillarbox/objstore"
)

// isEmpty says whether a bucket has no object and no version.
func (b *bucket) isEmpty(ctx context.Context) (bool, error) {
	w := &walker{ctx: ctx, b: b}
	for range w.keys() {
		return false, nil
	}
	for f := range w.odd(versionsDir, true) {
		list, err := b.earlier(ctx, f.key)
		if err != nil || len(list) > 0 {
			return false, err
		}
	}
	return true, w.err
}

// removeTree removes all that is in a directory, but skip. In the bucket's own
// tree only directories go; anything else makes it fail.
func (b *bucket) removeTree(ctx context.Context, dir objstore.Ino, depth int, skip string) error {
	var list []objstore.DirEntry
	if err := readDir(ctx, b.ns, dir, false, func(e objstore.DirEntry) bool { list = append(list, e); return true }); err != nil {
		return err
	}
	for _, e := range list {
		if depth == 0 && e.Name == skip {
			continue
		}
		isDir := e.Type == objstore.ModeDir
		if !isDir && skip != "" {
			return fail("BucketNotEmpty")
		}
		if isDir {
			if err := b.removeTree(ctx, e.Ino, depth+1, skip); err != nil {
				return err
			}
		}
		if err := b.ns.Remove(ctx, objstore.Remove{Parent: dir, Name: e.Name, Dir: isDir, Only: e.Ino}); err != nil && !isGone(err) {
			return notEmpty(err)
		}
	}
	return nil
}

type contentsXML struct {
	Key               string
	LastModified      string
	ETag              string
	ChecksumAlgorithm string `xml:",omitempty"`
	ChecksumType      string `xml:",omitempty"`
	Size              uint64
	StorageClass      string
	Owner             *ownerXML `xml:",omitempty"`
}

type prefixXML struct{ Prefix string }

type listXML struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	Xmlns                 string   `xml:"xmlns,attr"`
	Name                  string
	Prefix                string
	Marker                *string `xml:",omitempty"`
	NextMarker            string  `xml:",omitempty"`
	StartAfter            *string `xml:",omitempty"`
	ContinuationToken     *string `xml:",omitempty"`
	NextContinuationToken string  `xml:",omitempty"`
	KeyCount              *int    `xml:",omitempty"`
	MaxKeys               int
	Delimiter             string        `xml:",omitempty"`
	EncodingType          string        `xml:",omitempty"`
	IsTruncated           bool          `xml:"IsTruncated"`
	Contents              []contentsXML `xml:"Contents"`
	CommonPrefixes        []prefixXML   `xml:"CommonPrefixes"`
}

const maxKeys = 1000

// page is what a listing asks for.
type page struct {
	prefix, delimiter, encoding string
	max                         int
}

func (q *request) page(maxName string) (p page, err error) {
	p = page{q.query.Get("prefix"), q.query.Get("delimiter"), q.query.Get("encoding-type"), maxKeys}
	if p.encoding != "" && p.encoding != "url" {
		return p, failWith("InvalidArgument", "Invalid Encoding Method specified in Request.")
	}
	if s := q.query.Get(maxName); s != "" {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 0 {
			return p, failWith("InvalidArgument", "Argument "+maxName+" must be an integer between 0 and 2147483647.")
		}
		p.max = min(int(n), maxKeys)
	}
	return p, nil
}

func (p page) encode(s string) string {
	if p.encoding == "" {
		return s
	}
	return strings.ReplaceAll(strings.ReplaceAll(url.QueryEscape(s), "%2F", "/"), "+", "%20")
}

// group is the common prefix that a key belongs to, if any.
func (p page) group(key string) (string, bool) {
	if p.delimiter == "" || len(key) < len(p.prefix) {
		return "", false
	}
	i := strings.Index(key[len(p.prefix):], p.delimiter)
	if i < 0 {
		return "", false
	}
	return key[:len(p.prefix)+i+len(p.delimiter)], true
}

func (q *request) listObjects() error {
	p, err := q.page("max-keys")
	if err != nil {
		return err
	}
	if q.query.Get("allow-unordered") != "" && p.delimiter != "" {
		return fail("InvalidArgument")
	}
	v2 := q.query.Get("list-type") == "2"
	doc := listXML{Xmlns: xmlns, Name: q.b.name, Prefix: p.prefix, Delimiter: p.encode(p.delimiter), EncodingType: p.encoding, MaxKeys: p.max}
	after := ""
	if v2 {
		doc.Prefix = p.encode(p.prefix) // clients of version 1 take it as it is
		if s := q.query.Get("start-after"); s != "" {
			e := p.encode(s)
			after, doc.StartAfter = s, &e
		}
		if q.query.Has("continuation-token") {
			s := q.query.Get("continuation-token")
			doc.ContinuationToken = &s
			if s == "" {
				doc.ContinuationToken = &s
			} else if b, err := base64.RawURLEncoding.DecodeString(s); err != nil {
				return failWith("InvalidArgument", "The continuation token provided is incorrect.")
			} else {
				after = string(b)
			}
		}
	} else {
		after = q.query.Get("marker")
		e := p.encode(after)
		doc.Marker = &e
	}
	owners := !v2 || q.query.Get("fetch-owner") == "true"
	last := ""
	w := &walker{ctx: q.ctx, b: q.b, prefix: p.prefix, after: after}
	if cp, ok := p.group(after); ok && strings.HasPrefix(after, p.prefix) && after >= cp {
		w.skip = cp // a page that ended with a common prefix goes on behind it
	}
	n := 0
	for f := range w.keys() {
		if !w.hit(f.key) { // skipped since the merge looked ahead
			continue
		}
		if n == p.max {
			doc.IsTruncated = p.max > 0
			break
		}
		if cp, ok := p.group(f.key); ok {
			doc.CommonPrefixes = append(doc.CommonPrefixes, prefixXML{p.encode(cp)})
			w.skip, last = cp, cp
			n++
			continue
		}
		c, ok, err := q.contents(f, p, owners)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		doc.Contents = append(doc.Contents, c)
		last = f.key
		n++
	}
	if w.err != nil {
		return w.err
	}
	if doc.IsTruncated {
		if v2 {
			doc.NextContinuationToken = base64.RawURLEncoding.EncodeToString([]byte(last))
		} else if p.delimiter != "" {
			doc.NextMarker = p.encode(last)
		}
	}
	if v2 {
		doc.KeyCount = &n
	}
	return q.answerXML(http.StatusOK, &doc)
}

// contents tells about one key; ok is false if it is gone.
func (q *request) contents(f found, p page, owner bool) (c contentsXML, ok bool, err error) {
	v, err := q.b.load(q.ctx, f.key, f.place)
	if err == nil {
		_, err = q.b.etag(q.ctx, v)
	}
	if isGone(err) {
		return c, false, nil
	}
	if err != nil {
		return c, false, err
	}
	c = contentsXML{Key: p.encode(f.key), LastModified: v.modified().Format(xmlTime), ETag: `"` + v.etagOrEmpty() + `"`, Size: v.attr.Size, StorageClass: "STANDARD"}
	if v.Sum != nil {
		c.ChecksumAlgorithm, c.ChecksumType = v.Sum.Algorithm, v.Sum.kind()
	}
	if owner {
		o := q.ownerXML(v.Owner)
		c.Owner = &o
	}
	return c, true, nil
}

func (v *version) etagOrEmpty() string {
	if v.ETag == "" {
		return emptyMD5
	}
	return v.ETag
}
