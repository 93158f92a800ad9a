package s3

import (
	"encoding/xml"
	"errors"
	"net/http"
	"slices"
	"strings"
)

// grant gives somebody a permission.
type grant struct {
	User       string     `json:"u,omitempty"` // or
	Group      string     `json:"g,omitempty"` // groupAll or groupAuth
	Permission permission `json:"p"`
}

const (
	groupPrefix = "http://acs.amazonaws.com/groups/"
	groupAll    = groupPrefix + "global/AllUsers"
	groupAuth   = groupPrefix + "global/AuthenticatedUsers"
)

func (g grant) covers(u *User) bool {
	switch g.Group {
	case groupAll:
		return true
	case groupAuth:
		return u != nil
	}
	return u != nil && g.User == u.ID
}

type ownerXML struct {
	ID          string
	DisplayName string `xml:",omitempty"`
}

type granteeXML struct {
	Xsi          string `xml:"xmlns:xsi,attr,omitempty"`
	Type         string `xml:"xsi:type,attr,omitempty"`
	ID           string `xml:",omitempty"`
	DisplayName  string `xml:",omitempty"`
	URI          string `xml:",omitempty"`
	EmailAddress string `xml:",omitempty"`
}

type grantXML struct {
	Grantee    granteeXML
	Permission permission
}

type aclXML struct {
	XMLName xml.Name   `xml:"AccessControlPolicy"`
	Xmlns   string     `xml:"xmlns,attr,omitempty"`
	Owner   ownerXML   `xml:"Owner"`
	Grants  []grantXML `xml:"AccessControlList>Grant"`
}

// display is the name shown for a user.
func (q *request) display(id string) string {
	if id == "" {
		return ""
	}
	if u, err := q.g.opt.Users.ByID(q.ctx, id); err == nil {
		return u.Name
	}
	return ""
}

func (q *request) ownerXML(id string) ownerXML { return ownerXML{id, q.display(id)} }

// answerACL tells an ACL: what the owner has, then the grants.
func (q *request) answerACL(owner string, grants []grant) error {
	doc := aclXML{Xmlns: xmlns, Owner: q.ownerXML(owner)}
	const xsi = "http://www.w3.org/2001/XMLSchema-instance"
	// Groups come first, as with Ceph's gateway.
	grants = slices.Clone(grants)
	slices.SortStableFunc(grants, func(a, b grant) int {
		switch {
		case a.Group != "" && b.Group == "":
			return -1
		case a.Group == "" && b.Group != "":
			return 1
		}
		return 0
	})
	for _, g := range grants {
		x := grantXML{Permission: g.Permission, Grantee: granteeXML{Xsi: xsi}}
		if g.Group != "" {
			x.Grantee.Type, x.Grantee.URI = "Group", g.Group
		} else {
			x.Grantee.Type, x.Grantee.ID, x.Grantee.DisplayName = "CanonicalUser", g.User, q.display(g.User)
		}
		doc.Grants = append(doc.Grants, x)
	}
	return q.answerXML(http.StatusOK, &doc)
}

// canned are the grants of an ACL with a name, besides the owner's.
func canned(name, owner, bucketOwner string) ([]grant, error) {
	grants := []grant{{User: owner, Permission: permFullControl}}
	switch name {
	case "private", "":
	case "public-read":
		grants = append(grants, grant{Group: groupAll, Permission: permRead})
	case "public-read-write":
		grants = append(grants, grant{Group: groupAll, Permission: permRead}, grant{Group: groupAll, Permission: permWrite})
	case "authenticated-read":
		grants = append(grants, grant{Group: groupAuth, Permission: permRead})
	case "bucket-owner-read", "bucket-owner-full-control":
		p := permRead
		if name == "bucket-owner-full-control" {
			p = permFullControl
		}
		if bucketOwner != owner && bucketOwner != "" {
			grants = append(grants, grant{User: bucketOwner, Permission: p})
		}
	case "log-delivery-write", "aws-exec-read":
	default:
		return nil, failWith("InvalidArgument", "No such canned ACL.")
	}
	return grants, nil
}

// grantHeaders are those of explicit grants.
var grantHeaders = map[string]permission{
	"X-Amz-Grant-Read": permRead, "X-Amz-Grant-Write": permWrite, "X-Amz-Grant-Read-Acp": permReadACP,
	"X-Amz-Grant-Write-Acp": permWriteACP, "X-Amz-Grant-Full-Control": permFullControl,
}

// requestACL is the ACL that a request's headers ask for; given says whether
// they ask for one.
func (q *request) requestACL(owner, bucketOwner string) (grants []grant, given bool, err error) {
	if name := q.param("X-Amz-Acl"); name != "" {
		grants, err = canned(name, owner, bucketOwner)
		return grants, true, err
	}
	for _, h := range []string{"X-Amz-Grant-Read", "X-Amz-Grant-Write", "X-Amz-Grant-Read-Acp", "X-Amz-Grant-Write-Acp", "X-Amz-Grant-Full-Control"} {
		for _, v := range q.r.Header.Values(h) {
			for _, one := range strings.Split(v, ",") {
				kind, who, ok := strings.Cut(strings.TrimSpace(one), "=")
				if !ok {
					return nil, true, failWith("InvalidArgument", "A grant is malformed.")
				}
				g, err := q.grantee(strings.ToLower(kind), strings.Trim(who, `"`))
				if err != nil {
					return nil, true, err
				}
				g.Permission = grantHeaders[h]
				grants = append(grants, g)
			}
		}
	}
	if len(grants) > 0 {
		return grants, true, nil
	}
	grants, err = canned("private", owner, bucketOwner)
	return grants, false, err
}

