package s3

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
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

// An upload is a directory below uploadsDir, its name the upload's id, with a
// file for each part. Completing it writes the parts into one file.

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
	src, err := q.b.ns.Open(q.ctx, v.attr.Ino)
	if err != nil {
		return err
	}
	defer src.Release()
	a, f, err := q.b.create(q.ctx, u.dir)
	if err != nil {
		return noUpload(err)
	}
	defer f.Release()
	p := &pending{ino: a.Ino, f: f, dgst: newDigest(u.Algorithm)}
	if err := readFile(q.ctx, src, off, n, func(b []byte) error { return p.add(q.ctx, b) }); err != nil {
		return err
	}
	if err := q.checkQuota(p.off); err != nil {
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
	PartNumber        int
	LastModified      string `xml:",omitempty"`
	ETag              string `xml:",omitempty"`
	Size              uint64
	ChecksumCRC32     string `xml:",omitempty"`
	ChecksumCRC32C    string `xml:",omitempty"`
	ChecksumCRC64NVME string `xml:",omitempty"`
	ChecksumSHA1      string `xml:",omitempty"`
	ChecksumSHA256    string `xml:",omitempty"`
}

func (x *partXML) setSum(algorithm, value string) {
	var c copyXML
	c.setSum(&checksum{Algorithm: algorithm, Value: value})
	x.ChecksumCRC32, x.ChecksumCRC32C, x.ChecksumCRC64NVME = c.ChecksumCRC32, c.ChecksumCRC32C, c.ChecksumCRC64NVME
	x.ChecksumSHA1, x.ChecksumSHA256 = c.ChecksumSHA1, c.ChecksumSHA256
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
		if part.Sum != nil {
			x.setSum(part.Sum.Algorithm, part.Sum.Value)
		}
		doc.Parts = append(doc.Parts, x)
		doc.NextPartNumberMarker = part.number
	}
	return q.answerXML(http.StatusOK, &doc)
}

type completeXML struct {
	XMLName xml.Name       `xml:"CompleteMultipartUpload"`
	Parts   []completePart `xml:"Part"`
}

type completePart struct {
	PartNumber        int
	ETag              string
	ChecksumCRC32     string
	ChecksumCRC32C    string
	ChecksumCRC64NVME string
	ChecksumSHA1      string
	ChecksumSHA256    string
}

func (p *completePart) sum() string {
	return p.ChecksumCRC32 + p.ChecksumCRC32C + p.ChecksumCRC64NVME + p.ChecksumSHA1 + p.ChecksumSHA256
}

type completedXML struct {
	XMLName  xml.Name `xml:"CompleteMultipartUploadResult"`
	Xmlns    string   `xml:"xmlns,attr"`
	Location string
	Bucket   string
	Key      string
	ETag     string
	partSums
	ChecksumType string `xml:",omitempty"`
}

type partSums struct {
	ChecksumCRC32     string `xml:",omitempty"`
	ChecksumCRC32C    string `xml:",omitempty"`
	ChecksumCRC64NVME string `xml:",omitempty"`
	ChecksumSHA1      string `xml:",omitempty"`
	ChecksumSHA256    string `xml:",omitempty"`
}

func (q *request) completeUpload() error {
	if err := q.mayWrite("s3:PutObject", q.key, nil); err != nil {
		return err
	}
	// A checksum is the object's here, not the body's.
	sums := http.Header{}
	for _, a := range algorithms {
		sums[http.CanonicalHeaderKey(sumHeader(a))] = q.r.Header[http.CanonicalHeaderKey(sumHeader(a))]
		q.r.Header.Del(sumHeader(a))
	}
	var doc completeXML
	if err := q.parseXML(&doc); err != nil {
		return err
	}
	id := q.query.Get("uploadId")
	u, err := q.b.upload(q.ctx, q.key, id)
	var e *Error
	if errors.As(err, &e) && e.Code == "NoSuchUpload" {
		// It may be done already, and the answer have been lost.
		if v, verr := q.b.current(q.ctx, q.key); verr == nil && v != nil && v.Upload != "" && v.Upload == id {
			return q.completed(v)
		}
	}
	if err != nil {
		return err
	}
	if len(doc.Parts) == 0 || len(doc.Parts) > maxParts {
		return fail("MalformedXML")
	}
	cond, err := q.putConditions()
	if err != nil {
		return err
	}
	v, err := q.assemble(u, doc.Parts, sums.Get(sumHeader(u.Algorithm)), cond)
	if err != nil {
		return err
	}
	q.b.dropUpload(q.ctx, u)
	return q.completed(v)
}

