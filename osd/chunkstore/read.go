package chunkstore

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

func (s *Store) segment(id uint32) (*segment, error) {
	s.segMu.RLock()
	defer s.segMu.RUnlock()
	seg := s.segs[id]
	if seg == nil {
		return nil, fmt.Errorf("chunk segment %s is missing: %w", segmentName(id), objstore.Corrupt)
	}
	return seg, nil
}

// Read fills p with the chunk's bytes from off on, after checking the checksums
// of all blocks it touches. A *CorruptError names file and offset; p's content
// is undefined then.
func (s *Store) Read(loc Loc, id objstore.ChunkID, off uint32, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if uint64(off)+uint64(len(p)) > uint64(loc.Len) {
		return fmt.Errorf("read %d bytes at %d of chunk %v, which has %d: %w", len(p), off, id, loc.Len, objstore.Invalid)
	}
	seg, err := s.segment(loc.Seg)
	if err != nil {
		return err
	}
	bp := s.bufs.Get().(*[]byte)
	defer s.bufs.Put(bp)
	buf := *bp
	hs := headerSize(int(loc.Len))
	small := loc.Len <= blockSize
	n := hs
	if small {
		n += int(loc.Len)
	}
	if err := s.pread(seg, buf[:n], loc.offset()); err != nil {
		return err
	}
	got, length, stored, ok := decodeHeader(buf[:hs])
	if !ok || got != id || length != loc.Len {
		return &CorruptError{File: seg.path, Offset: loc.offset(), Why: fmt.Sprintf("header of chunk %v", id)}
	}
	if small {
		body := buf[hs:n]
		if checksum(body) != stored.at(0) {
			return &CorruptError{File: seg.path, Offset: loc.offset(), Why: fmt.Sprintf("checksum of chunk %v", id)}
		}
		copy(p, body[off:])
		return nil
	}
	// The checksums are copied: buf is about to be reused.
	return s.readBlocks(seg, loc, id, append(sums(nil), stored...), off, p, buf[:blockSize])
}

// readBlocks copies and checks block by block; whole blocks go straight into p.
func (s *Store) readBlocks(seg *segment, loc Loc, id objstore.ChunkID, stored sums, off uint32, p, buf []byte) error {
	base := loc.offset() + int64(dataOffset(int(loc.Len)))
	for len(p) > 0 {
		block := off / blockSize
		from := off % blockSize
		length := min(blockSize, loc.Len-block*blockSize)
		dst := buf[:length]
		direct := from == 0 && len(p) >= int(length)
		if direct {
			dst = p[:length]
		}
		at := base + int64(block)*blockSize
		if err := s.pread(seg, dst, at); err != nil {
			return err
		}
		if checksum(dst) != stored.at(int(block)) {
			return &CorruptError{File: seg.path, Offset: at, Why: fmt.Sprintf("checksum of block %d of chunk %v", block, id)}
		}
		n := int(length - from)
		if !direct {
			n = copy(p, dst[from:])
		}
		p = p[n:]
		off += uint32(n)
	}
	return nil
}

func (s *Store) pread(seg *segment, p []byte, at int64) error {
	_, err := seg.f.ReadAt(p, at)
	if errors.Is(err, io.EOF) {
		return &CorruptError{File: seg.path, Offset: at, Why: "the segment is cut short"}
	}
	if err != nil {
		return fmt.Errorf("read %s at %d: %w", seg.path, at, err)
	}
	return nil
}

// Free gives the space of chunks back to the filesystem. The caller must have
// forgotten them durably. Segments with nothing left in them are removed.
func (s *Store) Free(locs []Loc) error {
	var errs []error
	touched := make(map[uint32]*segment)
	for _, l := range locs {
		seg, err := s.segment(l.Seg)
		if err != nil {
			continue // its segment went when it became empty
		}
		err = unix.Fallocate(int(seg.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, l.offset(), l.size())
		if err != nil {
			errs = append(errs, fmt.Errorf("free %v: %w", l, err))
			continue
		}
		touched[l.Seg] = seg
	}
	for _, seg := range touched {
		errs = append(errs, s.removeIfEmpty(seg))
	}
	return errors.Join(errs...)
}

func (s *Store) removeIfEmpty(seg *segment) error {
	st := &s.streams[seg.stream]
	st.mu.Lock()
	defer st.mu.Unlock()
	if seg == st.active || st.syncing || st.inflight > 0 {
		return nil
	}
	if _, dirty := st.dirty[seg]; dirty {
		return nil
	}
	// How many blocks it has does not say: filesystems count some of their own, as
	// many as a small chunk takes.
	switch _, err := unix.Seek(int(seg.f.Fd()), align, unix.SEEK_DATA); {
	case err == nil:
		return nil
	case !errors.Is(err, unix.ENXIO):
		return fmt.Errorf("look for chunks in %s: %w", seg.path, err)
	}
	s.segMu.Lock()
	defer s.segMu.Unlock()
	if s.segs[seg.id] != seg {
		return nil
	}
	delete(s.segs, seg.id) // a reader may still hold the file; its descriptor goes with the last one
	if err := os.Remove(seg.path); err != nil {
		return fmt.Errorf("remove empty segment: %w", err)
	}
	return nil
}

// Scan calls fn for every whole record of a stream at or behind from, in order.
// It is how the caller learns after a crash of chunks that it had not yet
// written down. Torn records are passed over.
func (s *Store) Scan(kind Stream, from Position, fn func(objstore.ChunkID, Loc) error) error {
	for _, seg := range s.sorted(kind, from.Seg) {
		at := int64(align)
		if seg.id == from.Seg {
			at = max(at, int64(from.Off)*align)
		}
		if err := s.scanSegment(seg, at, fn); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) scanSegment(seg *segment, at int64, fn func(objstore.ChunkID, Loc) error) error {
	head := make([]byte, headerSize(MaxChunk))
	for at < seg.size {
		next, err := unix.Seek(int(seg.f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("scan %s: %w", seg.path, err)
		}
		at = max(at, next/align*align)
		n, err := seg.f.ReadAt(head, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("scan %s at %d: %w", seg.path, at, err)
		}
		id, length, _, ok := decodeHeader(head[:n])
		loc := Loc{Seg: seg.id, Off: uint32(at / align), Len: length}
		if ok {
			switch err := s.Verify(loc, id); {
			case errors.Is(err, objstore.Corrupt):
				ok = false
			case err != nil:
				return err
			}
		}
		if !ok {
			at += align
			continue
		}
		if err := fn(id, loc); err != nil {
			return err
		}
		at += loc.size()
	}
	return nil
}

// Verify reads a chunk whole and checks it.
func (s *Store) Verify(loc Loc, id objstore.ChunkID) error {
	return s.Read(loc, id, 0, make([]byte, loc.Len))
}