func (q *request) grantee(kind, who string) (grant, error) {
	var u *User
	var err error
	switch kind {
	case "uri":
		if who != groupAll && who != groupAuth {
			return grant{}, failWith("InvalidArgument", "No such group.")
		}
		return grant{Group: who}, nil
	case "emailaddress":
		if u, err = q.g.opt.Users.ByEmail(q.ctx, who); errors.Is(err, ErrNoUser) {
			return grant{}, fail("UnresolvableGrantByEmailAddress")
		}
	case "id":
		if u, err = q.g.opt.Users.ByID(q.ctx, who); errors.Is(err, ErrNoUser) {
			return grant{}, failWith("InvalidArgument", "Invalid id.")
		}
	default:
		return grant{}, failWith("InvalidArgument", "No such kind of grantee.")
	}
	if err != nil {
		return grant{}, err
	}
	return grant{User: u.ID}, nil
}

// bodyACL is the ACL in a request's body.
func (q *request) bodyACL(owner string) ([]grant, error) {
	b, err := q.document()
	if err != nil {
		return nil, err
	}
	var doc struct {
		Owner  *ownerXML `xml:"Owner"`
		Grants []struct {
			Grantee struct {
				Type         string `xml:"type,attr"`
				ID           string
				URI          string
				EmailAddress string
			}
			Permission permission
		} `xml:"AccessControlList>Grant"`
	}
	if len(b) == 0 || xml.Unmarshal(b, &doc) != nil {
		return nil, fail("MalformedACLError")
	}
	if doc.Owner != nil && doc.Owner.ID != "" && doc.Owner.ID != owner {
		return nil, fail("AccessDenied")
	}
	grants := []grant{}
	for _, g := range doc.Grants {
		if !slices.Contains([]permission{permRead, permWrite, permReadACP, permWriteACP, permFullControl}, g.Permission) {
			return nil, fail("MalformedACLError")
		}
		kind, who := "id", g.Grantee.ID
		switch {
		case g.Grantee.URI != "":
			kind, who = "uri", g.Grantee.URI
		case g.Grantee.EmailAddress != "":
			kind, who = "emailaddress", g.Grantee.EmailAddress
		}
		one, err := q.grantee(kind, who)
		if err != nil {
			return nil, err
		}
		one.Permission = g.Permission
		grants = append(grants, one)
	}
	return grants, nil
}

// newACL is the ACL of a request that sets one.
func (q *request) newACL(owner string) (grants []grant, err error) {
	grants, given, err := q.requestACL(owner, q.b.rec.Owner)
	if err != nil {
		return nil, err
	}
	if !given {
		if grants, err = q.bodyACL(owner); err != nil {
			return nil, err
		}
	}
	return grants, q.checkPublic(grants)
}

// checkPublic refuses what the bucket's settings do.
func (q *request) checkPublic(grants []grant) error {
	if q.b != nil && q.b.rec.Block != nil && q.b.rec.Block.BlockPublicACLs && slices.ContainsFunc(grants, func(g grant) bool { return g.Group != "" }) {
		return fail("AccessDenied")
	}
	return nil
}

func (q *request) getBucketACL() error { return q.answerACL(q.b.rec.Owner, q.b.rec.Grants) }

func (q *request) putBucketACL() error {
	if q.b.rec.Ownership == ownerEnforced {
		return failWith("AccessControlListNotSupported", "The bucket does not allow ACLs.")
	}
	grants, err := q.newACL(q.b.rec.Owner)
	if err != nil {
		return err
	}
	q.b.rec.Grants = grants
	if err := q.b.save(q.ctx); err != nil {
		return err
	}
	return q.done(http.StatusOK)
}

func (q *request) getObjectACL() error {
	v, err := q.theVersion()
	if err != nil {
		return err
	}
	if err := q.mayObject(versionAction(q, "s3:GetObjectAcl"), v, permReadACP); err != nil {
		return err
	}
	q.versionHeader(v)
	return q.answerACL(v.Owner, v.acl())
}

// acl is the object's; a file that came by another way is its owner's alone.
func (v *version) acl() []grant {
	if v.Grants == nil {
		return []grant{{User: v.Owner, Permission: permFullControl}}
	}
	return v.Grants
}

func (q *request) putObjectACL() error {
	v, err := q.theVersion()
	if err != nil {
		return err
	}
	if err := q.mayObject(versionAction(q, "s3:PutObjectAcl"), v, permWriteACP); err != nil {
		return err
	}
	if q.b.rec.Ownership == ownerEnforced {
		return failWith("AccessControlListNotSupported", "The bucket does not allow ACLs.")
	}
	grants, err := q.newACL(v.Owner)
	if err != nil {
		return err
	}
	v.Grants = grants
	if err := q.b.saveObject(q.ctx, v); err != nil {
		return err
	}
	q.versionHeader(v)
	return q.done(http.StatusOK)
}

// versionAction is the action's name when a version is meant.
func versionAction(q *request, action string) string {
	if !q.query.Has("versionId") {
		return action
	}
	verb, what, _ := strings.Cut(action, "Object")
	return verb + "ObjectVersion" + what
}
