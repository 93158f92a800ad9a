package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
)

const (
	poolSize   = 8 << 20 // bytes of made-up text
	poolStarts = 1 << 20 // messages begin in this much of it, so that it stays in the processor's cache
	mailLimit  = 64 << 20
)

// content makes what messages and attachments hold. It is immutable, so all
// workers share it: a body is a piece of pool, or a real mail.
type content struct {
	seed  uint64
	mean  int
	pool  []byte
	mails [][]byte
}

// MismatchError says that a file did not hold what had been written to it.
type MismatchError struct {
	Path string
	What string
}

func (e *MismatchError) Error() string { return e.Path + ": " + e.What }

func newContent(o *Options) (*content, error) {
	c := &content{seed: o.Seed, mean: o.MeanSize, pool: makePool(o.Seed)}
	if o.MailDir == "" {
		return c, nil
	}
	total := 0
	err := filepath.WalkDir(o.MailDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil || len(b) == 0 || len(b) > maxSize {
			return err
		}
		c.mails = append(c.mails, b)
		if total += len(b); total > mailLimit {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the mail to use: %w", err)
	}
	if len(c.mails) == 0 {
		return nil, fmt.Errorf("read the mail to use: no files below %s", o.MailDir)
	}
	c.mean = total / len(c.mails)
	return c, nil
}

// makePool makes lines of base64 letters: what most bytes of mail are, and
// about as compressible.
func makePool(seed uint64) []byte {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	p := make([]byte, poolSize)
	for i := 0; i < len(p); i += 8 {
		v := mix(seed ^ uint64(i)<<8)
		for j := range 8 {
			p[i+j] = letters[v&63]
			v >>= 8
		}
	}
	for i := 76; i < len(p); i += 77 {
		p[i] = '\n'
	}
	return p
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// message returns message n: a header that no other message has, built in
// scratch, and a body that must not be changed.
func (c *content) message(n uint64, scratch []byte) (head, body []byte) {
	head = fmt.Appendf(scratch[:0], "X-Pillarbox-Bench: %016x %016x\n", c.seed, n)
	if len(c.mails) > 0 {
		return head, c.mails[n%uint64(len(c.mails))]
	}
	head = append(head, "Subject: benchmark\n\n"...)
	h := mix(c.seed ^ mix(n))
	start := int(mix(h) % poolStarts)
	return head, c.pool[start : start+max(c.size(h)-len(head), 0)]
}

// lognormSigma is the spread of the sizes: half of the messages are smaller
// than a third of the mean.
const lognormSigma = 1.5

func (c *content) size(h uint64) int {
	u1 := (float64(h>>11) + 1) / (1 << 53)
	u2 := float64(mix(h+1)>>11) / (1 << 53)
	normal := math.Sqrt(-2*math.Log(u1)) * math.Cos(2*math.Pi*u2)
	mu := math.Log(float64(c.mean)) - lognormSigma*lognormSigma/2
	return int(min(max(math.Exp(mu+lognormSigma*normal), minSize), maxSize))
}

// piece returns piece k of attachment n, size bytes.
func (c *content) piece(n uint64, k, size int) []byte {
	start := int(mix(c.seed^mix(n)^uint64(k)<<40) % uint64(poolSize-attachPiece))
	return c.pool[start : start+size]
}

var errDiffers = errors.New("differs")

// matcher compares a message with what is read of it, piece after piece.
type matcher struct {
	head, body []byte
	off        int
}

// next takes the following bytes of the file.
func (m *matcher) next(b []byte) error {
	if m.off < len(m.head) {
		n := min(len(b), len(m.head)-m.off)
		if !bytes.Equal(b[:n], m.head[m.off:m.off+n]) {
			return errDiffers
		}
		m.off += n
		b = b[n:]
	}
	at := m.off - len(m.head)
	if len(b) > len(m.body)-at || !bytes.Equal(b, m.body[at:at+len(b)]) {
		return errDiffers
	}
	m.off += len(b)
	return nil
}

// whole says whether all of the message was seen.
func (m *matcher) whole() bool { return m.off == len(m.head)+len(m.body) }
