package pack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pillarbox/cachefs"
	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/pooltest"
	"pillarbox/objstore/seal"
	"pillarbox/objstore/volume"
	"pillarbox/osd"
)

const outsidePool = 2

// site is a store of one host, on its disk, with an outside pool in memory.
type site struct {
	*testing.T
	dir, keys string
	pool      *counted
	session   uint64

	osd    *osd.OSD
	client *client.Client
	sealed *seal.Store
	fs     *cachefs.FS
	packer *Packer
	flaky  *flaky
	box    objstore.Ino // the account
}

// counted counts requests.
type counted struct {
	*pooltest.Memory
	puts, gets atomic.Int64
}

func (c *counted) Put(ctx context.Context, name string, data []byte) error {
	c.puts.Add(1)
	return c.Memory.Put(ctx, name, data)
}

func (c *counted) Get(ctx context.Context, name string, off int64, p []byte) error {
	c.gets.Add(1)
	return c.Memory.Get(ctx, name, off, p)
}

// flaky is a store whose packer dies, where it is told to.
type flaky struct {
	objstore.Store
	before, after bool // the change that names a pack
}

var errDied = errors.New("died")

func (f *flaky) Apply(ctx context.Context, c objstore.Change, p objstore.Promise) (objstore.Result, error) {
	if _, ok := c.(objstore.Pack); ok && f.before {
		return objstore.Result{}, errDied
	}
	r, err := f.Store.Apply(ctx, c, p)
	if _, ok := c.(objstore.Pack); ok && f.after {
		return r, errDied
	}
	return r, err
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{T: t, dir: t.TempDir(), keys: filepath.Join(t.TempDir(), "keys"), pool: &counted{Memory: pooltest.NewMemory()}}
	if err := seal.CreateKeys(s.keys, (*seal.MasterKeys)(nil).With(seal.NewMasterKey())); err != nil {
		t.Fatal(err)
	}
	s.open()
	t.Cleanup(func() { s.close() })
	s.must(s.sealed.Encrypt(t.Context()))
	domain, err := s.fs.Make(t.Context(), objstore.Create{Parent: objstore.VolumeRoot(objstore.RootVolume), Name: "example.org", Mode: objstore.ModeDir | 0o700})
	s.must(err)
	box, err := s.fs.Make(t.Context(), objstore.Create{Parent: domain.Ino, Name: "alice", Mode: objstore.ModeDir | 0o700})
	s.must(err)
	s.box = box.Ino
	return s
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *site) open() {
	s.Helper()
	m := &objstore.Map{FSID: "test", Epoch: 1, Format: 3, VolumeDepth: 2, OSDs: []objstore.OSDInfo{{Weight: 1, Up: true, In: true}}, Pools: []objstore.Pool{
		{ID: 0, Name: "meta", Kind: objstore.MetaPool, Size: 1, MinSize: 1, PGs: 4},
		{ID: 1, Name: "data", Kind: objstore.DataPool, Size: 1, MinSize: 1, PGs: 4, ChunkSize: objstore.ChunkSize},
		{ID: outsidePool, Name: "cloud", Kind: objstore.DataPool, Size: 1, MinSize: 1, PGs: 1, ChunkSize: objstore.ChunkSize, Outside: &objstore.Outside{Type: "memory"}},
	}, Rules: []objstore.PoolRule{{Dir: objstore.VolumeRoot(objstore.RootVolume), Pool: outsidePool, Path: "/"}}}
	s.must(m.Validate())
	log := slog.New(slog.DiscardHandler)
	var err error
	s.osd, err = osd.Open(s.Context(), osd.Options{Dir: s.dir, Map: m, Log: log, Reserve: 1 << 20})
	s.must(err)
	s.session++
	s.client, err = client.New(s.Context(), m, s.session, client.Embedded(s.osd), client.Options{
		Log:     log,
		Outside: func(context.Context, *objstore.Pool) (pool.Store, error) { return s.pool, nil },
		Sealed:  func(ctx context.Context, vol objstore.VolumeID) (bool, error) { return s.sealed.Sealed(ctx, vol) },
		Found: func(ctx context.Context, vol objstore.VolumeID, parent objstore.Ino) ([]objstore.Change, error) {
			return s.sealed.Found(ctx, vol, parent)
		},
	})
	s.must(err)
	s.sealed, err = seal.New(s.client, s.keys, log)
	s.must(err)
	s.fs, err = cachefs.New(s.sealed, cachefs.Options{Log: log, Base: s.Context()})
	s.must(err)
	s.flaky = &flaky{Store: s.sealed}
	s.packer = &Packer{src: s.osd, tried: map[objstore.ChunkID]int{}, opt: Options{
		Store: s.flaky, Outside: func(id objstore.ChunkID) bool { return m.OutsideOf(id) != nil }, After: time.Nanosecond, Least: 3, Live: 0.5, Log: log,
	}}
}

