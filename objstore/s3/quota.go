package s3

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"pillarbox/objstore"
)

// usageFor is how old a count of what a user's buckets hold may be. What this
// gateway writes meanwhile is added to it.
const usageFor = time.Minute

// usage counts what the buckets of users with a quota hold.
type usage struct {
	mu    sync.Mutex
	users map[string]*used
}

type used struct {
	mu    sync.Mutex // held while it is counted
	at    time.Time
	bytes uint64
}

func (u *usage) of(user string) *used {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.users == nil {
		u.users = map[string]*used{}
	}
	if u.users[user] == nil {
		u.users[user] = &used{}
	}
	return u.users[user]
}

// checkQuota refuses more bytes than the owner of the request's bucket may have.
func (q *request) checkQuota(more uint64) error {
	if q.b.rec.Owner == "" {
		return nil
	}
	owner, err := q.g.opt.Users.ByID(q.ctx, q.b.rec.Owner)
	if errors.Is(err, ErrNoUser) {
		return nil
	}
	if err != nil || owner.Quota == 0 {
		return err
	}
	u := q.g.usage.of(owner.ID)
	u.mu.Lock()
	defer u.mu.Unlock()
	if q.now.Sub(u.at) > usageFor {
		n, err := q.g.count(q.ctx, owner.ID)
		if err != nil {
			return fmt.Errorf("count what %s has: %w", owner.ID, err)
		}
		u.at, u.bytes = q.now, n
	}
	if u.bytes+more > owner.Quota {
		return fail("QuotaExceeded")
	}
	u.bytes += more
	return nil
}

// count adds up all files in a user's buckets: objects, versions and parts.
func (g *Gateway) count(ctx context.Context, user string) (total uint64, err error) {
	var names []string
	if err := readDir(ctx, g.ns, topDir, false, func(e objstore.DirEntry) bool { names = append(names, e.Name); return true }); err != nil {
		return 0, err
	}
	for _, name := range names {
		b, err := g.loadBucket(ctx, name)
		var e *Error
		if errors.As(err, &e) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if b.rec.Owner != user {
			continue
		}
		n, err := b.size(ctx, b.dir)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

func (b *bucket) size(ctx context.Context, dir objstore.Ino) (total uint64, err error) {
	var dirs []objstore.Ino
	err = readDir(ctx, b.ns, dir, true, func(e objstore.DirEntry) bool {
		if e.Type == objstore.ModeDir {
			dirs = append(dirs, e.Ino)
		} else if e.Attr != nil {
			total += e.Attr.Size
		}
		return true
	})
	for _, d := range dirs {
		n, derr := b.size(ctx, d)
		total += n
		err = errors.Join(err, derr)
	}
	if isGone(err) {
		err = nil
	}
	return total, err
}
