package wal

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
)

// noKeep is the position that nobody reads from.
const noKeep LSN = math.MaxUint64

// maxKept bounds what is kept for a reader that does not get on, in bytes.
const maxKept = 1 << 30

// ErrGone says that the log no longer has what is to be read.
var ErrGone = errors.New("the write-ahead log no longer reaches back so far")

// Keep says that records from lsn on will be read, so that Release leaves them.
// More than 1 GiB is given up.
func (l *Log) Keep(lsn LSN) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep = lsn
}

// GiveUp lets go of what is kept for a reader.
func (l *Log) GiveUp() { l.Keep(noKeep) }

// Synced is how far the log is on stable storage.
func (l *Log) Synced() LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.synced
}

// Read calls fn for the durable records from one position to another, in order, until they
// have about room bytes together, and returns where to go on; from itself, or where the
// next record will be, if there are none. What is read must be kept (Keep). fn may keep the records. ErrGone.
func (l *Log) Read(from, upTo LSN, room int, fn func(Record) error) (next LSN, err error) {
	l.mu.Lock()
	segs, closed := slices.Clone(l.segs), l.err
	upTo = min(upTo, l.synced)
	l.mu.Unlock()
	if len(segs) == 0 || closed != nil {
		return from, errors.Join(ErrClosed, closed)
	}
	i := len(segs) - 1
	for i > 0 && segs[i].start() > from {
		i--
	}
	if s := segs[i]; from < s.start()+headerSize {
		before, err := s.follows()
		if err != nil {
			return from, err
		}
		if i == 0 && from < before {
			return from, fmt.Errorf("%w: %d is wanted, it begins at %d", ErrGone, from, s.start())
		}
		from = s.start() + headerSize
	}
	for ; i < len(segs) && from < upTo && room > 0; i++ {
		s := segs[i]
		from = max(from, s.start()+headerSize)
		for end := min(s.start()+SegmentSize, upTo); from < end && room > 0; {
			n, err := s.read(&from, end, room, fn)
			if err != nil {
				return from, err
			}
			room -= n
			if n > 0 {
				continue
			}
			// No record: the next segment says whether this one ends here.
			if i+1 < len(segs) {
				if before, err := segs[i+1].follows(); err != nil || before == from {
					if err != nil {
						return from, err
					}
					break
				}
			}
			return from, &CorruptError{File: s.path, Offset: int64(from - s.start()), Why: "checksum mismatch"}
		}
	}
	return from, nil
}

// read calls fn for records of the segment from *from on, and says how many bytes they have.
func (s *segment) read(from *LSN, end LSN, room int, fn func(Record) error) (n int, err error) {
	b := make([]byte, min(int(end-*from), room+recordSize(MaxPayload)))
	if _, err := s.f.ReadAt(b, int64(*from-s.start())); err != nil {
		return 0, fmt.Errorf("read %s: %w", s.path, err)
	}
	for n < room {
		r, _, size, ok := parseAt(b[n:], s.seq, uint64(*from-s.start()))
		if !ok {
			break
		}
		if err := fn(r); err != nil {
			return n, err
		}
		n += size
		*from += LSN(size)
	}
	return n, nil
}

// follows is where the segment before this one ended.
func (s *segment) follows() (LSN, error) {
	b := make([]byte, headerSize)
	if _, err := s.f.ReadAt(b, 0); err != nil {
		return 0, fmt.Errorf("read %s: %w", s.path, err)
	}
	before, _, ok := decodeHeader(b, s.seq)
	if !ok {
		return 0, &CorruptError{File: s.path, Offset: 0, Why: "this is not the header of a segment"}
	}
	return before, nil
}

// findKept takes segments that a reader still wants, and replay did not need, in
// front of the others, as far back as they follow each other.
func (l *Log) findKept(found []*segment) error {
	for len(l.segs) > 0 && l.keep < l.segs[0].start() {
		before, err := l.segs[0].follows()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(found, func(s *segment) bool { return s.start() < before && before <= s.start()+SegmentSize })
		if i < 0 || found[i].f != nil {
			return nil
		}
		s := found[i]
		if s.f, err = os.OpenFile(s.path, os.O_RDWR, 0); err != nil {
			return fmt.Errorf("open write-ahead log segment: %w", err)
		}
		if _, err := s.follows(); err != nil { // used for something else since
			s.f.Close()
			s.f = nil
			var damage *CorruptError
			if errors.As(err, &damage) || errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		l.segs = slices.Insert(l.segs, 0, s)
	}
	return nil
}
