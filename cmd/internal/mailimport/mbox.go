package mailimport

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
)

// segment is one message of an mbox, by offsets in the file. The bytes from
// End to Next are the empty line that ends the message, or nothing.
type segment struct {
	From    int64 // of the line "From "
	Start   int64 // of the message
	Body    int64 // behind the empty line that ends the header; End if there is none
	End     int64
	Next    int64
	Unquote bool // lines ">From " of the body lose one ">"

	Date     time.Time // of the line "From "; zero if it tells none
	Flags    string    // for Maildir, in order
	Old      bool      // a mail reader has seen it in the mailbox
	Internal bool      // a mail reader's notes, not a message
}

// errNotMbox says that a file does not begin with a line "From ".
var errNotMbox = errors.New(`not an mbox: no line "From " at its beginning`)

// linePrefix is how much of a line is looked at, in bytes.
const linePrefix = 4096

// mboxScanner reads lines of an mbox.
type mboxScanner struct {
	r      io.ReaderAt
	size   int64
	br     *bufio.Reader
	strict bool   // separators must have a date
	line   []byte // the last one read, cut to linePrefix
	at     int64  // where it begins
	pos    int64  // where the one behind it begins
	again  bool   // next gives the same line once more
}

var fromSpace = []byte("From ")

// indexMbox finds the messages of an mbox of size bytes, in order; every byte
// belongs to one of them or to what separates them. A line "From " separates
// only behind an empty line, and only with a date if the first one has one. A
// Content-Length counts only if it leads to the end or to such a line.
func indexMbox(r io.ReaderAt, size int64, fn func(segment) error) error {
	if size == 0 {
		return nil
	}
	s := &mboxScanner{r: r, size: size, br: bufio.NewReaderSize(nil, 64<<10), line: make([]byte, 0, linePrefix)}
	s.seek(0)
	if err := s.next(); err != nil {
		return err
	}
	if !bytes.HasPrefix(s.line, fromSpace) {
		return errNotMbox
	}
	_, s.strict = fromDate(s.line)
	for {
		seg, err := s.message()
		if err != nil {
			return fmt.Errorf("message at offset %d: %w", seg.From, err)
		}
		if err := fn(seg); err != nil {
			return err
		}
		if seg.Next == size {
			return nil
		}
		s.seek(seg.Next)
		if err := s.next(); err != nil {
			return fmt.Errorf("separator at offset %d: %w", seg.Next, err)
		}
	}
}

// seek makes the line at pos the next one.
func (s *mboxScanner) seek(pos int64) {
	if s.again = pos == s.at && s.pos > pos; !s.again {
		s.pos = pos
		s.br.Reset(io.NewSectionReader(s.r, pos, s.size-pos))
	}
}

// next reads a line. io.EOF: there is none.
func (s *mboxScanner) next() error {
	if s.again {
		s.again = false
		return nil
	}
	s.at, s.line = s.pos, s.line[:0]
	for {
		b, err := s.br.ReadSlice('\n')
		s.line = append(s.line, b[:min(len(b), linePrefix-len(s.line))]...)
		s.pos += int64(len(b))
		switch {
		case err == nil, err == io.EOF && s.pos > s.at:
			return nil
		case err == io.EOF && s.pos < s.size:
			return io.ErrUnexpectedEOF // it shrank
		case err != bufio.ErrBufferFull:
			return err
		}
	}
}

// message finds the end of the message whose separator was just read.
func (s *mboxScanner) message() (segment, error) {
	seg := segment{From: s.at, Start: s.pos, Body: s.size, Unquote: true}
	seg.Date, _ = fromDate(s.line)
	head := header{length: -1}
	for {
		switch err := s.next(); {
		case err == io.EOF:
			seg.End, seg.Next, seg.Body = s.size, s.size, s.size
			head.fill(&seg)
			return seg, nil
		case err != nil:
			return seg, err
		}
		if blank(s.line) {
			break
		}
		head.add(s.line)
	}
	seg.Body = s.pos
	head.fill(&seg)
	if fits, err := s.byLength(&seg, head.length); fits || err != nil {
		return seg, err
	}
	return seg, s.byLines(&seg)
}

// byLines ends the message at the next separator.
func (s *mboxScanner) byLines(seg *segment) error {
	end := seg.Body // if a separator is next: without the empty line before it
	empty := true
	for {
		err := s.next()
		switch {
		case err == io.EOF:
			if seg.End, seg.Next = s.size, s.size; empty {
				seg.End = end
			}
			return nil
		case err != nil:
			return err
		case empty && s.separator(s.line):
			seg.End, seg.Next = end, s.at
			return nil
		}
		if empty = blank(s.line); empty {
			end = s.at
		}
	}
}

