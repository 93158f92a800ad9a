package seal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"pillarbox/objstore"
)

var testKey = bytes.Repeat([]byte{7}, keySize)

var testID = objstore.ChunkID{Ino: objstore.MakeIno(3, 99), Index: 2, Version: objstore.SealedVersion | 5}

// noise is n bytes that do not compress.
func noise(n int, seed uint64) []byte {
	rnd := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, n)
	rnd.Read(b)
	return b
}

// unseal opens a range of a stored body as Store does.
func unseal(c *codec, key []byte, id objstore.ChunkID, stored []byte, off, n int) ([]byte, error) {
	h, err := parseHead(stored)
	if err != nil {
		return nil, err
	}
	if err := h.table(stored[headSize:]); err != nil {
		return nil, err
	}
	if off+n > h.size || h.ends[len(h.ends)-1] > len(stored) {
		return nil, objstore.Corrupt
	}
	aead, err := bodyKey(key, id, h)
	if err != nil {
		return nil, err
	}
	first, last := off/frameSize, (off+n-1)/frameSize
	p := make([]byte, n)
	return p, c.open(aead, h, first, last, stored[h.begin(first):h.ends[last]], off, p)
}

func TestBody(t *testing.T) {
	var c codec
	for _, size := range []int{1, 17, frameSize - 1, frameSize, frameSize + 1, 3*frameSize + 5, objstore.ChunkSize - 1, objstore.ChunkSize} {
		for name, body := range map[string][]byte{"noise": noise(size, 1), "text": bytes.Repeat([]byte("a line of mail\r\n"), size/16+1)[:size]} {
			stored, err := c.sealBody(testKey, testID, body)
			if err != nil {
				t.Fatal(err)
			}
			if len(stored) > size+objstore.SealRoom {
				t.Errorf("%s of %d bytes takes %d: more than the store has room for", name, size, len(stored))
			}
			if name == "text" && size > 1000 && len(stored) > size/4 {
				t.Errorf("text of %d bytes takes %d", size, len(stored))
			}
			rnd := rand.New(rand.NewPCG(uint64(size), 2))
			for try := range 20 {
				off := rnd.IntN(size)
				n := 1 + rnd.IntN(size-off)
				if try == 0 {
					off, n = 0, size
				}
				got, err := unseal(&c, testKey, testID, stored, off, n)
				if err != nil || !bytes.Equal(got, body[off:off+n]) {
					t.Fatalf("%s of %d bytes: %d at %d: %v", name, size, n, off, err)
				}
			}
		}
	}
}

// What is not exactly what was sealed here is refused.
func TestBodyTampered(t *testing.T) {
	var c codec
	body := noise(frameSize+100, 3)
	stored, err := c.sealBody(testKey, testID, body)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.sealBody(testKey, testID, body)
	if err != nil || bytes.Equal(stored[headSize:], again[headSize:]) || bytes.Equal(stored[8:headSize], again[8:headSize]) {
		t.Fatalf("the same body sealed twice is the same ciphertext, %v", err)
	}
	refused := func(what string, key []byte, id objstore.ChunkID, b []byte) {
		t.Helper()
		if got, err := unseal(&c, key, id, b, 0, len(body)); err == nil {
			t.Errorf("%s: opens as %x...", what, got[:8])
		} else if !errors.Is(err, objstore.Corrupt) && !errors.Is(err, objstore.Unsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for at := range stored {
		if at > 200 && at%97 != 0 { // head, table and here and there
			continue
		}
		b := bytes.Clone(stored)
		b[at] ^= 0x40
		refused("a flipped bit", testKey, testID, b)
	}
	other := testID
	other.Version++
	refused("an earlier version", testKey, other, stored)
	other = testID
	other.Ino++
	refused("another file's", testKey, other, stored)
	refused("another volume's key", bytes.Repeat([]byte{8}, keySize), testID, stored)
	refused("one with a frame of another sealing", testKey, testID, append(bytes.Clone(stored[:len(stored)-50]), again[len(again)-50:]...))
	for _, n := range []int{0, 1, headSize, headSize + 3, len(stored) - 1} {
		refused("a cut one", testKey, testID, stored[:n])
	}
	short := bytes.Clone(stored)
	short[4], short[5], short[6] = 50, 0, 0
	if _, err := unseal(&c, testKey, testID, short, 0, 50); !errors.Is(err, objstore.Corrupt) {
		t.Errorf("one that says to be shorter: %v", err)
	}
}

func FuzzBody(f *testing.F) {
	var c codec
	for _, n := range []int{10, frameSize + 10} {
		stored, err := c.sealBody(testKey, testID, bytes.Repeat([]byte("x"), n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(stored)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHead(b)
		if err != nil {
			return
		}
		got, err := unseal(&c, testKey, testID, b, 0, h.size)
		if err == nil && !bytes.Equal(got, bytes.Repeat([]byte("x"), h.size)) {
			t.Fatalf("forged: %x", got[:min(len(got), 20)])
		}
	})
}
