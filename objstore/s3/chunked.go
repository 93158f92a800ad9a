package s3

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// chunkedReader decodes a body of Content-Encoding aws-chunked: chunks with
// their sizes and perhaps signatures, then perhaps trailers ("Transferring
// Payload in Multiple Chunks", "Including trailing headers").
type chunkedReader struct {
	r        *bufio.Reader
	signer   *chunkSigner // nil: chunks are not signed
	trailing bool         // trailers come
	trailer  http.Header  // what came

	left      uint64 // of the chunk
	signature string
	sum       hash.Hash
	began     bool
	err       error
}

const (
	maxChunkLine = 4 << 10
	maxTrailers  = 16
)

func newChunkedReader(r io.Reader, signer *chunkSigner, trailing bool) *chunkedReader {
	return &chunkedReader{r: bufio.NewReaderSize(r, 64<<10), signer: signer, trailing: trailing, trailer: http.Header{}, sum: sha256.New()}
}

func (c *chunkedReader) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.read(p)
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fail("IncompleteBody")
		}
		c.err = err
	}
	return n, err
}

func (c *chunkedReader) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if c.left == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n, err := c.r.Read(p[:min(uint64(len(p)), c.left)])
	c.sum.Write(p[:n])
	c.left -= uint64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err == nil && c.left == 0 {
		err = c.endChunk()
	}
	return n, err
}

// next reads the head of a chunk; at the last it takes in the rest of the body.
func (c *chunkedReader) next() error {
	line, err := c.line()
	if err != nil {
		return err
	}
	size, ext, _ := strings.Cut(line, ";")
	if c.left, err = strconv.ParseUint(strings.TrimSpace(size), 16, 62); err != nil {
		return failWith("InvalidRequest", "A chunk's size is malformed.")
	}
	_, c.signature, _ = strings.Cut(ext, "chunk-signature=")
	c.sum.Reset()
	if c.left > 0 {
		return nil
	}
	if err := c.check(); err != nil {
		return err
	}
	if err := c.readTrailer(); err != nil {
		return err
	}
	return io.EOF
}

func (c *chunkedReader) endChunk() error {
	if err := c.check(); err != nil {
		return err
	}
	line, err := c.line()
	if err == nil && line != "" {
		err = failWith("InvalidRequest", "A chunk does not end where it should.")
	}
	return err
}

func (c *chunkedReader) check() error {
	if c.signer == nil {
		return nil
	}
	return c.signer.check("PAYLOAD", c.signature, c.sum.Sum(nil))
}

func (c *chunkedReader) readTrailer() error {
	var signed strings.Builder
	for n := 0; ; n++ {
		line, err := c.line()
		if errors.Is(err, io.ErrUnexpectedEOF) || err == nil && line == "" {
			break
		}
		if err != nil {
			return err
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || n >= maxTrailers || !c.trailing {
			return failWith("InvalidRequest", "A trailer is malformed.")
		}
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if name == "x-amz-trailer-signature" {
			if c.signer == nil {
				continue
			}
			sum := sha256.Sum256([]byte(signed.String()))
			if err := c.signer.check("TRAILER", value, sum[:]); err != nil {
				return err
			}
			c.signer = nil
			continue
		}
		c.trailer.Set(name, value)
		signed.WriteString(name + ":" + value + "\n")
	}
	if c.signer != nil && signed.Len() > 0 {
		return fail("SignatureDoesNotMatch")
	}
	return nil
}

// line reads up to the next line's end.
func (c *chunkedReader) line() (string, error) {
	var b []byte
	for {
		part, err := c.r.ReadSlice('\n')
		b = append(b, part...)
		if len(b) > maxChunkLine {
			return "", failWith("InvalidRequest", "A chunk's head is too long.")
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if errors.Is(err, io.EOF) {
			return "", io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", err
		}
		return strings.TrimRight(string(b), "\r\n"), nil
	}
}
