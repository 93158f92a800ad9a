package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"pillarbox/objstore"
)

func partName(n int) string { return fmt.Sprintf("%05d", n) }

func (q *request) uploadPart() error {
	if err := q.mayWrite("s3:PutObject", q.key, nil); err != nil {
		return err
	}
	number, err := strconv.Atoi(q.query.Get("partNumber"))
	if err != nil || number < 1 || number > maxParts {
		return failWith("InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive.")
	}
	u, err := q.b.upload(q.ctx, q.key, q.query.Get("uploadId"))
	if err != nil {
		return err
	}
	if q.r.Header.Get("X-Amz-Copy-Source") != "" {
		return q.copyPart(u, number)
	}
	body, err := q.openBody()
	if err != nil {
		return err
	}
	if body.size < 0 && body.chunked == nil && len(q.r.TransferEncoding) == 0 {
		return fail("MissingContentLength")
	}
	a, f, err := q.b.create(q.ctx, u.dir)
	if err != nil {
		return noUpload(err)
	}
	defer f.Release()
	algorithm := u.Algorithm
	if algorithm == "" {
		algorithm = body.algorithm
	}
	p := &pending{ino: a.Ino, f: f, dgst: newDigest(algorithm)}
	if err := p.fill(q.ctx, body, maxPut); err != nil {
		return err
	}
	if err := body.finish(); err != nil {
		return err
	}
	if err := q.checkQuota(p.off); err != nil {
		return err
	}
	o, err := q.keepPart(u, p, number, algorithm)
	if err != nil {
		return err
	}
	q.w.Header().Set("ETag", `"`+o.ETag+`"`)
	if o.Sum != nil {
		q.w.Header().Set(sumHeader(o.Sum.Algorithm), o.Sum.Value)
	}
	return q.done(http.StatusOK)
}

func noUpload(err error) error {
	if isGone(err) {
		return fail("NoSuchUpload")
	}
	return err
}

// keepPart names a part's file; it replaces one of the same number.
func (q *request) keepPart(u *upload, p *pending, number int, algorithm string) (*object, error) {
	ns := q.b.ns
	a, err := ns.GetAttr(q.ctx, p.ino)
	if err != nil {
		return nil, err
	}
	o := &object{ETag: p.dgst.etag(), Size: a.Size, Mtime: a.Mtime}
	if algorithm != "" {
		o.Sum = &checksum{Algorithm: algorithm, Value: p.dgst.checksum()}
	}
	if err := writeRecord(q.ctx, ns, p.ino, objectAttr, o); err != nil {
		return nil, err
	}
	for range maxTries {
		old, err := ns.Lookup(q.ctx, u.dir, partName(number))
		if err != nil && !errors.Is(err, objstore.NotFound) {
			return nil, noUpload(err)
		}
		_, err = ns.Link(q.ctx, objstore.Link{Ino: p.ino, Parent: u.dir, Name: partName(number), Over: old.Ino})
		if errors.Is(err, objstore.Exist) || errors.Is(err, objstore.NotFound) {
			continue
		}
		return o, noUpload(err)
	}
	return nil, errBusy(q.b, u.Key)
}

func (q *request) copyPart(u *upload, number int) error {
	_, v, err := q.source()
	if err != nil {
		return err
	}
	off, n := uint64(0), v.attr.Size
	if s := q.r.Header.Get("X-Amz-Copy-Source-Range"); s != "" {
		from, to, ok := strings.Cut(strings.TrimPrefix(s, "bytes="), "-")
		first, err1 := strconv.ParseUint(from, 10, 62)
		last, err2 := strconv.ParseUint(to, 10, 62)
		if !ok || !strings.HasPrefix(s, "bytes=") || err1 != nil || err2 != nil || last < first {
			return failWith("InvalidArgument", "The x-amz-copy-source-range value must be of the form bytes=first-last.")
		}
		if last >= v.attr.Size {
			return fail("InvalidRange")
		}
		off, n = first, last-first+1
	}
	a, f, err := q.b.create(q.ctx, u.dir)
	if err != nil {
		return noUpload(err)
	}
	defer f.Release()
	p := &pending{ino: a.Ino, f: f, dgst: newDigest(u.Algorithm)}
	if err := q.checkQuota(n); err != nil {
		return err
	}
	if err := q.copyRange(p, v.attr.Ino, off, n, true); err != nil {
		return err
	}
	o, err := q.keepPart(u, p, number, u.Algorithm)
	if err != nil {
		return err
	}
	x := copyXML{XMLName: xml.Name{Local: "CopyPartResult"}, Xmlns: xmlns, ETag: `"` + o.ETag + `"`, LastModified: time.Unix(0, o.Mtime).UTC().Format(xmlTime)}
	x.setSum(o.Sum)
	return q.answerXML(http.StatusOK, &x)
}

