package client

import (
	"context"
	"fmt"
	"slices"

	"pillarbox/objstore"
	"pillarbox/objstore/ec"
)

// codedRead is the reading of a range from an erasure-coded pool.
type codedRead struct {
	c      *Client
	code   *ec.Code
	r      chunkRange
	places []place
	length int // of the chunk
	parts  []ec.Part
}

// readCoded reads a range from the data shards that have it. When one of them
// fails or is slow, the same stretch is read from any K shards and decoded.
func (c *Client) readCoded(ctx context.Context, pool *objstore.Pool, r chunkRange, places []place) error {
	code, err := c.codes.Of(pool)
	if err != nil {
		return &misses{final: err}
	}
	if len(places) == 0 {
		return &misses{}
	}
	cr := &codedRead{c: c, code: code, r: r, places: places}
	if err := cr.measure(ctx); err != nil {
		return err
	}
	if cr.parts, err = code.Parts(cr.length, int(r.off), len(r.p)); err != nil {
		return &misses{final: err}
	}
	decode := try{-1, cr.decode}
	tries := []try{decode}
	if cr.whole() {
		tries = []try{{-1, cr.direct}, decode}
	}
	got, err := c.gather(ctx, 1, tries)
	if err != nil {
		return err
	}
	copy(r.p, got[0].data)
	c.reads.release(got)
	return nil
}

// measure finds out how long the chunk is.
func (cr *codedRead) measure(ctx context.Context) error {
	n, ok := cr.c.reads.length(cr.r.id)
	if !ok {
		var tries []try
		for _, p := range cr.places {
			tries = append(tries, try{p.osd, func(ctx context.Context) (piece, error) {
				b := make([]byte, ec.HeaderSize)
				if err := cr.c.fetch(ctx, p.osd, cr.r, 0, b); err != nil {
					return piece{}, err
				}
				_, err := cr.header(p, b)
				return piece{data: b}, err
			}})
		}
		got, err := cr.c.gather(ctx, 1, tries)
		if err != nil {
			return err
		}
		h, err := ec.ParseHeader(got[0].data)
		if err != nil {
			return &misses{corrupt: []error{err}}
		}
		n = h.Length
		cr.c.reads.setLength(cr.r.id, n)
	}
	cr.length = n
	return nil
}

// header checks what an OSD has as the header of its shard. Corrupt.
func (cr *codedRead) header(p place, b []byte) (ec.Header, error) {
	h, err := ec.ParseHeader(b)
	if err == nil && (h.K != cr.code.K || h.M != cr.code.M || cr.parts != nil && h.Length != cr.length) {
		err = fmt.Errorf("a shard of %d+%d of a chunk of %d bytes: %w", h.K, h.M, h.Length, objstore.Corrupt)
	}
	if err != nil {
		cr.c.reads.noteBad(cr.r.id, p.osd)
		return h, fmt.Errorf("osd.%d: %w", p.osd, err)
	}
	return h, nil
}

// at is where shard i is said to be.
func (cr *codedRead) at(i int) (place, bool) {
	n := slices.IndexFunc(cr.places, func(p place) bool { return p.payload == i })
	if n < 0 {
		return place{}, false
	}
	return cr.places[n], true
}

// whole says whether all data shards needed are where they should be, as far as
// is known.
func (cr *codedRead) whole() bool {
	return !slices.ContainsFunc(cr.parts, func(part ec.Part) bool {
		p, ok := cr.at(part.Shard)
		return !ok || cr.c.reads.bad(cr.r.id, p.osd) || !cr.c.peer(p.osd).healthy()
	})
}

// direct reads the range from the data shards. Its failures are no misses:
// decode asks the same OSDs, and the others.
func (cr *codedRead) direct(ctx context.Context) (piece, error) {
	b := cr.c.reads.buffer(len(cr.r.p))
	done := make(chan error, len(cr.parts))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, part := range cr.parts {
		p, _ := cr.at(part.Shard)
		go func() {
			got, err := cr.stretch(ctx, p, part.From, part.To)
			if err == nil && got.shard != part.Shard {
				err = fmt.Errorf("osd.%d has shard %d, not %d", p.osd, got.shard, part.Shard)
			}
			if err == nil {
				copy(b[part.At:], got.data)
			}
			done <- err
		}()
	}
	failed := false
	for range cr.parts { // all of them: they write to b
		if err := <-done; err != nil {
			failed = true
			cancel()
		}
	}
	if failed {
		return piece{}, &misses{}
	}
	return piece{data: b}, nil
}

// nearby is how far from a shard's beginning a stretch may begin to be read
// together with the header.
const nearby = 16 << 10

// stretch reads bytes from to to of the shard that an OSD has.
func (cr *codedRead) stretch(ctx context.Context, p place, from, to int) (piece, error) {
	if from <= nearby {
		b := make([]byte, ec.HeaderSize+to)
		if err := cr.c.fetch(ctx, p.osd, cr.r, 0, b); err != nil {
			return piece{}, err
		}
		h, err := cr.header(p, b)
		if err == nil && len(b) == ec.HeaderSize+cr.code.ShardSize(cr.length) {
			if _, err = ec.Verify(b); err != nil {
				cr.c.reads.noteBad(cr.r.id, p.osd)
				err = fmt.Errorf("osd.%d: %w", p.osd, err)
			}
		}
		return piece{h.Index, b[ec.HeaderSize+from:]}, err
	}
	head, b := make([]byte, ec.HeaderSize), make([]byte, to-from)
	headErr := make(chan error, 1)
	go func() { headErr <- cr.c.fetch(ctx, p.osd, cr.r, 0, head) }()
	err := cr.c.fetch(ctx, p.osd, cr.r, uint32(ec.HeaderSize+from), b)
	if err2 := <-headErr; err == nil {
		err = err2
	}
	if err != nil {
		return piece{}, err
	}
	h, err := cr.header(p, head)
	return piece{h.Index, b}, err
}

// decode reads the stretch that all parts lie in from any K shards.
func (cr *codedRead) decode(ctx context.Context) (piece, error) {
	from, to := cr.parts[0].From, cr.parts[0].To
	for _, part := range cr.parts {
		from, to = min(from, part.From), max(to, part.To)
	}
	var tries []try
	for _, p := range cr.places {
		tries = append(tries, try{p.osd, func(ctx context.Context) (piece, error) { return cr.stretch(ctx, p, from, to) }})
	}
	got, err := cr.c.gather(ctx, cr.code.K, tries)
	if err != nil {
		return piece{}, err
	}
	shards := make([][]byte, cr.code.K+cr.code.M)
	for _, p := range got {
		shards[p.shard] = p.data
	}
	if err := cr.code.Fill(shards); err != nil {
		return piece{}, err
	}
	b := cr.c.reads.buffer(len(cr.r.p))
	for _, part := range cr.parts {
		copy(b[part.At:], shards[part.Shard][part.From-from:part.To-from])
	}
	return piece{data: b}, nil
}