func (q *request) completed(v *version) error {
	q.madeHeader(v)
	if s := q.b.expiration(v); s != "" {
		q.w.Header().Set("X-Amz-Expiration", s)
	}
	x := completedXML{Xmlns: xmlns, Location: "http://" + q.r.Host + "/" + q.b.name + "/" + q.key, Bucket: q.b.name, Key: q.key, ETag: `"` + v.ETag + `"`}
	if v.Sum != nil {
		var c copyXML
		c.setSum(v.Sum)
		x.partSums = partSums{c.ChecksumCRC32, c.ChecksumCRC32C, c.ChecksumCRC64NVME, c.ChecksumSHA1, c.ChecksumSHA256}
		x.ChecksumType = v.Sum.kind()
	}
	return q.answerXML(http.StatusOK, &x)
}

// choose finds the parts that a completion names, and checks them.
func (q *request) choose(u *upload, named []completePart) ([]storedPart, error) {
	have, err := q.b.parts(q.ctx, u)
	if err != nil {
		return nil, err
	}
	var chosen []storedPart
	// Of several with one number the last is meant.
	for i := len(named) - 2; i >= 0; i-- {
		if named[i].PartNumber == named[i+1].PartNumber {
			named = slices.Delete(named, i, i+1)
		}
	}
	for i, n := range named {
		if i > 0 && n.PartNumber <= named[i-1].PartNumber {
			return nil, fail("InvalidPartOrder")
		}
		j, ok := slices.BinarySearchFunc(have, n.PartNumber, func(p storedPart, n int) int { return p.number - n })
		if !ok || strings.Trim(n.ETag, `"`) != have[j].ETag {
			return nil, fail("InvalidPart")
		}
		if s := n.sum(); s != "" && have[j].Sum != nil && s != have[j].Sum.Value {
			return nil, fail("InvalidPart")
		}
		chosen = append(chosen, have[j])
	}
	for _, p := range chosen[:len(chosen)-1] {
		if p.Size < minPart {
			return nil, fail("EntityTooSmall")
		}
	}
	return chosen, nil
}

// assemble makes the object of an upload's parts.
func (q *request) assemble(u *upload, named []completePart, want string, cond conditions) (*version, error) {
	parts, err := q.choose(u, named)
	if err != nil {
		return nil, err
	}
	algorithm := u.Algorithm
	whole := ""
	if !u.Composite {
		whole = algorithm
	}
	p, err := q.b.begin(q.ctx, q.key, whole)
	if err != nil {
		return nil, err
	}
	defer p.f.Release()
	o := u.Object
	etags, sums := md5.New(), newHash(algorithm)
	for _, s := range parts {
		f, err := q.b.ns.Open(q.ctx, s.ino)
		if err != nil {
			return nil, noUpload(err)
		}
		err = readFile(q.ctx, f, 0, s.Size, func(b []byte) error { q.patience(); return p.add(q.ctx, b) })
		f.Release()
		if err != nil {
			return nil, err
		}
		raw, err := hex.DecodeString(s.ETag)
		if err != nil {
			return nil, fmt.Errorf("ETag of part %d of upload %s: %w", s.number, u.id, objstore.Corrupt)
		}
		etags.Write(raw)
		one := part{Number: s.number, Size: s.Size}
		if s.Sum != nil {
			one.Sum = s.Sum.Value
			if raw, err := base64.StdEncoding.DecodeString(s.Sum.Value); err == nil && sums != nil {
				sums.Write(raw)
			}
		}
		o.Parts = append(o.Parts, one)
	}
	o.ETag = fmt.Sprintf("%x-%d", etags.Sum(nil), len(parts))
	o.Upload = u.id
	switch {
	case algorithm == "":
	case u.Composite:
		o.Sum = &checksum{algorithm, fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(sums.Sum(nil)), len(parts)), true}
	default:
		o.Sum = &checksum{algorithm, p.dgst.checksum(), false}
	}
	if want != "" && o.Sum != nil && strings.Split(want, "-")[0] != strings.Split(o.Sum.Value, "-")[0] {
		return nil, failWith("BadDigest", "The checksum of the object did not match.")
	}
	return q.commit(q.key, &o, p, cond)
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

