package ship

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/volume"
)

// The format of an object; docs/format.md has it, too.
const (
	objectMagic = "PBXSHIP1"
	saltSize    = 16
	headSize    = len(objectMagic) + 4 + saltSize // magic, length of what follows, salt
	tagSize     = 16
	maxObject   = 256 << 20 // a manifest of a very large store; others are near partSize
	keyLabel    = "pillarbox ship 1"

	// PartSize is about how many bytes an object has before compression.
	PartSize = 8 << 20
)

// Salt tells an object from every other that ever had its name.
type Salt [saltSize]byte

// Ref names an object that may be no other.
type Ref struct {
	Salt []byte `json:"salt"`
	Size int    `json:"size"` // stored
}

// sealer makes and opens objects. Its encoder and decoder are made once: they are large.
type sealer struct {
	key  []byte
	once sync.Once
	enc  *zstd.Encoder
	dec  *zstd.Decoder
	err  error
}

func (s *sealer) init() error {
	s.once.Do(func() {
		if s.enc, s.err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true)); s.err != nil {
			return
		}
		s.dec, s.err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxObject))
	})
	return s.err
}

// cipher is that of one object: no two have the same name and salt.
func (s *sealer) cipher(name string, salt []byte) (cipher.AEAD, error) {
	mac := hmac.New(sha256.New, s.key)
	mac.Write([]byte(keyLabel))
	mac.Write(salt)
	mac.Write([]byte(name))
	block, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		return nil, fmt.Errorf("make a cipher: %w", err)
	}
	return cipher.NewGCM(block)
}

// seal makes the object that holds content.
func (s *sealer) seal(name string, content []byte) ([]byte, Salt, error) {
	var salt Salt
	if err := s.init(); err != nil {
		return nil, salt, err
	}
	rand.Read(salt[:]) // never fails: it ends the program instead
	aead, err := s.cipher(name, salt[:])
	if err != nil {
		return nil, salt, err
	}
	out := make([]byte, headSize, headSize+len(content)+tagSize)
	packed := s.enc.EncodeAll(content, out[headSize:headSize])
	out = append(out[:0], objectMagic...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(packed)+tagSize))
	out = append(out, salt[:]...)
	return aead.Seal(out, make([]byte, aead.NonceSize()), packed, out), salt, nil
}

// parseHead reads what an object begins with. Corrupt, Unsupported.
func parseHead(b []byte) (size int, salt Salt, err error) {
	if len(b) < headSize || string(b[:len(objectMagic)-1]) != objectMagic[:len(objectMagic)-1] {
		return 0, salt, fmt.Errorf("it is no shipped object: %w", objstore.Corrupt)
	}
	if b[len(objectMagic)-1] != objectMagic[len(objectMagic)-1] {
		return 0, salt, fmt.Errorf("it is of a newer format: %w", objstore.Unsupported)
	}
	n := binary.BigEndian.Uint32(b[len(objectMagic):])
	if n < tagSize || n > maxObject {
		return 0, salt, fmt.Errorf("it says that it has %d bytes: %w", n, objstore.Corrupt)
	}
	copy(salt[:], b[len(objectMagic)+4:])
	return headSize + int(n), salt, nil
}

// open is the content of an object. Corrupt, Unsupported.
func (s *sealer) open(name string, b []byte) ([]byte, Salt, error) {
	size, salt, err := parseHead(b)
	if err == nil && size != len(b) {
		err = fmt.Errorf("it has %d bytes and says %d: %w", len(b), size, objstore.Corrupt)
	}
	if err == nil {
		err = s.init()
	}
	if err != nil {
		return nil, salt, fmt.Errorf("object %s: %w", name, err)
	}
	aead, err := s.cipher(name, salt[:])
	if err != nil {
		return nil, salt, err
	}
	packed, err := aead.Open(nil, make([]byte, aead.NonceSize()), b[headSize:], b[:headSize])
	if err != nil {
		return nil, salt, fmt.Errorf("object %s does not open: it is damaged, or another one: %w", name, objstore.Corrupt)
	}
	content, err := s.dec.DecodeAll(packed, nil)
	if err != nil {
		return nil, salt, fmt.Errorf("object %s does not decompress: %w: %w", name, objstore.Corrupt, err)
	}
	return content, salt, nil
}

// get fetches an object and opens it. NotFound, Corrupt.
func (s *sealer) get(ctx context.Context, store pool.Store, name string) ([]byte, Salt, error) {
	head := make([]byte, headSize)
	if err := store.Get(ctx, name, 0, head); err != nil {
		return nil, Salt{}, fmt.Errorf("read object %s: %w", name, err)
	}
	size, _, err := parseHead(head)
	if err != nil {
		return nil, Salt{}, fmt.Errorf("object %s: %w", name, err)
	}
	return s.getSized(ctx, store, name, size)
}

func (s *sealer) getSized(ctx context.Context, store pool.Store, name string, size int) ([]byte, Salt, error) {
	if size < headSize || size > headSize+maxObject {
		return nil, Salt{}, fmt.Errorf("object %s of %d bytes: %w", name, size, objstore.Corrupt)
	}
	b := make([]byte, size)
	if err := store.Get(ctx, name, 0, b); err != nil {
		return nil, Salt{}, fmt.Errorf("read object %s: %w", name, err)
	}
	return s.open(name, b)
}

// getRef fetches the object that ref names and no other. NotFound becomes Corrupt:
// what is named must be there.
func (s *sealer) getRef(ctx context.Context, store pool.Store, name string, ref Ref) ([]byte, error) {
	content, salt, err := s.getSized(ctx, store, name, ref.Size)
	switch {
	case errors.Is(err, objstore.NotFound):
		return nil, fmt.Errorf("object %s is missing: %w", name, objstore.Corrupt)
	case err == nil && string(salt[:]) != string(ref.Salt):
		return nil, fmt.Errorf("object %s was put back to an earlier state: %w", name, objstore.Corrupt)
	}
	return content, err
}

// record is the content of one object of a run.
type record struct {
	before   Salt   // of the object before in the run
	from, to uint64 // positions in the log
	delta    volume.Delta
}

const recordHead = saltSize + 16

func (r *record) encode() []byte {
	b := append([]byte(nil), r.before[:]...)
	b = binary.BigEndian.AppendUint64(b, r.from)
	b = binary.BigEndian.AppendUint64(b, r.to)
	return r.delta.AppendTo(b)
}

// parseRecord reads what encode wrote. Corrupt.
func parseRecord(b []byte) (*record, error) {
	if len(b) < recordHead {
		return nil, fmt.Errorf("a record of %d bytes: %w", len(b), objstore.Corrupt)
	}
	r := &record{from: binary.BigEndian.Uint64(b[saltSize:]), to: binary.BigEndian.Uint64(b[saltSize+8:])}
	copy(r.before[:], b)
	var err error
	r.delta, err = volume.ParseDelta(b[recordHead:])
	if err == nil && r.to < r.from {
		err = fmt.Errorf("a record from %d to %d: %w", r.from, r.to, objstore.Corrupt)
	}
	return r, err
}
