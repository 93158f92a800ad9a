// Package wal is an OSD's write-ahead log: one sequence of records shared by
// all its volume groups, so that one sync makes the changes of many groups
// durable.
//
// Append hands records to the kernel with one write and returns: they survive
// the death of the process. Sync makes them survive a power cut; callers that
// wait at the same time share one fdatasync. Release lets segments whose
// records are no longer needed be recycled.
//
// Segment files are zero-filled once and then overwritten in place, which syncs
// about twice as fast as a growing file. The checksum of a record covers its
// position, so what an earlier use of the file left behind is never taken for a
// record. The format is described in docs/format.md.
//
// All methods may be called from any goroutine.
package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

// LSN is a position in the log, in bytes since its beginning, gaps included.
type LSN uint64

// MaxPayload is the largest payload a record can have, in bytes.
const MaxPayload = 12 << 20

// SegmentSize is the size of a segment file in bytes.
const SegmentSize = 16 << 20

// ErrClosed is returned once the log is closed or has failed.
var ErrClosed = errors.New("write-ahead log closed")

// Record is one entry of the log.
type Record struct {
	Group   uint32 // the placement group it belongs to
	Type    uint8  // its meaning, known to the caller
	Head    []byte // Append puts it in front of Payload; replay hands both back as Payload
	Payload []byte
}

func (r Record) size() int { return len(r.Head) + len(r.Payload) }

// CorruptError says that a record which was durable once no longer reads back.
type CorruptError struct {
	File   string
	Offset int64
	Why    string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("write-ahead log %s: damaged record at offset %d: %s", e.File, e.Offset, e.Why)
}

// Unwrap makes errors.Is(err, objstore.Corrupt) hold.
func (e *CorruptError) Unwrap() error { return objstore.Corrupt }

type segment struct {
	seq  uint64
	f    *os.File
	path string
}

func (s *segment) start() LSN { return LSN(s.seq * SegmentSize) }

// Log is an open write-ahead log.
type Log struct {
	dir string
	log *slog.Logger

	// mu guards what follows. syncLog holds it only to look and to publish,
	// never during fdatasync.
	mu       sync.Mutex
	cond     *sync.Cond // a sync ended
	segs     []*segment // in use, ascending; the last one is written to
	free     []string   // paths of recycled files
	end      LSN
	synced   LSN
	syncing  bool
	err      error // sticky: a write or sync failed, nothing more is accepted
	buf      []byte
	readOnly bool
	keep     LSN // records from here on are kept for a reader; noKeep: there is none

	// SyncHook, when set before use, is called before each fdatasync; tests fail it.
	SyncHook func() error

	syncs, syncNanos uint64
}

// Options configure Open.
type Options struct {
	Dir      string
	ReadOnly bool // replay only: creates and changes nothing
	Keep     *LSN // a reader wants records from here on; nil: there is none
	Log      *slog.Logger
}

// Open reads the log, calls replay for every record at or behind from, in
// order, and readies the log for appending. A torn tail, left by a power cut
// before its sync returned, is cut off; damage to anything that was durable is
// a *CorruptError.
func Open(o Options, from LSN, replay func(LSN, Record) error) (*Log, error) {
	l := &Log{dir: o.Dir, log: o.Log, readOnly: o.ReadOnly, keep: noKeep}
	if o.Keep != nil {
		l.keep = *o.Keep
	}
	if l.log == nil {
		l.log = slog.Default()
	}
	l.cond = sync.NewCond(&l.mu)
	if !o.ReadOnly {
		if err := os.MkdirAll(o.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("create write-ahead log: %w", err)
		}
	}
	found, err := l.list()
	if err != nil {
		return nil, err
	}
	if err := l.replay(found, from, replay); err != nil {
		l.closeFiles()
		return nil, err
	}
	if o.ReadOnly {
		return l, nil
	}
	if err := l.begin(found); err != nil {
		l.closeFiles()
		return nil, err
	}
	return l, nil
}