type attributesXML struct {
	XMLName      xml.Name  `xml:"GetObjectAttributesResponse"`
	Xmlns        string    `xml:"xmlns,attr"`
	ETag         string    `xml:",omitempty"`
	Checksum     *sumsXML  `xml:",omitempty"`
	ObjectParts  *partsOut `xml:",omitempty"`
	StorageClass string    `xml:",omitempty"`
	ObjectSize   *uint64   `xml:",omitempty"`
}

type sumsXML struct {
	partSums
	ChecksumType string `xml:",omitempty"`
}

type partsOut struct {
	PartsCount           int
	PartNumberMarker     int
	NextPartNumberMarker int
	MaxParts             int
	IsTruncated          bool
	Parts                []partXML `xml:"Part"`
}

// getAttributes answers GetObjectAttributes.
func (q *request) getAttributes() error {
	v, err := q.theVersion()
	if err != nil {
		return err
	}
	if err := q.mayObject(versionAction(q, "s3:GetObjectAttributes"), v, permRead); err != nil {
		return err
	}
	etag, err := q.b.etag(q.ctx, v)
	if err != nil {
		return err
	}
	var wanted []string
	for _, h := range q.r.Header.Values("X-Amz-Object-Attributes") {
		for _, s := range strings.Split(h, ",") {
			wanted = append(wanted, strings.TrimSpace(s))
		}
	}
	if len(wanted) == 0 {
		return failWith("InvalidArgument", "x-amz-object-attributes is missing.")
	}
	x := attributesXML{Xmlns: xmlns}
	for _, s := range wanted {
		switch s {
		case "ETag":
			x.ETag = etag
		case "ObjectSize":
			x.ObjectSize = &v.attr.Size
		case "StorageClass":
			x.StorageClass = "STANDARD"
		case "Checksum":
			if v.Sum != nil {
				var c copyXML
				c.setSum(v.Sum)
				x.Checksum = &sumsXML{partSums{c.ChecksumCRC32, c.ChecksumCRC32C, c.ChecksumCRC64NVME, c.ChecksumSHA1, c.ChecksumSHA256}, v.Sum.kind()}
			}
		case "ObjectParts":
			if x.ObjectParts, err = q.attributeParts(v); err != nil {
				return err
			}
		default:
			return failWith("InvalidArgument", "No such attribute.")
		}
	}
	q.versionHeader(v)
	q.w.Header().Set("Last-Modified", v.httpTime())
	return q.answerXML(http.StatusOK, &x)
}

func (q *request) attributeParts(v *version) (*partsOut, error) {
	if len(v.Parts) == 0 {
		return nil, nil
	}
	out := &partsOut{PartsCount: len(v.Parts), MaxParts: maxKeys}
	number := func(name string, into *int) error {
		s := q.r.Header.Get(name)
		if s == "" {
			return nil
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return failWith("InvalidArgument", name+" is malformed.")
		}
		*into = n
		return nil
	}
	if err := errors.Join(number("X-Amz-Max-Parts", &out.MaxParts), number("X-Amz-Part-Number-Marker", &out.PartNumberMarker)); err != nil {
		return nil, err
	}
	for _, p := range v.Parts {
		if p.Number <= out.PartNumberMarker {
			continue
		}
		if len(out.Parts) == out.MaxParts {
			out.IsTruncated = true
			break
		}
		x := partXML{PartNumber: p.Number, Size: p.Size}
		if v.Sum != nil && p.Sum != "" {
			x.setSum(v.Sum.Algorithm, p.Sum)
		}
		out.Parts = append(out.Parts, x)
		out.NextPartNumberMarker = p.Number
	}
	return out, nil
}