func (s *site) close() {
	s.Helper()
	if s.osd == nil {
		return
	}
	err := errors.Join(s.fs.Close(), s.client.Close(), s.osd.Close())
	s.osd = nil
	s.must(err)
}

// flush has the OSD know of all bodies.
func (s *site) flush() {
	s.Helper()
	s.must(s.osd.Picture(s.Context(), func(uint64) error { return nil }, func(volume.Write) error { return nil }))
}

func (s *site) write(name string, body []byte) objstore.Ino {
	s.Helper()
	a, h, err := s.fs.Create(s.Context(), objstore.Create{Parent: s.box, Name: name, Mode: objstore.ModeRegular | 0o600})
	s.must(err)
	defer h.Release()
	s.over(h, body, 0)
	return a.Ino
}

func (s *site) over(h *cachefs.Handle, body []byte, off uint64) {
	s.Helper()
	if _, err := h.Write(context.Background(), body, off, cachefs.WriteOptions{}); err != nil {
		s.Fatal(err)
	}
	s.must(h.Fsync(context.Background()))
}

func (s *site) body(h *cachefs.Handle, n int) []byte {
	s.Helper()
	b := make([]byte, n+1)
	got, err := h.Read(context.Background(), b, 0)
	s.must(err)
	return b[:got]
}

func (s *site) read(ino objstore.Ino, n int) []byte {
	s.Helper()
	h, err := s.fs.Open(context.Background(), ino)
	s.must(err)
	defer h.Release()
	return s.body(h, n)
}

// objects are what the pool has.
func (s *site) objects() (names []string) {
	s.Helper()
	s.must(pool.Each(context.Background(), s.pool, func(o pool.Object) error { names = append(names, o.Name); return nil }))
	slices.Sort(names)
	return names
}

// named are the objects that files name.
func (s *site) named() []string {
	s.Helper()
	names := map[string]bool{}
	s.must(s.osd.View(s.osd.Map().Group(s.box.Volume()), func(v volume.View) error {
		return volume.Chunks(v, s.box.Volume(), func(id objstore.ChunkID) bool {
			if !id.Resident() && id.Pool() == outsidePool {
				names[pool.Name(id)] = true
			}
			return true
		})
	}))
	return slices.Sorted(maps.Keys(names))
}

// emptied waits until the pool has what files name, and nothing else. The client
// empties it in the background, too, and the OSD begins with a look at what was left.
func (s *site) emptied() {
	s.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		s.must(s.client.EmptyOutside(context.Background()))
		have, want := s.objects(), s.named()
		if slices.Equal(have, want) {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("objects %v, named %v", have, want)
		}
	}
}

func text(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + rnd.IntN(26))
	}
	return b
}

