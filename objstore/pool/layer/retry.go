package layer

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

const (
	attempts    = 6                // of each request
	attemptTime = 30 * time.Second // for one of them
	firstWait   = 200 * time.Millisecond
	maxWait     = 10 * time.Second
)

// retrying makes requests again.
type retrying struct{ next pool.Store }

// Retry makes requests again that failed as Unavailable or took too long, up to
// attempts times, after a random part of a time that doubles, and not before the
// store wants to hear of us.
func Retry(s pool.Store) pool.Store { return &retrying{s} }

func (r *retrying) do(ctx context.Context, request func(context.Context) error) error {
	for n := 0; ; n++ {
		err := attempt(ctx, request)
		if err == nil || n+1 == attempts || !errors.Is(err, objstore.Unavailable) {
			return err
		}
		after, _ := pool.IsThrottled(err)
		pause := time.NewTimer(after + rand.N(min(firstWait<<n, maxWait)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err
		}
	}
}

func attempt(ctx context.Context, request func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	return request(ctx)
}

// Put implements pool.Store.
func (r *retrying) Put(ctx context.Context, name string, data []byte) error {
	return r.do(ctx, func(ctx context.Context) error { return r.next.Put(ctx, name, data) })
}

// Get implements pool.Store.
func (r *retrying) Get(ctx context.Context, name string, off int64, p []byte) error {
	return r.do(ctx, func(ctx context.Context) error { return r.next.Get(ctx, name, off, p) })
}

// Delete implements pool.Store.
func (r *retrying) Delete(ctx context.Context, names []string) error {
	return r.do(ctx, func(ctx context.Context) error { return r.next.Delete(ctx, names) })
}

// List implements pool.Store.
func (r *retrying) List(ctx context.Context, from string) (list []pool.Object, next string, err error) {
	err = r.do(ctx, func(ctx context.Context) (err error) {
		list, next, err = r.next.List(ctx, from)
		return err
	})
	return list, next, err
}
