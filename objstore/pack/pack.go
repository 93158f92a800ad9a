// Package pack brings the small bodies of encrypted accounts from a store of one
// host into packs: larger objects of the outside pool that the accounts' bodies go
// to (objstore.Pack). Until then they lie with the metadata, where fsync put them.
//
// A body is copied, then named anew: in one change, which passes over files that
// were removed or written meanwhile, and only with that change the old body goes.
// So whatever dies in between, and whoever reads, a body is in one place or the
// other. What was stored and not named is an object that nothing names, as large
// bodies of hosts that died are.
//
// A pack is one chunk that many files share. It goes when none of them is left;
// when few are, their bodies are packed anew.
//
//	pack.go    what is due
//	filling.go the making of packs
package pack

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// Source knows what there is to pack: package osd has it.
type Source interface {
	// SmallBodies counts the sealed bodies beside each volume's metadata.
	SmallBodies(ctx context.Context) (map[objstore.VolumeID]int, error)
	// SmallBodiesOf lists up to max of a volume's, in the order of their inodes,
	// beginning behind an inode.
	SmallBodiesOf(ctx context.Context, vol objstore.VolumeID, after objstore.Ino, max int) ([]objstore.ChunkID, error)
	// Packs lists all packs that files name.
	Packs(ctx context.Context) ([]volume.PackUse, error)
	// Namers calls fn with the files of a volume that name chunks which wanted says.
	Namers(ctx context.Context, vol objstore.VolumeID, wanted func(objstore.ChunkID) bool, fn func(volume.FileExtents) error) error
}

// Options configure a Packer. Store, Outside, After and Log must be set.
type Options struct {
	Store   objstore.Store              // above the encryption
	Outside func(objstore.ChunkID) bool // whether a chunk is in an outside pool
	After   time.Duration               // for so long a file must not have been written
	Every   time.Duration               // between looks; default: a quarter of After, from a second to ten minutes
	Least   int                         // an account's bodies that are worth an object; default 64
	Live    float64                     // packs of which less is left are packed anew; default 0.5
	Log     *slog.Logger
}

// Packer packs until Close.
type Packer struct {
	opt    Options
	src    Source
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	// Of the loop only.
	tried  map[objstore.ChunkID]int // packs that could not be emptied, and how many files named them then
	failed int                      // sweeps in a row

	mu    sync.Mutex // a leaf
	stats Stats
}

// Stats counts what was done since the start.
type Stats struct {
	Packs int64 `json:"packs"` // stored
	Files int64 `json:"files"` // whose bodies are in them
	Bytes int64 `json:"bytes"`
}

var errClosed = errors.New("the packer is closed")

// Start begins to look for bodies to pack.
func Start(ctx context.Context, src Source, opt Options) *Packer {
	if opt.Every == 0 {
		opt.Every = min(max(opt.After/4, time.Second), 10*time.Minute)
	}
	if opt.Least == 0 {
		opt.Least = 64
	}
	if opt.Live == 0 {
		opt.Live = 0.5
	}
	p := &Packer{opt: opt, src: src, tried: map[objstore.ChunkID]int{}}
	ctx, p.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	p.wg.Go(func() { p.loop(ctx) })
	return p
}

// Close ends the packer; what it was about to do is left for the next start.
func (p *Packer) Close() {
	p.cancel(errClosed)
	p.wg.Wait()
}

// Stats says what was packed.
func (p *Packer) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// maxWait is how long it takes at most until what failed is tried again. Who could
// store a pack and not have it named, as on a full disk, leaves an object each time.
const maxWait = time.Hour

func (p *Packer) loop(ctx context.Context) {
	wait := p.opt.Every
	tick := time.NewTimer(wait)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		err := p.sweep(ctx)
		if ctx.Err() != nil {
			return
		}
		if wait = p.opt.Every; err != nil {
			p.failed++
			wait = min(wait<<min(p.failed, 12), max(maxWait, wait))
			p.opt.Log.Warn("pack small bodies; it is tried again", "in", wait, "err", err)
		} else {
			p.failed = 0
		}
		tick.Reset(wait)
	}
}

// sweep packs what is due.
func (p *Packer) sweep(ctx context.Context) error {
	small, err := p.src.SmallBodies(ctx)
	if err != nil {
		return err
	}
	low, err := p.low(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(small, func(vol objstore.VolumeID, n int) bool { return n < p.opt.Least && len(low[vol]) == 0 })
	for vol := range low {
		small[vol] += 0
	}
	var errs []error
	for _, vol := range slices.Sorted(maps.Keys(small)) {
		err := p.volume(ctx, vol, low[vol])
		if errors.Is(err, objstore.Unavailable) || ctx.Err() != nil { // so would the others be
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// low lists the packs of which too little is left, by volume.
func (p *Packer) low(ctx context.Context) (map[objstore.VolumeID][]objstore.ChunkID, error) {
	packs, err := p.src.Packs(ctx)
	if err != nil {
		return nil, err
	}
	low, tried := map[objstore.VolumeID][]objstore.ChunkID{}, map[objstore.ChunkID]int{}
	for _, u := range packs {
		files, _, ok := u.ID.Pack()
		if !ok || float64(u.Files) >= p.opt.Live*float64(files) || !p.opt.Outside(u.ID) {
			continue
		}
		if was, again := p.tried[u.ID]; !again || was != u.Files {
			vol := u.ID.Ino.Volume()
			low[vol] = append(low[vol], u.ID)
		}
		tried[u.ID] = u.Files
	}
	p.tried = tried
	return low, nil
}
