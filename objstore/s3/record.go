package s3

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"pillarbox/objstore"
)

// The extended attributes that hold what S3 knows.
const (
	objectAttr   = "trusted.pillarbox.s3"          // of a file: an object, JSON
	bucketAttr   = "trusted.pillarbox.s3.bucket"   // of a top-level directory: a bucket, JSON
	uploadAttr   = "trusted.pillarbox.s3.upload"   // of a directory in uploadsDir: an upload, JSON
	implicitAttr = "trusted.pillarbox.s3.implicit" // of a directory that was made only for what is below
)

// object is what is kept of an object besides its bytes. All of it may be
// missing: then the file came by another way than S3.
type object struct {
	ETag     string            `json:"etag,omitempty"`
	Size     uint64            `json:"size"` // with Mtime: which contents ETag, Sums and Parts are about
	Mtime    int64             `json:"mtime"`
	Headers  map[string]string `json:"headers,omitempty"`
	User     map[string][]byte `json:"user,omitempty"` // x-amz-meta-*, which need not be UTF-8
	Tags     []tag             `json:"tags,omitempty"`
	Owner    string            `json:"owner,omitempty"`
	Grants   []grant           `json:"grants,omitempty"`
	Version  string            `json:"version,omitempty"` // see versions.go; empty: null
	Marker   bool              `json:"marker,omitempty"`  // a delete marker
	Sum      *checksum         `json:"sum,omitempty"`
	Parts    []part            `json:"parts,omitempty"`
	Upload   string            `json:"upload,omitempty"` // the multipart upload that made it
	Mode     string            `json:"mode,omitempty"`   // of object lock: GOVERNANCE or COMPLIANCE
	Until    time.Time         `json:"until,omitzero"`
	Hold     bool              `json:"hold,omitempty"`
	Redirect string            `json:"redirect,omitempty"`
}

type tag struct {
	Key   string `xml:"Key" json:"k"`
	Value string `xml:"Value" json:"v"`
}

// part is one of a multipart object's.
type part struct {
	Number int    `json:"n"`
	Size   uint64 `json:"s"`
	Sum    string `json:"c,omitempty"`
}

// bucketRecord is what is kept of a bucket.
type bucketRecord struct {
	Owner      string       `json:"owner"`
	Created    time.Time    `json:"created"`
	Location   string       `json:"location,omitempty"`
	Grants     []grant      `json:"grants,omitempty"`
	Versioning string       `json:"versioning,omitempty"` // Enabled or Suspended
	Lock       *lockConfig  `json:"lock,omitempty"`
	Policy     []byte       `json:"policy,omitempty"` // JSON as it was put, after a check
	Tags       []tag        `json:"tags,omitempty"`
	CORS       []byte       `json:"cors,omitempty"` // XML as it was put, after a check
	Lifecycle  []byte       `json:"lifecycle,omitempty"`
	Block      *publicBlock `json:"block,omitempty"`
	Ownership  string       `json:"ownership,omitempty"`
}

// bucket is one that a request is about.
type bucket struct {
	ns   Namespace
	name string
	dir  objstore.Ino
	own  bool // a volume of its own
	rec  bucketRecord

	listings *listings // the gateway's
}

func (b *bucket) versioned() bool { return b.rec.Versioning != "" }

// loadBucket finds a bucket. A directory that was not made by S3 is one, too,
// with nobody for its owner.
func (g *Gateway) loadBucket(ctx context.Context, name string) (*bucket, error) {
	if strings.HasPrefix(name, ".") || objstore.CheckName(name) != nil {
		return nil, fail("NoSuchBucket")
	}
	a, err := g.ns.Lookup(ctx, topDir, name)
	if isGone(err) || err == nil && !a.IsDir() {
		return nil, fail("NoSuchBucket")
	}
	if err != nil {
		return nil, fmt.Errorf("look for bucket %s: %w", name, err)
	}
	b := &bucket{ns: g.ns, name: name, dir: a.Ino, own: a.Ino.IsVolumeRoot(), listings: &g.listings}
	if _, err := readRecord(ctx, g.ns, a.Ino, bucketAttr, &b.rec); err != nil {
		return nil, err
	}
	return b, nil
}

