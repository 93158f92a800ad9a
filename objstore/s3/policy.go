package s3

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	arnPrefix = "arn:aws:s3:::"
	maxPolicy = 20 << 10
)

type verdict uint8

const (
	undecided verdict = iota
	allowed
	denied
)

// policy is a bucket policy (IAM JSON policy elements reference).
type policy struct {
	Version   string
	ID        string `json:"Id"`
	Statement statements
}

type statement struct {
	Sid          string
	Effect       string
	Principal    principals
	NotPrincipal principals
	Action       oneOrMany
	NotAction    oneOrMany
	Resource     oneOrMany
	NotResource  oneOrMany
	Condition    map[string]map[string]oneOrMany
}

// statements are one or a list of them.
type statements []statement

func (s *statements) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		*s = make(statements, 1)
		return strictJSON(b, &(*s)[0])
	}
	var list []json.RawMessage
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*s = make(statements, len(list))
	for i, raw := range list {
		if err := strictJSON(raw, &(*s)[i]); err != nil {
			return err
		}
	}
	return nil
}

func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// oneOrMany is a string or a list of them; numbers and booleans are taken, too.
type oneOrMany []string

func (o *oneOrMany) UnmarshalJSON(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	*o = oneOrMany{}
	for _, e := range list {
		switch e := e.(type) {
		case string:
			*o = append(*o, e)
		case bool, float64:
			*o = append(*o, fmt.Sprint(e))
		default:
			return fmt.Errorf("%v is no string", e)
		}
	}
	return nil
}

// principals are who a statement is about, as user ids; "*" is everybody.
type principals []string

func (p *principals) UnmarshalJSON(b []byte) error {
	var all string
	if json.Unmarshal(b, &all) == nil {
		if all != "*" {
			return fmt.Errorf("principal %q", all)
		}
		*p = principals{"*"}
		return nil
	}
	var kinds map[string]oneOrMany
	if err := json.Unmarshal(b, &kinds); err != nil {
		return err
	}
	*p = principals{}
	for kind, list := range kinds {
		switch kind {
		case "AWS", "CanonicalUser":
		case "Service", "Federated":
			continue
		default:
			return fmt.Errorf("principal of kind %q", kind)
		}
		for _, s := range list {
			if i := strings.LastIndex(s, "user/"); strings.HasPrefix(s, "arn:aws:iam:") && i >= 0 {
				s = s[i+len("user/"):]
			} else if rest, ok := strings.CutPrefix(s, "arn:aws:iam::"); ok {
				s = strings.TrimSuffix(rest, ":root")
			}
			*p = append(*p, s)
		}
	}
	return nil
}

func (p principals) has(user string) bool {
	return slices.Contains(p, "*") || user != "" && slices.Contains(p, user)
}

func parsePolicy(b []byte) (*policy, error) {
	p := &policy{}
	if err := strictJSON(b, p); err != nil {
		return nil, failWith("MalformedPolicy", "The policy is not valid JSON of a policy: "+err.Error())
	}
	return p, nil
}

// check refuses a policy that cannot be meant for a bucket.
func (p *policy) check(bucket string) error {
	if len(p.Statement) == 0 || p.Version != "" && p.Version != "2012-10-17" && p.Version != "2008-10-17" {
		return fail("MalformedPolicy")
	}
	for _, s := range p.Statement {
		switch {
		case s.Effect != "Allow" && s.Effect != "Deny",
			len(s.Action) == 0 && len(s.NotAction) == 0,
			len(s.Resource) == 0 && len(s.NotResource) == 0,
			s.Principal == nil && s.NotPrincipal == nil:
			return failWith("MalformedPolicy", "A statement lacks Effect, Action, Resource or Principal.")
		case s.Effect == "Allow" && s.NotPrincipal != nil:
			return failWith("InvalidArgument", "Allow with NotPrincipal is not supported.")
		}
		for _, r := range slices.Concat(s.Resource, s.NotResource) {
			rest, ok := strings.CutPrefix(r, arnPrefix)
			name, _, _ := strings.Cut(rest, "/")
			if !ok || name != bucket && !wildcard(name, bucket) {
				return failWith("MalformedPolicy", "Policy has invalid resource.")
			}
		}
		for op := range s.Condition {
			if _, ok := operators[strings.TrimSuffix(op, "IfExists")]; !ok {
				return failWith("MalformedPolicy", "Condition operator "+op+" is not known.")
			}
		}
	}
	return nil
}

// decide is the verdict on an action.
func (p *policy) decide(user, action, resource string, value func(string) []string) verdict {
	v := undecided
	for _, s := range p.Statement {
		if !s.covers(user, action, resource, value) {
			continue
		}
		if s.Effect == "Deny" {
			return denied
		}
		v = allowed
	}
	return v
}

func (s *statement) covers(user, action, resource string, value func(string) []string) bool {
	if s.Principal != nil && !s.Principal.has(user) || s.NotPrincipal != nil && s.NotPrincipal.has(user) {
		return false
	}
	matches := func(list []string, v string) bool {
		return slices.ContainsFunc(list, func(p string) bool { return wildcard(p, v) })
	}
	fold := func(list []string) []string {
		out := make([]string, len(list))
		for i := range list {
			out[i] = strings.ToLower(list[i])
		}
		return out
	}
	if len(s.Action) > 0 && !matches(fold(s.Action), strings.ToLower(action)) || len(s.NotAction) > 0 && matches(fold(s.NotAction), strings.ToLower(action)) {
		return false
	}
	if len(s.Resource) > 0 && !matches(s.Resource, resource) || len(s.NotResource) > 0 && matches(s.NotResource, resource) {
		return false
	}
	for op, keys := range s.Condition {
		for key, want := range keys {
			if !holds(op, want, value(key)) {
				return false
			}
		}
	}
	return true
}

