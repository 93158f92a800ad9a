package diskcache

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"pillarbox/objstore"
)

// A file: a head, then the chunk's bytes. The head is the magic, the chunk's id
// and length, a CRC-32C for every block of the bytes, and one of the head itself.
// Numbers are big endian.

const (
	magic     = "PBXCHNK1"
	blockSize = 64 << 10
	fixedHead = 8 + 8 + 8 + 4 + 4
	maxHead   = fixedHead + 4*((objstore.StoredMax+blockSize-1)/blockSize) + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func blocks(n int) int { return (n + blockSize - 1) / blockSize }

func headLen(n int) int { return fixedHead + 4*blocks(n) + 4 }

// head is that of a chunk's file.
func head(id objstore.ChunkID, data []byte) []byte {
	b := make([]byte, 0, headLen(len(data)))
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint64(b, uint64(id.Ino))
	b = binary.BigEndian.AppendUint64(b, id.Version)
	b = binary.BigEndian.AppendUint32(b, id.Index)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	for off := 0; off < len(data); off += blockSize {
		b = binary.BigEndian.AppendUint32(b, crc32.Checksum(data[off:min(off+blockSize, len(data))], castagnoli))
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// parseHead reads the head at the beginning of b: the chunk's length and the
// checksums of its blocks, which are part of b. What is wrong with it is the error.
func parseHead(id objstore.ChunkID, b []byte) (n int, sums []byte, err error) {
	if len(b) < fixedHead || string(b[:len(magic)]) != magic {
		return 0, nil, fmt.Errorf("no head")
	}
	n = int(binary.BigEndian.Uint32(b[28:]))
	if n > objstore.StoredMax || len(b) < headLen(n) {
		return 0, nil, fmt.Errorf("%d bytes: bad length", n)
	}
	end := headLen(n) - 4
	if binary.BigEndian.Uint32(b[end:]) != crc32.Checksum(b[:end], castagnoli) {
		return 0, nil, fmt.Errorf("bad checksum of the head")
	}
	is := objstore.ChunkID{
		Ino: objstore.Ino(binary.BigEndian.Uint64(b[8:])), Version: binary.BigEndian.Uint64(b[16:]), Index: binary.BigEndian.Uint32(b[24:]),
	}
	if is != id {
		return 0, nil, fmt.Errorf("it is chunk %v", is)
	}
	return n, b[fixedHead:end], nil
}

// check compares blocks, of which p holds those from first on, with their checksums.
func check(sums []byte, first int, p []byte) bool {
	for i := first; len(p) > 0; i++ {
		n := min(blockSize, len(p))
		if binary.BigEndian.Uint32(sums[4*i:]) != crc32.Checksum(p[:n], castagnoli) {
			return false
		}
		p = p[n:]
	}
	return true
}

// shards is into how many directories the files go, by inode.
const shards = 256

func shardOf(ino objstore.Ino) int { return int(uint64(ino) * 0x9e3779b97f4a7c15 >> 56) }

func shardDir(i int) string { return fmt.Sprintf("%02x", i) }

func nameOf(id objstore.ChunkID) string {
	return fmt.Sprintf("%x-%x-%x", uint64(id.Ino), id.Index, id.Version)
}

// inoOf is whose chunk a file is of.
func inoOf(name string) (objstore.Ino, bool) {
	ino, _, ok := strings.Cut(name, "-")
	n, err := strconv.ParseUint(ino, 16, 64)
	return objstore.Ino(n), ok && err == nil
}

// onDisk is what a file counts for: whole blocks of the disk.
func onDisk(size int64) int64 { return (size + 4095) &^ 4095 }
