package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"pillarbox/objstore"
)

const (
	magic        = "PBXWAL01"
	headerSize   = 40
	recordHeader = 24
	nameSuffix   = ".log"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func segmentName(seq uint64) string { return fmt.Sprintf("%016x%s", seq, nameSuffix) }

// recordSize is what a record takes in the log: header and payload, padded to 8.
func recordSize(payload int) int { return (recordHeader + payload + 7) &^ 7 }

// encodeHeader is a segment's first bytes: magic, sequence number, the end of
// the segment before, how far the log was durable, checksum.
func encodeHeader(seq uint64, prevEnd, synced LSN) []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	binary.LittleEndian.PutUint64(b[8:], seq)
	binary.LittleEndian.PutUint64(b[16:], uint64(prevEnd))
	binary.LittleEndian.PutUint64(b[24:], uint64(synced))
	binary.LittleEndian.PutUint32(b[32:], crc32.Checksum(b[:32], castagnoli))
	return b
}

func decodeHeader(b []byte, seq uint64) (prevEnd, synced LSN, ok bool) {
	if len(b) < headerSize || string(b[:8]) != magic || binary.LittleEndian.Uint64(b[8:]) != seq ||
		binary.LittleEndian.Uint32(b[32:]) != crc32.Checksum(b[:32], castagnoli) {
		return 0, 0, false
	}
	return LSN(binary.LittleEndian.Uint64(b[16:])), LSN(binary.LittleEndian.Uint64(b[24:])), true
}

// appendRecord encodes: payload length (4), checksum (4), durable-up-to (8),
// group (4), type (1), zeros (3), payload, zeros to a multiple of 8. The
// checksum also covers the segment's number and the offset in it.
func appendRecord(b []byte, seq, off, synced uint64, r Record) []byte {
	at := len(b)
	b = append(b, make([]byte, recordHeader)...)
	h := b[at:]
	binary.LittleEndian.PutUint32(h, uint32(r.size()))
	binary.LittleEndian.PutUint64(h[8:], synced)
	binary.LittleEndian.PutUint32(h[16:], r.Group)
	h[20] = r.Type
	b = append(append(b, r.Head...), r.Payload...)
	binary.LittleEndian.PutUint32(b[at+4:], recordSum(b[at:at+recordHeader+r.size()], seq, off))
	for (len(b)-at)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

func recordSum(rec []byte, seq, off uint64) uint32 {
	var pos [20]byte
	binary.LittleEndian.PutUint64(pos[:], seq)
	binary.LittleEndian.PutUint64(pos[8:], off)
	copy(pos[16:], rec[:4])
	return crc32.Update(crc32.Checksum(pos[:], castagnoli), castagnoli, rec[8:])
}

// parseRecord reads the record at off of segment data.
func parseRecord(data []byte, seq uint64, off int) (r Record, synced LSN, size int, ok bool) {
	return parseAt(data[min(off, len(data)):], seq, uint64(off))
}

// parseAt reads the record that h begins with, which lies at off of segment seq.
func parseAt(h []byte, seq, off uint64) (r Record, synced LSN, size int, ok bool) {
	if len(h) < recordHeader {
		return r, 0, 0, false
	}
	n := int(binary.LittleEndian.Uint32(h))
	if n > MaxPayload || recordSize(n) > len(h) || h[21]|h[22]|h[23] != 0 {
		return r, 0, 0, false
	}
	rec := h[:recordHeader+n]
	if binary.LittleEndian.Uint32(h[4:]) != recordSum(rec, seq, off) {
		return r, 0, 0, false
	}
	r = Record{Group: binary.LittleEndian.Uint32(h[16:]), Type: h[20], Payload: rec[recordHeader:]}
	return r, LSN(binary.LittleEndian.Uint64(h[8:])), recordSize(n), true
}

// list finds the segment files, ascending.
func (l *Log) list() ([]*segment, error) {
	names, err := os.ReadDir(l.dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) && l.readOnly {
			return nil, nil
		}
		return nil, fmt.Errorf("list write-ahead log: %w", err)
	}
	var segs []*segment
	for _, e := range names {
		base, isLog := strings.CutSuffix(e.Name(), nameSuffix)
		if !isLog {
			continue
		}
		seq, err := strconv.ParseUint(base, 16, 64)
		if err != nil || segmentName(seq) != e.Name() {
			return nil, fmt.Errorf("write-ahead log holds a file that is none of its own: %s", filepath.Join(l.dir, e.Name()))
		}
		segs = append(segs, &segment{seq: seq, path: filepath.Join(l.dir, e.Name())})
	}
	sort.Slice(segs, func(i, j int) bool { return segs[i].seq < segs[j].seq })
	return segs, nil
}

// scan is what one pass over a segment file found.
type scan struct {
	seg     *segment
	data    []byte
	prevEnd LSN
	valid   bool // the header is this segment's
	end     int  // offset behind the last record of the unbroken run
	synced  LSN  // the highest durable mark seen anywhere in the segment
}

