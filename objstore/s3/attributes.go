package s3

import (
	"encoding/xml"
	"errors"
	"net/http"
	"strconv"
	"strings"
)

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
	sumsOf
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
				x.Checksum = &sumsXML{ChecksumType: v.Sum.kind()}
				x.Checksum.setSum(v.Sum)
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
			x.setSum(&checksum{Algorithm: v.Sum.Algorithm, Value: p.Sum})
		}
		out.Parts = append(out.Parts, x)
		out.NextPartNumberMarker = p.Number
	}
	return out, nil
}
