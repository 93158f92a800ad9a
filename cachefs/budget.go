package cachefs

import (
	"context"
	"runtime"
	"sync"
)

// budget bounds the memory in dirty ranges over all files.
type budget struct {
	mu      sync.Mutex // a leaf
	cond    sync.Cond  // used fell, or a reclaimer is done
	max     int64
	used    int64
	peak    int64
	reclaim bool // somebody is flushing files to make room
}

func (b *budget) init(max int64) {
	b.max = max
	b.cond.L = &b.mu
}

func (b *budget) release(n int64) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	b.used -= n
	b.cond.Broadcast()
	b.mu.Unlock()
}

// acquire reserves n bytes, waiting while buffers go out. One waiter at a time
// flushes files; when it cannot make room its error is returned.
func (fs *FS) acquireMem(ctx context.Context, n int64) error {
	b := &fs.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.used > 0 && b.used+n > b.max {
		if b.reclaim {
			b.cond.Wait()
			continue
		}
		b.reclaim = true
		before := b.used
		b.mu.Unlock()
		err := fs.reclaim(ctx)
		b.mu.Lock()
		b.reclaim = false
		b.cond.Broadcast()
		if err != nil && b.used >= before {
			return err
		}
	}
	b.used += n
	b.peak = max(b.peak, b.used)
	return nil
}

// reclaim brings the file with most dirty bytes one step towards clean.
func (fs *FS) reclaim(ctx context.Context) error {
	var victim *file
	most := int64(0)
	for _, f := range fs.table.all() {
		if m := f.mem.Load(); m > most {
			victim, most = f, m
		}
	}
	if victim == nil {
		runtime.Gosched() // others have reserved and will write at once
		return nil
	}
	return victim.shrink(ctx)
}