// operators compare one wanted value with one that is there.
var operators = map[string]func(want, got string) bool{
	"StringEquals":              func(w, g string) bool { return w == g },
	"StringNotEquals":           func(w, g string) bool { return w == g },
	"StringEqualsIgnoreCase":    strings.EqualFold,
	"StringNotEqualsIgnoreCase": strings.EqualFold,
	"StringLike":                wildcard,
	"StringNotLike":             wildcard,
	"ArnEquals":                 wildcard,
	"ArnLike":                   wildcard,
	"ArnNotEquals":              wildcard,
	"ArnNotLike":                wildcard,
	"Bool":                      strings.EqualFold,
	"IpAddress":                 func(w, g string) bool { return inNet(g, w) },
	"NotIpAddress":              func(w, g string) bool { return inNet(g, w) },
	"NumericEquals":             numeric(func(w, g float64) bool { return g == w }),
	"NumericNotEquals":          numeric(func(w, g float64) bool { return g == w }),
	"NumericLessThan":           numeric(func(w, g float64) bool { return g < w }),
	"NumericLessThanEquals":     numeric(func(w, g float64) bool { return g <= w }),
	"NumericGreaterThan":        numeric(func(w, g float64) bool { return g > w }),
	"NumericGreaterThanEquals":  numeric(func(w, g float64) bool { return g >= w }),
	"DateEquals":                dates(func(w, g time.Time) bool { return g.Equal(w) }),
	"DateNotEquals":             dates(func(w, g time.Time) bool { return g.Equal(w) }),
	"DateLessThan":              dates(func(w, g time.Time) bool { return g.Before(w) }),
	"DateLessThanEquals":        dates(func(w, g time.Time) bool { return !g.After(w) }),
	"DateGreaterThan":           dates(func(w, g time.Time) bool { return g.After(w) }),
	"DateGreaterThanEquals":     dates(func(w, g time.Time) bool { return !g.Before(w) }),
	"Null":                      nil,
}

func numeric(fn func(w, g float64) bool) func(string, string) bool {
	return func(want, got string) bool {
		w, err1 := strconv.ParseFloat(want, 64)
		g, err2 := strconv.ParseFloat(got, 64)
		return err1 == nil && err2 == nil && fn(w, g)
	}
}

func dates(fn func(w, g time.Time) bool) func(string, string) bool {
	return func(want, got string) bool {
		w, err1 := time.Parse(time.RFC3339, want)
		g, err2 := time.Parse(time.RFC3339, got)
		return err1 == nil && err2 == nil && fn(w, g)
	}
}

// holds says whether a condition does.
func holds(op string, want, got []string) bool {
	op, ifExists := strings.CutSuffix(op, "IfExists")
	if op == "Null" {
		return slices.Contains(want, fmt.Sprint(len(got) == 0))
	}
	not := strings.Contains(op, "Not")
	if len(got) == 0 {
		return ifExists || not
	}
	compare := operators[op]
	for _, w := range want {
		for _, g := range got {
			if compare(w, g) {
				return !not
			}
		}
	}
	return not
}

// wildcard matches * and ?.
func wildcard(pattern, s string) bool {
	star, mark := -1, 0
	p, i := 0, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// public says whether the policy gives something to everybody, without a
// condition that says from where.
func (p *policy) public() bool {
	for _, s := range p.Statement {
		if s.Effect != "Allow" || !slices.Contains(s.Principal, "*") {
			continue
		}
		bound := false
		for op, keys := range s.Condition {
			for key := range keys {
				if !strings.HasPrefix(op, "Not") && slices.Contains([]string{"aws:sourceip", "aws:sourcearn", "aws:sourcevpc", "aws:sourcevpce",
					"aws:sourceowner", "aws:sourceaccount", "aws:userid", "s3:x-amz-server-side-encryption-aws-kms-key-id"}, strings.ToLower(key)) {
					bound = true
				}
			}
		}
		if !bound {
			return true
		}
	}
	return false
}

func (q *request) getPolicy() error {
	if len(q.b.rec.Policy) == 0 {
		return fail("NoSuchBucketPolicy")
	}
	q.w.Header().Set("Content-Type", "application/json")
	_, err := q.w.Write(q.b.rec.Policy)
	return err
}

func (q *request) putPolicy() error {
	b, err := q.document()
	if err != nil {
		return err
	}
	if len(b) > maxPolicy {
		return failWith("MalformedPolicy", "The policy is too large.")
	}
	p, err := parsePolicy(b)
	if err != nil {
		return err
	}
	if err := p.check(q.b.name); err != nil {
		return err
	}
	if q.b.rec.Block != nil && q.b.rec.Block.BlockPublicPolicy && p.public() {
		return fail("AccessDenied")
	}
	q.b.rec.Policy = b
	if err := q.b.save(q.ctx); err != nil {
		return err
	}
	return q.done(http.StatusNoContent)
}

func (q *request) deletePolicy() error {
	q.b.rec.Policy = nil
	if err := q.b.save(q.ctx); err != nil {
		return err
	}
	return q.done(http.StatusNoContent)
}

type policyStatusXML struct {
	XMLName  struct{} `xml:"PolicyStatus"`
	Xmlns    string   `xml:"xmlns,attr"`
	IsPublic bool
}

func (q *request) getPolicyStatus() error {
	public := slices.ContainsFunc(q.b.rec.Grants, func(g grant) bool { return g.Group != "" })
	if len(q.b.rec.Policy) > 0 {
		p, err := parsePolicy(q.b.rec.Policy)
		if err != nil {
			return err
		}
		public = public || p.public()
	}
	return q.answerXML(http.StatusOK, &policyStatusXML{Xmlns: xmlns, IsPublic: public})
}
