// Package ec splits chunks into the shards of an erasure-coded pool and puts
// them together again: pure functions over bytes.
//
// A chunk of n bytes becomes k data shards of ceil(n/k) bytes, which one after
// the other are the chunk, padded with zeros, and m coding shards of the same
// size. What an OSD stores is a payload: a header of HeaderSize bytes, then the
// shard. Numbers are big-endian:
//
//	0   "PBEC"
//	4   version, 1
//	5   k
//	6   m
//	7   index of the shard: below k a data shard
//	8   length of the chunk in bytes
//	12  CRC-32C of the shard
//	16  zero (12 bytes)
//	28  CRC-32C of bytes 0 to 27
package ec

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/klauspost/reedsolomon"

	"pillarbox/objstore"
)

// HeaderSize is how many bytes of a payload come before the shard.
const HeaderSize = 32

const (
	magic   = "PBEC"
	version = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header says what a payload is.
type Header struct {
	K, M   int
	Index  int
	Length int    // of the chunk, in bytes
	Sum    uint32 // CRC-32C of the shard
}

// ParseHeader reads the header at the beginning of a payload. Corrupt, or
// Unsupported when a newer program wrote it.
func ParseHeader(b []byte) (Header, error) {
	switch {
	case len(b) < HeaderSize:
		return Header{}, fmt.Errorf("shard of %d bytes: %w", len(b), objstore.Corrupt)
	case string(b[:4]) != magic || binary.BigEndian.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli):
		return Header{}, fmt.Errorf("shard header: %w", objstore.Corrupt)
	case b[4] != version:
		return Header{}, fmt.Errorf("shard of version %d, this program knows %d: %w", b[4], version, objstore.Unsupported)
	}
	h := Header{
		K: int(b[5]), M: int(b[6]), Index: int(b[7]),
		Length: int(binary.BigEndian.Uint32(b[8:])), Sum: binary.BigEndian.Uint32(b[12:]),
	}
	if h.K == 0 || h.Index >= h.K+h.M || h.Length > objstore.StoredMax {
		return Header{}, fmt.Errorf("shard %d of %d+%d of a chunk of %d bytes: %w", h.Index, h.K, h.M, h.Length, objstore.Corrupt)
	}
	return h, nil
}

func (h Header) put(b []byte) {
	copy(b, magic)
	b[4], b[5], b[6], b[7] = version, byte(h.K), byte(h.M), byte(h.Index)
	binary.BigEndian.PutUint32(b[8:], uint32(h.Length))
	binary.BigEndian.PutUint32(b[12:], h.Sum)
	binary.BigEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
}

// Code codes chunks for pools of k data and m coding shards. Its methods may be
// called from any goroutine.
type Code struct {
	K, M int
	rs   reedsolomon.Encoder
}

// New makes a Code. Invalid when there is none for k and m.
func New(k, m int) (*Code, error) {
	rs, err := reedsolomon.New(k, m)
	if err != nil {
		return nil, fmt.Errorf("erasure code %d+%d: %w: %w", k, m, objstore.Invalid, err)
	}
	return &Code{K: k, M: m, rs: rs}, nil
}

// Codes keeps the codes of pools, which cost something to make. The zero value
// is ready; it may be used from any goroutine.
type Codes struct{ made sync.Map } // objstore.Coding -> *Code

// Of is the code of an erasure-coded pool. Invalid when there is none.
func (c *Codes) Of(pool *objstore.Pool) (*Code, error) {
	if code, ok := c.made.Load(*pool.Coding); ok {
		return code.(*Code), nil
	}
	code, err := New(pool.Coding.K, pool.Coding.M)
	if err != nil {
		return nil, fmt.Errorf("pool %q: %w", pool.Name, err)
	}
	c.made.Store(*pool.Coding, code)
	return code, nil
}

// ShardSize is how many bytes each shard of a chunk of n bytes has, without header.
func (c *Code) ShardSize(n int) int { return (n + c.K - 1) / c.K }

// Encode makes the payloads of a chunk, by shard index. They share no memory
// with data.
func (c *Code) Encode(data []byte) ([][]byte, error) {
	if len(data) > objstore.StoredMax {
		return nil, fmt.Errorf("a chunk of %d bytes: %w", len(data), objstore.TooBig)
	}
	payloads := c.blank(len(data))
	shards := bodies(payloads)
	for i, rest := 0, data; i < c.K; i++ {
		rest = rest[copy(shards[i], rest):]
	}
	if len(data) > 0 {
		if err := c.rs.Encode(shards); err != nil {
			return nil, fmt.Errorf("encode %d bytes as %d+%d: %w", len(data), c.K, c.M, err)
		}
	}
	for i := range payloads {
		c.seal(payloads[i], i, len(data))
	}
	return payloads, nil
}

