package s3

import (
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"pillarbox/objstore"
)

// An upload is a directory below uploadsDir, its name the upload's id, with a
// file for each part. The object it becomes shares the parts' bytes.

const (
	maxParts = 10000
	minPart  = 5 << 20 // bytes, of all but the last
)

// upload is what is kept of one.
type upload struct {
	Key       string    `json:"key"`
	Object    object    `json:"object"`
	Started   time.Time `json:"started"`
	By        string    `json:"by"`
	Algorithm string    `json:"algorithm,omitempty"`
	Composite bool      `json:"composite,omitempty"`

	id  string
	dir objstore.Ino
}

type createUploadXML struct {
	XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
	Xmlns    string   `xml:"xmlns,attr"`
	Bucket   string
	Key      string
	UploadId string
}

func (q *request) createUpload() error {
	if err := q.mayWrite("s3:PutObject", q.key, q.tagExtras()); err != nil {
		return err
	}
	o, err := q.newObject()
	if err != nil {
		return err
	}
	u := upload{Key: q.key, Object: *o, Started: q.now.UTC(), By: q.userID()}
	if u.Algorithm, _, err = wantedSum(q.r.Header); err != nil {
		return err
	}
	switch kind := strings.ToUpper(q.r.Header.Get("X-Amz-Checksum-Type")); {
	case kind == "COMPOSITE" && u.Algorithm == "CRC64NVME", kind == "FULL_OBJECT" && strings.HasPrefix(u.Algorithm, "SHA"):
		return failWith("InvalidRequest", "The checksum type is not possible with this algorithm.")
	case kind == "COMPOSITE", kind == "" && u.Algorithm != "" && u.Algorithm != "CRC64NVME":
		u.Composite = true
	}
	top, ok, err := makePath(q.ctx, q.b.ns, q.b.dir, []string{sysDir, uploadsDir}, false)
	if err == nil && !ok {
		err = objstore.NotDir
	}
	if err != nil {
		return fmt.Errorf("begin an upload: %w", err)
	}
	u.id = fmt.Sprintf("%016x", q.now.UnixNano()) + randomHex(8)
	a, err := makeDir(q.ctx, q.b.ns, top, u.id, false)
	if err == nil {
		err = writeRecord(q.ctx, q.b.ns, a.Ino, uploadAttr, &u)
	}
	if err == nil {
		err = q.b.ns.Sync(q.ctx, a.Ino)
	}
	if err != nil {
		return fmt.Errorf("begin an upload: %w", err)
	}
	if u.Algorithm != "" {
		q.w.Header().Set("X-Amz-Checksum-Algorithm", u.Algorithm)
		q.w.Header().Set("X-Amz-Checksum-Type", (&checksum{Composite: u.Composite}).kind())
	}
	return q.answerXML(http.StatusOK, &createUploadXML{Xmlns: xmlns, Bucket: q.b.name, Key: q.key, UploadId: u.id})
}

// upload finds one of the bucket's. NoSuchUpload.
func (b *bucket) upload(ctx context.Context, key, id string) (*upload, error) {
	if len(id) != 32 || strings.ContainsFunc(id, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }) {
		return nil, fail("NoSuchUpload")
	}
	p, _, err := walk(ctx, b.ns, b.dir, []string{sysDir, uploadsDir, id})
	if err != nil {
		return nil, err
	}
	if !p.exists() {
		return nil, fail("NoSuchUpload")
	}
	u := &upload{id: id, dir: p.attr.Ino}
	ok, err := readRecord(ctx, b.ns, u.dir, uploadAttr, u)
	if isGone(err) || err == nil && (!ok || u.Key != key) {
		return nil, fail("NoSuchUpload")
	}
	return u, err
}

// dropUpload removes an upload with its parts. What cannot be removed now goes
// with the next try, or with lifecycle's.
func (b *bucket) dropUpload(ctx context.Context, u *upload) error {
	if err := b.removeTree(ctx, u.dir, 0, ""); err != nil && !isGone(err) {
		return err
	}
	p, _, err := walk(ctx, b.ns, b.dir, []string{sysDir, uploadsDir})
	if err != nil || !p.exists() {
		return err
	}
	err = b.ns.Remove(ctx, objstore.Remove{Parent: p.attr.Ino, Name: u.id, Dir: true, Only: u.dir})
	if isGone(err) {
		return nil
	}
	return err
}

