package osd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pillarbox/objstore"
)

// Scrub reads what nobody asks for, so that damage is found while there still
// are good replicas.

const (
	scrubEvery = 7 * 24 * time.Hour
	scrubFirst = 24 * time.Hour // within this time of the first start
	scrubRetry = time.Hour
	scrubRate  = 16 << 20 // bytes per second that a scheduled scrub reads at most
	scrubFile  = "scrub.json"
)

// Scrubbed is what a scrub of one OSD found.
type Scrubbed struct {
	Ended  time.Time `json:"ended"`
	Chunks int       `json:"chunks"` // read
	Healed int       `json:"healed"` // were damaged, and replaced by another OSD's copy, or made again from others' shards
	Bad    int       `json:"bad"`    // are damaged, and no other OSD has a good copy
}

// scrubs is the OSD's history of them.
type scrubs struct {
	one sync.Mutex // one at a time
	mu  sync.Mutex // a leaf
	was Scrubbed
}

func (o *OSD) lastScrub() Scrubbed {
	o.scrubs.mu.Lock()
	defer o.scrubs.mu.Unlock()
	return o.scrubs.was
}

// scrubLoop scrubs about once a week. A scrub that a restart cut short begins anew.
func (o *OSD) scrubLoop(ctx context.Context) error {
	wait := rand.N(scrubFirst)
	b, err := os.ReadFile(filepath.Join(o.opt.Dir, scrubFile))
	if err == nil {
		o.scrubs.mu.Lock()
		err = json.Unmarshal(b, &o.scrubs.was)
		o.scrubs.mu.Unlock()
		wait = max(0, time.Until(o.lastScrub().Ended.Add(scrubEvery)))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.log.Warn("when the last scrub was is not known", "err", err)
	}
	for {
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		wait = scrubEvery
		if o.Map().HasFlag(objstore.FlagNoScrub) {
			wait = scrubRetry
			continue
		}
		if _, err := o.scrub(ctx, scrubRate); err != nil && ctx.Err() == nil {
			o.log.Warn("scrub", "err", err)
			wait = scrubRetry
		}
	}
}

// Scrub reads every chunk, resident ones too, as fast as it can, and heals those
// that are damaged from another OSD's copy.
func (o *OSD) Scrub(ctx context.Context) (Scrubbed, error) { return o.scrub(ctx, 0) }

// scrub reads rate bytes per second at most; 0: no limit.
func (o *OSD) scrub(ctx context.Context, rate int) (s Scrubbed, err error) {
	o.scrubs.one.Lock()
	defer o.scrubs.one.Unlock()
	all := func(objstore.ChunkID) bool { return true }
	err = o.eachChunk(ctx, all, func(ids []objstore.ChunkID) error {
		if o.opt.Peers != nil {
			o.noteLeftovers(ctx, ids)
		}
		for _, id := range ids {
			n, err := o.scrubChunk(ctx, id, &s)
			if err == nil && rate > 0 {
				err = sleep(ctx, time.Duration(n)*time.Second/time.Duration(rate))
			}
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("scrub osd.%d: %w", o.opt.ID, err)
	}
	s.Ended = time.Now().Round(time.Second)
	o.scrubs.mu.Lock()
	o.scrubs.was = s
	o.scrubs.mu.Unlock()
	b, err := json.Marshal(s)
	if err == nil {
		err = replaceFile(filepath.Join(o.opt.Dir, scrubFile), b)
	}
	return s, err
}

func (o *OSD) scrubChunk(ctx context.Context, id objstore.ChunkID, s *Scrubbed) (bytes int, err error) {
	data, err := o.FetchChunk(ctx, id)
	if err == nil {
		err = o.checkShard(id, data)
	}
	switch {
	case errors.Is(err, objstore.NotFound):
		return 0, nil // removed meanwhile
	case errors.Is(err, objstore.Corrupt):
		if id.Resident() {
			data, err = o.healBody(ctx, id)
		} else {
			data, err = o.heal(ctx, id)
		}
		if err != nil {
			s.Bad++
			o.log.Error("scrub: damaged chunk", "chunk", id.String(), "err", err)
			err = nil
		} else {
			s.Healed++
		}
	}
	s.Chunks++
	return len(data), err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// replaceFile puts a small file in place; a crash leaves the old or the new one.
func replaceFile(name string, b []byte) error {
	tmp := name + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}
