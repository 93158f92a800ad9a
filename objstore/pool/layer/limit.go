package layer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

const (
	firstLimit = 16 // requests at a time
	maxLimit   = 128
)

// limited makes as many requests at a time as the store takes.
type limited struct {
	next pool.Store

	mu      sync.Mutex
	allowed float64
	busy    int
	quiet   time.Time       // no request before
	cut     time.Time       // when allowed was halved last
	waiting []chan struct{} // closed when it is one's turn, which makes it busy
}

// Limit makes as many requests at a time as the store takes: one more for each
// round that goes well with all of them in use, half as many when the store wants
// fewer or lets one wait in vain. When it wants none for a time, there are none.
func Limit(s pool.Store) pool.Store { return &limited{next: s, allowed: firstLimit} }

func (l *limited) do(ctx context.Context, request func() error) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	begun := time.Now()
	err := request()
	l.leave(begun, err)
	return err
}

// free says whether one more request may be made. l.mu is held.
func (l *limited) free() bool { return l.busy < int(l.allowed) && !time.Now().Before(l.quiet) }

func (l *limited) enter(ctx context.Context) error {
	l.mu.Lock()
	if len(l.waiting) == 0 && l.free() {
		l.busy++
		l.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	l.waiting = append(l.waiting, turn)
	l.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range l.waiting {
		if w == turn {
			l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
			return fmt.Errorf("wait for other requests to the store: %w: %w", objstore.Unavailable, context.Cause(ctx))
		}
	}
	return nil // it was our turn at the same moment
}

func (l *limited) leave(begun time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	full := l.busy >= int(l.allowed)
	l.busy--
	after, throttled := pool.IsThrottled(err)
	switch {
	case throttled || errors.Is(err, context.DeadlineExceeded):
		if begun.After(l.cut) { // else it tells nothing new
			l.allowed, l.cut = max(1, l.allowed/2), time.Now()
		}
	case err == nil && full:
		l.allowed = min(maxLimit, l.allowed+1/l.allowed)
	}
	if until := time.Now().Add(after); after > 0 && until.After(l.quiet) {
		l.quiet = until
		time.AfterFunc(after, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.wake()
		})
	}
	l.wake()
}

// wake lets those in who may. l.mu is held.
func (l *limited) wake() {
	for len(l.waiting) > 0 && l.free() {
		l.busy++
		close(l.waiting[0])
		l.waiting = l.waiting[1:]
	}
}

// Put implements pool.Store.
func (l *limited) Put(ctx context.Context, name string, data []byte) error {
	return l.do(ctx, func() error { return l.next.Put(ctx, name, data) })
}

// Get implements pool.Store.
func (l *limited) Get(ctx context.Context, name string, off int64, p []byte) error {
	return l.do(ctx, func() error { return l.next.Get(ctx, name, off, p) })
}

// Delete implements pool.Store.
func (l *limited) Delete(ctx context.Context, names []string) error {
	return l.do(ctx, func() error { return l.next.Delete(ctx, names) })
}

// List implements pool.Store.
func (l *limited) List(ctx context.Context, from string) (list []pool.Object, next string, err error) {
	err = l.do(ctx, func() (err error) {
		list, next, err = l.next.List(ctx, from)
		return err
	})
	return list, next, err
}
