package seal

import "pillarbox/objstore"

// Bodies keeps bytes of chunks near, as package cachefs has it.
type Bodies interface {
	Get(id objstore.ChunkID, off uint32, p []byte) bool
	Put(id objstore.ChunkID, data []byte)
}

// Bodies lets next have the chunks of those volumes only that are known not to be
// encrypted: what comes to it is plain text.
func (s *Store) Bodies(next Bodies) Bodies { return bodies{next, s} }

type bodies struct {
	Bodies
	s *Store
}

// Put passes over chunks of encrypted volumes, whose ids do not say so before
// they are named.
func (b bodies) Put(id objstore.ChunkID, data []byte) {
	b.s.mu.Lock()
	v := b.s.vols[id.Ino.Volume()]
	b.s.mu.Unlock()
	if v != nil && v.key == nil && !id.Sealed() {
		b.Bodies.Put(id, data)
	}
}
