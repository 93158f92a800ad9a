package s3

import (
	"encoding/xml"
	"net/http"
	"strings"
	"time"
)

const (
	governance = "GOVERNANCE"
	compliance = "COMPLIANCE"
)

// lockConfig is a bucket's object lock, and what new objects get by default.
type lockConfig struct {
	Mode        string `json:"mode,omitempty"`
	Days, Years int    `json:",omitempty"`
}

type lockConfigXML struct {
	XMLName xml.Name     `xml:"ObjectLockConfiguration"`
	Xmlns   string       `xml:"xmlns,attr,omitempty"`
	Enabled string       `xml:"ObjectLockEnabled"`
	Rule    *lockRuleXML `xml:"Rule,omitempty"`
}

type lockRuleXML struct {
	Default struct {
		Mode  string
		Days  *int `xml:",omitempty"`
		Years *int `xml:",omitempty"`
	} `xml:"DefaultRetention"`
}

func (q *request) getLockConfig() error {
	l := q.b.rec.Lock
	if l == nil {
		return fail("ObjectLockConfigurationNotFoundError")
	}
	x := lockConfigXML{Xmlns: xmlns, Enabled: "Enabled"}
	if l.Mode != "" {
		x.Rule = &lockRuleXML{}
		x.Rule.Default.Mode = l.Mode
		if l.Days > 0 {
			x.Rule.Default.Days = &l.Days
		} else {
			x.Rule.Default.Years = &l.Years
		}
	}
	return q.answerXML(http.StatusOK, &x)
}

func (q *request) putLockConfig() error {
	var x lockConfigXML
	if err := q.parseXML(&x); err != nil {
		return err
	}
	if x.Enabled != "Enabled" {
		return fail("MalformedXML")
	}
	l := lockConfig{}
	if x.Rule != nil {
		d := x.Rule.Default
		switch {
		case d.Mode != governance && d.Mode != compliance, (d.Days == nil) == (d.Years == nil):
			return fail("MalformedXML")
		case d.Days != nil && *d.Days <= 0, d.Years != nil && *d.Years <= 0:
			return fail("InvalidRetentionPeriod")
		}
		l.Mode = d.Mode
		if d.Days != nil {
			l.Days = *d.Days
		} else {
			l.Years = *d.Years
		}
	}
	if q.b.rec.Versioning != "Enabled" {
		return failWith("InvalidBucketState", "Versioning must be 'Enabled' on the bucket to apply an Object Lock configuration.")
	}
	q.b.rec.Lock = &l
	return q.saved(http.StatusOK)
}

// lockHeaders takes what a request says of a new object's lock, or the bucket's
// default.
func (q *request) lockHeaders(o *object) error {
	mode, until := q.r.Header.Get("X-Amz-Object-Lock-Mode"), q.r.Header.Get("X-Amz-Object-Lock-Retain-Until-Date")
	hold := q.r.Header.Get("X-Amz-Object-Lock-Legal-Hold")
	if q.b.rec.Lock == nil {
		if mode != "" || until != "" || hold != "" {
			return failWith("InvalidRequest", "Bucket is missing Object Lock Configuration.")
		}
		return nil
	}
	switch {
	case (mode == "") != (until == ""):
		return failWith("InvalidArgument", "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied.")
	case mode != "":
		t, err := time.Parse(time.RFC3339, until)
		if err != nil || mode != governance && mode != compliance {
			return failWith("InvalidArgument", "The lock's mode or date is not valid.")
		}
		if !t.After(q.now) {
			return failWith("InvalidArgument", "The retain until date must be in the future.")
		}
		o.Mode, o.Until = mode, t
	case q.b.rec.Lock.Mode != "":
		o.Mode, o.Until = q.b.rec.Lock.Mode, q.now.AddDate(q.b.rec.Lock.Years, 0, q.b.rec.Lock.Days)
	}
	switch hold {
	case "", "OFF":
	case "ON":
		o.Hold = true
	default:
		return failWith("InvalidArgument", "Legal Hold must be either of 'ON' or 'OFF'.")
	}
	return nil
}

