package s3

import (
	"encoding/xml"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// What is set for a bucket and needs no file of its own.

const ownerEnforced = "BucketOwnerEnforced"

// publicBlock keeps a bucket from being public.
type publicBlock struct {
	XMLName               xml.Name `xml:"PublicAccessBlockConfiguration" json:"-"`
	Xmlns                 string   `xml:"xmlns,attr,omitempty" json:"-"`
	BlockPublicACLs       bool     `xml:"BlockPublicAcls"`
	IgnorePublicACLs      bool     `xml:"IgnorePublicAcls"`
	BlockPublicPolicy     bool
	RestrictPublicBuckets bool
}

// saved answers once the bucket's record is kept.
func (q *request) saved(status int) error {
	if err := q.b.save(q.ctx); err != nil {
		return err
	}
	return q.done(status)
}

func (q *request) getBlock() error {
	if q.b.rec.Block == nil {
		return fail("NoSuchPublicAccessBlockConfiguration")
	}
	x := *q.b.rec.Block
	x.Xmlns = xmlns
	return q.answerXML(http.StatusOK, &x)
}

func (q *request) putBlock() error {
	x := &publicBlock{}
	if err := q.parseXML(x); err != nil {
		return err
	}
	q.b.rec.Block = x
	return q.saved(http.StatusOK)
}

func (q *request) deleteBlock() error {
	q.b.rec.Block = nil
	return q.saved(http.StatusNoContent)
}

type ownershipXML struct {
	XMLName xml.Name `xml:"OwnershipControls"`
	Xmlns   string   `xml:"xmlns,attr,omitempty"`
	Rules   []struct {
		ObjectOwnership string
	} `xml:"Rule"`
}

func validOwnership(s string) bool {
	return slices.Contains([]string{ownerEnforced, "BucketOwnerPreferred", "ObjectWriter"}, s)
}

func (q *request) getOwnership() error {
	if q.b.rec.Ownership == "" {
		return fail("OwnershipControlsNotFoundError")
	}
	x := ownershipXML{Xmlns: xmlns, Rules: []struct{ ObjectOwnership string }{{q.b.rec.Ownership}}}
	return q.answerXML(http.StatusOK, &x)
}

func (q *request) putOwnership() error {
	var x ownershipXML
	if err := q.parseXML(&x); err != nil {
		return err
	}
	if len(x.Rules) != 1 || !validOwnership(x.Rules[0].ObjectOwnership) {
		return fail("MalformedXML")
	}
	if x.Rules[0].ObjectOwnership == ownerEnforced && slices.ContainsFunc(q.b.rec.Grants, func(g grant) bool { return g.User != q.b.rec.Owner }) {
		return failWith("InvalidBucketAclWithObjectOwnership", "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting.")
	}
	q.b.rec.Ownership = x.Rules[0].ObjectOwnership
	return q.saved(http.StatusOK)
}

func (q *request) deleteOwnership() error {
	q.b.rec.Ownership = ""
	return q.saved(http.StatusNoContent)
}

type locationXML struct {
	XMLName xml.Name `xml:"LocationConstraint"`
	Xmlns   string   `xml:"xmlns,attr"`
	Region  string   `xml:",chardata"`
}

func (q *request) getLocation() error {
	region := q.b.rec.Location
	if region == "" && q.g.opt.Region != "us-east-1" {
		region = q.g.opt.Region
	}
	return q.answerXML(http.StatusOK, &locationXML{Xmlns: xmlns, Region: region})
}

type paymentXML struct {
	XMLName xml.Name `xml:"RequestPaymentConfiguration"`
	Xmlns   string   `xml:"xmlns,attr"`
	Payer   string
}

func (q *request) getRequestPayment() error {
	return q.answerXML(http.StatusOK, &paymentXML{Xmlns: xmlns, Payer: "BucketOwner"})
}

func (q *request) getEncryption() error {
	return fail("ServerSideEncryptionConfigurationNotFoundError")
}

type versioningXML struct {
	XMLName   xml.Name `xml:"VersioningConfiguration"`
	Xmlns     string   `xml:"xmlns,attr,omitempty"`
	Status    string   `xml:",omitempty"`
	MFADelete string   `xml:"MfaDelete,omitempty"`
}

func (q *request) getVersioning() error {
	return q.answerXML(http.StatusOK, &versioningXML{Xmlns: xmlns, Status: q.b.rec.Versioning})
}

func (q *request) putVersioning() error {
	var x versioningXML
	if err := q.parseXML(&x); err != nil {
		return err
	}
	switch {
	case x.Status != "Enabled" && x.Status != "Suspended":
		return failWith("IllegalVersioningConfigurationException", "The versioning status must be Enabled or Suspended.")
	case x.MFADelete == "Enabled":
		return fail("NotImplemented")
	case !q.b.own:
		return failWith("InvalidBucketState", "This bucket is a mail domain, not made by S3; it cannot have versions.")
	case x.Status == "Suspended" && q.b.rec.Lock != nil:
		return failWith("InvalidBucketState", "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed.")
	}
	q.b.rec.Versioning = x.Status
	return q.saved(http.StatusOK)
}

// Tags.

type tagsXML struct {
	XMLName xml.Name `xml:"Tagging"`
	Xmlns   string   `xml:"xmlns,attr,omitempty"`
	Tags    []tag    `xml:"TagSet>Tag"`
}

// checkTags refuses too many, too long or double ones.
func checkTags(tags []tag, most int) error {
	if len(tags) > most {
		e := failWith("InvalidTag", "There are too many tags.")
		if most == maxObjectTags {
			e = failWith("BadRequest", "Object tags cannot be greater than 10")
			e.Code = "InvalidTag"
		}
		return e
	}
	seen := map[string]bool{}
	for _, t := range tags {
		if t.Key == "" || utf8.RuneCountInString(t.Key) > 128 || utf8.RuneCountInString(t.Value) > 256 || seen[t.Key] || strings.HasPrefix(t.Key, "aws:") {
			return fail("InvalidTag")
		}
		seen[t.Key] = true
	}
	return nil
}

const (
	maxObjectTags = 10
	maxBucketTags = 50
)

func (q *request) bodyTags(most int) ([]tag, error) {
	var x tagsXML
	if err := q.parseXML(&x); err != nil {
		return nil, err
	}
	return x.Tags, checkTags(x.Tags, most)
}

func (q *request) getBucketTags() error {
	if len(q.b.rec.Tags) == 0 {
		return fail("NoSuchTagSet")
	}
	return q.answerXML(http.StatusOK, &tagsXML{Xmlns: xmlns, Tags: q.b.rec.Tags})
}

func (q *request) putBucketTags() (err error) {
	if q.b.rec.Tags, err = q.bodyTags(maxBucketTags); err != nil {
		return err
	}
	return q.saved(http.StatusNoContent)
}

func (q *request) deleteBucketTags() error {
	q.b.rec.Tags = nil
	return q.saved(http.StatusNoContent)
}

func (q *request) getObjectTags() error {
	v, err := q.theVersion()
	if err != nil {
		return err
	}
	if err := q.mayObject(versionAction(q, "s3:GetObjectTagging"), v, permRead); err != nil {
		return err
	}
	q.versionHeader(v)
	return q.answerXML(http.StatusOK, &tagsXML{Xmlns: xmlns, Tags: v.Tags})
}

func (q *request) putObjectTags() error { return q.setTags("s3:PutObjectTagging", http.StatusOK, true) }

func (q *request) deleteObjectTags() error {
	return q.setTags("s3:DeleteObjectTagging", http.StatusNoContent, false)
}

func (q *request) setTags(action string, status int, read bool) error {
	v, err := q.theVersion()
	if err != nil {
		return err
	}
	if err := q.mayObject(versionAction(q, action), v, permWrite); err != nil {
		return err
	}
	var tags []tag
	if read {
		if tags, err = q.bodyTags(maxObjectTags); err != nil {
			return err
		}
	}
	v.Tags = tags
	if err := q.b.saveObject(q.ctx, v); err != nil {
		return err
	}
	q.versionHeader(v)
	return q.done(status)
}

// CORS.

type corsXML struct {
	XMLName xml.Name   `xml:"CORSConfiguration"`
	Xmlns   string     `xml:"xmlns,attr,omitempty"`
	Rules   []corsRule `xml:"CORSRule"`
}

type corsRule struct {
	ID             string   `xml:",omitempty"`
	AllowedMethods []string `xml:"AllowedMethod"`
	AllowedOrigins []string `xml:"AllowedOrigin"`
	AllowedHeaders []string `xml:"AllowedHeader,omitempty"`
	ExposeHeaders  []string `xml:"ExposeHeader,omitempty"`
	MaxAgeSeconds  string   `xml:",omitempty"`
}

func (q *request) getCORS() error {
	if len(q.b.rec.CORS) == 0 {
		return fail("NoSuchCORSConfiguration")
	}
	var x corsXML
	if err := unmarshalXML(q.b.rec.CORS, &x); err != nil {
		return err
	}
	x.Xmlns = xmlns
	return q.answerXML(http.StatusOK, &x)
}

func (q *request) putCORS() error {
	b, err := q.document()
	if err != nil {
		return err
	}
	var x corsXML
	if err := unmarshalXML(b, &x); err != nil {
		return err
	}
	if len(x.Rules) == 0 || len(x.Rules) > 100 {
		return fail("MalformedXML")
	}
	for _, r := range x.Rules {
		if len(r.AllowedMethods) == 0 || len(r.AllowedOrigins) == 0 {
			return fail("MalformedXML")
		}
		for _, m := range r.AllowedMethods {
			if !slices.Contains([]string{"GET", "PUT", "POST", "DELETE", "HEAD"}, m) {
				return failWith("InvalidRequest", "Found unsupported HTTP method in CORS config. Unsupported method is "+m)
			}
		}
	}
	q.b.rec.CORS = b
	return q.saved(http.StatusOK)
}

func (q *request) deleteCORS() error {
	q.b.rec.CORS = nil
	return q.saved(http.StatusNoContent)
}

// corsRule is the bucket's rule for an origin and a method, if any.
func (q *request) corsRule(origin, method string, headers []string) *corsRule {
	if q.b == nil || len(q.b.rec.CORS) == 0 || origin == "" {
		return nil
	}
	var x corsXML
	if xml.Unmarshal(q.b.rec.CORS, &x) != nil {
		return nil
	}
	for i := range x.Rules {
		r := &x.Rules[i]
		all := func(h string) bool {
			return slices.ContainsFunc(r.AllowedHeaders, func(p string) bool { return wildcard(strings.ToLower(p), strings.ToLower(h)) })
		}
		if slices.ContainsFunc(r.AllowedOrigins, func(p string) bool { return wildcard(p, origin) }) && slices.Contains(r.AllowedMethods, method) &&
			!slices.ContainsFunc(headers, func(h string) bool { return !all(h) }) {
			return r
		}
	}
	return nil
}

func (q *request) setCORS(r *corsRule, origin, method string) {
	h := q.w.Header()
	if slices.Contains(r.AllowedOrigins, "*") {
		h.Set("Access-Control-Allow-Origin", "*")
	} else {
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Allow-Credentials", "true")
		h.Add("Vary", "Origin")
	}
	h.Set("Access-Control-Allow-Methods", method)
	if len(r.ExposeHeaders) > 0 {
		h.Set("Access-Control-Expose-Headers", strings.Join(r.ExposeHeaders, ","))
	}
	if r.MaxAgeSeconds != "" {
		h.Set("Access-Control-Max-Age", r.MaxAgeSeconds)
	}
}

// corsHeaders adds to an ordinary answer what lets a page of another site read it.
func (q *request) corsHeaders() {
	origin := q.r.Header.Get("Origin")
	method := q.r.Method
	if m := q.r.Header.Get("Access-Control-Request-Method"); m != "" {
		method = m
	}
	if r := q.corsRule(origin, method, nil); r != nil {
		q.setCORS(r, origin, method)
	}
}

// preflight answers a browser that asks before it does something.
func (q *request) preflight() (err error) {
	q.op = &operation{name: "Preflight"}
	if q.bucket == "" {
		return fail("MethodNotAllowed")
	}
	origin, method := q.r.Header.Get("Origin"), q.r.Header.Get("Access-Control-Request-Method")
	if origin == "" {
		return failWith("BadRequest", "Insufficient information. Origin request header needed.")
	}
	if method == "" {
		return failWith("BadRequest", "Invalid Access-Control-Request-Method.")
	}
	if q.b, err = q.g.loadBucket(q.ctx, q.bucket); err != nil {
		return err
	}
	var headers []string
	for _, h := range strings.Split(q.r.Header.Get("Access-Control-Request-Headers"), ",") {
		if h = strings.TrimSpace(h); h != "" {
			headers = append(headers, h)
		}
	}
	r := q.corsRule(origin, method, headers)
	if r == nil {
		return failWith("AccessDenied", "CORSResponse: This CORS request is not allowed.")
	}
	q.setCORS(r, origin, method)
	if len(headers) > 0 {
		q.w.Header().Set("Access-Control-Allow-Headers", strings.Join(headers, ","))
	}
	return q.done(http.StatusOK)
}
