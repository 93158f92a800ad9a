package s3

import (
	"encoding/hex"
	"testing"
)

func TestPolicy(t *testing.T) {
	doc := `{"Version": "2012-10-17", "Statement": [
		{"Effect": "Allow", "Principal": "*", "Action": "s3:Get*", "Resource": "arn:aws:s3:::b/pub/*"},
		{"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/alice", "bob"]}, "Action": ["s3:PutObject"], "Resource": ["arn:aws:s3:::b/*"],
		 "Condition": {"StringEquals": {"s3:x-amz-acl": "private"}}},
		{"Effect": "Deny", "Principal": {"AWS": "*"}, "NotAction": "s3:PutObject", "Resource": "arn:aws:s3:::b/secret*"}]}`
	p, err := parsePolicy([]byte(doc))
	if err != nil || p.check("b") != nil || p.check("c") == nil {
		t.Fatal(err)
	}
	private := func(key string) []string {
		if key == "s3:x-amz-acl" {
			return []string{"private"}
		}
		return nil
	}
	none := func(string) []string { return nil }
	for _, c := range []struct {
		user, action, key string
		value             func(string) []string
		want              verdict
	}{
		{"", "s3:GetObject", "pub/x", none, allowed},
		{"", "s3:getobjectacl", "pub/x", none, allowed},
		{"", "s3:GetObject", "x", none, undecided},
		{"alice", "s3:PutObject", "x", private, allowed},
		{"bob", "s3:PutObject", "secret", private, allowed},
		{"bob", "s3:PutObject", "x", none, undecided},
		{"eve", "s3:PutObject", "x", private, undecided},
		{"alice", "s3:GetObject", "secret/x", private, denied},
		{"", "s3:DeleteObject", "secrets", none, denied},
	} {
		if got := p.decide(c.user, c.action, arnPrefix+"b/"+c.key, c.value); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	for _, bad := range []string{``, `{}`, `[]`, `{"Statement": []}`, `{"Statement": [{"Effect": "Maybe"}]}`, `{"Unknown": 1, "Statement": []}`,
		`{"Statement": {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::other/*"}}`,
		`{"Statement": {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::b/*", "Condition": {"Sounds": {"x": "y"}}}}`} {
		if p, err := parsePolicy([]byte(bad)); err == nil && p.check("b") == nil {
			t.Errorf("taken: %s", bad)
		}
	}
}

func TestConditions(t *testing.T) {
	for _, c := range []struct {
		op, want, got string
		holds         bool
	}{
		{"StringNotEquals", "a", "b", true}, {"StringNotEquals", "a", "a", false}, {"StringLike", "a*c", "abc", true},
		{"IpAddress", "10.0.0.0/8", "10.1.2.3", true}, {"IpAddress", "10.0.0.0/8", "11.1.2.3", false}, {"NotIpAddress", "10.0.0.0/8", "11.1.2.3", true},
		{"NumericLessThan", "10", "9", true}, {"NumericLessThan", "10", "x", false}, {"Bool", "true", "True", true},
		{"DateGreaterThan", "2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z", true}, {"Null", "false", "x", true}, {"Null", "true", "x", false},
	} {
		if got := holds(c.op, []string{c.want}, []string{c.got}); got != c.holds {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if holds("StringEquals", []string{"a"}, nil) || !holds("StringEqualsIfExists", []string{"a"}, nil) || !holds("Null", []string{"true"}, nil) {
		t.Error("a value that is missing")
	}
}

// FuzzPolicy: no document makes deciding panic or hang.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"Statement": {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "s3:*", "Resource": "arn:aws:s3:::b/*", "Condition": {"NullIfExists": {"x": true}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePolicy(b)
		if err != nil || p.check("b") != nil {
			return
		}
		p.public()
		p.decide("u", "s3:GetObject", arnPrefix+"b/k", func(string) []string { return []string{"1"} })
	})
}

func TestRange(t *testing.T) {
	for _, c := range []struct {
		s       string
		size    uint64
		off, n  uint64
		ok, bad bool
	}{
		{"bytes=0-4", 10, 0, 5, true, false}, {"bytes=5-", 10, 5, 5, true, false}, {"bytes=-3", 10, 7, 3, true, false},
		{"bytes=-30", 10, 0, 10, true, false}, {"bytes=0-99", 10, 0, 10, true, false}, {"bytes=10-", 10, 0, 0, false, true},
		{"bytes=0-0", 0, 0, 0, false, true}, {"bytes=-0", 10, 0, 0, false, true}, {"bytes=5-2", 10, 0, 10, false, false},
		{"bytes=0-1,3-4", 10, 0, 10, false, false}, {"lines=0-1", 10, 0, 10, false, false}, {"bytes=a-b", 10, 0, 10, false, false},
	} {
		off, n, ok, err := parseRange(c.s, c.size)
		if (err != nil) != c.bad || !c.bad && (off != c.off || n != c.n || ok != c.ok) {
			t.Errorf("%q of %d: %d %d %v %v", c.s, c.size, off, n, ok, err)
		}
	}
}

func TestChecksums(t *testing.T) {
	// The check values of the algorithms' catalogues, of "123456789".
	for algorithm, want := range map[string]string{
		"CRC32": "cbf43926", "CRC32C": "e3069283", "CRC64NVME": "ae8b14860a799888",
		"SHA1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441", "SHA256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
	} {
		h := newHash(algorithm)
		h.Write([]byte("123456789"))
		if got := hex.EncodeToString(h.Sum(nil)); got != want {
			t.Errorf("%s: %s", algorithm, got)
		}
	}
}
