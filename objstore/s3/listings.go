package s3

import (
	"sync"

	"pillarbox/objstore"
)

// listings remembers large directories in the order of keys, so that the pages of
// a listing do not each read and sort them again. A directory is what it was as
// long as its mtime is, which every change of a name moves.
type listings struct {
	mu    sync.Mutex // a leaf
	dirs  map[objstore.Ino]listing
	names int
}

type listing struct {
	mtime int64
	list  []named // without attributes, which change without the directory
}

const (
	largeDir  = 1000    // entries from which on a directory is remembered
	keepNames = 1 << 20 // how many are, in all
)

func (l *listings) get(dir objstore.Ino, mtime int64) ([]named, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, ok := l.dirs[dir]
	return d.list, ok && d.mtime == mtime
}

func (l *listings) put(dir objstore.Ino, mtime int64, list []named) {
	if len(list) < largeDir || len(list) > keepNames {
		return
	}
	bare := make([]named, len(list))
	for i, n := range list {
		n.e.Attr = nil
		bare[i] = n
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.names+len(bare) > keepNames || l.dirs == nil {
		l.dirs, l.names = map[objstore.Ino]listing{}, 0
	}
	l.names += len(bare) - len(l.dirs[dir].list)
	l.dirs[dir] = listing{mtime, bare}
}
