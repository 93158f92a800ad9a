package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/objstore/volume"
)

// cluster is OSDs in memory: they share one state, as if replication were
// perfect, but answer only for groups that they lead, and have chunks of their
// own. Time is that of synctest.
type cluster struct {
	t    testing.TB
	osds map[int]*fakeOSD

	mu      sync.Mutex
	m       *objstore.Map
	state   volume.MapView
	leader  map[uint32]int
	results map[objstore.Request]objstore.Result // by session and seq
	ended   map[uint64]bool                      // seqs whose answer went out
	acked   uint64
	giveUp  bool // the client may give up on changes
}

// fakeOSD is one of them. hook sees every call first and may fail or delay it;
// after sees the type of a
// change made and may lose the answer.
type fakeOSD struct {
	client.OSD // what is not faked is not to be called
	id         int
	c          *cluster

	mu     sync.Mutex
	hook   func(ctx context.Context, op string) error
	after  func(change string) error
	chunks map[objstore.ChunkID][]byte
	calls  map[string]int
	bytes  int // of chunks read
	reqs   []objstore.Request
	asked  []objstore.Promise
	total  uint64
	free   uint64
}

func newCluster(t testing.TB, osds int, data objstore.Pool) *cluster {
	m := &objstore.Map{FSID: "test", Epoch: 1, Format: 1, VolumeDepth: 2}
	c := &cluster{t: t, m: m, osds: map[int]*fakeOSD{}, leader: map[uint32]int{}, results: map[objstore.Request]objstore.Result{}, ended: map[uint64]bool{}}
	for id := range osds {
		m.OSDs = append(m.OSDs, objstore.OSDInfo{ID: id, Addr: fmt.Sprintf("[::1]:%d", id+1), Host: fmt.Sprintf("h%d", id), Weight: 1, Up: true, In: true})
		c.osds[id] = &fakeOSD{id: id, c: c, chunks: map[objstore.ChunkID][]byte{}, calls: map[string]int{}}
	}
	data.ID, data.Name, data.Kind, data.PGs, data.ChunkSize, data.FailureDomain = 1, "data", objstore.DataPool, 16, objstore.ChunkSize, "osd"
	m.Pools = []objstore.Pool{{ID: 0, Name: "meta", Kind: objstore.MetaPool, Size: min(3, osds), MinSize: min(2, osds), PGs: 4, FailureDomain: "osd"}, data}
	for pg := range uint32(4) {
		c.leader[pg] = m.Acting(m.Meta(), pg)[0]
	}
	return c
}

func replicated(size, min int) objstore.Pool { return objstore.Pool{Size: size, MinSize: min} }

func (c *cluster) OSD(id int) (client.OSD, error) {
	if c.osds[id] == nil {
		return nil, fmt.Errorf("osd.%d is not known", id)
	}
	return c.osds[id], nil
}

// client opens a client that is closed when the test ends.
func (c *cluster) client(opt client.Options) *client.Client {
	c.t.Helper()
	opt.Log = slog.New(slog.DiscardHandler)
	cl, err := client.New(c.t.Context(), c.m, 7, c, opt)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cl.Close() })
	return cl
}

// next makes the next epoch and tells the clients.
func (c *cluster) next(change func(*objstore.Map), clients ...*client.Client) {
	c.mu.Lock()
	m := c.m.Clone()
	m.Epoch++
	change(m)
	c.m = m
	c.mu.Unlock()
	for _, cl := range clients {
		cl.SetMap(m)
	}
}

func down(ids ...int) func(*objstore.Map) { return setUp(false, ids) }
func up(ids ...int) func(*objstore.Map)   { return setUp(true, ids) }

func setUp(to bool, ids []int) func(*objstore.Map) {
	return func(m *objstore.Map) {
		for _, id := range ids {
			m.OSD(id).Up = to
		}
	}
}

func (c *cluster) lead(pg uint32, osd int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader[pg] = osd
}

func (o *fakeOSD) set(hook func(ctx context.Context, op string) error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hook = hook
}

func (o *fakeOSD) count(op string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.calls[op]
}

func (o *fakeOSD) enter(ctx context.Context, op string) error {
	o.mu.Lock()
	o.calls[op]++
	hook := o.hook
	o.mu.Unlock()
	if hook != nil {
		return hook(ctx, op)
	}
	return ctx.Err()
}

// fails makes calls fail.
func fails(err error) func(context.Context, string) error {
	return func(context.Context, string) error { return err }
}

// hangs makes calls wait until they are given up.
func hangs(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }

