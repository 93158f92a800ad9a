package s3

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"pillarbox/objstore"
)

type completeXML struct {
	XMLName xml.Name       `xml:"CompleteMultipartUpload"`
	Parts   []completePart `xml:"Part"`
}

type completePart struct {
	PartNumber int
	ETag       string
	sumsOf
}

type completedXML struct {
	XMLName  xml.Name `xml:"CompleteMultipartUploadResult"`
	Xmlns    string   `xml:"xmlns,attr"`
	Location string
	Bucket   string
	Key      string
	ETag     string
	sumsOf
	ChecksumType string `xml:",omitempty"`
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
		x.setSum(v.Sum)
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

// assemble makes the object of an upload's parts, which share their bytes with it.
func (q *request) assemble(u *upload, named []completePart, want string, cond conditions) (*version, error) {
	parts, err := q.choose(u, named)
	if err != nil {
		return nil, err
	}
	o := u.Object
	if err := o.join(u, parts); err != nil {
		return nil, err
	}
	if want != "" && o.Sum != nil && strings.Split(want, "-")[0] != strings.Split(o.Sum.Value, "-")[0] {
		return nil, failWith("BadDigest", "The checksum of the object did not match.")
	}
	p, err := q.b.begin(q.ctx, q.key, "")
	if err != nil {
		return nil, err
	}
	defer p.f.Release()
	for _, s := range parts {
		if err := q.copyRange(p, s.ino, 0, s.Size, false); err != nil {
			return nil, noUpload(err)
		}
	}
	return q.commit(q.key, &o, p, cond)
}

// join works out what is known of an object from what is known of its parts.
func (o *object) join(u *upload, parts []storedPart) error {
	etags, sums := md5.New(), newHash(u.Algorithm)
	whole := newJoined(u.Algorithm)
	for _, s := range parts {
		raw, err := hex.DecodeString(s.ETag)
		if err != nil {
			return fmt.Errorf("ETag of part %d of upload %s: %w", s.number, u.id, objstore.Corrupt)
		}
		etags.Write(raw)
		one := part{Number: s.number, Size: s.Size}
		if u.Algorithm != "" {
			if s.Sum == nil || s.Sum.Algorithm != u.Algorithm {
				return fmt.Errorf("part %d of upload %s has no %s: %w", s.number, u.id, u.Algorithm, objstore.Corrupt)
			}
			if raw, err = base64.StdEncoding.DecodeString(s.Sum.Value); err != nil {
				return fmt.Errorf("checksum of part %d of upload %s: %w: %w", s.number, u.id, objstore.Corrupt, err)
			}
			one.Sum = s.Sum.Value
			sums.Write(raw)
			whole.add(raw, s.Size)
		}
		o.Parts = append(o.Parts, one)
	}
	o.ETag = fmt.Sprintf("%x-%d", etags.Sum(nil), len(parts))
	o.Upload = u.id
	switch {
	case u.Algorithm == "":
	case u.Composite:
		o.Sum = &checksum{u.Algorithm, fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(sums.Sum(nil)), len(parts)), true}
	default:
		o.Sum = &checksum{u.Algorithm, whole.value(), false}
	}
	return nil
}
