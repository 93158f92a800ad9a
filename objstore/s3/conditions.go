package s3

import (
	"context"
	"net/http"
	"strings"
	"time"
)

// conditions are those of a request that writes.
type conditions struct {
	match, noneMatch string
	unmodified       time.Time
	size             int64 // -1: any
	modified         time.Time
	removing         bool
}

func (q *request) putConditions() (conditions, error) {
	c := conditions{match: q.r.Header.Get("If-Match"), noneMatch: q.r.Header.Get("If-None-Match"), size: -1}
	return c, nil
}

func (c conditions) check(b *bucket, ctx context.Context, cur *version) error {
	if c.match == "" && c.noneMatch == "" && c.size < 0 && c.modified.IsZero() {
		return nil
	}
	etag := ""
	if cur != nil && !cur.Marker {
		var err error
		if etag, err = b.etag(ctx, cur); err != nil {
			return err
		}
	} else if c.match != "" || c.size >= 0 || !c.modified.IsZero() {
		switch {
		case !c.removing:
			return fail("NoSuchKey")
		case cur == nil || c.match == "*":
			return nil // there is nothing to remove, whatever it was to be
		}
		return fail("PreconditionFailed")
	}
	switch {
	case c.match != "" && !etagMatches(c.match, etag),
		c.noneMatch != "" && etag != "" && etagMatches(c.noneMatch, etag),
		c.size >= 0 && uint64(c.size) != cur.attr.Size,
		!c.modified.IsZero() && !cur.modified().Truncate(time.Second).Equal(c.modified.Truncate(time.Second)):
		return fail("PreconditionFailed")
	}
	return nil
}

func etagMatches(list, etag string) bool {
	for _, e := range strings.Split(list, ",") {
		if e = strings.Trim(strings.TrimPrefix(strings.TrimSpace(e), "W/"), `"`); e == "*" || e == etag {
			return true
		}
	}
	return false
}

// readConditions checks those of a GET, HEAD or, with a prefix, of a copy's source.
func (q *request) readConditions(v *version, etag, prefix string, copying bool) error {
	h := q.r.Header
	when := func(name string) (time.Time, bool) {
		t, err := http.ParseTime(h.Get(prefix + name))
		return t, err == nil
	}
	last := v.modified().Truncate(time.Second)
	if s := h.Get(prefix + "If-Match"); s != "" {
		if !etagMatches(s, etag) {
			return fail("PreconditionFailed")
		}
	} else if t, ok := when("If-Unmodified-Since"); ok && last.After(t) {
		return fail("PreconditionFailed")
	}
	not := fail("NotModified")
	if copying {
		not = fail("PreconditionFailed")
	} else {
		not.Headers = map[string]string{"ETag": `"` + etag + `"`, "Last-Modified": v.httpTime()}
	}
	if s := h.Get(prefix + "If-None-Match"); s != "" {
		if etagMatches(s, etag) {
			return not
		}
	} else if t, ok := when("If-Modified-Since"); ok && !last.After(t) {
		return not
	}
	return nil
}