// begin syncs what replay accepted and opens a fresh segment behind it, so that
// nothing beyond the accepted end can ever read as a record again.
func (l *Log) begin(found []*segment) error {
	for _, s := range l.segs {
		if err := unix.Fdatasync(int(s.f.Fd())); err != nil {
			return fmt.Errorf("sync %s: %w", s.path, err)
		}
	}
	next := uint64(1)
	inUse := make(map[string]bool)
	if err := l.findKept(found); err != nil {
		return err
	}
	for _, s := range l.segs {
		inUse[s.path] = true
		next = max(next, s.seq+1)
	}
	for _, s := range found {
		next = max(next, s.seq+1)
		if !inUse[s.path] {
			l.free = append(l.free, s.path)
		}
	}
	l.synced = l.end
	return l.openSegment(next)
}

// openSegment starts segment seq, from a recycled file if there is one. Called
// with mu held or before the log is shared.
func (l *Log) openSegment(seq uint64) error {
	path := filepath.Join(l.dir, segmentName(seq))
	var f *os.File
	var err error
	if n := len(l.free); n > 0 {
		old := l.free[n-1]
		l.free = l.free[:n-1]
		if err = os.Rename(old, path); err == nil {
			f, err = os.OpenFile(path, os.O_RDWR, 0)
		}
	} else {
		f, err = createZeroed(path)
	}
	if err != nil {
		return fmt.Errorf("start write-ahead log segment: %w", err)
	}
	s := &segment{seq: seq, f: f, path: path}
	if _, err := f.WriteAt(encodeHeader(seq, l.end, l.synced), 0); err != nil {
		f.Close()
		return fmt.Errorf("write header of %s: %w", path, err)
	}
	if err := syncDir(l.dir); err != nil {
		f.Close()
		return err
	}
	l.segs = append(l.segs, s)
	l.end = s.start() + headerSize
	return nil
}

func createZeroed(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	zero := make([]byte, 1<<20)
	for off := int64(0); off < SegmentSize; off += int64(len(zero)) {
		if _, err := f.WriteAt(zero, off); err != nil {
			f.Close()
			os.Remove(path)
			return nil, err
		}
	}
	if err := f.Sync(); err != nil {
		f.Close()
		os.Remove(path)
		return nil, err
	}
	return f, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open %s to sync it: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// Append writes records with one write per segment touched and returns the
// position behind the last one. They are in the kernel's hands on return, not
// on stable storage. After an error the log accepts nothing more.
func (l *Log) Append(recs ...Record) (LSN, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, l.err
	}
	l.buf = l.buf[:0]
	start := l.end
	for _, r := range recs {
		if r.size() > MaxPayload {
			return 0, fmt.Errorf("append a record of %d bytes: %w", r.size(), objstore.TooBig)
		}
		cur := l.segs[len(l.segs)-1]
		need := recordSize(r.size())
		if l.end+LSN(need) > cur.start()+SegmentSize {
			if err := l.write(start); err != nil {
				return 0, err
			}
			if err := l.openSegment(cur.seq + 1); err != nil {
				return 0, l.fail(err)
			}
			cur, start = l.segs[len(l.segs)-1], l.end
		}
		l.buf = appendRecord(l.buf, cur.seq, uint64(l.end-cur.start()), uint64(l.synced), r)
		l.end += LSN(need)
	}
	if err := l.write(start); err != nil {
		return 0, err
	}
	if cap(l.buf) > 1<<20 {
		l.buf = nil
	}
	return l.end, nil
}

// write puts the buffer at start, which lies in the last segment.
func (l *Log) write(start LSN) error {
	if len(l.buf) == 0 {
		return nil
	}
	cur := l.segs[len(l.segs)-1]
	if _, err := cur.f.WriteAt(l.buf, int64(start-cur.start())); err != nil {
		return l.fail(fmt.Errorf("append to %s: %w", cur.path, err))
	}
	l.buf = l.buf[:0]
	return nil
}

