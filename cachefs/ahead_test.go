package cachefs

import (
	"context"
	"fmt"
	"math/rand"
	"sync/atomic"
	"testing"

	"pillarbox/cachefs/storetest"
	"pillarbox/objstore"
)

const mailSize = 10_000

// mailbox is one with so many messages, whose bodies o.Bodies has nothing of.
type mailboxBench struct {
	*bench
	mails []objstore.Ino // by name
}

func newMailbox(t *testing.T, n int, store objstore.Store, o Options) *mailboxBench {
	t.Helper()
	b := newFS(t, Options{})
	if s, ok := store.(*stuck); ok {
		b.store, b.fs.store = s.Store, s.Store
	}
	m := &mailboxBench{b, make([]objstore.Ino, n)}
	for _, i := range rand.New(rand.NewSource(1)).Perm(n) { // delivered in another order than that of the names
		ino, h := b.create(fmt.Sprintf("17%08d.host:2,S", i))
		b.write(h, make([]byte, mailSize), 0)
		if err := h.Fsync(b.ctx); err != nil {
			t.Fatal(err)
		}
		h.Release()
		m.mails[i] = ino
	}
	if store == nil {
		store = b.store
	}
	fs, err := New(store, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	m.fs = fs
	return m
}

// list lists the mailbox as a mount does, in parts.
func (m *mailboxBench) list() {
	m.Helper()
	for after := uint64(0); ; {
		list, err := m.fs.ReadDir(m.ctx, 1, after, 17, true)
		if err != nil {
			m.Fatal(err)
		}
		m.fs.Listed(1, after == 0, len(list) < 17, list)
		if len(list) < 17 {
			m.fs.Listed(1, false, true, nil) // as the kernel does
			return
		}
		after = list[len(list)-1].Cookie
	}
}

// idle waits until nothing is being brought any more.
func (m *mailboxBench) idle() {
	m.Helper()
	m.eventually("all is brought", func() bool {
		m.fs.ahead.mu.Lock()
		defer m.fs.ahead.mu.Unlock()
		return m.fs.ahead.workers == 0
	})
}

func (m *mailboxBench) read(i int) {
	m.Helper()
	h := m.open(m.mails[i])
	defer h.Release()
	m.want(h, make([]byte, mailSize))
}

// near wants exactly the messages of some places to be near.
func (m *mailboxBench) near(what string, from, to int) {
	m.Helper()
	m.idle()
	for i, ino := range m.mails {
		list := m.extents(ino)
		if has := m.fs.opt.Bodies.Has(list[0].Chunk, list[0].Len); has != (i >= from && i < to) {
			m.Errorf("%s: message %d is near: %v", what, i, has)
		}
	}
}

// TestAhead: a listing brings the newest messages and no more; reading goes on from
// where it is, to older or newer ones; and none of them is fetched again.
func TestAhead(t *testing.T) {
	m := newMailbox(t, 100, nil, Options{Bodies: &memory{}, Ahead: 10 * mailSize})
	m.near("nothing was asked", 0, 0)
	m.list()
	m.near("listed", 90, 100)
	m.list()
	m.near("listed again", 90, 100)
	fetched := m.store.Count("ReadChunk")
	m.read(99)
	m.read(98)
	m.near("two were read", 88, 100)
	for i := 97; i >= 88; i-- {
		m.read(i)
	}
	m.near("read downwards", 78, 100)
	if n := m.store.Count("ReadChunk") - fetched; n != 12 { // two and ten more
		t.Errorf("%d bodies were fetched", n)
	}
	st := m.fs.Stats()
	if st.Prefetched != 22*mailSize || st.Used != 12*mailSize || st.Wasted != 0 {
		t.Errorf("%d bytes were brought, %d of them read, %d wasted", st.Prefetched, st.Used, st.Wasted)
	}
	upwards := newMailbox(t, 100, nil, Options{Bodies: &memory{}, Ahead: 10 * mailSize})
	upwards.list()
	upwards.idle()
	upwards.read(0)
	upwards.read(1)
	upwards.idle()
	for i := 2; i < 12; i++ {
		if list := upwards.extents(upwards.mails[i]); !upwards.fs.opt.Bodies.Has(list[0].Chunk, mailSize) {
			t.Errorf("read upwards: message %d is not near", i)
		}
	}
}

// TestAheadIsNotForWalks: who only lists gets no more than so much, until mail is read.
func TestAheadIsNotForWalks(t *testing.T) {
	m := newMailbox(t, 20, nil, Options{Bodies: &memory{}, Ahead: mailSize})
	for range 2 * aheadTrust {
		m.fs.ahead.mu.Lock()
		for i := range m.fs.ahead.dirs { // as if it were another mailbox each time
			m.fs.ahead.forget(m.fs.ahead.dirs[i])
		}
		m.fs.ahead.mu.Unlock()
		m.list()
	}
	m.idle()
	m.fs.ahead.mu.Lock()
	left := m.fs.ahead.trust
	m.fs.ahead.mu.Unlock()
	if left != 0 {
		t.Errorf("listings may still bring %d bytes", left)
	}
	m.read(0)
	m.fs.ahead.mu.Lock()
	left = m.fs.ahead.trust
	m.fs.ahead.mu.Unlock()
	if left != mailSize {
		t.Errorf("after a read listings may bring %d bytes", left)
	}
}

// full is a cache without room.
type full struct{ memory }

func (*full) Spare() int64 { return mailSize - 1 }

// TestAheadNeedsRoom: nothing is read ahead for which something would have to go, nor
// what is on the host anyway.
func TestAheadNeedsRoom(t *testing.T) {
	for what, o := range map[string]Options{
		"full":  {Bodies: &full{}, Ahead: 1 << 20},
		"local": {Bodies: &memory{}, Ahead: 1 << 20, Local: func(objstore.ChunkID) bool { return true }},
	} {
		m := newMailbox(t, 20, nil, o)
		m.list()
		m.idle()
		if n := m.store.Count("ReadChunk"); n != 0 {
			t.Errorf("%s: %d bodies were read ahead", what, n)
		}
		m.read(10)
	}
}

// stuck is a store that answers nothing of any chunk but one file's.
type stuck struct {
	*storetest.Store
	but     atomic.Uint64
	waiting atomic.Int64
}

func (s *stuck) ReadChunk(ctx context.Context, id objstore.ChunkID, off uint32, p []byte) error {
	if uint64(id.Ino) != s.but.Load() {
		s.waiting.Add(1)
		<-ctx.Done()
		return fmt.Errorf("%w: %w", objstore.Unavailable, context.Cause(ctx))
	}
	return s.Store.ReadChunk(ctx, id, off, p)
}

// TestAheadWaitsForNobody: while what is read ahead does not come, a reader gets what
// he wants, and the mount ends.
func TestAheadWaitsForNobody(t *testing.T) {
	s := &stuck{Store: storetest.New()}
	m := newMailbox(t, 20, s, Options{Bodies: &memory{}, Ahead: 1 << 20})
	s.but.Store(uint64(m.mails[0]))
	m.list()
	m.eventually("some are on their way", func() bool { return s.waiting.Load() == aheadWidth })
	m.read(0)
	// Closed by the test's end.
}

// TestAheadForgets: of how many messages it is known whether they were read is bounded,
// and so is how many are known by their place.
func TestAheadForgets(t *testing.T) {
	m := newMailbox(t, 1, nil, Options{Bodies: &memory{}, Ahead: 1})
	a := m.fs.ahead
	for i := range aheadTrack + 100 {
		a.note(objstore.Ino(i+10), 1)
	}
	if n := len(a.brought); n != aheadTrack || a.waste.Load() != 100 {
		t.Errorf("%d messages are waited for, %d bytes were wasted", n, a.waste.Load())
	}
	for dir := range objstore.Ino(aheadDirs + 10) {
		var list []objstore.DirEntry
		for i := range 1000 {
			at := objstore.Attr{Ino: dir<<20 + objstore.Ino(i) + 1<<30, Mode: objstore.ModeRegular, Size: 1 << 20}
			list = append(list, objstore.DirEntry{Name: fmt.Sprint(i), Attr: &at})
		}
		m.fs.Listed(dir+1000, true, dir%2 == 0, list) // every other one is never listed to its end
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := a.names(); n > aheadPlaces || n < aheadPlaces/2 || len(a.dirs) > aheadDirs {
		t.Errorf("%d messages in %d directories are known", n, len(a.dirs))
	}
}