// TestPack: small bodies leave the disk for a few objects, and come back from
// them; what is removed makes room, packs that are nearly empty are packed anew.
func TestPack(t *testing.T) {
	s := newSite(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	bodies, inos := map[string][]byte{}, map[string]objstore.Ino{}
	for i := range 150 {
		name := fmt.Sprintf("m%03d", i)
		bodies[name] = text(rnd, 1+rnd.IntN(60_000))
		inos[name] = s.write(name, bodies[name])
	}
	s.flush()
	s.must(s.packer.sweep(t.Context()))
	s.flush()
	if small, err := s.osd.SmallBodies(t.Context()); err != nil || small[s.box.Volume()] != 0 {
		t.Errorf("small bodies left: %v, %v", small, err)
	}
	if n := s.pool.puts.Load(); n != 2 { // about 4.5 MB
		t.Errorf("%d objects were stored", n)
	}
	compare := func() {
		t.Helper()
		for name, want := range bodies {
			if got := s.read(inos[name], len(want)); !bytes.Equal(got, want) {
				t.Fatalf("%s: %d bytes of %d", name, len(got), len(want))
			}
		}
	}
	compare()
	s.close()
	s.open()
	compare()
	remove := func(keep func(i int) bool) {
		t.Helper()
		for i := range 150 {
			if name := fmt.Sprintf("m%03d", i); !keep(i) && bodies[name] != nil {
				s.must(s.fs.Remove(t.Context(), objstore.Remove{Parent: s.box, Name: name}))
				delete(bodies, name)
			}
		}
		s.close() // waits for what is purged
		s.open()
		s.flush()
		s.must(s.packer.sweep(t.Context()))
		compare()
		s.emptied()
	}
	before := s.objects()
	remove(func(i int) bool { return i%5 > 1 }) // more than half is left
	if now := s.objects(); !slices.Equal(now, before) {
		t.Errorf("packed anew: %v, was %v", now, before)
	}
	remove(func(i int) bool { return i%5 > 2 })
	if now := s.objects(); len(now) != 1 || slices.Contains(before, now[0]) {
		t.Errorf("not packed anew: %v, was %v", now, before)
	}
	remove(func(i int) bool { return false })
	if now := s.objects(); len(now) != 0 {
		t.Errorf("objects without a file: %v", now)
	}
}

// model is files, with what they must hold, and some open handles.
type model struct {
	*site
	*rand.Rand
	bodies map[string][]byte
	inos   map[string]objstore.Ino
	open   map[string]*cachefs.Handle
	n      int
	died   bool // some pack was never named
}

func (m *model) any() string {
	names := slices.Sorted(maps.Keys(m.bodies))
	if len(names) == 0 {
		return ""
	}
	return names[m.IntN(len(names))]
}

func (m *model) name() string {
	m.n++
	return fmt.Sprintf("f%d", m.n)
}

func (m *model) step() {
	switch n := m.IntN(12); {
	case n < 4:
		name := m.name()
		m.bodies[name] = text(m.Rand, 1+m.IntN([]int{2000, 30_000, 100_000}[m.IntN(3)]))
		m.inos[name] = m.write(name, m.bodies[name])
	case len(m.bodies) == 0:
	case n < 6:
		m.rewrite(m.any())
	case n < 8:
		m.remove(m.any())
	case n < 9:
		m.copy(m.any())
	default:
		if name := m.any(); m.open[name] == nil {
			h, err := m.fs.Open(context.Background(), m.inos[name])
			m.must(err)
			m.open[name] = h
		}
	}
}

func (m *model) rewrite(name string) {
	h, err := m.fs.Open(context.Background(), m.inos[name])
	m.must(err)
	defer h.Release()
	body := bytes.Clone(m.bodies[name])
	off := m.IntN(len(body) + 1)
	now := text(m.Rand, 1+m.IntN(3000))
	m.bodies[name] = append(body[:off], append(now, body[min(len(body), off+len(now)):]...)...)
	m.over(h, now, uint64(off))
}

func (m *model) remove(name string) {
	if h := m.open[name]; h != nil {
		h.Release()
		delete(m.open, name)
	}
	m.must(m.fs.Remove(context.Background(), objstore.Remove{Parent: m.box, Name: name}))
	delete(m.bodies, name)
	delete(m.inos, name)
}

// copy makes a file that shares another's bytes.
func (m *model) copy(from string) {
	name := m.name()
	m.inos[name] = m.write(name, []byte("x"))
	m.must(m.fs.Share(context.Background(), objstore.Share{Ino: m.inos[name], Src: m.inos[from], Len: uint64(len(m.bodies[from]))}))
	m.bodies[name] = m.bodies[from]
}

func (m *model) check() {
	m.Helper()
	for name, want := range m.bodies {
		if got := m.read(m.inos[name], len(want)); !bytes.Equal(got, want) {
			m.Fatalf("%s: %d bytes of %d", name, len(got), len(want))
		}
	}
	for name, h := range m.open {
		if got := m.body(h, len(m.bodies[name])); !bytes.Equal(got, m.bodies[name]) {
			m.Fatalf("%s, open: %d bytes of %d", name, len(got), len(m.bodies[name]))
		}
	}
}

// sweep packs while files come and go, and dies at times.
func (m *model) sweep() {
	m.Helper()
	m.flush()
	m.flaky.before, m.flaky.after = m.IntN(6) == 0, m.IntN(6) == 0
	m.died = m.died || m.flaky.before
	done := make(chan error, 1)
	go func() { done <- m.packer.sweep(context.Background()) }()
	for range m.IntN(20) {
		m.step()
	}
	if err := <-done; err != nil && !errors.Is(err, errDied) {
		m.Fatal(err)
	}
	m.flaky.before, m.flaky.after = false, false
	if m.IntN(2) == 0 {
		m.must(m.client.EmptyOutside(context.Background()))
	}
}

func (m *model) reopen() {
	m.Helper()
	for _, h := range m.open {
		h.Release()
	}
	clear(m.open)
	m.close()
	m.site.open()
}

// TestPackModel: whatever is written, copied, removed and read while bodies are
// packed, files hold what they must, and the store's counts are right. When all are
// removed, nothing is left in the pool but what a packer that died had stored.
func TestPackModel(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := &model{site: newSite(t), Rand: rand.New(rand.NewPCG(seed, 7)), bodies: map[string][]byte{}, inos: map[string]objstore.Ino{}, open: map[string]*cachefs.Handle{}}
			for i := range 12 {
				for range m.IntN(12) {
					m.step()
				}
				m.sweep()
				m.check()
				if i%5 == 4 {
					m.reopen()
					m.check()
				}
			}
			for name := range m.bodies {
				m.remove(name)
			}
			m.reopen()
			if !m.died {
				m.emptied()
			}
			rep, err := m.osd.Check(t.Context(), osd.CheckOptions{Deep: true})
			if err != nil || len(rep.Problems) > 0 {
				t.Errorf("%+v, %v", rep, err)
			}
		})
	}
}
