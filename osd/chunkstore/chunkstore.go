// Package chunkstore keeps an OSD's chunks in append-only segment files.
//
// A record describes itself (chunk id, length, a checksum per 64 KiB), starts
// at a multiple of 4 KiB and is never changed; freeing one punches a hole, and
// a segment that holds nothing any more is removed. Where a chunk lies is the
// caller's to remember (a Loc); after a crash Scan finds what was appended
// since the caller last wrote its memory down. The format is described in
// docs/format.md.
//
// There are two streams, so that syncing one does not wait for the other:
// Pooled chunks must be durable before they are named, Resident ones are
// guarded by the write-ahead log until the caller syncs them.
//
// All methods may be called from any goroutine.
package chunkstore

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

// Stream is one of the two sequences of segments.
type Stream uint8

// The streams.
const (
	Resident Stream = iota
	Pooled
	streams
)

// MaxChunk is the largest chunk, in bytes.
const MaxChunk = objstore.StoredMax

const (
	align       = 4096
	segmentSize = 512 << 20
	blockSize   = 64 << 10

	// directSize is the length from which on a chunk is large: its data are
	// aligned in its record and written with direct I/O.
	directSize = 256 << 10
)

// Loc is where a chunk's record lies: segment, offset in units of 4 KiB, and
// the length of the chunk in bytes.
type Loc struct {
	Seg uint32
	Off uint32
	Len uint32
	Tag uint8 // the caller's, who remembers it with the rest; not in the record
}

func (l Loc) String() string { return fmt.Sprintf("%s offset %d", segmentName(l.Seg), l.offset()) }

func (l Loc) offset() int64 { return int64(l.Off) * align }

// size is what the record takes in its segment.
func (l Loc) size() int64 { return int64(recordSize(int(l.Len))) }

// Position is a place in a stream: everything before it has been accounted for.
type Position struct {
	Seg uint32
	Off uint32 // units of 4 KiB
}

// CorruptError says that a record's checksum does not match.
type CorruptError struct {
	File   string
	Offset int64
	Why    string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("chunk segment %s: damaged record at offset %d: %s", e.File, e.Offset, e.Why)
}

// Unwrap makes errors.Is(err, objstore.Corrupt) hold.
func (e *CorruptError) Unwrap() error { return objstore.Corrupt }

// Options configure Open.
type Options struct {
	Dir      string
	ReadOnly bool
	Log      *slog.Logger
}

type segment struct {
	id     uint32
	stream Stream
	f      *os.File
	direct *os.File // writes past the page cache; nil where the filesystem cannot
	path   string
	size   int64 // as found; grows only for the active one
}

func (seg *segment) close() error {
	err := seg.f.Close()
	if seg.direct != nil {
		err = errors.Join(err, seg.direct.Close())
	}
	return err
}

// stream state; its mu guards the fields and is never held during I/O.
type stream struct {
	mu       sync.Mutex
	cond     *sync.Cond
	active   *segment
	off      int64 // where the next record goes
	inflight int   // appends that have a place but are not written yet
	dirty    map[*segment]struct{}
	appended uint64 // counts finished appends
	synced   uint64 // appends known durable
	syncing  bool
	err      error // sticky: a sync failed
}

// Store is an open chunk store. Lock order: stream.mu before segMu.
type Store struct {
	dir      string
	readOnly bool
	log      *slog.Logger
	streams  [streams]stream

	segMu  sync.RWMutex
	segs   map[uint32]*segment
	nextID uint32

	bufs sync.Pool

	// SyncHook, when set before use, is called before each fdatasync; tests fail it.
	SyncHook func() error
}

