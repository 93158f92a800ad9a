package seal

import (
	"sync"

	"pillarbox/objstore"
)

// maxHeads is how many heads are kept, of bodies up to 4 MiB: some 20 MB at worst.
const maxHeads = 1 << 15

// heads remembers how bodies are laid out. Bodies never change, so what is known
// stays true. Half of it is dropped when it is full.
type heads struct {
	mu       sync.Mutex
	now, old map[objstore.ChunkID]*head
}

func (c *heads) get(id objstore.ChunkID) *head {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.now[id]; h != nil {
		return h
	}
	h := c.old[id]
	if h != nil {
		c.putLocked(id, h)
	}
	return h
}

func (c *heads) put(id objstore.ChunkID, h *head) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.putLocked(id, h)
}

func (c *heads) putLocked(id objstore.ChunkID, h *head) {
	if c.now == nil || len(c.now) >= maxHeads/2 {
		c.old, c.now = c.now, make(map[objstore.ChunkID]*head)
	}
	c.now[id] = h
}

func (c *heads) remove(id objstore.ChunkID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.now, id)
	delete(c.old, id)
}