// mayDestroy refuses to destroy a version that is locked.
func (q *request) mayDestroy(v *version) error {
	if v.Hold {
		return failWith("AccessDenied", "The object is under a legal hold.")
	}
	if v.Mode == "" || !v.Until.After(q.now) {
		return nil
	}
	if v.Mode == governance && q.bypass(v) {
		return nil
	}
	return failWith("AccessDenied", "The object is locked until "+v.Until.UTC().Format(xmlTime)+".")
}

// bypass says whether a request asks to pass over governance, and may.
func (q *request) bypass(v *version) bool {
	return strings.EqualFold(q.r.Header.Get("X-Amz-Bypass-Governance-Retention"), "true") &&
		q.may("s3:BypassGovernanceRetention", arnPrefix+q.b.name+"/"+v.key, ownerOnly, q.b.rec.Owner, nil, nil) == nil
}

type retentionXML struct {
	XMLName xml.Name `xml:"Retention"`
	Xmlns   string   `xml:"xmlns,attr,omitempty"`
	Mode    string
	Until   string `xml:"RetainUntilDate"`
}

// locked is the version of a request about its lock.
func (q *request) locked(action string, perm permission) (*version, error) {
	if q.b.rec.Lock == nil {
		return nil, failWith("InvalidRequest", "Bucket is missing Object Lock Configuration.")
	}
	v, err := q.theVersion()
	if err != nil {
		return nil, err
	}
	return v, q.mayObject(action, v, perm)
}

func (q *request) getRetention() error {
	v, err := q.locked("s3:GetObjectRetention", permRead)
	if err != nil {
		return err
	}
	if v.Mode == "" {
		return fail("NoSuchObjectLockConfiguration")
	}
	return q.answerXML(http.StatusOK, &retentionXML{Xmlns: xmlns, Mode: v.Mode, Until: v.Until.UTC().Format(xmlTime)})
}

func (q *request) putRetention() error {
	v, err := q.locked("s3:PutObjectRetention", permWrite)
	if err != nil {
		return err
	}
	var x retentionXML
	if err := q.parseXML(&x); err != nil {
		return err
	}
	var until time.Time
	if x.Mode != "" || x.Until != "" {
		if until, err = time.Parse(time.RFC3339, x.Until); err != nil || x.Mode != governance && x.Mode != compliance {
			return fail("MalformedXML")
		}
	}
	weaker := until.Before(v.Until) || v.Mode == compliance && x.Mode != compliance || v.Mode == governance && x.Mode == ""
	change := weaker || v.Mode == governance && x.Mode == compliance
	if v.Mode != "" && v.Until.After(q.now) && change && !(v.Mode == governance && q.bypass(v)) {
		return failWith("AccessDenied", "The retention may only become longer.")
	}
	v.Mode, v.Until = x.Mode, until
	if err := q.b.saveObject(q.ctx, v); err != nil {
		return err
	}
	return q.done(http.StatusOK)
}

type holdXML struct {
	XMLName xml.Name `xml:"LegalHold"`
	Xmlns   string   `xml:"xmlns,attr,omitempty"`
	Status  string
}

func (q *request) getLegalHold() error {
	v, err := q.locked("s3:GetObjectLegalHold", permRead)
	if err != nil {
		return err
	}
	x := holdXML{Xmlns: xmlns, Status: "OFF"}
	if v.Hold {
		x.Status = "ON"
	}
	return q.answerXML(http.StatusOK, &x)
}

func (q *request) putLegalHold() error {
	v, err := q.locked("s3:PutObjectLegalHold", permWrite)
	if err != nil {
		return err
	}
	var x holdXML
	if err := q.parseXML(&x); err != nil {
		return err
	}
	if x.Status != "ON" && x.Status != "OFF" {
		return fail("MalformedXML")
	}
	v.Hold = x.Status == "ON"
	if err := q.b.saveObject(q.ctx, v); err != nil {
		return err
	}
	return q.done(http.StatusOK)
}
