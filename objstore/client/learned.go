package client

import (
	"slices"
	"sync"
	"time"

	"pillarbox/objstore"
)

// readState is what a client learned by reading. The zero value is ready.
type readState struct {
	mu      sync.Mutex // a leaf
	times   [64]time.Duration
	n       int
	bads    map[badReplica]time.Time // until when they are not the first choice
	lengths map[objstore.ChunkID]int // of chunks of erasure-coded pools
	buffers sync.Pool                // *[]byte
}

type badReplica struct {
	id  objstore.ChunkID
	osd int
}

const (
	badFor     = time.Minute
	maxBads    = 4096
	maxLengths = 1 << 16
)

func (s *readState) noteBad(id objstore.ChunkID, osd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bads == nil || len(s.bads) >= maxBads {
		s.bads = make(map[badReplica]time.Time)
	}
	s.bads[badReplica{id, osd}] = time.Now().Add(badFor)
}

func (s *readState) bad(id objstore.ChunkID, osd int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.bads[badReplica{id, osd}]
	if ok && time.Now().After(until) {
		delete(s.bads, badReplica{id, osd})
		return false
	}
	return ok
}

// took notes how long a read took.
func (s *readState) took(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.times[s.n%len(s.times)] = d
	s.n++
}

// hedge is after what time a read takes long: three times the median of the
// last ones, but not less than least.
func (s *readState) hedge(least time.Duration) time.Duration {
	s.mu.Lock()
	times, n := s.times, min(s.n, len(s.times))
	s.mu.Unlock()
	if n == 0 {
		return least
	}
	slices.Sort(times[:n])
	return max(least, 3*times[n/2])
}

func (s *readState) length(id objstore.ChunkID) (int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.lengths[id]
	return n, ok
}

func (s *readState) setLength(id objstore.ChunkID, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lengths == nil || len(s.lengths) >= maxLengths {
		s.lengths = make(map[objstore.ChunkID]int)
	}
	s.lengths[id] = n
}

// buffer is for a read that may not be the one to fill the caller's. One that
// was not released is the garbage collector's.
func (s *readState) buffer(n int) []byte {
	if b, ok := s.buffers.Get().(*[]byte); ok && cap(*b) >= n {
		return (*b)[:n]
	}
	return make([]byte, n)
}

func (s *readState) release(pieces []piece) {
	for _, p := range pieces {
		b := p.data[:0]
		s.buffers.Put(&b)
	}
}
