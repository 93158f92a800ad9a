package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pillarbox/objstore"
)

// A store that is away is waited for once, not by every call: when the OSDs that
// an operation needs have not answered for as long as an operation may take, it
// fails without asking. Whether one answers again is found out in the background.

// probeEvery is how often an OSD that does not answer is asked.
const probeEvery = time.Second

func (p *peer) heard() {
	p.mu.Lock()
	p.since = time.Time{}
	p.mu.Unlock()
}

func (p *peer) silentSince() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.since
}

// silent notes that a call which began at some time was in vain, and asks the OSD
// until one is not.
func (c *Client) silent(p *peer, began time.Time) {
	p.mu.Lock()
	if p.since.IsZero() {
		p.since = began
	}
	start := !p.probed
	p.probed = true
	p.mu.Unlock()
	if start && !c.start(func() { c.probe(p) }) {
		p.heard() // the client is closed
	}
}

// answers says that the OSD does, so that its probe ends.
func (p *peer) answers() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probed = !p.since.IsZero()
	return !p.probed
}

// waited notes that an operation has used up its time, so that the next does not
// wait again for those whom it came to ask late.
func (c *Client) waited(ctx context.Context, ids []int, began time.Time) {
	if !errors.Is(context.Cause(ctx), errTimeout) {
		return
	}
	for _, id := range ids {
		p := c.peer(id)
		p.mu.Lock()
		if !p.since.IsZero() && began.Before(p.since) {
			p.since = began
		}
		p.mu.Unlock()
	}
}

// probe asks an OSD until it answers or the map has it no more.
func (c *Client) probe(p *peer) {
	for !p.answers() {
		select {
		case <-time.After(probeEvery):
		case <-c.life.Done():
			return
		}
		if c.now.Load().OSD(p.id) == nil {
			p.heard()
			continue
		}
		_ = c.call(c.life, p.id, c.opt.Attempt, reach) // which takes note of how it ends
	}
}

// reach asks an OSD what any can answer.
func reach(ctx context.Context, osd OSD) error {
	_, err := osd.Space(ctx)
	return err
}

// gone counts those of the OSDs that did not answer for the time of an operation.
// Negative ids are holes.
func (c *Client) gone(ids []int) (n int) {
	for _, id := range ids {
		if id < 0 {
			n++
			continue
		}
		if since := c.peer(id).silentSince(); !since.IsZero() && time.Since(since) >= c.opt.Timeout {
			n++
		}
	}
	return n
}

// groupAway says that a meta placement group cannot have a leader.
func (c *Client) groupAway(e *epoch, pg uint32) error {
	acting := e.Acting(e.Meta(), pg)
	if gone := c.gone(acting); len(acting)-gone < len(acting)/2+1 {
		return fmt.Errorf("%d of its %d OSDs have not answered for %v: %w", gone, len(acting), c.opt.Timeout, objstore.Unavailable)
	}
	return nil
}

// allAway says that no OSD answers.
func (c *Client) allAway(e *epoch) error {
	ids := make([]int, len(e.OSDs))
	for i := range e.OSDs {
		ids[i] = e.OSDs[i].ID
	}
	if c.gone(ids) < len(ids) {
		return nil
	}
	return fmt.Errorf("no OSD has answered for %v: %w", c.opt.Timeout, objstore.Unavailable)
}

// tooFew says that a chunk cannot reach as many OSDs as it must.
func (c *Client) tooFew(pool *objstore.Pool, places []place) error {
	ids := make([]int, len(places))
	for i, p := range places {
		ids[i] = p.osd
	}
	if gone := c.gone(ids); len(places)-gone < pool.MinSize && gone > 0 {
		return fmt.Errorf("%d of %d OSDs have not answered for %v: %w", gone, len(places), c.opt.Timeout, objstore.Unavailable)
	}
	return nil
}