func (q *request) abortUpload() error {
	u, err := q.b.upload(q.ctx, q.key, q.query.Get("uploadId"))
	if err != nil {
		return err
	}
	if err := q.mayObject("s3:AbortMultipartUpload", &version{key: q.key, object: object{Owner: u.By}}, permWrite); err != nil {
		if err := q.mayWrite("s3:AbortMultipartUpload", q.key, nil); err != nil {
			return err
		}
	}
	if err := q.b.dropUpload(q.ctx, u); err != nil {
		return err
	}
	return q.done(http.StatusNoContent)
}

type uploadXML struct {
	Key               string
	UploadId          string
	Initiator         ownerXML
	Owner             ownerXML
	StorageClass      string
	Initiated         string
	ChecksumAlgorithm string `xml:",omitempty"`
	ChecksumType      string `xml:",omitempty"`
}

type uploadsXML struct {
	XMLName            xml.Name `xml:"ListMultipartUploadsResult"`
	Xmlns              string   `xml:"xmlns,attr"`
	Bucket             string
	KeyMarker          string
	UploadIdMarker     string
	NextKeyMarker      string
	NextUploadIdMarker string
	Delimiter          string `xml:",omitempty"`
	Prefix             string
	EncodingType       string `xml:",omitempty"`
	MaxUploads         int
	IsTruncated        bool
	Uploads            []uploadXML `xml:"Upload"`
	CommonPrefixes     []prefixXML `xml:"CommonPrefixes"`
}

// uploads lists a bucket's, by key, then by when they began.
func (b *bucket) uploads(ctx context.Context) ([]*upload, error) {
	p, _, err := walk(ctx, b.ns, b.dir, []string{sysDir, uploadsDir})
	if err != nil || !p.exists() {
		return nil, err
	}
	var list []*upload
	err = readDir(ctx, b.ns, p.attr.Ino, false, func(e objstore.DirEntry) bool {
		list = append(list, &upload{id: e.Name, dir: e.Ino})
		return true
	})
	if err != nil {
		return nil, err
	}
	out := list[:0]
	for _, u := range list {
		ok, err := readRecord(ctx, b.ns, u.dir, uploadAttr, u)
		if isGone(err) || err == nil && !ok {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(x, y *upload) int {
		if c := strings.Compare(x.Key, y.Key); c != 0 {
			return c
		}
		return strings.Compare(x.id, y.id)
	})
	return out, nil
}

func (q *request) listUploads() error {
	p, err := q.page("max-uploads")
	if err != nil {
		return err
	}
	keyMarker, idMarker := q.query.Get("key-marker"), q.query.Get("upload-id-marker")
	doc := uploadsXML{
		Xmlns: xmlns, Bucket: q.b.name, KeyMarker: p.encode(keyMarker), UploadIdMarker: idMarker, Delimiter: p.encode(p.delimiter),
		Prefix: p.encode(p.prefix), EncodingType: p.encoding, MaxUploads: p.max,
	}
	list, err := q.b.uploads(q.ctx)
	if err != nil {
		return err
	}
	n, group := 0, ""
	for _, u := range list {
		if !strings.HasPrefix(u.Key, p.prefix) || u.Key < keyMarker || u.Key == keyMarker && (idMarker == "" || u.id <= idMarker) {
			continue
		}
		cp, grouped := p.group(u.Key)
		if grouped && cp == group {
			continue
		}
		if n == p.max {
			doc.IsTruncated = p.max > 0
			break
		}
		n++
		doc.NextKeyMarker, doc.NextUploadIdMarker = p.encode(u.Key), u.id
		if grouped {
			group = cp
			doc.CommonPrefixes = append(doc.CommonPrefixes, prefixXML{p.encode(cp)})
			continue
		}
		x := uploadXML{
			Key: p.encode(u.Key), UploadId: u.id, Initiator: q.ownerXML(u.By), Owner: q.ownerXML(u.Object.Owner), StorageClass: "STANDARD",
			Initiated: u.Started.Format(xmlTime), ChecksumAlgorithm: u.Algorithm,
		}
		if u.Algorithm != "" {
			x.ChecksumType = (&checksum{Composite: u.Composite}).kind()
		}
		doc.Uploads = append(doc.Uploads, x)
	}
	if !doc.IsTruncated {
		doc.NextKeyMarker, doc.NextUploadIdMarker = "", ""
	}
	return q.answerXML(http.StatusOK, &doc)
}
