package s3

import (
	"fmt"
	"net"
	"slices"
)

// permission is one that an ACL gives.
type permission string

const (
	permRead        permission = "READ"
	permWrite       permission = "WRITE"
	permReadACP     permission = "READ_ACP"
	permWriteACP    permission = "WRITE_ACP"
	permFullControl permission = "FULL_CONTROL"
	ownerOnly       permission = "owner" // no ACL gives it
)

func (q *request) userID() string {
	if q.user == nil {
		return ""
	}
	return q.user.ID
}

func (q *request) isOwner() bool {
	return q.user != nil && q.user.ID == q.b.rec.Owner && q.user.ID != ""
}

// mayBucket says whether the request may do something with its bucket.
func (q *request) mayBucket(action string, perm permission) error {
	return q.may(action, arnPrefix+q.b.name, perm, q.b.rec.Owner, q.b.rec.Grants, nil)
}

// mayWrite says whether it may make or remove an object.
func (q *request) mayWrite(action, key string, extra map[string][]string) error {
	return q.may(action, arnPrefix+q.b.name+"/"+key, permWrite, q.b.rec.Owner, q.b.rec.Grants, extra)
}

// mayObject says whether it may do something with an object that exists.
func (q *request) mayObject(action string, v *version, perm permission) error {
	return q.mayObjectIn(q.b, action, v, perm)
}

func (q *request) mayObjectIn(b *bucket, action string, v *version, perm permission) error {
	save := q.b
	q.b = b
	defer func() { q.b = save }()
	extra := map[string][]string{}
	for _, t := range v.Tags {
		extra["s3:ExistingObjectTag/"+t.Key] = []string{t.Value}
	}
	owner := v.Owner
	if q.b.rec.Ownership == ownerEnforced {
		owner = q.b.rec.Owner
	}
	return q.may(action, arnPrefix+q.b.name+"/"+v.key, perm, owner, v.Grants, extra)
}

// may decides: what the bucket's policy denies is denied; else the policy, being
// the owner, a grant of the admin or the ACL each suffice.
func (q *request) may(action, resource string, perm permission, owner string, grants []grant, extra map[string][]string) error {
	b := q.b
	verdict := undecided
	if len(b.rec.Policy) > 0 {
		p, err := parsePolicy(b.rec.Policy)
		if err != nil {
			return fmt.Errorf("policy of bucket %s: %w", b.name, err)
		}
		verdict = p.decide(q.caller(), action, resource, func(key string) []string { return q.condition(key, extra) })
		if verdict == allowed && b.rec.Block != nil && b.rec.Block.RestrictPublicBuckets && p.public() && !q.isOwner() {
			verdict = undecided
		}
	}
	if verdict == denied {
		// An owner can always mend a policy that locks everybody out.
		if q.isOwner() && slices.Contains([]string{"s3:GetBucketPolicy", "s3:PutBucketPolicy", "s3:DeleteBucketPolicy"}, action) {
			return nil
		}
		return fail("AccessDenied")
	}
	if verdict == allowed {
		return nil
	}
	if q.user != nil {
		if owner != "" && q.user.ID == owner {
			return nil
		}
		switch q.user.Grants[b.name] {
		case "write":
			if perm == permRead || perm == permWrite {
				return nil
			}
		case "read":
			if perm == permRead {
				return nil
			}
		}
	}
	if b.rec.Ownership == ownerEnforced || perm == ownerOnly {
		return fail("AccessDenied")
	}
	ignore := b.rec.Block != nil && b.rec.Block.IgnorePublicACLs
	for _, g := range grants {
		if (g.Permission == perm || g.Permission == permFullControl) && g.covers(q.user) && !(ignore && g.Group != "") {
			return nil
		}
	}
	return fail("AccessDenied")
}

// caller is who policies speak of.
func (q *request) caller() string { return q.userID() }

// condition is what policies can ask of a request.
func (q *request) condition(key string, extra map[string][]string) []string {
	if v, ok := extra[key]; ok {
		return v
	}
	h := q.r.Header
	header := func(name string) []string {
		if v := h.Values(name); len(v) > 0 {
			return v
		}
		if v, ok := q.query[name]; ok {
			return v
		}
		return nil
	}
	param := func(name string) []string {
		if q.query.Has(name) {
			return []string{q.query.Get(name)}
		}
		return nil
	}
	switch key {
	case "aws:Referer", "aws:referer":
		return header("Referer")
	case "aws:UserAgent":
		return header("User-Agent")
	case "aws:SourceIp":
		return []string{q.remote()}
	case "aws:SecureTransport":
		return []string{fmt.Sprint(q.r.TLS != nil)}
	case "aws:CurrentTime":
		return []string{q.now.UTC().Format("2006-01-02T15:04:05Z")}
	case "aws:username", "aws:userid":
		if q.user != nil {
			return []string{q.user.ID}
		}
		return nil
	case "s3:prefix":
		return param("prefix")
	case "s3:delimiter":
		return param("delimiter")
	case "s3:max-keys":
		return param("max-keys")
	case "s3:VersionId", "s3:versionid":
		return param("versionId")
	case "s3:authType":
		if q.signed.how == "QueryString" {
			return []string{"REST-QUERY-STRING"}
		}
		return []string{"REST-HEADER"}
	case "s3:signatureversion":
		return []string{map[string]string{"SigV4": "AWS4-HMAC-SHA256", "SigV2": "AWS"}[q.signed.kind]}
	}
	if name, ok := cutFold(key, "s3:x-amz-"); ok {
		return header("X-Amz-" + name)
	}
	return nil
}

func cutFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || s[:len(prefix)] != prefix {
		return "", false
	}
	return s[len(prefix):], true
}

// missing is the error of an object that is not there: who may not list must not
// learn that it is not.
func (q *request) missing(key, code string) *Error {
	about := map[string][]string{"s3:prefix": {key}}
	if err := q.may("s3:ListBucket", arnPrefix+q.b.name, permRead, q.b.rec.Owner, q.b.rec.Grants, about); err != nil {
		return toError(err)
	}
	return fail(code)
}

// inNet says whether an address is in a network.
func inNet(addr, network string) bool {
	ip := net.ParseIP(addr)
	if _, n, err := net.ParseCIDR(network); err == nil {
		return ip != nil && n.Contains(ip)
	}
	return ip != nil && ip.Equal(net.ParseIP(network))
}
