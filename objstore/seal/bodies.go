package seal

import (
	"context"
	"errors"

	"pillarbox/objstore"
)

// Bodies keeps bytes of chunks near, as package cachefs has it.
type Bodies interface {
	Get(id objstore.ChunkID, off uint32, p []byte) bool
	Put(id objstore.ChunkID, data []byte)
	Has(id objstore.ChunkID, n uint32) bool
	Room()
	Spare() int64
	// Remove forgets a chunk.
	Remove(id objstore.ChunkID)
}

// Bodies has bodies kept in next: those of encrypted volumes by the Store, which
// are sealed, and through what it returns those of volumes that are known not to be
// encrypted. What comes to that is plain text. Chunks that are local are on this host
// anyway: the Store neither keeps them nor looks for them in next. It is called before
// the first request.
func (s *Store) Bodies(next Bodies, local func(objstore.ChunkID) bool) *PlainBodies {
	s.near, s.local = next, local
	return &PlainBodies{next, s}
}

// PlainBodies keeps those of volumes that are not encrypted, and knows of the others.
type PlainBodies struct {
	next Bodies
	s    *Store
}

// Get implements cachefs.Bodies.
func (b *PlainBodies) Get(id objstore.ChunkID, off uint32, p []byte) bool {
	return !id.Sealed() && b.next.Get(id, off, p)
}

// Put implements cachefs.Bodies. It passes over chunks of encrypted volumes, whose
// ids do not say so before they are named.
func (b *PlainBodies) Put(id objstore.ChunkID, data []byte) {
	b.s.mu.Lock()
	v := b.s.vols[id.Ino.Volume()]
	b.s.mu.Unlock()
	if v != nil && v.key == nil && !id.Sealed() {
		b.next.Put(id, data)
	}
}

// Has implements cachefs.Bodies. How long a sealed body is does not follow from what it
// stands for; it is kept whole.
func (b *PlainBodies) Has(id objstore.ChunkID, n uint32) bool {
	if id.Sealed() {
		n = 1
	}
	return b.next.Has(id, n)
}

// Room implements cachefs.Bodies.
func (b *PlainBodies) Room() { b.next.Room() }

// Spare implements cachefs.Bodies.
func (b *PlainBodies) Spare() int64 { return b.next.Spare() }

// keep keeps a sealed body near, whose bytes must not be changed any more.
func (s *Store) keep(id objstore.ChunkID, stored []byte) {
	if s.near != nil && !s.local(id) {
		s.near.Put(id, stored)
	}
}

// keepWritten keeps the sealed bodies that a change brought along.
func (s *Store) keepWritten(c objstore.Change) {
	w, ok := c.(objstore.Write)
	if !ok {
		return
	}
	for _, e := range w.Extents {
		if e.Kind == objstore.Resident && e.Chunk.Sealed() {
			s.keep(e.Chunk, e.Data)
		}
	}
}

// source reads stored bytes of a sealed chunk.
type source func(ctx context.Context, id objstore.ChunkID, off uint32, p []byte) error

// readSealed reads from near, or else from below.
func (s *Store) readSealed(ctx context.Context, key []byte, id objstore.ChunkID, off int, p []byte) error {
	if s.near == nil || s.local(id) {
		return s.openFrom(ctx, s.Base.ReadChunk, key, id, off, p)
	}
	err := s.openFrom(ctx, s.readNear, key, id, off, p)
	if !errors.Is(err, objstore.Corrupt) && !errors.Is(err, objstore.Unsupported) {
		return err
	}
	// What is near may have been damaged already when it came, and be good again below.
	s.near.Remove(id)
	s.heads.remove(id)
	return s.openFrom(ctx, s.Base.ReadChunk, key, id, off, p)
}

// readNear reads stored bytes from near. What is not there is read whole, to be
// kept, once it is known how much that is.
func (s *Store) readNear(ctx context.Context, id objstore.ChunkID, off uint32, p []byte) error {
	if s.near.Get(id, off, p) {
		return nil
	}
	h := s.heads.get(id)
	if h == nil {
		return s.Base.ReadChunk(ctx, id, off, p)
	}
	// Others read other parts of it at the same time.
	whole, err, _ := s.fills.Do(id.String(), func() (any, error) {
		b := make([]byte, h.ends[len(h.ends)-1])
		if err := s.Base.ReadChunk(ctx, id, 0, b); err != nil {
			return nil, err
		}
		s.keep(id, b)
		return b, nil
	})
	if err != nil {
		return err
	}
	copy(p, whole.([]byte)[off:])
	return nil
}
