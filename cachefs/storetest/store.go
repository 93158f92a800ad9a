// Package storetest is an objstore.Store in memory, for tests of what stands
// above a store: the real semantics of package volume over one map, behind one
// mutex. It has the root volume only, and no durability to speak of, but tells
// what was asked of it and fails on demand.
package storetest

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// Store is a store in memory. Any goroutine may call it.
type Store struct {
	mu     sync.Mutex // guards everything below
	view   volume.MapView
	bodies map[objstore.ChunkID][]byte // data pool
	fail   func(op string, subject any) error
	counts map[string]int
	avail  uint64
	chunks uint64 // named
}

var _ objstore.Store = (*Store)(nil)

// New returns a store with an empty root volume.
func New() *Store {
	s := &Store{bodies: map[objstore.ChunkID][]byte{}, counts: map[string]int{}, avail: 1 << 40}
	if _, err := s.Apply(context.Background(), objstore.InitVolume{Vol: objstore.RootVolume, Mode: objstore.ModeDir | 0o755}, objstore.Committed); err != nil {
		panic(fmt.Sprintf("storetest: init root volume: %v", err))
	}
	return s
}

// FailWith makes fn decide, before each call of Apply (subject: the Change),
// PutChunk or ReadChunk (the ChunkID) and Sync (the VolumeID), whether it
// fails. It runs without locks held and may block. Nil ends that.
func (s *Store) FailWith(fn func(op string, subject any) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fn
}

// Count is how often an operation was called so far; Apply counts as
// "Apply/<promise>" too.
func (s *Store) Count(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[op]
}

// Holds says whether any body or name contains the bytes.
func (s *Store) Holds(b []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, body := range s.bodies {
		if bytes.Contains(body, b) {
			return true
		}
	}
	found := false
	s.view.Scan(nil, nil, func(_, val []byte) bool { // a MapView's never fails
		found = found || bytes.Contains(val, b)
		return !found
	})
	return found
}

// Tamper makes fn change the bytes of pooled chunks.
func (s *Store) Tamper(fn func(bodies map[objstore.ChunkID][]byte)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s.bodies)
}

// Check runs the volume's own check and returns what it finds.
func (s *Store) Check() (found []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err = volume.Check(&s.view, objstore.RootVolume, func(p volume.Problem) { found = append(found, fmt.Sprint(p)) })
	return found, err
}

// Orphans lists the inodes without a name.
func (s *Store) Orphans() ([]objstore.Ino, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return volume.Orphans(&s.view, objstore.RootVolume, 1<<20)
}

// enter counts a call, lets it fail, and returns with mu held.
func (s *Store) enter(op string, subject any) error {
	s.mu.Lock()
	s.counts[op]++
	fail := s.fail
	if fail == nil {
		return nil
	}
	s.mu.Unlock()
	if err := fail(op, subject); err != nil {
		return err
	}
	s.mu.Lock()
	return nil
}

// Session implements objstore.Store.
func (s *Store) Session() objstore.Session { return objstore.Session{ID: 7} }

// Lookup implements objstore.Store.
func (s *Store) Lookup(_ context.Context, dir objstore.Ino, name string) (objstore.Attr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts["Lookup"]++
	e, err := volume.Lookup(&s.view, dir, name)
	if err != nil {
		return objstore.Attr{}, err
	}
	return volume.GetAttr(&s.view, e.Ino)
}

// GetAttr implements objstore.Store.
func (s *Store) GetAttr(_ context.Context, ino objstore.Ino) (objstore.Attr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts["GetAttr"]++
	return volume.GetAttr(&s.view, ino)
}

// ReadDir implements objstore.Store.
func (s *Store) ReadDir(_ context.Context, dir objstore.Ino, after uint64, max int, attrs bool) ([]objstore.DirEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts["ReadDir"]++
	return volume.ReadDir(&s.view, dir, after, max, attrs)
}

// Readlink implements objstore.Store.
func (s *Store) Readlink(_ context.Context, ino objstore.Ino) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return volume.Readlink(&s.view, ino)
}

