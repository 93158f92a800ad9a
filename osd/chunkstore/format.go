package chunkstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"pillarbox/objstore"
)

const (
	segmentMagic = "PBXCHK01"
	recordMagic  = 0x4b484350 // "PCHK"
	fixedHeader  = 40
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func segmentName(id uint32) string { return fmt.Sprintf("%08x.seg", id) }

func blocks(length int) int { return (length + blockSize - 1) / blockSize }

// headerSize is the length of a record's header: fixed part and one checksum a block.
func headerSize(length int) int { return fixedHeader + 4*blocks(length) }

// dataOffset is where a record's data begin: behind the header, and those of a
// large one aligned, so that direct I/O takes them from where they are.
func dataOffset(length int) int {
	if length >= directSize {
		return align
	}
	return headerSize(length)
}

// recordSize is what a chunk takes in a segment.
func recordSize(length int) int { return (dataOffset(length) + length + align - 1) &^ (align - 1) }

func encodeSegmentHeader(id uint32, kind Stream) []byte {
	b := make([]byte, align)
	copy(b, segmentMagic)
	binary.LittleEndian.PutUint32(b[8:], id)
	b[12] = byte(kind)
	binary.LittleEndian.PutUint32(b[16:], checksum(b[:16]))
	return b
}

func decodeSegmentHeader(b []byte, id uint32) (Stream, bool) {
	if len(b) < 20 || string(b[:8]) != segmentMagic || binary.LittleEndian.Uint32(b[8:]) != id ||
		binary.LittleEndian.Uint32(b[16:]) != checksum(b[:16]) || b[12] >= byte(streams) {
		return 0, false
	}
	return Stream(b[12]), true
}

// sums are a record's block checksums as stored.
type sums []byte

func (s sums) at(block int) uint32 { return binary.LittleEndian.Uint32(s[4*block:]) }

// appendHeader encodes a record's header: magic (4), header checksum (4),
// length (4), chunk index (4), inode (8), version (8), zeros (8), then a
// checksum for every 64 KiB of data.
func appendHeader(b []byte, id objstore.ChunkID, data []byte) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint32(b, recordMagic)
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	b = binary.LittleEndian.AppendUint32(b, id.Index)
	b = binary.LittleEndian.AppendUint64(b, uint64(id.Ino))
	b = binary.LittleEndian.AppendUint64(b, id.Version)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	for len(data) > 0 {
		n := min(blockSize, len(data))
		b = binary.LittleEndian.AppendUint32(b, checksum(data[:n]))
		data = data[n:]
	}
	binary.LittleEndian.PutUint32(b[at+4:], checksum(b[at+8:]))
	return b
}

// decodeHeader reads a record's header; b may reach beyond it.
func decodeHeader(b []byte) (id objstore.ChunkID, length uint32, s sums, ok bool) {
	if len(b) < fixedHeader || binary.LittleEndian.Uint32(b) != recordMagic {
		return id, 0, nil, false
	}
	length = binary.LittleEndian.Uint32(b[8:])
	if length == 0 || length > MaxChunk {
		return id, 0, nil, false
	}
	n := headerSize(int(length))
	if len(b) < n || binary.LittleEndian.Uint32(b[4:]) != checksum(b[8:n]) {
		return id, 0, nil, false
	}
	id = objstore.ChunkID{
		Index:   binary.LittleEndian.Uint32(b[12:]),
		Ino:     objstore.Ino(binary.LittleEndian.Uint64(b[16:])),
		Version: binary.LittleEndian.Uint64(b[24:]),
	}
	return id, length, sums(b[fixedHeader:n]), true
}