// storedPart is a part as it is kept.
type storedPart struct {
	number int
	ino    objstore.Ino
	object
}

// parts lists an upload's parts, in order.
func (b *bucket) parts(ctx context.Context, u *upload) ([]storedPart, error) {
	var list []storedPart
	err := readDir(ctx, b.ns, u.dir, false, func(e objstore.DirEntry) bool {
		if n, err := strconv.Atoi(e.Name); err == nil && e.Type == objstore.ModeRegular {
			list = append(list, storedPart{number: n, ino: e.Ino})
		}
		return true
	})
	if err != nil {
		return nil, noUpload(err)
	}
	slices.SortFunc(list, func(x, y storedPart) int { return x.number - y.number })
	for i := range list {
		if _, err := readRecord(ctx, b.ns, list[i].ino, objectAttr, &list[i].object); err != nil {
			return nil, noUpload(err)
		}
	}
	return list, nil
}

type partXML struct {
	PartNumber   int
	LastModified string `xml:",omitempty"`
	ETag         string `xml:",omitempty"`
	Size         uint64
	sumsOf
}

type partsXML struct {
	XMLName              xml.Name `xml:"ListPartsResult"`
	Xmlns                string   `xml:"xmlns,attr"`
	Bucket               string
	Key                  string
	UploadId             string
	Initiator            ownerXML
	Owner                ownerXML
	StorageClass         string
	PartNumberMarker     int
	NextPartNumberMarker int
	MaxParts             int
	IsTruncated          bool
	ChecksumAlgorithm    string    `xml:",omitempty"`
	ChecksumType         string    `xml:",omitempty"`
	Parts                []partXML `xml:"Part"`
}

func (q *request) listParts() error {
	u, err := q.b.upload(q.ctx, q.key, q.query.Get("uploadId"))
	if err != nil {
		return err
	}
	if err := q.mayObject("s3:ListMultipartUploadParts", &version{key: q.key, object: object{Owner: u.By}}, permRead); err != nil {
		return err
	}
	p, err := q.page("max-parts")
	if err != nil {
		return err
	}
	after := 0
	if s := q.query.Get("part-number-marker"); s != "" {
		if after, err = strconv.Atoi(s); err != nil || after < 0 {
			return failWith("InvalidArgument", "The part-number-marker is malformed.")
		}
	}
	list, err := q.b.parts(q.ctx, u)
	if err != nil {
		return err
	}
	doc := partsXML{
		Xmlns: xmlns, Bucket: q.b.name, Key: q.key, UploadId: u.id, Initiator: q.ownerXML(u.By), Owner: q.ownerXML(u.Object.Owner),
		StorageClass: "STANDARD", PartNumberMarker: after, MaxParts: p.max, ChecksumAlgorithm: u.Algorithm,
	}
	if u.Algorithm != "" {
		doc.ChecksumType = (&checksum{Composite: u.Composite}).kind()
	}
	for _, part := range list {
		if part.number <= after {
			continue
		}
		if len(doc.Parts) == p.max {
			doc.IsTruncated = true
			break
		}
		x := partXML{PartNumber: part.number, LastModified: time.Unix(0, part.Mtime).UTC().Format(xmlTime), ETag: `"` + part.ETag + `"`, Size: part.Size}
		x.setSum(part.Sum)
		doc.Parts = append(doc.Parts, x)
		doc.NextPartNumberMarker = part.number
	}
	return q.answerXML(http.StatusOK, &doc)
}
