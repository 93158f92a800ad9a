package client

import (
	"context"
	"fmt"
	"sync"
	"time"

	"pillarbox/objstore"
)

// space is what the OSDs said of their disks.
type space struct {
	mu    sync.Mutex // held while they are asked; before a peer's
	until time.Time
	disks map[int]objstore.Disk
}

const (
	spaceFor  = time.Second            // how old the figures may be
	spaceWait = 500 * time.Millisecond // how long an OSD may take to answer
)

// inodeRoom is about what an empty file takes of the meta pool, with its name, in bytes.
const inodeRoom = 1 << 10

// StatFS implements objstore.Store. In a cluster the figures are those of the data pool,
// after what redundancy costs; what is available ends when the first of the OSDs is
// full. Inodes are as many as there is room for.
func (c *Client) StatFS(ctx context.Context) (objstore.StatFS, error) {
	e := c.now.Load()
	var st objstore.StatFS
	if e.only != nil {
		d, err := e.only.Space(ctx)
		st.Total, st.Free, st.Avail = d.Total, d.Free, d.Free
		st.FilesFree = d.Free / inodeRoom
		st.Files = st.FilesFree + d.Files
		return st, err
	}
	disks, err := c.disks(ctx, e)
	if err != nil {
		return st, err
	}
	_, _, room := PoolSpace(e.Map, e.Meta(), disks)
	st.FilesFree = room / inodeRoom
	st.Files = st.FilesFree
	for _, d := range disks {
		st.Files += d.Files
	}
	p := e.Data()
	if p.Outside != nil { // what bounds it here is room for names and small bodies
		p = e.Meta()
	}
	st.Total, st.Free, st.Avail = PoolSpace(e.Map, p, disks)
	return st, nil
}

// disks asks all OSDs; of those that do not answer it knows what they said last.
func (c *Client) disks(ctx context.Context, e *epoch) (map[int]objstore.Disk, error) {
	s := &c.space
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.disks) > 0 && time.Now().Before(s.until) {
		return s.disks, nil
	}
	type answer struct {
		osd int
		objstore.Disk
		err error
	}
	answers := make(chan answer, len(e.OSDs))
	asked := 0
	for _, o := range e.OSDs {
		if !o.Up {
			continue
		}
		asked++
		go func() {
			a := answer{osd: o.ID}
			a.err = c.call(ctx, o.ID, spaceWait, func(ctx context.Context, osd OSD) (err error) {
				a.Disk, err = osd.Space(ctx)
				return err
			})
			answers <- a
		}()
	}
	disks := make(map[int]objstore.Disk, len(e.OSDs))
	for _, o := range e.OSDs {
		if d, ok := s.disks[o.ID]; ok {
			d.Files = 0 // others lead now
			disks[o.ID] = d
		}
	}
	var failed []error
	for range asked {
		if a := <-answers; a.err != nil {
			failed = append(failed, a.err)
		} else {
			disks[a.osd] = a.Disk
		}
	}
	if len(disks) == 0 {
		return nil, fmt.Errorf("free space: no OSD answers: %w: %v", objstore.Unavailable, failed)
	}
	if ctx.Err() == nil {
		s.disks, s.until = disks, time.Now().Add(spaceFor)
	}
	return disks, nil
}

// PoolSpace is the size of a pool, what is free on its disks, and what can be
// written before the first of them is full, in bytes of chunks. OSDs of which
// nothing is known do not count.
func PoolSpace(m *objstore.Map, pool *objstore.Pool, disks map[int]objstore.Disk) (total, free, avail uint64) {
	var weights float64
	in := 0
	for _, o := range m.OSDs {
		if o.In {
			weights += weight(o)
			in++
		}
	}
	// A byte of a chunk takes copies/parts bytes of disks.
	copies, parts := float64(min(pool.Size, max(in, 1))), 1.0
	if pool.Coding != nil {
		copies, parts = float64(pool.Coding.K+pool.Coding.M), float64(pool.Coding.K)
	}
	least := -1.0
	var raw, rawFree float64
	for _, o := range m.OSDs {
		d, ok := disks[o.ID]
		if !o.In || !ok {
			continue
		}
		raw, rawFree = raw+float64(d.Total), rawFree+float64(d.Free)
		share := copies / float64(in)
		if weights > 0 {
			share = copies * weight(o) / weights
		}
		if share == 0 {
			continue
		}
		// An OSD takes a chunk, or a shard of it, once.
		if room := float64(m.Ratios.Room(d.Total, d.Free)) * parts / min(share, 1); least < 0 || room < least {
			least = room
		}
	}
	total, free = uint64(raw*parts/copies), uint64(rawFree*parts/copies)
	return total, free, min(uint64(max(least, 0)), free)
}

func weight(o objstore.OSDInfo) float64 {
	if o.Reweight > 0 {
		return o.Weight * o.Reweight
	}
	return o.Weight
}
