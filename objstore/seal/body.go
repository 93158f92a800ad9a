package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"pillarbox/objstore"
)

// The format of a sealed body; docs/format.md has it, too.
const (
	bodyV1    = 1
	frameSize = 64 << 10 // bytes of the file, before compression
	saltSize  = 16
	headSize  = 8 + saltSize // version, zeros (3), length of the body (4), salt
	entrySize = 3            // of the table behind the head: the stored length of a frame
	tagSize   = 16
	flagSize  = 1 // before a frame's bytes, encrypted with them

	flagRaw  = 0
	flagZstd = 1

	maxFrame = flagSize + frameSize + tagSize
)

// bodyLabel separates the keys of bodies from other uses of a volume's key.
const bodyLabel = "pillarbox body 1"

// codec compresses frames. Its encoder and decoder are made once: they are large.
type codec struct {
	once sync.Once
	enc  *zstd.Encoder
	dec  *zstd.Decoder
	err  error
}

func (c *codec) init() error {
	c.once.Do(func() {
		if c.enc, c.err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(frameSize), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true)); c.err != nil {
			return
		}
		c.dec, c.err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(1<<20), zstd.WithDecoderMaxWindow(1<<20))
	})
	return c.err
}

// head is what a sealed body begins with.
type head struct {
	raw  [headSize]byte
	size int   // of the body
	ends []int // where each frame ends, as stored; filled in by table
}

func frames(size int) int { return (size + frameSize - 1) / frameSize }

// tableSize is the length of the table of a body.
func (h *head) tableSize() int { return entrySize * frames(h.size) }

// begin is where frame i begins, as stored.
func (h *head) begin(i int) int {
	if i == 0 {
		return headSize + h.tableSize()
	}
	return h.ends[i-1]
}

// parseHead reads the fixed part. Corrupt, Unsupported.
func parseHead(b []byte) (*head, error) {
	if len(b) < headSize {
		return nil, fmt.Errorf("sealed body of %d bytes: %w", len(b), objstore.Corrupt)
	}
	if b[0] != bodyV1 {
		return nil, fmt.Errorf("sealed body of version %d, this program knows %d: %w", b[0], bodyV1, objstore.Unsupported)
	}
	size := binary.LittleEndian.Uint32(b[4:])
	if b[1]|b[2]|b[3] != 0 || size == 0 || size > objstore.ChunkSize {
		return nil, fmt.Errorf("sealed body of %d bytes of a file: %w", size, objstore.Corrupt)
	}
	h := &head{size: int(size)}
	copy(h.raw[:], b)
	return h, nil
}

// table reads the frames' lengths. Whoever lies in it makes frames that do not
// open, no more. Corrupt.
func (h *head) table(b []byte) error {
	if len(b) < h.tableSize() {
		return fmt.Errorf("sealed body cut in its table: %w", objstore.Corrupt)
	}
	at := h.begin(0)
	ends := make([]int, frames(h.size))
	for i := range ends {
		e := b[i*entrySize:]
		n := int(e[0]) | int(e[1])<<8 | int(e[2])<<16
		if n <= flagSize+tagSize || n > maxFrame {
			return fmt.Errorf("frame %d of a sealed body has %d bytes: %w", i, n, objstore.Corrupt)
		}
		at += n
		ends[i] = at
	}
	h.ends = ends
	return nil
}

// bodyKey is the cipher of one body.
func bodyKey(volumeKey []byte, id objstore.ChunkID, h *head) (cipher.AEAD, error) {
	mac := hmac.New(sha256.New, volumeKey)
	mac.Write([]byte(bodyLabel))
	var b [20]byte
	binary.BigEndian.PutUint64(b[:], uint64(id.Ino))
	binary.BigEndian.PutUint32(b[8:], id.Index)
	binary.BigEndian.PutUint64(b[12:], id.Version)
	mac.Write(b[:])
	mac.Write(h.raw[8:])
	return newGCM(mac.Sum(nil))
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make a cipher: %w", err)
	}
	return cipher.NewGCM(block)
}

// nonce numbers the frames of one body, whose key is its own.
func nonce(frame int) []byte {
	var n [12]byte
	binary.BigEndian.PutUint32(n[8:], uint32(frame))
	return n[:]
}

// sealBody encrypts a body of 1 byte to objstore.ChunkSize.
func (c *codec) sealBody(volumeKey []byte, id objstore.ChunkID, body []byte) ([]byte, error) {
	if err := c.init(); err != nil {
		return nil, err
	}
	if len(body) == 0 || len(body) > objstore.ChunkSize {
		return nil, fmt.Errorf("seal a body of %d bytes: %w", len(body), objstore.Invalid)
	}
	h := &head{size: len(body)}
	h.raw[0] = bodyV1
	binary.LittleEndian.PutUint32(h.raw[4:], uint32(len(body)))
	rand.Read(h.raw[8:]) // never fails: it ends the program instead
	aead, err := bodyKey(volumeKey, id, h)
	if err != nil {
		return nil, err
	}
	n := frames(len(body))
	out := make([]byte, headSize+h.tableSize(), headSize+h.tableSize()+len(body)+n*(flagSize+tagSize))
	copy(out, h.raw[:])
	plain := make([]byte, 0, maxFrame)
	for i := range n {
		part := body[i*frameSize : min(len(body), (i+1)*frameSize)]
		plain = append(plain[:0], flagZstd)
		plain = c.enc.EncodeAll(part, plain)
		if len(plain) > flagSize+len(part)-len(part)/8 {
			plain = append(append(plain[:0], flagRaw), part...)
		}
		was := len(out)
		out = aead.Seal(out, nonce(i), plain, h.raw[:])
		stored := len(out) - was
		e := out[headSize+i*entrySize:]
		e[0], e[1], e[2] = byte(stored), byte(stored>>8), byte(stored>>16)
	}
	return out, nil
}

// open decrypts frames first to last, whose stored bytes are in b, and copies
// what is in the range of the body that begins at off to p. Corrupt.
func (c *codec) open(aead cipher.AEAD, h *head, first, last int, b []byte, off int, p []byte) error {
	if err := c.init(); err != nil {
		return err
	}
	base := h.begin(first)
	var plain, raw []byte
	for i := first; i <= last; i++ {
		want := min(frameSize, h.size-i*frameSize)
		var err error
		plain, err = aead.Open(plain[:0], nonce(i), b[h.begin(i)-base:h.ends[i]-base], h.raw[:])
		if err != nil {
			return fmt.Errorf("frame %d does not open: it is damaged, or another chunk's: %w", i, objstore.Corrupt)
		}
		part := plain[flagSize:]
		switch plain[0] {
		case flagRaw:
		case flagZstd:
			if raw == nil {
				raw = make([]byte, 0, frameSize)
			}
			if raw, err = c.dec.DecodeAll(part, raw[:0]); err != nil {
				return fmt.Errorf("frame %d does not decompress: %w: %w", i, objstore.Corrupt, err)
			}
			part = raw
		default:
			return fmt.Errorf("frame %d is packed in way %d: %w", i, plain[0], objstore.Unsupported)
		}
		if len(part) != want {
			return fmt.Errorf("frame %d has %d bytes, not %d: %w", i, len(part), want, objstore.Corrupt)
		}
		if at := i * frameSize; at >= off {
			copy(p[at-off:], part)
		} else {
			copy(p, part[off-at:])
		}
	}
	return nil
}
