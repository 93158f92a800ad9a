package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"pillarbox/objstore"
)

type lifecycleXML struct {
	XMLName xml.Name        `xml:"LifecycleConfiguration"`
	Xmlns   string          `xml:"xmlns,attr,omitempty"`
	Rules   []lifecycleRule `xml:"Rule"`
}

type lifecycleRule struct {
	ID         string           `xml:",omitempty"`
	Prefix     *string          `xml:"Prefix,omitempty"`
	Filter     *lifecycleFilter `xml:"Filter,omitempty"`
	Status     string
	Expiration *struct {
		Days                      *int    `xml:",omitempty"`
		Date                      *string `xml:",omitempty"`
		ExpiredObjectDeleteMarker *bool   `xml:",omitempty"`
	} `xml:"Expiration,omitempty"`
	Noncurrent *struct {
		Days  *int `xml:"NoncurrentDays,omitempty"`
		Newer *int `xml:"NewerNoncurrentVersions,omitempty"`
	} `xml:"NoncurrentVersionExpiration,omitempty"`
	Abort *struct {
		Days int `xml:"DaysAfterInitiation"`
	} `xml:"AbortIncompleteMultipartUpload,omitempty"`
	Transitions []struct {
		Days         *int    `xml:",omitempty"`
		Date         *string `xml:",omitempty"`
		StorageClass string  `xml:",omitempty"`
	} `xml:"Transition,omitempty"`
	NoncurrentTransitions []struct {
		Days         *int   `xml:"NoncurrentDays,omitempty"`
		StorageClass string `xml:",omitempty"`
	} `xml:"NoncurrentVersionTransition,omitempty"`
}

type lifecycleFilter struct {
	Prefix  *string       `xml:",omitempty"`
	Tag     *tag          `xml:",omitempty"`
	Greater *uint64       `xml:"ObjectSizeGreaterThan,omitempty"`
	Less    *uint64       `xml:"ObjectSizeLessThan,omitempty"`
	And     *lifecycleAnd `xml:"And,omitempty"`
}

type lifecycleAnd struct {
	Prefix  *string `xml:",omitempty"`
	Tags    []tag   `xml:"Tag"`
	Greater *uint64 `xml:"ObjectSizeGreaterThan,omitempty"`
	Less    *uint64 `xml:"ObjectSizeLessThan,omitempty"`
}

func (q *request) getLifecycle() error {
	if len(q.b.rec.Lifecycle) == 0 {
		return fail("NoSuchLifecycleConfiguration")
	}
	x, err := q.b.lifecycle()
	if err != nil {
		return err
	}
	x.Xmlns = xmlns
	return q.answerXML(http.StatusOK, x)
}

func (b *bucket) lifecycle() (*lifecycleXML, error) {
	x := &lifecycleXML{}
	if len(b.rec.Lifecycle) == 0 {
		return x, nil
	}
	if err := xml.Unmarshal(b.rec.Lifecycle, x); err != nil {
		return nil, fmt.Errorf("lifecycle of bucket %s: %w: %w", b.name, objstore.Corrupt, err)
	}
	return x, nil
}

const maxRules = 1000

func (q *request) putLifecycle() error {
	var x lifecycleXML
	if err := q.parseXML(&x); err != nil {
		return err
	}
	if len(x.Rules) == 0 || len(x.Rules) > maxRules {
		return fail("MalformedXML")
	}
	seen := map[string]bool{}
	for i := range x.Rules {
		r := &x.Rules[i]
		if r.ID == "" {
			r.ID = randomHex(16)
		}
		if len(r.ID) > 255 || seen[r.ID] {
			return failWith("InvalidArgument", "Rule ids must be at most 255 characters, and each only once.")
		}
		seen[r.ID] = true
		if err := r.check(); err != nil {
			return err
		}
	}
	x.Xmlns, x.XMLName = "", xml.Name{Local: "LifecycleConfiguration"}
	b, err := xml.Marshal(&x)
	if err != nil {
		return fmt.Errorf("encode the lifecycle: %w", err)
	}
	q.b.rec.Lifecycle = b
	return q.saved(http.StatusOK)
}

