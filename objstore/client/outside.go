package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

// outsides are the outside stores that are open, by pool.
type outsides struct {
	mu   sync.Mutex // held while one is opened
	open map[int]pool.Store
}

const (
	outsideTimeout = 2 * time.Minute // for a chunk, with all retries of the driver
	freedBatch     = 1000
)

// inside is the pool for a volume's bodies where a rule chose one: the store's own
// first data pool, if that is outside and the bodies are not sealed.
func (c *Client) inside(ctx context.Context, chosen int, vol objstore.VolumeID) (int, error) {
	e := c.now.Load()
	if p := e.Pool(chosen); p == nil || p.Outside == nil {
		return chosen, nil
	}
	if c.opt.Sealed != nil {
		sealed, err := c.opt.Sealed(ctx, vol)
		if sealed || err != nil {
			return chosen, err
		}
	}
	for _, p := range e.Pools {
		if p.Kind == objstore.DataPool && p.Outside == nil {
			return p.ID, nil
		}
	}
	return 0, fmt.Errorf("volume %d is not encrypted, and all data pools are outside: %w", vol, objstore.NotPermitted)
}

// store opens an outside pool, or finds it open.
func (c *Client) store(ctx context.Context, p *objstore.Pool) (pool.Store, error) {
	if c.opt.Outside == nil {
		return nil, fmt.Errorf("pool %q is outside, and this host does not know how to get there: %w", p.Name, objstore.NotPermitted)
	}
	o := &c.outside
	o.mu.Lock()
	defer o.mu.Unlock()
	if s := o.open[p.ID]; s != nil {
		return s, nil
	}
	s, err := c.opt.Outside(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("open pool %q: %w", p.Name, err)
	}
	if o.open == nil {
		o.open = make(map[int]pool.Store)
	}
	o.open[p.ID] = s
	return s, nil
}

func (c *Client) putOutside(ctx context.Context, p *objstore.Pool, id objstore.ChunkID, data []byte) error {
	if !id.Sealed() {
		return fmt.Errorf("put chunk %v: it is not sealed, and pool %q is outside: %w", id, p.Name, objstore.NotPermitted)
	}
	s, err := c.store(ctx, p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, outsideTimeout)
	defer cancel()
	if err := s.Put(ctx, pool.Name(id), data); err != nil {
		return fmt.Errorf("put chunk %v in pool %q: %w", id, p.Name, err)
	}
	return nil
}

func (c *Client) readOutside(ctx context.Context, p *objstore.Pool, r chunkRange) error {
	if len(r.p) == 0 {
		return nil
	}
	s, err := c.store(ctx, p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, outsideTimeout)
	defer cancel()
	err = s.Get(ctx, pool.Name(r.id), int64(r.off), r.p)
	if errors.Is(err, objstore.NotFound) {
		named, ask := c.named(ctx, r)
		switch {
		case ask != nil:
			return ask
		case !named:
			return fmt.Errorf("read chunk %v: it was removed: %w", r.id, objstore.Stale)
		}
		// Not NotFound, which would be taken for the file's.
		err = fmt.Errorf("%w: the store says that it has no such object", objstore.Corrupt)
	}
	if err != nil {
		return fmt.Errorf("read chunk %v of pool %q: %w", r.id, p.Name, err)
	}
	return nil
}

// emptyOutside removes what was freed in outside pools, from time to time. Every
// client that can does it; removing what is gone changes nothing.
func (c *Client) emptyOutside() {
	t := time.NewTicker(c.opt.Empty)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-c.life.Done():
			return
		}
		if err := c.EmptyOutside(c.life); err != nil && c.life.Err() == nil {
			c.opt.Log.Warn("remove freed chunks from outside pools", "err", err)
		}
	}
}

// EmptyOutside removes what was freed in outside pools.
func (c *Client) EmptyOutside(ctx context.Context) error {
	e := c.now.Load()
	if !e.HasOutside() {
		return nil
	}
	for pg := range uint32(e.Meta().PGs) {
		for {
			ids, err := ask(ctx, c, pg, func(ctx context.Context, osd OSD) ([]objstore.ChunkID, error) { return osd.Freed(ctx, pg, freedBatch) })
			if err != nil {
				return err
			}
			// A pool that is newer than this client's map is for the next time.
			known := slices.DeleteFunc(ids, func(id objstore.ChunkID) bool { return e.OutsideOf(id) == nil })
			if err := c.removeOutside(ctx, e, known); err != nil {
				return err
			}
			if len(known) < freedBatch {
				break
			}
		}
	}
	return nil
}

// removeOutside removes freed chunks, all of outside pools, and says so to their volumes.
func (c *Client) removeOutside(ctx context.Context, e *epoch, ids []objstore.ChunkID) error {
	names := map[*objstore.Pool][]string{}
	byVolume := map[objstore.VolumeID][]objstore.ChunkID{}
	for _, id := range ids {
		p := e.OutsideOf(id)
		names[p] = append(names[p], pool.Name(id))
		byVolume[id.Ino.Volume()] = append(byVolume[id.Ino.Volume()], id)
	}
	for p, list := range names {
		s, err := c.store(ctx, p)
		if err != nil {
			return err
		}
		if err := s.Delete(ctx, list); err != nil {
			return fmt.Errorf("remove %d chunks from pool %q: %w", len(list), p.Name, err)
		}
	}
	for vol, list := range byVolume {
		if _, err := c.apply(ctx, objstore.FreeChunks{Vol: vol, Chunks: list}, objstore.Ordered); err != nil {
			return fmt.Errorf("end the note of %d removed chunks of volume %d: %w", len(list), vol, err)
		}
	}
	return nil
}