func (c *Code) blank(length int) [][]byte {
	n := HeaderSize + c.ShardSize(length)
	all := make([]byte, (c.K+c.M)*n)
	payloads := make([][]byte, c.K+c.M)
	for i := range payloads {
		payloads[i] = all[i*n : (i+1)*n : (i+1)*n]
	}
	return payloads
}

func (c *Code) seal(payload []byte, index, length int) {
	h := Header{K: c.K, M: c.M, Index: index, Length: length, Sum: crc32.Checksum(payload[HeaderSize:], castagnoli)}
	h.put(payload)
}

func bodies(payloads [][]byte) [][]byte {
	shards := make([][]byte, len(payloads))
	for i, p := range payloads {
		if p != nil {
			shards[i] = p[HeaderSize:]
		}
	}
	return shards
}

// Part is a piece of a chunk within one data shard.
type Part struct {
	Shard    int
	From, To int // bytes of the shard
	At       int // where the piece lies in the range asked for
}

// Parts says which pieces of which data shards make up n bytes at off of a chunk
// of length bytes. Invalid when the range leaves the chunk.
func (c *Code) Parts(length, off, n int) ([]Part, error) {
	if off < 0 || n < 0 || off > length || n > length-off {
		return nil, fmt.Errorf("%d bytes at %d of a chunk of %d: %w", n, off, length, objstore.Invalid)
	}
	var parts []Part
	size := c.ShardSize(length)
	for at := 0; at < n; {
		shard, from := (off+at)/size, (off+at)%size
		to := min(size, from+n-at)
		parts = append(parts, Part{Shard: shard, From: from, To: to, At: at})
		at += to - from
	}
	return parts, nil
}

// Fill makes the missing (nil) data shards from any K others: shards, by index,
// hold the same bytes of each shard, be it a part or all. Coding shards are not
// made. Unavailable with fewer than K, Corrupt when the lengths differ.
func (c *Code) Fill(shards [][]byte) error {
	if err := c.enough(shards); err != nil {
		return err
	}
	if err := c.rs.ReconstructData(shards); err != nil {
		return fmt.Errorf("decode %d+%d: %w: %w", c.K, c.M, objstore.Corrupt, err)
	}
	return nil
}

func (c *Code) enough(shards [][]byte) error {
	have := 0
	for _, s := range shards {
		if s != nil {
			have++
		}
	}
	if len(shards) != c.K+c.M || have < c.K {
		return fmt.Errorf("%d of %d+%d shards: %w", have, c.K, c.M, objstore.Unavailable)
	}
	return nil
}

// Verify checks a whole payload against its header. Corrupt.
func Verify(payload []byte) (Header, error) {
	h, err := ParseHeader(payload)
	if err != nil {
		return h, err
	}
	if len(payload) != HeaderSize+(h.Length+h.K-1)/h.K || crc32.Checksum(payload[HeaderSize:], castagnoli) != h.Sum {
		return h, fmt.Errorf("shard %d of %d+%d: %w", h.Index, h.K, h.M, objstore.Corrupt)
	}
	return h, nil
}

// Repair makes the missing (nil) payloads of a chunk, data and coding, from any
// K others, in place. The others are verified first: Corrupt. Unavailable with
// fewer than K.
func (c *Code) Repair(payloads [][]byte) error {
	if err := c.enough(payloads); err != nil {
		return err
	}
	length := -1
	for i, p := range payloads {
		if p == nil {
			continue
		}
		h, err := Verify(p)
		if err != nil {
			return err
		}
		if length < 0 {
			length = h.Length
		}
		if h.K != c.K || h.M != c.M || h.Index != i || h.Length != length {
			return fmt.Errorf("shard %d of %d+%d of a chunk of %d bytes where %d of %d+%d, %d bytes, should be: %w",
				h.Index, h.K, h.M, h.Length, i, c.K, c.M, length, objstore.Corrupt)
		}
	}
	made := c.blank(length)
	shards := bodies(payloads)
	if length > 0 {
		for i := range shards {
			if shards[i] == nil {
				shards[i] = made[i][HeaderSize:HeaderSize] // made here, by its capacity
			}
		}
		if err := c.rs.Reconstruct(shards); err != nil {
			return fmt.Errorf("repair a chunk of %d+%d: %w", c.K, c.M, err)
		}
	}
	for i, p := range payloads {
		if p == nil {
			payloads[i] = made[i]
			c.seal(payloads[i], i, length)
		}
	}
	return nil
}

// Decode returns the chunk that payloads, by shard index, are of; nil ones are
// missing. Corrupt, or Unavailable with fewer than K.
func (c *Code) Decode(payloads [][]byte) ([]byte, error) {
	whole := append([][]byte(nil), payloads...)
	if err := c.Repair(whole); err != nil {
		return nil, err
	}
	h, err := ParseHeader(whole[0])
	if err != nil {
		return nil, err
	}
	data := make([]byte, 0, c.K*c.ShardSize(h.Length))
	for _, p := range whole[:c.K] {
		data = append(data, p[HeaderSize:]...)
	}
	return data[:h.Length], nil
}
