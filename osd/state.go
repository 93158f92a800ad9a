package osd

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
	"github.com/tidwall/btree"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
	"pillarbox/osd/chunkstore"
)

// layer holds what a run of log entries did to a group's keys; a nil value is a
// deleted key. Names that come and go within one layer never reach the disk.
type layer struct {
	keys   btree.Map[string, []byte]
	meta   int // bytes of keys and values, bodies left out
	bodies int // bytes of chunk bodies
	last   uint64
	term   uint64
}

func (l *layer) put(w volume.Write) (bodyBytes int) {
	old, had := l.keys.Set(string(w.Key), w.Value)
	size := len(w.Value)
	if had {
		size -= len(old)
	} else {
		l.meta += len(w.Key)
	}
	if isBody(w.Key) {
		l.bodies += size
		return size
	}
	l.meta += size
	return 0
}

func isBody(key []byte) bool {
	_, ok := volume.ParseBodyKey(key)
	return ok
}

// snapshot is the database as one flush left it.
type snapshot struct {
	txn    *badger.Txn
	chunks *chunkstore.Store
}

func (s snapshot) get(key []byte) ([]byte, error) {
	item, err := s.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the database at key %x: %w", key, err)
	}
	v, err := item.ValueCopy(nil)
	if err != nil {
		return nil, fmt.Errorf("read the database at key %x: %w", key, err)
	}
	if v == nil {
		v = []byte{}
	}
	return v, nil
}

// state is a group's keys: the layer being written, the one being flushed, and
// the database below. It is a volume.View. The group's mu guards it.
type state struct {
	group  uint32
	active *layer
	frozen *layer // nil unless a flush is under way
	base   snapshot
}

// Get implements volume.View.
func (s *state) Get(key []byte) ([]byte, error) {
	if v, ok := s.active.keys.Get(string(key)); ok {
		return v, nil
	}
	if s.frozen != nil {
		if v, ok := s.frozen.keys.Get(string(key)); ok {
			return v, nil
		}
	}
	if id, ok := volume.ParseBodyKey(key); ok {
		return s.base.body(id)
	}
	return s.base.get(stateKey(s.group, key))
}

// body reads a resident chunk whole.
func (s snapshot) body(id objstore.ChunkID) ([]byte, error) {
	loc, ok, err := s.locate(id)
	if err != nil || !ok {
		return nil, err
	}
	b := make([]byte, loc.Len)
	if err := s.chunks.Read(loc, id, 0, b); err != nil {
		return nil, err
	}
	return b, nil
}

// locate finds a chunk that a flush has written down.
func (s snapshot) locate(id objstore.ChunkID) (chunkstore.Loc, bool, error) {
	v, err := s.get(chunkKey(id))
	if err != nil || v == nil {
		return chunkstore.Loc{}, false, err
	}
	loc, err := decodeLoc(v)
	return loc, err == nil, err
}

// cursor walks one layer's keys that have a prefix.
type cursor struct {
	it     btree.MapIter[string, []byte]
	prefix string
	ok     bool
}

func newCursor(l *layer, prefix, after []byte) *cursor {
	c := &cursor{prefix: string(prefix)}
	if l == nil || l.keys.Len() == 0 {
		return c
	}
	c.it = l.keys.Iter()
	from := prefix
	if after != nil && bytes.Compare(after, prefix) > 0 {
		from = after
	}
	c.ok = c.it.Seek(string(from))
	if c.ok && after != nil && c.it.Key() == string(after) {
		c.ok = c.it.Next()
	}
	c.check()
	return c
}

func (c *cursor) check() {
	if c.ok {
		k := c.it.Key()
		c.ok = len(k) >= len(c.prefix) && k[:len(c.prefix)] == c.prefix
	}
}

func (c *cursor) next() {
	c.ok = c.it.Next()
	c.check()
}

// Scan implements volume.View: a merge of the layers over the database, the
// newest value of each key winning.
func (s *state) Scan(prefix, after []byte, fn func(key, value []byte) bool) error {
	up := []*cursor{newCursor(s.active, prefix, after), newCursor(s.frozen, prefix, after)}
	// emit hands out what the layers have below limit ("" is no limit), and says
	// whether they also have limit itself.
	emit := func(limit string, bounded bool) (shadowed, more bool) {
		for {
			var best *cursor
			for _, c := range up {
				if c.ok && (best == nil || c.it.Key() < best.it.Key()) {
					best = c
				}
			}
			if best == nil || bounded && best.it.Key() > limit {
				return false, true
			}
			key, value := best.it.Key(), best.it.Value()
			for _, c := range up {
				if c.ok && c.it.Key() == key {
					c.next()
				}
			}
			if value != nil && !fn([]byte(key), value) {
				return false, false
			}
			if bounded && key == limit {
				return true, true
			}
		}
	}
	more, err := s.base.scan(s.group, prefix, after, func(key, value []byte) bool {
		shadowed, more := emit(string(key), true)
		if !more || shadowed {
			return more
		}
		return fn(key, value)
	})
	if err == nil && more {
		emit("", false)
	}
	return err
}

// scan walks the database's keys of a group; more is false if fn ended it.
func (s snapshot) scan(group uint32, prefix, after []byte, fn func(key, value []byte) bool) (more bool, err error) {
	full := stateKey(group, prefix)
	it := s.txn.NewIterator(badger.IteratorOptions{Prefix: full})
	defer it.Close()
	from := full
	if after != nil && bytes.Compare(after, prefix) > 0 {
		from = stateKey(group, after)
	}
	for it.Seek(from); it.ValidForPrefix(full); it.Next() {
		item := it.Item()
		key := item.Key()[3:]
		if after != nil && bytes.Equal(key, after) {
			continue
		}
		more := true
		if err := item.Value(func(v []byte) error { more = fn(key, v); return nil }); err != nil {
			return false, fmt.Errorf("scan the database at key %x: %w", item.Key(), err)
		}
		if !more {
			return false, nil
		}
	}
	return true, nil
}