// takes makes calls slow.
func takes(d time.Duration) func(context.Context, string) error {
	return func(ctx context.Context, _ string) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// only makes a hook see one kind of call.
func only(op string, hook func(context.Context, string) error) func(context.Context, string) error {
	return func(ctx context.Context, is string) error {
		if is != op {
			return ctx.Err()
		}
		return hook(ctx, is)
	}
}

// led runs fn on the state if this OSD leads the group.
func led[T any](ctx context.Context, o *fakeOSD, op string, pg uint32, fn func(volume.View) (T, error)) (t T, err error) {
	if err := o.enter(ctx, op); err != nil {
		return t, err
	}
	c := o.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leader[pg] != o.id {
		return t, fmt.Errorf("%s: %w", op, &objstore.LeaderError{PG: pg, Leader: c.leader[pg]})
	}
	return fn(&c.state)
}

func (o *fakeOSD) Lookup(ctx context.Context, pg uint32, dir objstore.Ino, name string) (objstore.DirEntry, error) {
	return led(ctx, o, "Lookup", pg, func(v volume.View) (objstore.DirEntry, error) { return volume.Lookup(v, dir, name) })
}

func (o *fakeOSD) GetAttr(ctx context.Context, pg uint32, ino objstore.Ino) (objstore.Attr, error) {
	return led(ctx, o, "GetAttr", pg, func(v volume.View) (objstore.Attr, error) { return volume.GetAttr(v, ino) })
}

func (o *fakeOSD) ReadDir(ctx context.Context, pg uint32, dir objstore.Ino, after uint64, max int, attrs bool) ([]objstore.DirEntry, error) {
	return led(ctx, o, "ReadDir", pg, func(v volume.View) ([]objstore.DirEntry, error) { return volume.ReadDir(v, dir, after, max, attrs) })
}

func (o *fakeOSD) Extents(ctx context.Context, pg uint32, ino objstore.Ino, off, n uint64) ([]objstore.Extent, error) {
	return led(ctx, o, "Extents", pg, func(v volume.View) ([]objstore.Extent, error) { return volume.Extents(v, ino, off, n) })
}

func (o *fakeOSD) Pending(ctx context.Context, pg uint32) ([]objstore.VolumeID, error) {
	return led(ctx, o, "Pending", pg, volume.Pending)
}

func (o *fakeOSD) Orphans(ctx context.Context, pg uint32, vol objstore.VolumeID, max int) ([]objstore.Ino, error) {
	return led(ctx, o, "Orphans", pg, func(v volume.View) ([]objstore.Ino, error) { return volume.Orphans(v, vol, max) })
}

func (o *fakeOSD) Freed(ctx context.Context, pg uint32, max int) ([]objstore.ChunkID, error) {
	return nil, nil
}

func (o *fakeOSD) Sync(ctx context.Context, pg uint32) error {
	_, err := led(ctx, o, "Sync", pg, func(volume.View) (struct{}, error) { return struct{}{}, nil })
	return err
}

func (o *fakeOSD) Apply(ctx context.Context, pg uint32, r objstore.Request, ch objstore.Change, p objstore.Promise) (objstore.Result, error) {
	o.mu.Lock()
	o.reqs, o.asked = append(o.reqs, r), append(o.asked, p)
	after := o.after
	o.mu.Unlock()
	c := o.c
	res, err := led(ctx, o, "Apply", pg, func(v volume.View) (objstore.Result, error) {
		if r.Session == 0 || r.Seq == 0 || r.Ack == 0 || r.Ack > r.Seq {
			c.t.Errorf("request %+v", r)
		}
		for seq := c.acked; seq < r.Ack; seq++ {
			if seq > 0 && !c.ended[seq] && !c.giveUp {
				c.t.Errorf("answer to %d acknowledged, which was never given", seq)
			}
		}
		c.acked = max(c.acked, r.Ack)
		key := objstore.Request{Session: r.Session, Seq: r.Seq}
		if res, ok := c.results[key]; ok {
			return res, nil
		}
		delta, res, err := volume.Apply(v, ch, time.Now().UnixNano())
		if err == nil {
			c.state.Apply(delta)
			c.results[key] = res
		}
		return res, err
	})
	if after != nil && err == nil {
		if err := after(fmt.Sprintf("%T", ch)); err != nil {
			return objstore.Result{}, err
		}
	}
	if k := new(objstore.LeaderError); !errors.As(err, &k) && !errors.Is(err, objstore.Unavailable) {
		c.mu.Lock()
		c.ended[r.Seq] = true
		c.mu.Unlock()
	}
	return res, err
}

func (o *fakeOSD) PutChunk(ctx context.Context, id objstore.ChunkID, data []byte) error {
	if err := o.enter(ctx, "PutChunk"); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.chunks[id] = bytes.Clone(data)
	return nil
}

func (o *fakeOSD) ReadChunk(ctx context.Context, _ uint32, id objstore.ChunkID, off uint32, p []byte) error {
	if err := o.enter(ctx, "ReadChunk"); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	b, ok := o.chunks[id]
	if !ok {
		return fmt.Errorf("chunk %v: %w", id, objstore.Stale)
	}
	if int(off)+len(p) > len(b) {
		return fmt.Errorf("%d bytes at %d of %d: %w", len(p), off, len(b), objstore.Invalid)
	}
	o.bytes += copy(p, b[off:])
	return nil
}

func (o *fakeOSD) Space(ctx context.Context) (objstore.Disk, error) {
	if err := o.enter(ctx, "Space"); err != nil {
		return objstore.Disk{}, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return objstore.Disk{Total: o.total, Free: o.free, Files: 5}, nil
}

// has says whether the OSD holds the chunk, with this content if it is not nil.
func (o *fakeOSD) has(id objstore.ChunkID, data []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	b, ok := o.chunks[id]
	return ok && (data == nil || bytes.Equal(b, data))
}

func (o *fakeOSD) drop(id objstore.ChunkID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.chunks, id)
}

// bubble runs a test in synctest's time.
func bubble(t *testing.T, fn func(*testing.T)) {
	t.Helper()
	synctest.Test(t, fn)
}

// took fails unless fn takes between least and most.
func took(t *testing.T, least, most time.Duration, fn func()) {
	t.Helper()
	began := time.Now()
	fn()
	if d := time.Since(began); d < least || d > most {
		t.Errorf("took %v, want %v to %v", d, least, most)
	}
}
