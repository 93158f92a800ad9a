package s3

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"net/http"
	"slices"
	"strings"

	"pillarbox/objstore"
)

const emptyMD5 = "d41d8cd98f00b204e9800998ecf8427e"

// checksum is one that a client chose for an object.
type checksum struct {
	Algorithm string `json:"a"`
	Value     string `json:"v"` // base64; of a composite one with "-N"
	Composite bool   `json:"c,omitempty"`
}

func (c *checksum) kind() string {
	if c.Composite {
		return "COMPOSITE"
	}
	return "FULL_OBJECT"
}

// sumsOf is where S3's documents have the checksum of a body: in the field of its algorithm.
type sumsOf struct {
	ChecksumCRC32     string `xml:",omitempty"`
	ChecksumCRC32C    string `xml:",omitempty"`
	ChecksumCRC64NVME string `xml:",omitempty"`
	ChecksumSHA1      string `xml:",omitempty"`
	ChecksumSHA256    string `xml:",omitempty"`
}

func (x *sumsOf) setSum(s *checksum) {
	if s == nil {
		return
	}
	switch s.Algorithm {
	case "CRC32":
		x.ChecksumCRC32 = s.Value
	case "CRC32C":
		x.ChecksumCRC32C = s.Value
	case "CRC64NVME":
		x.ChecksumCRC64NVME = s.Value
	case "SHA1":
		x.ChecksumSHA1 = s.Value
	case "SHA256":
		x.ChecksumSHA256 = s.Value
	}
}

// sum is the one that a document has.
func (x *sumsOf) sum() string {
	return x.ChecksumCRC32 + x.ChecksumCRC32C + x.ChecksumCRC64NVME + x.ChecksumSHA1 + x.ChecksumSHA256
}

// algorithms are the checksums that current SDKs send.
var algorithms = []string{"CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"}

// nvme is the polynomial of CRC-64/NVME, reversed.
var nvme = crc64.MakeTable(nvmePoly)

const nvmePoly = 0x9a6c9329ac4bc9b5

func newHash(algorithm string) hash.Hash {
	switch algorithm {
	case "CRC32":
		return crc32.NewIEEE()
	case "CRC32C":
		return crc32.New(crc32.MakeTable(crc32.Castagnoli))
	case "CRC64NVME":
		return crc64.New(nvme)
	case "SHA1":
		return sha1.New()
	case "SHA256":
		return sha256.New()
	}
	return nil
}

func sumHeader(algorithm string) string { return "X-Amz-Checksum-" + algorithm }

// wantedSum is the checksum that a request announces: with its value, with a
// trailer to come, or only by its algorithm.
func wantedSum(h http.Header) (algorithm, value string, err error) {
	for _, a := range algorithms {
		if v := h.Get(sumHeader(a)); v != "" {
			if algorithm != "" {
				return "", "", failWith("InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
			}
			if raw, err := base64.StdEncoding.DecodeString(v); err != nil || len(raw) != newHash(a).Size() {
				return "", "", failWith("BadDigest", "Value for x-amz-checksum-"+strings.ToLower(a)+" header is invalid.")
			}
			algorithm, value = a, v
		}
	}
	named := h.Get("X-Amz-Sdk-Checksum-Algorithm")
	if named == "" {
		named = h.Get("X-Amz-Checksum-Algorithm")
	}
	if algorithm == "" && named != "" {
		algorithm = strings.ToUpper(named)
		if !slices.Contains(algorithms, algorithm) {
			return "", "", failWith("InvalidRequest", "Checksum algorithm provided is unsupported.")
		}
	}
	for _, t := range strings.Split(h.Get("X-Amz-Trailer"), ",") {
		for _, a := range algorithms {
			if strings.EqualFold(strings.TrimSpace(t), sumHeader(a)) {
				algorithm = a
			}
		}
	}
	return algorithm, value, nil
}

// digest sums what passes.
type digest struct {
	md5 hash.Hash
	sum hash.Hash // nil: none
}

func newDigest(algorithm string) *digest { return &digest{md5.New(), newHash(algorithm)} }

func (d *digest) Write(p []byte) (int, error) {
	d.md5.Write(p)
	if d.sum != nil {
		d.sum.Write(p)
	}
	return len(p), nil
}

func (d *digest) etag() string { return hex.EncodeToString(d.md5.Sum(nil)) }

func (d *digest) checksum() string {
	if d.sum == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(d.sum.Sum(nil))
}

// copyBuffer is how much of a body is in memory at a time.
const copyBuffer = 256 << 10

// readFile passes a range of a file to fn, in pieces that fn must not keep.
func readFile(ctx context.Context, f File, off, n uint64, fn func([]byte) error) error {
	buf := make([]byte, min(n, copyBuffer))
	for n > 0 {
		got, err := f.Read(ctx, buf[:min(n, uint64(len(buf)))], off)
		if err != nil {
			return err
		}
		if got == 0 {
			return objstore.Stale // it became shorter
		}
		if err := fn(buf[:got]); err != nil {
			return err
		}
		off, n = off+uint64(got), n-uint64(got)
	}
	return nil
}

// md5 sums a file.
func (b *bucket) md5(ctx context.Context, ino objstore.Ino) (string, error) {
	f, err := b.ns.Open(ctx, ino)
	if err != nil {
		return "", err
	}
	defer f.Release()
	sum := md5.New()
	buf := make([]byte, copyBuffer)
	for off := uint64(0); ; {
		n, err := f.Read(ctx, buf, off)
		if err != nil {
			return "", err
		}
		if n == 0 {
			return hex.EncodeToString(sum.Sum(nil)), nil
		}
		sum.Write(buf[:n])
		off += uint64(n)
	}
}