func (r *lifecycleRule) check() error {
	if r.Status != "Enabled" && r.Status != "Disabled" {
		return fail("MalformedXML")
	}
	for _, t := range r.Transitions {
		if t.Date != nil {
			if d, err := parseDate(*t.Date); err != nil || !d.Equal(d.Truncate(24*time.Hour)) {
				return fail("MalformedXML")
			}
		}
	}
	if len(r.Transitions) > 0 || len(r.NoncurrentTransitions) > 0 {
		return failWith("NotImplemented", "There is one storage class; nothing can be moved to another.")
	}
	if r.Expiration == nil && r.Noncurrent == nil && r.Abort == nil {
		return failWith("InvalidRequest", "At least one action needs to be specified in a rule.")
	}
	if e := r.Expiration; e != nil {
		if e.Days != nil && *e.Days <= 0 {
			return failWith("InvalidArgument", "'Days' for Expiration action must be a positive integer.")
		}
		if e.Date != nil {
			t, err := parseDate(*e.Date)
			if err != nil || !t.Equal(t.Truncate(24*time.Hour)) {
				return failWith("MalformedXML", "'Date' must be at midnight GMT.")
			}
		}
		if e.Days == nil && e.Date == nil && e.ExpiredObjectDeleteMarker == nil {
			return fail("MalformedXML")
		}
	}
	if n := r.Noncurrent; n != nil && (n.Days == nil || *n.Days <= 0 || n.Newer != nil && *n.Newer <= 0) {
		return failWith("InvalidArgument", "'NoncurrentDays' must be a positive integer.")
	}
	return nil
}

func parseDate(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t, err = time.Parse("2006-01-02", s)
	}
	return t, err
}

func (q *request) deleteLifecycle() error {
	q.b.rec.Lifecycle = nil
	return q.saved(http.StatusNoContent)
}

// covers says whether a rule is about an object.
func (r *lifecycleRule) covers(key string, tags []tag, size uint64) bool {
	if r.Status != "Enabled" {
		return false
	}
	and := lifecycleAnd{Prefix: r.Prefix}
	if f := r.Filter; f != nil {
		switch {
		case f.And != nil:
			and = *f.And
		default:
			and = lifecycleAnd{Prefix: f.Prefix, Greater: f.Greater, Less: f.Less}
			if f.Tag != nil {
				and.Tags = []tag{*f.Tag}
			}
		}
	}
	switch {
	case and.Prefix != nil && !strings.HasPrefix(key, *and.Prefix),
		and.Greater != nil && size <= *and.Greater,
		and.Less != nil && size >= *and.Less:
		return false
	}
	return !slices.ContainsFunc(and.Tags, func(t tag) bool { return !slices.Contains(tags, t) })
}

// due is when a rule's days after a moment are over: at midnight, as S3 has it.
func (l *Lifecycle) due(from time.Time, days int) time.Time {
	t := from.Add(time.Duration(days) * l.Day)
	if l.Day == 24*time.Hour {
		t = t.Truncate(l.Day).Add(l.Day)
	}
	return t
}

// expiration is what the x-amz-expiration header says of an object.
func (b *bucket) expiration(v *version) string {
	x, err := b.lifecycle()
	if err != nil {
		return ""
	}
	l := Lifecycle{Day: 24 * time.Hour}
	var first time.Time
	id := ""
	for i := range x.Rules {
		r := &x.Rules[i]
		if r.Expiration == nil || !r.covers(v.key, v.Tags, v.attr.Size) {
			continue
		}
		var t time.Time
		switch {
		case r.Expiration.Days != nil:
			t = l.due(v.modified(), *r.Expiration.Days)
		case r.Expiration.Date != nil:
			t, _ = parseDate(*r.Expiration.Date)
		}
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first, id = t, r.ID
		}
	}
	if first.IsZero() {
		return ""
	}
	return fmt.Sprintf(`expiry-date="%s", rule-id="%s"`, first.UTC().Format(http.TimeFormat), url.QueryEscape(id))
}

