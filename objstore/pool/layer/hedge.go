package layer

import (
	"context"
	"errors"
	"math/bits"
	"slices"
	"sync"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

const (
	hedgeSamples = 64 // latencies that are remembered for each size
	hedgeShare   = 20 // one of so many reads may be made twice, as a mean
	hedgeMin     = 20 * time.Millisecond
)

// hedged asks twice for what takes unusually long.
type hedged struct {
	pool.Store
	mu     sync.Mutex
	recent [33]latencies // by the length's magnitude
	credit int           // reads since one was made twice
}

// latencies are the last ones of reads of about one size.
type latencies struct {
	took [hedgeSamples]time.Duration
	n    int // of all there were
}

// Hedge makes a read a second time when it takes longer than nearly all of those
// of its size did lately, and takes the first good answer: one slow server of the
// store is then nobody's delay. At most one read in hedgeShare is made twice, so
// that a store which is slow as a whole is not asked for more.
func Hedge(s pool.Store) pool.Store { return &hedged{Store: s} }

// patience is how long a read is waited for; 0: as long as it takes.
func (h *hedged) patience(size int) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.credit = min(h.credit+1, 4*hedgeShare)
	l := &h.recent[min(bits.Len(uint(size)), 32)]
	if l.n < hedgeSamples || h.credit < hedgeShare {
		return 0
	}
	sorted := slices.Sorted(slices.Values(l.took[:]))
	return max(hedgeMin, sorted[hedgeSamples-hedgeSamples/16])
}

func (h *hedged) took(size int, d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := &h.recent[min(bits.Len(uint(size)), 32)]
	l.took[l.n%hedgeSamples] = d
	l.n++
}

// pay says whether a read may be made twice, and counts it.
func (h *hedged) pay() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.credit < hedgeShare {
		return false
	}
	h.credit -= hedgeShare
	return true
}

// Get implements pool.Store.
func (h *hedged) Get(ctx context.Context, name string, off int64, p []byte) error {
	begun := time.Now()
	wait := h.patience(len(p))
	if wait == 0 {
		err := h.Store.Get(ctx, name, off, p)
		if err == nil {
			h.took(len(p), time.Since(begun))
		}
		return err
	}
	first, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- h.Store.Get(first, name, off, p) }()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case err := <-done:
		if err == nil {
			h.took(len(p), time.Since(begun))
		}
		return err
	case <-timer.C:
	}
	if !h.pay() {
		return <-done
	}
	err := h.second(ctx, name, off, p, done, cancel)
	if err == nil {
		h.took(len(p), time.Since(begun))
	}
	return err
}

// second reads again while the first read goes on into p, and ends with the first
// of them that has the bytes.
func (h *hedged) second(ctx context.Context, name string, off int64, p []byte, first <-chan error, cancelFirst func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	other := make([]byte, len(p))
	done := make(chan error, 1)
	go func() { done <- h.Store.Get(ctx, name, off, other) }()
	select {
	case err := <-first:
		if !errors.Is(err, objstore.Unavailable) {
			return err
		}
		if <-done == nil {
			copy(p, other)
			return nil
		}
		return err
	case err := <-done:
		if err != nil {
			return <-first
		}
	}
	cancelFirst()
	<-first // it no longer writes into p
	copy(p, other)
	return nil
}
