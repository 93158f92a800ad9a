// Package poolmove brings the bodies below a directory into another data pool,
// while the mail there is read and delivered. It keeps no journal: what has been
// moved is seen in the store, so that a run which was cut short goes on where it
// was when it is begun again.
//
// Each chunk is stored under a new id in the pool and then takes the old one's
// place in one change, unless the file does not name the old one any more
// (objstore.MoveChunk). The old one goes as chunks of removed files do. Small
// bodies, which lie with their volume's metadata, stay.
//
//	walk.go   finds what is to be moved
//	move.go   moves it
package poolmove

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"pillarbox/objstore"
)

// Options say what is to be moved. All but Workers and Progress must be set.
type Options struct {
	Store  objstore.Store // new chunks below Dir must go to Pool by then
	Sealed func(ctx context.Context, vol objstore.VolumeID) (bool, error)
	Map    *objstore.Map
	Pool   *objstore.Pool
	Dir    objstore.Ino
	Path   string // of Dir, in the store

	Workers  int                     // files at a time; 0: 4
	Progress func(done, total int64) // bytes; called by one at a time; nil: nobody looks
}

// Report is what a run came to.
type Report struct {
	Path   string    `json:"path"`
	Pool   string    `json:"pool"`
	Chunks int       `json:"chunks"` // moved
	Bytes  int64     `json:"bytes"`  // of files, in them
	Kept   []string  `json:"kept"`   // directories that a pool of their own was chosen for
	Failed []Failure `json:"failed"` // the first of them
	Errors int       `json:"errors"` // how many there are
}

// Failure is a body that could not be read.
type Failure struct {
	Path  string `json:"path"`
	Error string `json:"error"`
}

// maxFailures bounds how many a Report lists.
const maxFailures = 100

// run is one Run. mu guards what workers share.
type run struct {
	opt   Options
	locks [64]sync.Mutex // of a chunk that is being moved, by its id; before mu

	mu    sync.Mutex
	rep   Report
	total int64
	again bool                        // something changed while it was being moved
	moved map[objstore.ChunkID]copied // chunks that other files name, too
}

// copied is a chunk that was stored in place of another.
type copied struct {
	to objstore.ChunkID
	n  uint32 // bytes in it
}

// Check says why bodies below a directory cannot go to the pool. NotPermitted:
// it is outside, and an account is not encrypted.
func Check(ctx context.Context, opt Options) error {
	if opt.Pool.Outside == nil {
		return nil
	}
	r := &run{opt: opt}
	return r.accounts(ctx, opt.Dir, opt.Path, func(vol objstore.VolumeID, path string) error {
		switch sealed, err := opt.Sealed(ctx, vol); {
		case err != nil:
			return fmt.Errorf("%s: %w", path, err)
		case !sealed:
			return fmt.Errorf("%s is not encrypted, and pool %q is outside: %w", path, opt.Pool.Name, objstore.NotPermitted)
		}
		return nil
	})
}

// Run moves what is below the directory. Files that are written or renamed
// meanwhile may be missed by one look through them all, so it looks again until
// there is nothing to move.
func Run(ctx context.Context, opt Options) (*Report, error) {
	if opt.Workers == 0 {
		opt.Workers = 4
	}
	if opt.Progress == nil {
		opt.Progress = func(int64, int64) {}
	}
	r := &run{opt: opt, rep: Report{Path: opt.Path, Pool: opt.Pool.Name}}
	for idle := 0; ; {
		left, err := r.count(ctx)
		if err != nil {
			return &r.rep, err
		}
		before := r.rep.Chunks
		r.total, r.again = r.rep.Bytes+left, false
		r.rep.Failed, r.rep.Errors = []Failure{}, 0
		if left > 0 {
			err = r.each(ctx, r.file)
		}
		if idle++; r.rep.Chunks > before {
			idle = 0
		}
		// What cannot be read is not tried for ever.
		if err != nil || left == 0 || idle > 0 && !r.again || idle > maxIdle {
			return &r.rep, err
		}
	}
}

// maxIdle is how many looks in a row that move nothing are followed by another one.
const maxIdle = 3

// fail notes a body that cannot be read. What concerns the whole run ends it.
func (r *run) fail(path string, err error) error {
	if errors.Is(err, objstore.Unavailable) || errors.Is(err, objstore.NoSpace) || errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", path, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rep.Errors++
	if len(r.rep.Failed) < maxFailures {
		r.rep.Failed = append(r.rep.Failed, Failure{path, err.Error()})
	}
	return nil
}
