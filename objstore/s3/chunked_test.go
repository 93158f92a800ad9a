package s3

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// The example of "Signature Calculations for the Authorization Header:
// Transferring Payload in Multiple Chunks" in the S3 API reference.
func exampleSigner() *chunkSigner {
	c := credential{"AKIAIOSFODNN7EXAMPLE", "20130524", "us-east-1", "s3"}
	return newChunkSigner("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", c, time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC),
		"4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9")
}

func exampleBody(first string) string {
	return "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n" + first +
		"\r\n400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n" + strings.Repeat("a", 1024) +
		"\r\n0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
}

func TestChunkedSigned(t *testing.T) {
	good := strings.Repeat("a", 65536)
	got, err := io.ReadAll(newChunkedReader(strings.NewReader(exampleBody(good)), exampleSigner(), false))
	if err != nil || string(got) != good+strings.Repeat("a", 1024) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	bad := good[:1000] + "b" + good[1001:]
	_, err = io.ReadAll(newChunkedReader(strings.NewReader(exampleBody(bad)), exampleSigner(), false))
	if e := toError(err); e.Code != "SignatureDoesNotMatch" {
		t.Errorf("changed: %v", err)
	}
	whole := exampleBody(good)
	for _, n := range []int{0, 10, 90, 1000, 65536 + 90, len(whole) - 100} {
		_, err = io.ReadAll(newChunkedReader(strings.NewReader(whole[:n]), exampleSigner(), false))
		if e := toError(err); err == nil || e.Code != "IncompleteBody" {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

func TestChunkedTrailer(t *testing.T) {
	c := newChunkedReader(strings.NewReader("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"), nil, true)
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "hello" || c.trailer.Get("X-Amz-Checksum-Crc32") != "NhCmhg==" {
		t.Fatalf("%q, %v, %v", got, err, c.trailer)
	}
	for _, s := range []string{
		"5\r\nhelloo\r\n0\r\n\r\n", "zz\r\n", "ffffffffffffffffffff\r\n", "-1\r\n", "0\r\nnothing\r\n\r\n", strings.Repeat("x", 10000),
		"0\r\n" + strings.Repeat("a:b\r\n", 100),
	} {
		if _, err := io.ReadAll(newChunkedReader(strings.NewReader(s), nil, true)); err == nil {
			t.Errorf("%.40q is taken", s)
		}
	}
}

// FuzzChunked: whatever comes, nothing but what was sent comes out, and decoding ends.
func FuzzChunked(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"), true)
	f.Add([]byte(exampleBody("short")), false)
	f.Fuzz(func(t *testing.T, in []byte, trailing bool) {
		got, err := io.ReadAll(newChunkedReader(bytes.NewReader(in), nil, trailing))
		if len(got) > len(in) {
			t.Fatalf("%d bytes of %d", len(got), len(in))
		}
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("%v", err)
		}
		if len(got) > 0 && len(got) < 1<<16 && err == nil {
			again := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(got), got)
			if b, err := io.ReadAll(newChunkedReader(strings.NewReader(again), nil, false)); err != nil || !bytes.Equal(b, got) {
				t.Fatalf("%q, %v", b, err)
			}
		}
	})
}
