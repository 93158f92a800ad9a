package s3

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
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
