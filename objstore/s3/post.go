package s3

import (
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
)

// A browser puts an object by a form: its fields, a policy that says which
// fields may be, and a signature of the policy.

const maxFormField = 64 << 10

// postObject takes a form. What S3 has for headers elsewhere are its fields.
func (q *request) postObject() error {
	kind, params, err := mime.ParseMediaType(q.r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" {
		return failWith("MalformedPOSTRequest", "The body must be multipart/form-data.")
	}
	fields, file, err := readForm(multipart.NewReader(q.r.Body, params["boundary"]))
	if err != nil {
		return err
	}
	if q.b, err = q.g.loadBucket(q.ctx, q.bucket); err != nil {
		return err
	}
	key, ok := fields["key"]
	if !ok || key == "" {
		return failWith("InvalidArgument", "Bucket POST must contain a field named 'key'.")
	}
	q.key = strings.ReplaceAll(key, "${filename}", path.Base("/"+strings.ReplaceAll(file.FileName(), `\`, "/")))
	if len(q.key) > maxKey {
		return fail("KeyTooLongError")
	}
	fields["key"] = q.key
	low, high := int64(0), int64(maxPut)
	if fields["policy"] != "" {
		if q.user, err = q.formUser(fields); err != nil {
			return err
		}
		if low, high, err = q.checkForm(fields); err != nil {
			return err
		}
	} else if fields["signature"] != "" || fields["x-amz-signature"] != "" || fields["awsaccesskeyid"] != "" {
		return failWith("InvalidArgument", "A signature without a policy.")
	}
	q.fieldsToHeaders(fields)
	if err := q.mayWrite("s3:PutObject", q.key, q.tagExtras()); err != nil {
		return err
	}
	v, err := q.putForm(file, low, high)
	if err != nil {
		return err
	}
	q.putHeaders(v)
	return q.answerForm(fields, v)
}

// readForm reads a form's fields, up to the file, which comes last.
func readForm(form *multipart.Reader) (fields map[string]string, file *multipart.Part, err error) {
	fields = map[string]string{}
	for total := 0; ; {
		p, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return nil, nil, failWith("InvalidArgument", "POST requires exactly one file upload per request.")
		}
		if err != nil {
			return nil, nil, fail("MalformedPOSTRequest")
		}
		name := strings.ToLower(p.FormName())
		if name == "file" {
			return fields, p, nil
		}
		b, err := io.ReadAll(io.LimitReader(p, maxFormField+1))
		total += len(b)
		if err != nil || total > maxFormField {
			return nil, nil, fail("MalformedPOSTRequest")
		}
		fields[name] = string(b)
	}
}

// putForm makes the object of a form's file, of low to high bytes.
func (q *request) putForm(file io.Reader, low, high int64) (*version, error) {
	o, err := q.newObject()
	if err != nil {
		return nil, err
	}
	body := &body{r: &sized{file, high}, size: -1, patience: q.patience}
	if body.algorithm, body.value, err = wantedSum(q.r.Header); err != nil {
		return nil, err
	}
	body.sum = newHash(body.algorithm)
	p, err := q.b.begin(q.ctx, q.key, "")
	if err != nil {
		return nil, err
	}
	defer p.f.Release()
	if err := p.fill(q.ctx, body, maxPut); err != nil {
		return nil, err
	}
	if int64(p.off) < low {
		return nil, fail("EntityTooSmall")
	}
	if err := body.finish(); err != nil {
		return nil, err
	}
	if err := q.checkQuota(p.off); err != nil {
		return nil, err
	}
	o.ETag = p.dgst.etag()
	if body.sum != nil {
		o.Sum = &checksum{Algorithm: body.algorithm, Value: body.checksum()}
	}
	return q.commit(q.key, o, p, conditions{size: -1})
}

// sized refuses more than is allowed.
type sized struct {
	r    io.Reader
	left int64
}

func (s *sized) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if s.left -= int64(n); s.left < 0 {
		return 0, fail("EntityTooLarge")
	}
	return n, err
}

// fieldsToHeaders puts the form's fields where the rest looks for them.
func (q *request) fieldsToHeaders(fields map[string]string) {
	h := http.Header{}
	for name, v := range fields {
		switch {
		case name == "acl":
			h.Set("X-Amz-Acl", v)
		case name == "tagging":
			h.Set("X-Amz-Tagging", formTags(v))
		case strings.HasPrefix(name, "x-amz-meta-"), strings.HasPrefix(name, "x-amz-checksum-"), strings.HasPrefix(name, "x-amz-server-side-"),
			name == "x-amz-storage-class", name == "x-amz-website-redirect-location":
			h.Set(name, v)
		}
		for _, k := range kept {
			if strings.EqualFold(k, name) {
				h.Set(k, v)
			}
		}
	}
	q.r = q.r.Clone(q.ctx)
	q.r.Header = h
}

// formTags turns the XML of a form's tags into a header's text.
func formTags(s string) string {
	var x tagsXML
	if xml.Unmarshal([]byte(s), &x) != nil {
		return s
	}
	v := url.Values{}
	for _, t := range x.Tags {
		v.Add(t.Key, t.Value)
	}
	return v.Encode()
}

// formUser is who signed the form's policy.
func (q *request) formUser(fields map[string]string) (*User, error) {
	if fields["x-amz-algorithm"] == v4Algorithm {
		cred, err := parseCredential(fields["x-amz-credential"])
		if err != nil {
			return nil, err
		}
		user, secret, err := q.g.lookKey(q.ctx, cred.key)
		if err != nil {
			return nil, err
		}
		if !same(fmt.Sprintf("%x", hmacSHA256(signingKey(secret, cred), fields["policy"])), fields["x-amz-signature"]) {
			return nil, fail("SignatureDoesNotMatch")
		}
		return user, nil
	}
	key, ok := fields["awsaccesskeyid"]
	if !ok || fields["signature"] == "" {
		return nil, failWith("InvalidArgument", "The form's signature is missing.")
	}
	user, secret, err := q.g.lookKey(q.ctx, key)
	if err != nil {
		return nil, err
	}
	if !same(signV2(secret, fields["policy"]), fields["signature"]) {
		return nil, fail("SignatureDoesNotMatch")
	}
	return user, nil
}

// checkForm checks the fields against the policy, and returns how large the
// file may be.
func (q *request) checkForm(fields map[string]string) (low, high int64, err error) {
	raw, err := base64.StdEncoding.DecodeString(fields["policy"])
	if err != nil {
		return 0, 0, fail("InvalidPolicyDocument")
	}
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(raw, &doc); err != nil {
		return 0, 0, failWith("InvalidPolicyDocument", "Invalid Policy: Invalid JSON.")
	}
	var expires string
	var conds []json.RawMessage
	if json.Unmarshal(doc["expiration"], &expires) != nil || json.Unmarshal(doc["conditions"], &conds) != nil || len(conds) == 0 {
		return 0, 0, failWith("InvalidPolicyDocument", "Invalid Policy: expiration and conditions are required.")
	}
	t, err := time.Parse(time.RFC3339, expires)
	if err != nil {
		return 0, 0, failWith("InvalidPolicyDocument", "Invalid Policy: the expiration is malformed.")
	}
	if q.now.After(t) {
		return 0, 0, failWith("AccessDenied", "Invalid according to Policy: Policy expired.")
	}
	low, high = 0, maxPut
	fields["bucket"] = q.bucket
	allowed := map[string]bool{"policy": true, "signature": true, "x-amz-signature": true, "awsaccesskeyid": true, "file": true, "bucket": true}
	for _, c := range conds {
		if err := formCondition(c, fields, allowed, &low, &high); err != nil {
			return 0, 0, err
		}
	}
	for name := range fields {
		if !allowed[name] && !strings.HasPrefix(name, "x-ignore-") && !strings.HasPrefix(name, "x-amz-checksum-") {
			return 0, 0, failWith("AccessDenied", "Invalid according to Policy: Extra input fields: "+name)
		}
	}
	return low, high, nil
}

func formCondition(c json.RawMessage, fields map[string]string, allowed map[string]bool, low, high *int64) error {
	denied := failWith("AccessDenied", "Invalid according to Policy: Policy Condition failed: "+string(c))
	var exact map[string]string
	if json.Unmarshal(c, &exact) == nil {
		if len(exact) == 0 {
			return fail("InvalidPolicyDocument")
		}
		for name, want := range exact {
			name = strings.ToLower(name)
			allowed[name] = true
			if fields[name] != want {
				return denied
			}
		}
		return nil
	}
	var list []any
	if err := json.Unmarshal(c, &list); err != nil || len(list) != 3 {
		return fail("InvalidPolicyDocument")
	}
	op, _ := list[0].(string)
	if strings.EqualFold(op, "content-length-range") {
		var ok1, ok2 bool
		*low, ok1 = formNumber(list[1])
		*high, ok2 = formNumber(list[2])
		if !ok1 || !ok2 || *low < 0 || *high < *low {
			return fail("InvalidPolicyDocument")
		}
		return nil
	}
	field, ok1 := list[1].(string)
	want, ok2 := list[2].(string)
	name, dollar := strings.CutPrefix(strings.ToLower(field), "$")
	if !ok1 || !ok2 || !dollar {
		return fail("InvalidPolicyDocument")
	}
	allowed[name] = true
	got, there := fields[name]
	switch strings.ToLower(op) {
	case "eq":
		if !there || got != want {
			return denied
		}
	case "starts-with":
		if !there && want != "" || !strings.HasPrefix(got, want) {
			return denied
		}
	default:
		return fail("InvalidPolicyDocument")
	}
	return nil
}

func formNumber(v any) (int64, bool) {
	switch v := v.(type) {
	case float64:
		return int64(v), v == float64(int64(v))
	case string:
		n, err := strconv.ParseInt(v, 10, 64)
		return n, err == nil
	}
	return 0, false
}

type postXML struct {
	XMLName  xml.Name `xml:"PostResponse"`
	Location string
	Bucket   string
	Key      string
	ETag     string
}

func (q *request) answerForm(fields map[string]string, v *version) error {
	to := fields["success_action_redirect"]
	if to == "" {
		to = fields["redirect"]
	}
	if u, err := url.Parse(to); to != "" && err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += "bucket=" + url.QueryEscape(q.bucket) + "&key=" + url.QueryEscape(q.key) + "&etag=" + url.QueryEscape(`"`+v.ETag+`"`)
		q.w.Header().Set("Location", u.String())
		return q.done(http.StatusSeeOther)
	}
	location := "http://" + q.r.Host + "/" + q.bucket + "/" + url.PathEscape(q.key)
	q.w.Header().Set("Location", location)
	switch fields["success_action_status"] {
	case "200":
		return q.done(http.StatusOK)
	case "201":
		return q.answerXML(http.StatusCreated, &postXML{Location: location, Bucket: q.bucket, Key: q.key, ETag: `"` + v.ETag + `"`})
	}
	return q.done(http.StatusNoContent)
}
