package cachefs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"pillarbox/objstore"
)

const (
	purgeDelay = 50 * time.Millisecond
	purgeBatch = 256
	purgeRetry = 5 * time.Second
)

// purger frees inodes that lost their last name and are not open, in batches
// per volume, from one goroutine.
type purger struct {
	fs    *FS
	mu    sync.Mutex // a leaf
	queue map[objstore.VolumeID][]objstore.Ino
	wake  chan struct{} // something was queued
	full  chan struct{} // a batch is full
	quit  chan struct{}
	done  chan struct{}
	err   error // of the last round; read after done
}

func (p *purger) start(fs *FS) {
	p.fs = fs
	p.queue = map[objstore.VolumeID][]objstore.Ino{}
	p.wake, p.full = make(chan struct{}, 1), make(chan struct{}, 1)
	p.quit, p.done = make(chan struct{}), make(chan struct{})
	go p.run()
}

// stop purges what is queued and ends the worker.
func (p *purger) stop() error {
	close(p.quit)
	<-p.done
	return p.err
}

// add queues an orphan without users.
func (p *purger) add(inos ...objstore.Ino) {
	p.mu.Lock()
	full := false
	for _, ino := range inos {
		v := ino.Volume()
		p.queue[v] = append(p.queue[v], ino)
		full = full || len(p.queue[v]) >= purgeBatch
	}
	p.mu.Unlock()
	signal(p.wake)
	if full {
		signal(p.full)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (p *purger) run() {
	defer close(p.done)
	delay := purgeDelay
	for {
		select {
		case <-p.wake:
		case <-p.quit:
			p.err = p.round(p.fs.base)
			return
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-p.full:
		case <-p.quit:
		}
		t.Stop()
		delay = purgeDelay
		if err := p.round(p.fs.base); err != nil {
			p.fs.log.Warn("purge of removed files failed, will try again", "err", err)
			delay = purgeRetry
		}
	}
}

// round purges everything queued; what failed is queued again.
func (p *purger) round(ctx context.Context) error {
	p.mu.Lock()
	queue := p.queue
	p.queue = map[objstore.VolumeID][]objstore.Ino{}
	p.mu.Unlock()
	var errs []error
	for vol, inos := range queue {
		for len(inos) > 0 {
			n := min(len(inos), purgeBatch)
			if err := p.purge(ctx, vol, inos[:n]); err != nil {
				errs = append(errs, fmt.Errorf("purge %d inodes of volume %d: %w", n, vol, err))
				p.add(inos[:n]...)
			}
			inos = inos[n:]
		}
	}
	return errors.Join(errs...)
}

func (p *purger) purge(ctx context.Context, vol objstore.VolumeID, inos []objstore.Ino) error {
	batch := make([]objstore.Ino, 0, len(inos))
	for _, ino := range inos {
		if p.fs.table.beginPurge(ino) {
			batch = append(batch, ino)
		}
	}
	defer func() {
		for _, ino := range batch {
			p.fs.table.endPurge(ino)
		}
	}()
	for len(batch) > 0 {
		r, err := p.fs.store.Apply(ctx, objstore.Purge{Vol: vol, Inos: batch}, objstore.Ordered)
		if errors.Is(err, objstore.Stale) {
			return nil // the volume was removed, and its orphans with it
		}
		if err != nil {
			return err
		}
		if r.Orphan == 0 {
			return nil
		}
	}
	return nil
}