// fail makes err stick. Called with mu held.
func (l *Log) fail(err error) error {
	if l.err == nil {
		l.err = err
		l.log.Error("write-ahead log failed; no further change is accepted", "err", err)
	}
	l.cond.Broadcast()
	return l.err
}

// End is the position behind the last appended record.
func (l *Log) End() LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end
}

// Room is how many bytes, less what the end of a segment wastes, can be appended
// before the log asks the disk for more.
func (l *Log) Room() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segs) == 0 {
		return 0
	}
	cur := l.segs[len(l.segs)-1]
	return int64(cur.start()+SegmentSize-l.end) + int64(len(l.free))*SegmentSize
}

// Sync returns once everything before upTo is on stable storage, with how far
// that is now. A failed sync fails the log for good: what the kernel dropped
// cannot be told from what it kept.
func (l *Log) Sync(upTo LSN) (LSN, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.synced >= upTo {
			return l.synced, nil
		}
		if l.err != nil {
			return l.synced, l.err
		}
		if l.syncing {
			l.cond.Wait()
			continue
		}
		l.syncOnce()
	}
}

// syncOnce runs one fdatasync of every segment that may hold unsynced records.
// Called with mu held, which it gives up meanwhile.
func (l *Log) syncOnce() {
	l.syncing = true
	target := l.end
	var todo []*segment
	for _, s := range l.segs {
		if s.start()+SegmentSize > l.synced {
			todo = append(todo, s)
		}
	}
	l.mu.Unlock()
	began := time.Now()
	var err error
	if l.SyncHook != nil {
		err = l.SyncHook()
	}
	for _, s := range todo {
		if err == nil {
			if err = unix.Fdatasync(int(s.f.Fd())); err != nil {
				err = fmt.Errorf("sync %s: %w", s.path, err)
			}
		}
	}
	took := time.Since(began)
	l.mu.Lock()
	l.syncing = false
	l.syncs++
	l.syncNanos += uint64(took)
	if err != nil {
		l.fail(err)
		return
	}
	l.synced = max(l.synced, target)
	l.cond.Broadcast()
}

// Release says that records before lsn are no longer needed; whole segments
// below it are kept for reuse, a few of them, or removed.
func (l *Log) Release(lsn LSN) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.keep != noKeep && l.end > l.keep+maxKept {
		l.log.Warn("what is to be shipped outside has waited too long; the write-ahead log gives it up", "bytes", l.end-l.keep)
		l.keep = noKeep
	}
	lsn = min(lsn, l.keep)
	for len(l.segs) > 1 && l.segs[1].start()+headerSize <= lsn && l.segs[1].start() <= l.synced && !l.syncing {
		s := l.segs[0]
		if err := s.f.Close(); err != nil {
			return fmt.Errorf("close %s: %w", s.path, err)
		}
		l.segs = l.segs[1:]
		if len(l.free) >= 4 {
			if err := os.Remove(s.path); err != nil {
				return fmt.Errorf("remove %s: %w", s.path, err)
			}
			continue
		}
		l.free = append(l.free, s.path)
	}
	return nil
}

// Stats counts syncs and the time they took.
type Stats struct {
	Syncs    uint64
	SyncTime time.Duration
	Segments int
}

// Stats returns the log's counters.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{Syncs: l.syncs, SyncTime: time.Duration(l.syncNanos), Segments: len(l.segs) + len(l.free)}
}

// Close syncs and closes the log.
func (l *Log) Close() error {
	var err error
	if !l.readOnly {
		_, err = l.Sync(l.End())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = ErrClosed
	}
	return errors.Join(err, l.closeFiles())
}

func (l *Log) closeFiles() error {
	var errs []error
	for _, s := range l.segs {
		errs = append(errs, s.f.Close())
	}
	l.segs = nil
	return errors.Join(errs...)
}
