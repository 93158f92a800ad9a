package s3

import (
	"encoding/xml"
	"iter"
	"net/http"
	"slices"
	"strings"
)

type versionXML struct {
	XMLName      xml.Name
	Key          string
	VersionId    string
	IsLatest     bool
	LastModified string
	ETag         string   `xml:",omitempty"`
	Size         *uint64  `xml:",omitempty"`
	StorageClass string   `xml:",omitempty"`
	Owner        ownerXML `xml:"Owner"`
}

type versionsXML struct {
	XMLName             xml.Name `xml:"ListVersionsResult"`
	Xmlns               string   `xml:"xmlns,attr"`
	Name                string
	Prefix              string
	KeyMarker           string
	VersionIdMarker     string
	NextKeyMarker       string `xml:",omitempty"`
	NextVersionIdMarker string `xml:",omitempty"`
	MaxKeys             int
	Delimiter           string `xml:",omitempty"`
	EncodingType        string `xml:",omitempty"`
	IsTruncated         bool
	Versions            []versionXML
	CommonPrefixes      []prefixXML `xml:"CommonPrefixes"`
}

// versions yields every key with all its versions, newest first.
func (b *bucket) versions(w *walker) iter.Seq2[string, []*version] {
	return func(yield func(string, []*version) bool) {
		for f := range merge(w.keys(), w.odd(versionsDir, true)) {
			if !w.hit(f.key) {
				continue
			}
			cur, err := b.current(w.ctx, f.key)
			if err == nil {
				var list []*version
				if list, err = b.earlier(w.ctx, f.key); err == nil {
					if cur != nil {
						list = slices.DeleteFunc(list, func(v *version) bool { return v.attr.Ino == cur.attr.Ino })
						list = slices.Insert(list, 0, cur)
					}
					if len(list) > 0 {
						list[0].latest = true
						if !yield(f.key, list) {
							return
						}
					}
				}
			}
			if err != nil {
				w.err = err
				return
			}
		}
	}
}

func (q *request) listVersions() error {
	p, err := q.page("max-keys")
	if err != nil {
		return err
	}
	keyMarker, idMarker := q.query.Get("key-marker"), q.query.Get("version-id-marker")
	if idMarker != "" && keyMarker == "" {
		return failWith("InvalidArgument", "A version-id marker cannot be specified without a key marker.")
	}
	doc := versionsXML{
		Xmlns: xmlns, Name: q.b.name, Prefix: p.encode(p.prefix), KeyMarker: p.encode(keyMarker), VersionIdMarker: idMarker,
		Delimiter: p.encode(p.delimiter), EncodingType: p.encoding, MaxKeys: p.max,
	}
	w := &walker{ctx: q.ctx, b: q.b, prefix: p.prefix, after: keyMarker}
	if idMarker != "" && keyMarker != "" {
		w.after = keyMarker[:len(keyMarker)-1] + string([]byte{keyMarker[len(keyMarker)-1] - 1}) // the key itself is wanted, too
	}
	if cp, ok := p.group(keyMarker); ok && strings.HasPrefix(keyMarker, p.prefix) {
		w.skip = cp
	}
	n := 0
	lastKey, lastID := "", ""
pages:
	for key, list := range q.b.versions(w) {
		if idMarker != "" && key <= keyMarker {
			if key < keyMarker {
				continue
			}
			i := slices.IndexFunc(list, func(v *version) bool { return v.id() == idMarker })
			list = list[i+1:]
		}
		if len(list) == 0 {
			continue
		}
		if n == p.max {
			doc.IsTruncated = p.max > 0
			break
		}
		if cp, ok := p.group(key); ok {
			doc.CommonPrefixes = append(doc.CommonPrefixes, prefixXML{p.encode(cp)})
			w.skip, lastKey, lastID = cp, cp, ""
			n++
			continue
		}
		for _, v := range list {
			if n == p.max {
				doc.IsTruncated = p.max > 0
				break pages
			}
			x := versionXML{
				XMLName: xml.Name{Local: "Version"}, Key: p.encode(key), VersionId: v.id(), IsLatest: v.latest,
				LastModified: v.modified().Format(xmlTime), Owner: q.ownerXML(v.Owner),
			}
			if v.Marker {
				x.XMLName.Local = "DeleteMarker"
			} else {
				etag, err := q.b.etag(q.ctx, v)
				if isGone(err) {
					continue
				}
				if err != nil {
					return err
				}
				x.ETag, x.Size, x.StorageClass = `"`+etag+`"`, &v.attr.Size, "STANDARD"
			}
			doc.Versions = append(doc.Versions, x)
			lastKey, lastID = key, v.id()
			n++
		}
	}
	if w.err != nil {
		return w.err
	}
	if doc.IsTruncated {
		doc.NextKeyMarker, doc.NextVersionIdMarker = p.encode(lastKey), lastID
	}
	return q.answerXML(http.StatusOK, &doc)
}
