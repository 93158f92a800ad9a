package s3

import (
	"encoding/base64"
	"hash/crc32"
	"math/bits"
)

// joined works out the CRC of bytes from those of their parts, without the bytes:
// a CRC is a remainder of polynomials over GF(2), so that of A followed by n bytes
// of B is that of A times x^8n, plus that of B.
type joined struct {
	poly uint64 // reversed, as the CRCs that S3 has are
	size int    // bytes of a CRC
	crc  uint64
}

// newJoined is of no use for checksums that are no CRCs.
func newJoined(algorithm string) *joined {
	switch algorithm {
	case "CRC32":
		return &joined{poly: crc32.IEEE, size: 4}
	case "CRC32C":
		return &joined{poly: crc32.Castagnoli, size: 4}
	case "CRC64NVME":
		return &joined{poly: nvmePoly, size: 8}
	}
	return &joined{}
}

// add appends n bytes that have the CRC sum, in the order that hash.Hash gives it.
func (j *joined) add(sum []byte, n uint64) {
	if len(sum) != j.size || j.size == 0 {
		return
	}
	var crc uint64
	for _, b := range sum {
		crc = crc<<8 | uint64(b)
	}
	j.crc = j.times(j.crc, j.shift(n)) ^ crc
}

func (j *joined) value() string {
	b := make([]byte, j.size)
	for i := range b {
		b[i] = byte(j.crc >> (8 * (j.size - 1 - i)))
	}
	return base64.StdEncoding.EncodeToString(b)
}

// one is the polynomial 1: the highest bit is that of the lowest power.
func (j *joined) one() uint64 { return 1 << (8*j.size - 1) }

// times multiplies two polynomials modulo poly.
func (j *joined) times(a, b uint64) (p uint64) {
	for bit := j.one(); bit != 0; bit >>= 1 {
		if a&bit != 0 {
			p ^= b
		}
		b = b>>1 ^ b&1*j.poly
	}
	return p
}

// shift is x^8n modulo poly.
func (j *joined) shift(n uint64) uint64 {
	p, power := j.one(), j.one()>>8
	for range bits.Len64(n) {
		if n&1 != 0 {
			p = j.times(p, power)
		}
		power, n = j.times(power, power), n>>1
	}
	return p
}