// Open opens the segments in a directory, which is made if missing.
func Open(o Options) (*Store, error) {
	s := &Store{dir: o.Dir, readOnly: o.ReadOnly, log: o.Log, segs: make(map[uint32]*segment), nextID: 1}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.bufs.New = func() any { b := make([]byte, recordSize(blockSize)); return &b }
	for i := range s.streams {
		s.streams[i].cond = sync.NewCond(&s.streams[i].mu)
		s.streams[i].dirty = make(map[*segment]struct{})
	}
	if !o.ReadOnly {
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("create chunk store: %w", err)
		}
	}
	names, err := os.ReadDir(o.Dir)
	if err != nil && !(o.ReadOnly && errors.Is(err, os.ErrNotExist)) {
		return nil, fmt.Errorf("list chunk store: %w", err)
	}
	for _, e := range names {
		if err := s.openSegment(e.Name()); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

func (s *Store) openSegment(name string) error {
	path := filepath.Join(s.dir, name)
	var id uint32
	if n, err := fmt.Sscanf(name, "%08x.seg", &id); n != 1 || err != nil || segmentName(id) != name {
		return fmt.Errorf("chunk store holds a file that is none of its own: %s", path)
	}
	flag := os.O_RDWR
	if s.readOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return fmt.Errorf("open chunk segment: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("stat chunk segment: %w", err)
	}
	s.nextID = max(s.nextID, id+1)
	head := make([]byte, align)
	n, _ := f.ReadAt(head, 0)
	kind, ok := decodeSegmentHeader(head[:n], id)
	if !ok {
		f.Close()
		if st.Size() > align {
			return &CorruptError{File: path, Offset: 0, Why: "segment header"}
		}
		if s.readOnly {
			return nil
		}
		// A crash while the segment was being made: nothing was ever put in it.
		return os.Remove(path)
	}
	s.segs[id] = &segment{id: id, stream: kind, f: f, path: path, size: st.Size()}
	return nil
}

// newSegment makes the stream's next segment. Called with the stream's mu held.
func (s *Store) newSegment(kind Stream) (*segment, error) {
	s.segMu.Lock()
	id := s.nextID
	s.nextID++
	s.segMu.Unlock()
	path := filepath.Join(s.dir, segmentName(id))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make chunk segment: %w", noSpace(err))
	}
	_, err = f.WriteAt(encodeSegmentHeader(id, kind), 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		f.Close()
		os.Remove(path)
		return nil, fmt.Errorf("make chunk segment %s: %w", path, noSpace(err))
	}
	seg := &segment{id: id, stream: kind, f: f, path: path}
	if direct, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0); err == nil {
		seg.direct = direct
	}
	s.segMu.Lock()
	s.segs[id] = seg
	s.segMu.Unlock()
	return seg, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// noSpace gives a full disk its kind.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", objstore.NoSpace, err)
	}
	return err
}

// Append writes a chunk at the end of a stream. It survives the death of the
// process on return, a power cut only after Sync of the stream.
func (s *Store) Append(kind Stream, id objstore.ChunkID, data []byte) (Loc, error) {
	if len(data) == 0 || len(data) > MaxChunk {
		return Loc{}, fmt.Errorf("chunk %v of %d bytes: %w", id, len(data), objstore.Invalid)
	}
	st := &s.streams[kind]
	size := int64(recordSize(len(data)))
	st.mu.Lock()
	if st.err != nil {
		st.mu.Unlock()
		return Loc{}, st.err
	}
	if st.active == nil || st.off+size > segmentSize {
		seg, err := s.newSegment(kind)
		if err != nil {
			st.mu.Unlock()
			return Loc{}, err
		}
		st.active, st.off = seg, align
	}
	seg, at := st.active, st.off
	st.off += size
	st.inflight++
	st.mu.Unlock()

	err := s.writeRecord(seg, at, id, data)

	st.mu.Lock()
	defer st.mu.Unlock()
	st.inflight--
	st.appended++
	st.dirty[seg] = struct{}{}
	st.cond.Broadcast()
	if err != nil {
		return Loc{}, fmt.Errorf("write chunk %v to %s: %w", id, seg.path, noSpace(err))
	}
	return Loc{Seg: seg.id, Off: uint32(at / align), Len: uint32(len(data))}, nil
}

func (s *Store) writeRecord(seg *segment, at int64, id objstore.ChunkID, data []byte) error {
	if recordSize(len(data)) <= recordSize(blockSize) {
		bp := s.bufs.Get().(*[]byte)
		defer s.bufs.Put(bp)
		b := appendHeader((*bp)[:0], id, data)
		b = append(b, data...)
		_, err := seg.f.WriteAt(b, at)
		return err
	}
	if len(data) >= directSize {
		return s.writeLarge(seg, at, id, data)
	}
	head := appendHeader(make([]byte, 0, headerSize(len(data))), id, data)
	// The data first: a record without its header is no record.
	if _, err := seg.f.WriteAt(data, at+int64(len(head))); err != nil {
		return err
	}
	_, err := seg.f.WriteAt(head, at)
	return err
}

