package s3

import (
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"pillarbox/objstore"
)

type bucketsXML struct {
	XMLName           xml.Name    `xml:"ListAllMyBucketsResult"`
	Xmlns             string      `xml:"xmlns,attr"`
	Owner             ownerXML    `xml:"Owner"`
	Buckets           []bucketXML `xml:"Buckets>Bucket"`
	ContinuationToken string      `xml:",omitempty"`
	Prefix            string      `xml:",omitempty"`
}

type bucketXML struct {
	Name         string
	CreationDate string
}

const xmlTime = "2006-01-02T15:04:05.000Z"

// listBuckets lists those that are the user's, or granted to the user.
func (q *request) listBuckets() error {
	if q.user == nil {
		return q.answerXML(http.StatusOK, &bucketsXML{Xmlns: xmlns}) // nobody has none
	}
	most := 10000
	if s := q.query.Get("max-buckets"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > most {
			return failWith("InvalidArgument", "max-buckets must be a number from 1 to 10000.")
		}
		most = n
	}
	doc := bucketsXML{Xmlns: xmlns, Owner: q.ownerXML(q.user.ID), Prefix: q.query.Get("prefix")}
	after := q.query.Get("continuation-token")
	var names []string
	err := readDir(q.ctx, q.g.ns, topDir, false, func(e objstore.DirEntry) bool {
		if e.Type == objstore.ModeDir && e.Name > after && strings.HasPrefix(e.Name, doc.Prefix) {
			names = append(names, e.Name)
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("list the buckets: %w", err)
	}
	slices.Sort(names)
	for _, name := range names {
		b, err := q.g.loadBucket(q.ctx, name)
		var e *Error
		if errors.As(err, &e) {
			continue // no bucket, or gone since
		}
		if err != nil {
			return err
		}
		if b.rec.Owner != q.user.ID && q.user.Grants[name] == "" {
			continue
		}
		if len(doc.Buckets) == most {
			doc.ContinuationToken = doc.Buckets[most-1].Name
			break
		}
		doc.Buckets = append(doc.Buckets, bucketXML{name, b.rec.Created.UTC().Format(xmlTime)})
	}
	return q.answerXML(http.StatusOK, &doc)
}

var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

func validBucketName(s string) bool {
	return bucketName.MatchString(s) && !strings.Contains(s, "..") && !strings.Contains(s, ".-") && !strings.Contains(s, "-.") &&
		net.ParseIP(s) == nil && !strings.HasPrefix(s, "xn--")
}

func (q *request) createBucket() error {
	if q.user == nil {
		return fail("AccessDenied")
	}
	if !validBucketName(q.bucket) {
		return fail("InvalidBucketName")
	}
	doc, err := q.document()
	if err != nil {
		return err
	}
	location := ""
	if len(doc) > 0 {
		var x struct {
			XMLName            xml.Name `xml:"CreateBucketConfiguration"`
			LocationConstraint string
		}
		if err := unmarshalXML(doc, &x); err != nil {
			return err
		}
		// All regions are this store; what the client calls it comes back.
		if location = x.LocationConstraint; len(location) > 63 {
			return fail("InvalidLocationConstraint")
		}
	}
	rec := bucketRecord{Location: location, Owner: q.user.ID, Created: q.now.UTC(), Ownership: q.r.Header.Get("X-Amz-Object-Ownership")}
	if rec.Ownership != "" && !validOwnership(rec.Ownership) {
		return failWith("InvalidArgument", "Invalid x-amz-object-ownership header.")
	}
	grants, given, err := q.requestACL(q.user.ID, q.user.ID)
	if err != nil {
		return err
	}
	if rec.Ownership == ownerEnforced && given && q.param("X-Amz-Acl") != "private" {
		return failWith("InvalidBucketAclWithObjectOwnership", "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting.")
	}
	rec.Grants = grants
	if strings.EqualFold(q.r.Header.Get("X-Amz-Bucket-Object-Lock-Enabled"), "true") {
		rec.Lock, rec.Versioning = &lockConfig{}, "Enabled"
	}
	a, err := q.g.ns.MakeAccount(q.ctx, objstore.Create{Parent: topDir, Name: q.bucket, Mode: objstore.ModeDir | 0o700, Uid: q.user.Uid, Gid: q.user.Gid})
	if errors.Is(err, objstore.Exist) {
		return q.createAgain(grants)
	}
	if err != nil {
		return fmt.Errorf("make bucket %s: %w", q.bucket, err)
	}
	b := &bucket{ns: q.g.ns, name: q.bucket, dir: a.Ino, own: true, rec: rec, listings: &q.g.listings}
	if err := b.save(q.ctx); err != nil {
		return err
	}
	q.w.Header().Set("Location", "/"+q.bucket)
	return q.done(http.StatusOK)
}

// createAgain makes a bucket that is there: nothing, if it is the user's own.
func (q *request) createAgain(grants []grant) (err error) {
	if q.b, err = q.g.loadBucket(q.ctx, q.bucket); err != nil {
		return err
	}
	if !q.isOwner() {
		return fail("BucketAlreadyExists")
	}
	if !slices.Equal(grants, q.b.rec.Grants) {
		return fail("BucketAlreadyExists")
	}
	q.w.Header().Set("Location", "/"+q.bucket)
	return q.done(http.StatusOK)
}

func (q *request) headBucket() error {
	q.w.Header().Set("X-Amz-Bucket-Region", q.g.opt.Region)
	return q.done(http.StatusOK)
}

// deleteBucket removes a bucket that has no object, no version and no file. What
// directories are left in it go with it.
func (q *request) deleteBucket() error {
	b := q.b
	if b.rec.Owner == "" || !b.own {
		return fail("AccessDenied")
	}
	empty, err := b.isEmpty(q.ctx)
	if err != nil {
		return err
	}
	if !empty {
		return fail("BucketNotEmpty")
	}
	if err := b.removeTree(q.ctx, b.dir, 0, sysDir); err != nil {
		return err
	}
	if sys, err := b.ns.Lookup(q.ctx, b.dir, sysDir); err == nil {
		if err := b.removeTree(q.ctx, sys.Ino, 0, ""); err != nil {
			return err
		}
		if err := b.ns.Remove(q.ctx, objstore.Remove{Parent: b.dir, Name: sysDir, Dir: true, Only: sys.Ino}); err != nil && !isGone(err) {
			return notEmpty(err)
		}
	} else if !isGone(err) {
		return err
	}
	if err := b.ns.Remove(q.ctx, objstore.Remove{Parent: topDir, Name: b.name, Dir: true, Only: b.dir}); err != nil {
		if isGone(err) {
			return fail("NoSuchBucket")
		}
		return notEmpty(err)
	}
	return q.done(http.StatusNoContent)
}

func notEmpty(err error) error {
	if errors.Is(err, objstore.NotEmpty) {
		return fail("BucketNotEmpty")
	}
	return err
}

// now is a moment for ids.
func moment() int64 { return time.Now().UnixNano() }
