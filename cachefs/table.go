package cachefs

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"pillarbox/objstore"
)

const tableShards = 64

// table holds the file objects that somebody uses.
type table struct{ shards [tableShards]shard }

type shard struct {
	mu      sync.Mutex // a leaf
	files   map[objstore.Ino]*file
	purging map[objstore.Ino]struct{} // being purged: must not be opened any more
	held    map[objstore.Ino]struct{} // orphans to be purged once forgotten
}

func (t *table) init() {
	for i := range t.shards {
		t.shards[i].files = map[objstore.Ino]*file{}
		t.shards[i].purging = map[objstore.Ino]struct{}{}
		t.shards[i].held = map[objstore.Ino]struct{}{}
	}
}

func (t *table) shard(ino objstore.Ino) *shard { return &t.shards[mix(ino)%tableShards] }

// acquire returns the inode's file object with one more user. Stale when the
// inode is being purged.
func (fs *FS) acquire(ino objstore.Ino) (*file, error) {
	s := fs.table.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.purging[ino]; ok {
		return nil, fmt.Errorf("open inode %v: %w", ino, objstore.Stale)
	}
	f := s.files[ino]
	if f == nil {
		f = &file{fs: fs, ino: ino}
		s.files[ino] = f
	}
	f.users++
	return f, nil
}

// release gives a file object back. The last user commits what is still dirty,
// unless the file has no name any more: then the data goes and the inode with it.
func (fs *FS) release(f *file) {
	s := fs.table.shard(f.ino)
	for {
		s.mu.Lock()
		if f.users > 1 || !f.isDirty() || f.orphan {
			break
		}
		s.mu.Unlock()
		if err := f.flush(fs.base, fs.promise()); err != nil {
			fs.log.Error("data lost: it could not be committed when the file was released", "inode", f.ino.String(), "err", err)
			f.drop()
		}
	}
	f.users--
	last, orphan := f.users == 0, f.orphan
	if last {
		delete(s.files, f.ino)
	}
	s.mu.Unlock()
	if last {
		f.closed()
		f.drop()
		f.mu.Lock()
		f.setBody(nil)
		f.mu.Unlock()
		if orphan {
			fs.purger.add(f.ino)
		}
	}
}

// get returns the file object if there is one, without using it.
func (t *table) get(ino objstore.Ino) *file {
	s := t.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[ino]
}

// all returns every file object, each still in use or not.
func (t *table) all() []*file {
	var fs []*file
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for _, f := range s.files {
			fs = append(fs, f)
		}
		s.mu.Unlock()
	}
	return fs
}

// setOrphan notes that an inode lost its last name, or has one again. It says
// whether somebody uses the inode.
func (t *table) setOrphan(ino objstore.Ino, orphan bool) bool {
	s := t.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[ino]
	if f != nil {
		f.orphan = orphan
	}
	if !orphan {
		delete(s.held, ino)
	}
	return f != nil
}

// hold keeps an orphan until forget.
func (t *table) hold(ino objstore.Ino) {
	s := t.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[ino] = struct{}{}
}

// forget says whether the inode was held, which it then is no more.
func (t *table) forget(ino objstore.Ino) bool {
	s := t.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, held := s.held[ino]
	delete(s.held, ino)
	return held
}

// forgetAll ends all holds and returns whose they were.
func (t *table) forgetAll() []objstore.Ino {
	var inos []objstore.Ino
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		inos = slices.AppendSeq(inos, maps.Keys(s.held))
		clear(s.held)
		s.mu.Unlock()
	}
	return inos
}

// closeOrphans takes out the file objects without a name.
func (t *table) closeOrphans() []*file {
	var out []*file
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for ino, f := range s.files {
			if f.orphan {
				out = append(out, f)
				delete(s.files, ino)
			}
		}
		s.mu.Unlock()
	}
	return out
}

// beginPurge claims an inode for purging; false if somebody uses it again, who
// then purges it when done.
func (t *table) beginPurge(ino objstore.Ino) bool {
	s := t.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[ino]; f != nil {
		f.orphan = true
		return false
	}
	s.purging[ino] = struct{}{}
	return true
}

func (t *table) endPurge(ino objstore.Ino) {
	s := t.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.purging, ino)
}
