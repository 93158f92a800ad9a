package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"net/http"
	"strconv"
	"time"

	"pillarbox/objstore"
)

// deleteObject removes an object, or a version of one.
func (q *request) deleteObject() error {
	cond, err := deleteConditions(q.r.Header.Get("If-Match"), q.r.Header.Get("X-Amz-If-Match-Last-Modified-Time"), q.r.Header.Get("X-Amz-If-Match-Size"))
	if err != nil {
		return err
	}
	d, err := q.remove(q.key, q.query.Get("versionId"), cond)
	if err != nil {
		return err
	}
	h := q.w.Header()
	if d.marker {
		h.Set("X-Amz-Delete-Marker", "true")
	}
	if d.version != "" {
		h.Set("X-Amz-Version-Id", d.version)
	}
	return q.done(http.StatusNoContent)
}

func deleteConditions(match, modified, size string) (c conditions, err error) {
	c = conditions{match: match, size: -1, removing: true}
	if size != "" {
		if c.size, err = strconv.ParseInt(size, 10, 64); err != nil || c.size < 0 {
			return c, failWith("InvalidArgument", "The size is malformed.")
		}
	}
	if modified != "" {
		if c.modified, err = http.ParseTime(modified); err != nil {
			if c.modified, err = time.Parse(time.RFC3339, modified); err != nil {
				return c, failWith("InvalidArgument", "The time is malformed.")
			}
		}
	}
	return c, nil
}

// deleted says what a removal did.
type deleted struct {
	marker  bool   // a delete marker was made, or removed
	version string // the marker's, or the one removed
}

// remove removes a key's object, or puts a delete marker, or removes a version.
func (q *request) remove(key, id string, cond conditions) (d deleted, err error) {
	b, ctx := q.b, q.ctx
	action := "s3:DeleteObject"
	if id != "" {
		action = "s3:DeleteObjectVersion"
	}
	if err := q.mayWrite(action, key, nil); err != nil {
		return d, err
	}
	if id != "" {
		v, err := b.byID(ctx, key, id)
		if err != nil {
			return d, err
		}
		d.version = id
		if v == nil {
			return d, cond.check(b, ctx, nil)
		}
		d.marker = v.Marker
		if err := cond.check(b, ctx, v); err != nil {
			return d, err
		}
		if err := q.mayDestroy(v); err != nil {
			return d, err
		}
		if !b.versioned() {
			return deleted{}, b.removeOnly(ctx, v)
		}
		return d, b.removeVersion(ctx, v)
	}
	if b.versioned() {
		if cond.match != "" { // where there never was an object no condition asks for a marker
			if cur, err := b.latest(ctx, key); err != nil || cur == nil {
				return d, err
			}
		}
		m, err := q.mark(key, func(cur *version) error { return cond.check(b, ctx, cur) })
		if err != nil {
			return d, err
		}
		return deleted{true, m.id()}, nil
	}
	for range maxTries {
		v, err := b.current(ctx, key)
		if err != nil {
			return d, err
		}
		if err := cond.check(b, ctx, v); err != nil {
			return d, err
		}
		if v == nil {
			return d, nil
		}
		if err := q.mayDestroy(v); err != nil {
			return d, err
		}
		err = b.removeOnly(ctx, v)
		if errors.Is(err, objstore.Exist) {
			continue
		}
		return d, err
	}
	return d, errBusy(b, key)
}

// removeOnly removes the object of a bucket that keeps no versions.
func (b *bucket) removeOnly(ctx context.Context, v *version) error {
	if v.attr.IsDir() {
		parts, _, _ := nicePath(v.key)
		err := b.ns.SetXattr(ctx, objstore.SetXattr{Ino: v.attr.Ino, Name: implicitAttr, Value: []byte{1}})
		if err == nil {
			err = b.ns.RemoveXattr(ctx, objstore.RemoveXattr{Ino: v.attr.Ino, Name: objectAttr})
		}
		if err != nil && !errors.Is(err, objstore.NoAttr) && !isGone(err) {
			return err
		}
		b.prune(ctx, parts)
		return nil
	}
	err := b.ns.Remove(ctx, objstore.Remove{Parent: v.dir, Name: v.name, Only: v.attr.Ino})
	if err != nil && !isGone(err) {
		return err
	}
	b.prune(ctx, dirsOf(v.key, v.place))
	return nil
}

type deleteXML struct {
	XMLName xml.Name `xml:"Delete"`
	Quiet   bool
	Objects []struct {
		Key              string
		VersionId        string
		ETag             string
		LastModifiedTime string
		Size             string
	} `xml:"Object"`
}

type deletedXML struct {
	Key                   string
	VersionId             string `xml:",omitempty"`
	DeleteMarker          bool   `xml:",omitempty"`
	DeleteMarkerVersionId string `xml:",omitempty"`
}

type deleteErrorXML struct {
	Key       string
	VersionId string `xml:",omitempty"`
	Code      string
	Message   string
}

type deleteResultXML struct {
	XMLName xml.Name         `xml:"DeleteResult"`
	Xmlns   string           `xml:"xmlns,attr"`
	Deleted []deletedXML     `xml:"Deleted"`
	Errors  []deleteErrorXML `xml:"Error"`
}

const maxDelete = 1000

func (q *request) deleteObjects() error {
	var doc deleteXML
	if err := q.parseXML(&doc); err != nil {
		return err
	}
	if len(doc.Objects) == 0 || len(doc.Objects) > maxDelete {
		return fail("MalformedXML")
	}
	out := deleteResultXML{Xmlns: xmlns}
	for _, o := range doc.Objects {
		cond, err := deleteConditions(o.ETag, o.LastModifiedTime, o.Size)
		var d deleted
		switch {
		case err != nil:
		case o.Key == "" || len(o.Key) > maxKey:
			err = fail("KeyTooLongError")
		default:
			d, err = q.remove(o.Key, o.VersionId, cond)
		}
		if err != nil {
			e := toError(err)
			out.Errors = append(out.Errors, deleteErrorXML{o.Key, o.VersionId, e.Code, e.Message})
			continue
		}
		if doc.Quiet {
			continue
		}
		x := deletedXML{Key: o.Key, VersionId: o.VersionId, DeleteMarker: d.marker}
		if d.marker {
			x.DeleteMarkerVersionId = d.version
		}
		out.Deleted = append(out.Deleted, x)
	}
	return q.answerXML(http.StatusOK, &out)
}