// Lifecycle carries out what buckets' lifecycles say.
type Lifecycle struct {
	Gateway *Gateway
	Every   time.Duration // between two rounds
	Day     time.Duration // what rules call a day: 24 h, but in tests
}

// Run makes a round now and then, until ctx ends. Several gateways may do it at
// once: what one has removed, another does not find.
func (l *Lifecycle) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(l.Every):
		}
		if err := l.Round(ctx); err != nil && ctx.Err() == nil {
			l.Gateway.log.Error("carry out lifecycles", "err", err)
		}
	}
}

// Round looks at every bucket once.
func (l *Lifecycle) Round(ctx context.Context) error {
	var names []string
	err := readDir(ctx, l.Gateway.ns, topDir, false, func(e objstore.DirEntry) bool {
		if e.Type == objstore.ModeDir {
			names = append(names, e.Name)
		}
		return true
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		b, err := l.Gateway.loadBucket(ctx, name)
		var e *Error
		if errors.As(err, &e) {
			continue
		}
		if err == nil && len(b.rec.Lifecycle) > 0 {
			err = l.bucket(ctx, b)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("bucket %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (l *Lifecycle) bucket(ctx context.Context, b *bucket) error {
	x, err := b.lifecycle()
	if err != nil {
		return err
	}
	now := time.Now()
	q := &request{g: l.Gateway, ctx: ctx, b: b, now: now, user: &User{ID: b.rec.Owner}, r: &http.Request{Header: http.Header{}}}
	w := &walker{ctx: ctx, b: b}
	for key, list := range b.versions(w) {
		if err := l.object(q, x.Rules, key, list); err != nil && !isGone(err) {
			return err
		}
	}
	if w.err != nil {
		return w.err
	}
	return l.uploads(q, x.Rules)
}

// object applies the rules to a key's versions, newest first.
func (l *Lifecycle) object(q *request, rules []lifecycleRule, key string, list []*version) error {
	cur := list[0]
	remove := func(v *version) error {
		if q.mayDestroy(v) != nil {
			return nil
		}
		return q.b.removeVersion(q.ctx, v)
	}
	for i := range rules {
		r := &rules[i]
		if e := r.Expiration; e != nil {
			if cur.Marker {
				alone := len(list) == 1
				old := e.Days != nil && q.now.After(l.due(cur.modified(), *e.Days))
				if alone && r.covers(key, cur.Tags, 0) && (e.ExpiredObjectDeleteMarker != nil && *e.ExpiredObjectDeleteMarker || old) {
					return remove(cur)
				}
			} else if r.covers(key, cur.Tags, cur.attr.Size) {
				over := e.Days != nil && q.now.After(l.due(cur.modified(), *e.Days))
				if e.Date != nil {
					t, err := parseDate(*e.Date)
					over = err == nil && q.now.After(t)
				}
				if over {
					if q.b.versioned() {
						_, err := q.mark(key, nil)
						return err
					}
					return q.b.removeOnly(q.ctx, cur)
				}
			}
		}
		if n := r.Noncurrent; n != nil {
			keep := 0
			if n.Newer != nil {
				keep = *n.Newer
			}
			for j := 1; j < len(list); j++ {
				v := list[j]
				// A version is noncurrent since the one after it came.
				if j <= keep || !r.covers(key, v.Tags, v.attr.Size) || q.now.Before(l.due(list[j-1].modified(), *n.Days)) {
					continue
				}
				if err := remove(v); err != nil && !isGone(err) {
					return err
				}
			}
		}
	}
	return nil
}

func (l *Lifecycle) uploads(q *request, rules []lifecycleRule) error {
	if !slices.ContainsFunc(rules, func(r lifecycleRule) bool { return r.Abort != nil }) {
		return nil
	}
	list, err := q.b.uploads(q.ctx)
	if err != nil {
		return err
	}
	for _, u := range list {
		for i := range rules {
			r := &rules[i]
			if r.Abort != nil && r.covers(u.Key, u.Object.Tags, 0) && q.now.After(l.due(u.Started, r.Abort.Days)) {
				if err := q.b.dropUpload(q.ctx, u); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}