// GetXattr implements objstore.Store.
func (s *Store) GetXattr(_ context.Context, ino objstore.Ino, name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts["GetXattr"]++
	return volume.GetXattr(&s.view, ino, name)
}

// ListXattr implements objstore.Store.
func (s *Store) ListXattr(_ context.Context, ino objstore.Ino) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return volume.ListXattr(&s.view, ino)
}

// Extents implements objstore.Store.
func (s *Store) Extents(_ context.Context, ino objstore.Ino, off, n uint64) ([]objstore.Extent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts["Extents"]++
	return volume.Extents(&s.view, ino, off, n)
}

// Apply implements objstore.Store. A Write may name only chunks that are there.
func (s *Store) Apply(_ context.Context, c objstore.Change, p objstore.Promise) (objstore.Result, error) {
	if err := s.enter("Apply", c); err != nil {
		return objstore.Result{}, err
	}
	defer s.mu.Unlock()
	s.counts[fmt.Sprintf("Apply/%d", p)]++
	if w, ok := c.(objstore.Write); ok {
		for _, e := range w.Extents {
			if b, have := s.bodies[e.Chunk]; e.Kind == objstore.Pooled && (!have || len(b) < int(e.ChunkOff+e.Len) && !e.Chunk.Sealed()) {
				return objstore.Result{}, fmt.Errorf("write names chunk %v that nobody stored: %w", e.Chunk, objstore.Invalid)
			}
		}
	}
	d, r, err := volume.Apply(&s.view, c, time.Now().UnixNano())
	if err != nil {
		return r, err
	}
	// As an OSD does, keep nothing of the caller's memory.
	if d, err = volume.ParseDelta(d.AppendTo(nil)); err != nil {
		return objstore.Result{}, err
	}
	s.view.Apply(d)
	freed, err := volume.FreedChunks(&s.view, c.Volume(), 1<<10)
	if err != nil || len(freed) == 0 {
		return r, err
	}
	for _, id := range freed {
		delete(s.bodies, id)
	}
	d, _, err = volume.Apply(&s.view, objstore.FreeChunks{Vol: c.Volume(), Chunks: freed}, time.Now().UnixNano())
	if err == nil {
		s.view.Apply(d)
	}
	return r, err
}

// Sync implements objstore.Store.
func (s *Store) Sync(_ context.Context, v objstore.VolumeID) error {
	if err := s.enter("Sync", v); err != nil {
		return err
	}
	s.mu.Unlock()
	return nil
}

// ReadChunk implements objstore.Store.
func (s *Store) ReadChunk(_ context.Context, id objstore.ChunkID, off uint32, p []byte) error {
	if err := s.enter("ReadChunk", id); err != nil {
		return err
	}
	defer s.mu.Unlock()
	b := s.bodies[id]
	if id.Resident() {
		var err error
		if b, err = s.view.Get(volume.BodyKey(id)); err != nil {
			return err
		}
	}
	if len(b) < int(off)+len(p) {
		return fmt.Errorf("read %d bytes at %d of chunk %v, which has %d: %w", len(p), off, id, len(b), objstore.Corrupt)
	}
	copy(p, b[off:])
	return nil
}

// NewChunk implements objstore.Store.
func (s *Store) NewChunk(_ context.Context, ino objstore.Ino, index uint32) (objstore.ChunkID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks++
	return objstore.ChunkID{Ino: ino, Index: index, Version: objstore.PooledVersion(1, s.Session().ID, s.chunks)}, nil
}

// PutChunk implements objstore.Store.
func (s *Store) PutChunk(_ context.Context, id objstore.ChunkID, data []byte) error {
	if err := s.enter("PutChunk", id); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if _, ok := s.bodies[id]; ok {
		return fmt.Errorf("chunk %v stored twice: %w", id, objstore.Exist)
	}
	s.bodies[id] = append([]byte(nil), data...)
	return nil
}

// StatFS implements objstore.Store.
func (s *Store) StatFS(context.Context) (objstore.StatFS, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return objstore.StatFS{Total: 1 << 41, Free: s.avail, Avail: s.avail, Files: 1 << 30, FilesFree: 1 << 29}, nil
}