const topDir = objstore.Ino(1)

// save keeps the bucket's record.
func (b *bucket) save(ctx context.Context) error {
	return writeRecord(ctx, b.ns, b.dir, bucketAttr, &b.rec)
}

// readRecord decodes an attribute; ok is false if there is none.
func readRecord(ctx context.Context, ns Namespace, ino objstore.Ino, name string, v any) (ok bool, err error) {
	data, err := ns.GetXattr(ctx, ino, name)
	if errors.Is(err, objstore.NoAttr) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s of inode %v: %w", name, ino, err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("read %s of inode %v: %w: %w", name, ino, objstore.Corrupt, err)
	}
	return true, nil
}

func writeRecord(ctx context.Context, ns Namespace, ino objstore.Ino, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	if err := ns.SetXattr(ctx, objstore.SetXattr{Ino: ino, Name: name, Value: data}); err != nil {
		return fmt.Errorf("write %s of inode %v: %w", name, ino, err)
	}
	return nil
}

// maxRecord is what an extended attribute holds.
const maxRecord = objstore.MaxXattr - 1024

// fit drops the checksums of parts, then the parts, if the record is too large
// with them.
func (o *object) fit() {
	for range 2 {
		if data, err := json.Marshal(o); err != nil || len(data) <= maxRecord {
			return
		}
		if len(o.Parts) > 0 && o.Parts[0].Sum != "" {
			for i := range o.Parts {
				o.Parts[i].Sum = ""
			}
			continue
		}
		o.Parts = nil
	}
}

// version is an object as it is: its file and what is kept of it.
type version struct {
	key string
	place
	object
	latest bool
}

// load reads what is kept of a file. Where the file was changed since, by
// another way than S3, what was known of its contents is forgotten.
func (b *bucket) load(ctx context.Context, key string, p place) (*version, error) {
	v := &version{key: key, place: p, latest: true}
	if p.attr.HasXattr {
		if _, err := readRecord(ctx, b.ns, p.attr.Ino, objectAttr, &v.object); err != nil {
			return nil, err
		}
	}
	if p.attr.IsDir() {
		v.attr.Size, v.attr.Mtime = 0, v.Mtime
	} else if v.Size != p.attr.Size || v.Mtime != p.attr.Mtime {
		v.ETag, v.Sum, v.Parts = "", nil, nil
	}
	if v.Owner == "" {
		v.Owner = b.rec.Owner
	}
	return v, nil
}

// id is the version's id as S3 tells it.
func (v *version) id() string { return publicVersion(v.Version) }

func (v *version) modified() time.Time { return time.Unix(0, v.attr.Mtime).UTC() }

// httpTime is when it was modified, as HTTP has it.
func (v *version) httpTime() string { return v.modified().Format(http.TimeFormat) }

// etag is the object's ETag; one that is not known is made from its bytes and kept.
func (b *bucket) etag(ctx context.Context, v *version) (string, error) {
	if v.ETag != "" {
		return v.ETag, nil
	}
	if v.attr.Size == 0 {
		return emptyMD5, nil
	}
	sum, err := b.md5(ctx, v.attr.Ino)
	if isGone(err) {
		return "", err
	}
	if err != nil {
		return "", fmt.Errorf("MD5 of %s/%s: %w", b.name, v.key, err)
	}
	o := v.object
	o.ETag, o.Size, o.Mtime = sum, v.attr.Size, v.attr.Mtime
	v.ETag = sum
	// Where it cannot be kept, it is made again.
	if err := writeRecord(ctx, b.ns, v.attr.Ino, objectAttr, &o); err != nil && !isGone(err) && !errors.Is(err, objstore.NoSpace) {
		return "", err
	}
	return sum, nil
}