func (l *Log) scanSegment(s *segment, each func(LSN, Record) error, from LSN) (scan, error) {
	sc := scan{seg: s}
	data, err := l.readAll(s)
	if err != nil {
		return sc, err
	}
	sc.data = data
	sc.prevEnd, sc.synced, sc.valid = decodeHeader(data, s.seq)
	if !sc.valid {
		sc.findMarks()
		return sc, nil
	}
	if len(data) != SegmentSize { // its size was on stable storage before its header was written
		return sc, &CorruptError{File: s.path, Offset: int64(len(data)), Why: fmt.Sprintf("the file ends here, it had %d bytes", SegmentSize)}
	}
	off := headerSize
	if from > s.start()+headerSize {
		off = int(min(from-s.start(), SegmentSize))
	}
	for {
		r, synced, size, ok := parseRecord(data, s.seq, off)
		if !ok {
			break
		}
		sc.synced = max(sc.synced, synced)
		if each != nil {
			if err := each(s.start()+LSN(off), r); err != nil {
				return sc, err
			}
		}
		off += size
	}
	sc.end = off
	sc.findMarks()
	return sc, nil
}

// findMarks looks at what lies behind a broken record: it may still say how far
// the log was durable.
func (sc *scan) findMarks() {
	for o := sc.end + 8; o+recordHeader <= len(sc.data); o += 8 {
		if _, synced, size, ok := parseRecord(sc.data, sc.seg.seq, o); ok {
			sc.synced = max(sc.synced, synced)
			o += size - 8
		}
	}
}

func (l *Log) readAll(s *segment) ([]byte, error) {
	flag := os.O_RDWR
	if l.readOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(s.path, flag, 0)
	if err != nil {
		return nil, fmt.Errorf("open write-ahead log segment: %w", err)
	}
	s.f = f
	data, err := io.ReadAll(io.LimitReader(f, SegmentSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.path, err)
	}
	return data, nil
}

// replay walks the segments that form the log: each says where the one before
// ended, so the run stops where a record is broken. Whether that is a torn tail
// or damage is told by the durable marks found behind it.
func (l *Log) replay(found []*segment, from LSN, each func(LSN, Record) error) error {
	var durable LSN
	var stopped *scan
	var headless *segment // the first one in use whose header is broken
	for _, s := range found {
		if s.start()+SegmentSize <= from {
			continue // recycled or free
		}
		use := each
		if stopped != nil {
			use = nil
		}
		sc, err := l.scanNext(s, use, from)
		if err != nil {
			return err
		}
		durable = max(durable, sc.synced)
		if !sc.valid && headless == nil && (sc.synced > 0 || s.start() <= from) {
			headless = s
		}
		if stopped != nil || !sc.valid {
			s.f.Close()
			s.f = nil
			continue
		}
		if len(l.segs) == 0 && s.start() > from && from > 0 {
			return fmt.Errorf("write-ahead log %s: the segment at position %d is missing: %w", l.dir, from, objstore.Corrupt)
		}
		if len(l.segs) > 0 && sc.prevEnd != l.end {
			return &CorruptError{File: s.path, Offset: 0, Why: fmt.Sprintf("it follows position %d, the log before it ends at %d", sc.prevEnd, l.end)}
		}
		l.segs = append(l.segs, s)
		l.end = s.start() + LSN(sc.end)
		if !l.continues(found, s, l.end) {
			stopped = &sc
		}
	}
	if headless != nil && (durable > l.end || len(l.segs) == 0 && from > 0) {
		return &CorruptError{File: headless.path, Offset: 0, Why: "this is not the header of a segment"}
	}
	if stopped != nil && durable > l.end {
		return &CorruptError{File: stopped.seg.path, Offset: int64(stopped.end), Why: "checksum mismatch"}
	}
	if len(l.segs) == 0 && from > 0 {
		return fmt.Errorf("write-ahead log %s: the segment at position %d is missing: %w", l.dir, from, objstore.Corrupt)
	}
	return nil
}

func (l *Log) scanNext(s *segment, each func(LSN, Record) error, from LSN) (scan, error) {
	sc, err := l.scanSegment(s, each, from)
	sc.data = nil
	if err != nil && s.f != nil {
		s.f.Close()
		s.f = nil
	}
	return sc, err
}

// continues says whether some later segment follows the end reached in s.
func (l *Log) continues(found []*segment, s *segment, end LSN) bool {
	for _, n := range found {
		if n.seq <= s.seq {
			continue
		}
		b := make([]byte, headerSize)
		f, err := os.Open(n.path)
		if err != nil {
			return false
		}
		_, err = io.ReadFull(f, b)
		f.Close()
		if err != nil {
			continue
		}
		if prevEnd, _, ok := decodeHeader(b, n.seq); ok {
			return prevEnd == end
		}
	}
	return false
}