// writeLarge writes a record past the page cache where it can: the kernel holds
// the body as the mount's file already, and a second copy of it costs memory
// traffic and pushes out what is of more use.
func (s *Store) writeLarge(seg *segment, at int64, id objstore.ChunkID, data []byte) error {
	head := alignedBuffer(align)
	clear(head[len(appendHeader(head[:0], id, data)):])
	whole, f := data, seg.f
	if seg.direct != nil && aligned(data) {
		whole, f = data[:len(data)&^(align-1)], seg.direct
	}
	if err := writev(f, at, head, whole); err != nil {
		return err
	}
	if len(whole) == len(data) {
		return nil
	}
	tail := alignedBuffer(align)
	clear(tail[copy(tail, data[len(whole):]):])
	return writev(f, at+int64(align+len(whole)), tail)
}

func writev(f *os.File, at int64, parts ...[]byte) error {
	for len(parts) > 0 {
		n, err := unix.Pwritev(int(f.Fd()), parts, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("pwritev", err)
		}
		at += int64(n)
		for len(parts) > 0 && n >= len(parts[0]) {
			n -= len(parts[0])
			parts = parts[1:]
		}
		if n > 0 {
			parts = append([][]byte{parts[0][n:]}, parts[1:]...)
		}
	}
	return nil
}

func aligned(b []byte) bool { return uintptr(unsafe.Pointer(unsafe.SliceData(b)))&(align-1) == 0 }

// alignedBuffer returns n bytes at an address that direct I/O can use.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+align)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (align - 1)
	return b[skip : skip+n : skip+n]
}

// Sync returns once every chunk whose Append has returned is on stable storage.
// Concurrent callers share the work. A failed sync fails the stream for good.
func (s *Store) Sync(kind Stream) error {
	st := &s.streams[kind]
	st.mu.Lock()
	defer st.mu.Unlock()
	need := st.appended
	for st.synced < need {
		if st.err != nil {
			return st.err
		}
		if st.syncing {
			st.cond.Wait()
			continue
		}
		st.syncing = true
		target := st.appended
		dirty := st.dirty
		st.dirty = make(map[*segment]struct{})
		st.mu.Unlock()
		err := s.syncSegments(dirty)
		st.mu.Lock()
		st.syncing = false
		if err != nil {
			st.err = err
		} else {
			st.synced = max(st.synced, target)
		}
		st.cond.Broadcast()
	}
	return st.err
}

func (s *Store) syncSegments(dirty map[*segment]struct{}) error {
	if s.SyncHook != nil {
		if err := s.SyncHook(); err != nil {
			return err
		}
	}
	for seg := range dirty {
		if err := unix.Fdatasync(int(seg.f.Fd())); err != nil {
			return fmt.Errorf("sync %s: %w", seg.path, err)
		}
	}
	return nil
}

// Position returns the end of a stream, once no append before it is unfinished.
// A Sync that starts later covers all that lies before it.
func (s *Store) Position(kind Stream) Position {
	st := &s.streams[kind]
	st.mu.Lock()
	defer st.mu.Unlock()
	for st.inflight > 0 {
		st.cond.Wait()
	}
	if st.active == nil {
		return s.endOf(kind)
	}
	return Position{Seg: st.active.id, Off: uint32(st.off / align)}
}

// endOf is the position behind all segments found at Open.
func (s *Store) endOf(kind Stream) Position {
	s.segMu.RLock()
	defer s.segMu.RUnlock()
	var p Position
	for _, seg := range s.segs {
		if seg.stream == kind && seg.id >= p.Seg {
			p = Position{Seg: seg.id, Off: uint32((seg.size + align - 1) / align)}
		}
	}
	return p
}

// Close closes the files; it does not sync.
func (s *Store) Close() error {
	s.segMu.Lock()
	defer s.segMu.Unlock()
	var errs []error
	for _, seg := range s.segs {
		errs = append(errs, seg.close())
	}
	s.segs = map[uint32]*segment{}
	return errors.Join(errs...)
}

// sorted returns a stream's segments from position p on, ascending.
func (s *Store) sorted(kind Stream, from uint32) []*segment {
	s.segMu.RLock()
	defer s.segMu.RUnlock()
	var out []*segment
	for _, seg := range s.segs {
		if seg.stream == kind && seg.id >= from {
			out = append(out, seg)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].id < out[j].id })
	return out
}