// byLength ends the message where its Content-Length says, if that fits.
func (s *mboxScanner) byLength(seg *segment, length int64) (bool, error) {
	if length < 0 || length > s.size-seg.Body {
		return false, nil
	}
	end := seg.Body + length
	buf := make([]byte, 512)
	n, err := s.r.ReadAt(buf, end)
	if err != nil && err != io.EOF {
		return false, err
	}
	rest := buf[:min(int64(n), s.size-end)]
	next := end
	for _, nl := range []string{"\r\n", "\n"} {
		if bytes.HasPrefix(rest, []byte(nl)) {
			rest, next = rest[len(nl):], next+int64(len(nl))
			break
		}
	}
	if next != s.size && !s.separator(rest) {
		return false, nil
	}
	if next == end && end > seg.Body && next != s.size { // a separator begins a line
		var last [1]byte
		if _, err := s.r.ReadAt(last[:], end-1); err != nil || last[0] != '\n' {
			return false, err
		}
	}
	// A writer that left a line "From " alone quotes none.
	quoted := true
	for s.pos < end {
		if err := s.next(); err != nil {
			return false, err
		}
		if bytes.HasPrefix(s.line, fromSpace) && s.at < end {
			quoted = false
			break
		}
	}
	seg.End, seg.Next, seg.Unquote = end, next, quoted
	return true, nil
}

func (s *mboxScanner) separator(line []byte) bool {
	if !bytes.HasPrefix(line, fromSpace) {
		return false
	}
	_, dated := fromDate(line)
	return dated || !s.strict
}

func blank(line []byte) bool { return string(line) == "\n" || string(line) == "\r\n" }

// writeMessage writes a message as it was before it came into the mbox.
func (seg *segment) writeMessage(w io.Writer, r io.ReaderAt) error {
	if !seg.Unquote {
		return copyRange(w, r, seg.Start, seg.End)
	}
	if err := copyRange(w, r, seg.Start, min(seg.Body, seg.End)); err != nil || seg.Body >= seg.End {
		return err
	}
	br := bufio.NewReaderSize(io.NewSectionReader(r, seg.Body, seg.End-seg.Body), 64<<10)
	lineStart := true
	for left := seg.End - seg.Body; left > 0; {
		if lineStart && quotedFrom(br) {
			if _, err := br.Discard(1); err != nil {
				return err
			}
			left--
		}
		b, err := br.ReadSlice('\n')
		if _, err := w.Write(b); err != nil {
			return err
		}
		left -= int64(len(b))
		lineStart = err == nil
		if err == io.EOF && left > 0 {
			return io.ErrUnexpectedEOF
		}
		if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
			return err
		}
	}
	return nil
}

// quotedFrom says whether a line ">From ", with any number of ">", is next. An
// error of reading shows again in the caller's next read.
func quotedFrom(br *bufio.Reader) bool {
	for n := 64; ; n *= 8 {
		n = min(n, br.Size())
		b, _ := br.Peek(n)
		rest := bytes.TrimLeft(b, ">")
		if len(rest) >= len(fromSpace) || len(b) < n || n == br.Size() {
			return len(rest) < len(b) && bytes.HasPrefix(rest, fromSpace)
		}
	}
}

func copyRange(w io.Writer, r io.ReaderAt, from, to int64) error {
	n, err := io.Copy(w, io.NewSectionReader(r, from, to-from))
	if err == nil && n < to-from {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// header is what the import looks at in a message's header.
type header struct {
	length   int64 // Content-Length; -1: none
	flags    []byte
	old      bool
	imap     bool // a mail reader keeps its notes in this message
	internal bool // ... and nothing else
}

func (h *header) add(line []byte) {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok {
		return
	}
	value = bytes.TrimSpace(value)
	switch string(bytes.ToLower(name)) {
	case "content-length":
		if n, err := strconv.ParseInt(string(value), 10, 64); err == nil && n >= 0 {
			h.length = n
		}
	case "status":
		for _, c := range value {
			switch c {
			case 'R':
				h.flags, h.old = append(h.flags, 'S'), true
			case 'O':
				h.old = true
			}
		}
	case "x-status":
		for _, c := range value {
			switch c {
			case 'A':
				h.flags = append(h.flags, 'R')
			case 'F':
				h.flags = append(h.flags, 'F')
			case 'D':
				h.flags = append(h.flags, 'T')
			case 'T':
				h.flags = append(h.flags, 'D')
			}
		}
	case "x-imap":
		h.imap = true
	case "subject":
		h.internal = bytes.Contains(value, []byte("DON'T DELETE THIS MESSAGE")) && bytes.Contains(value, []byte("FOLDER INTERNAL DATA"))
	}
}

func (h *header) fill(seg *segment) {
	slices.Sort(h.flags)
	seg.Flags = string(slices.Compact(h.flags))
	seg.Old = h.old || len(h.flags) > 0
	seg.Internal = h.internal && h.imap && seg.From == 0
}
