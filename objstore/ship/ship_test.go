package ship

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/seal"
	"pillarbox/objstore/volume"
)

// memStore is an outside store in memory that remembers each of its states.
type memStore struct {
	mu      sync.Mutex
	objects map[string][]byte
	history []map[string][]byte // after each write
	fail    func(name string) error
}

func newMemStore() *memStore { return &memStore{objects: map[string][]byte{}} }

func (m *memStore) write(name string, fn func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		if err := m.fail(name); err != nil {
			return err
		}
	}
	fn()
	m.history = append(m.history, maps.Clone(m.objects))
	return nil
}

func (m *memStore) Put(_ context.Context, name string, data []byte) error {
	return m.write(name, func() { m.objects[name] = bytes.Clone(data) })
}

func (m *memStore) Delete(_ context.Context, names []string) error {
	for _, name := range names {
		if err := m.write(name, func() { delete(m.objects, name) }); err != nil {
			return err
		}
	}
	return nil
}

func (m *memStore) Get(_ context.Context, name string, off int64, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[name]
	switch {
	case !ok:
		return fmt.Errorf("%s: %w", name, objstore.NotFound)
	case int64(len(b)) < off+int64(len(p)):
		return fmt.Errorf("%s is short: %w", name, objstore.Corrupt)
	}
	copy(p, b[off:])
	return nil
}

func (m *memStore) List(context.Context, string) (list []pool.Object, next string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, b := range m.objects {
		list = append(list, pool.Object{Name: name, Size: int64(len(b))})
	}
	return list, "", nil
}

// memSource is a store in memory. Its positions count deltas, from 1.
type memSource struct {
	mu     sync.Mutex
	log    []volume.Delta // from base on
	base   uint64
	keep   atomic.Uint64
	state  map[string]string
	states []map[string]string // after each delta
	rnd    *rand.Rand
	during func() // called in the middle of a picture
}

func newMemSource() *memSource {
	return &memSource{state: map[string]string{}, states: []map[string]string{{}}, rnd: rand.New(rand.NewPCG(1, 2))}
}

func (m *memSource) change() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var d volume.Delta
	for range 1 + m.rnd.IntN(3) {
		w := volume.Write{Key: fmt.Appendf(nil, "key%d", m.rnd.IntN(30))}
		if m.rnd.IntN(4) > 0 {
			w.Value = fmt.Appendf(nil, "value %d", m.rnd.Uint64())
		}
		d = merge([]volume.Delta{d, {w}})
	}
	apply(m.state, d)
	m.log = append(m.log, d)
	m.states = append(m.states, maps.Clone(m.state))
	return m.base + uint64(len(m.log))
}

func apply(state map[string]string, d volume.Delta) {
	for _, w := range d {
		if w.Value == nil {
			delete(state, string(w.Key))
		} else {
			state[string(w.Key)] = string(w.Value)
		}
	}
}

func (m *memSource) ReadLog(from, upTo uint64, room int) ([]volume.Delta, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if from < m.base {
		return nil, from, objstore.NotFound
	}
	upTo = min(upTo, m.base+uint64(len(m.log)))
	if room == 0 || from >= upTo {
		return nil, from, nil
	}
	return slices.Clone(m.log[from-m.base : upTo-m.base]), upTo, nil
}

func (m *memSource) KeepLog(from uint64) { m.keep.Store(from) }

func (m *memSource) LoggedTo() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.base + uint64(len(m.log))
}

// forget is what a log does that has waited too long.
func (m *memSource) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.base += uint64(len(m.log))
	m.log = nil
}

func (m *memSource) Picture(ctx context.Context, begin func(uint64) error, fn func(volume.Write) error) error {
	m.mu.Lock()
	at := m.base + uint64(len(m.log))
	from := max(m.base, at-min(at, m.rnd.Uint64N(4)))
	err := begin(from) // the picture may be later
	m.mu.Unlock()
	if err != nil {
		return err
	}
	m.mu.Lock()
	state := maps.Clone(m.state)
	m.mu.Unlock()
	if m.during != nil {
		m.during()
	}
	for k, v := range state {
		if err := fn(volume.Write{Key: []byte(k), Value: []byte(v)}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

type bench struct {
	t     *testing.T
	store *memStore
	src   *memSource
	dir   string
	keys  *seal.MasterKeys
}

func newBench(t *testing.T) *bench {
	return &bench{t, newMemStore(), newMemSource(), t.TempDir(), (*seal.MasterKeys)(nil).With(seal.NewMasterKey())}
}

func (b *bench) start() *Shipper {
	b.t.Helper()
	st, err := LoadState(b.dir)
	if errors.Is(err, objstore.NotFound) {
		st, err = NewState(b.dir, "cloud", 1)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return Start(b.t.Context(), b.src, Options{
		Store: b.store, State: st, FSID: "fsid", Log: slog.New(slog.DiscardHandler), Every: time.Millisecond, Grow: 2000,
		Keys:  func() (*seal.MasterKeys, error) { return b.keys, nil },
		About: func(context.Context) (json.RawMessage, error) { return json.RawMessage(`{"depth":2}`), nil },
	})
}

func (b *bench) settle(s *Shipper) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	if err := s.Settle(ctx); err != nil {
		err2, _ := s.Health()
		b.t.Fatalf("%v (%v)", err, err2)
	}
}

// rebuild reads the state from a store's objects.
func rebuild(ctx context.Context, store pool.Store, keys *seal.MasterKeys) (map[string]string, *Found, error) {
	f, err := Find(ctx, store, keys)
	if err != nil {
		return nil, nil, err
	}
	state := map[string]string{}
	err = f.Read(ctx, func(d volume.Delta) error { apply(state, d); return nil }, func(int64, int64) {})
	return state, f, err
}

// TestEveryCut: whatever the last write was that the outside store took, there is
// a state to rebuild, one that was, and none older than what was waited for; and
// more than one run of the program, checkpoints, gaps and failures make it.
func TestEveryCut(t *testing.T) {
	b := newBench(t)
	rnd := rand.New(rand.NewPCG(3, 4))
	faults := rand.New(rand.NewPCG(5, 6))
	b.store.fail = func(string) error {
		if faults.IntN(20) == 0 {
			return errors.New("slow down")
		}
		return nil
	}
	b.src.during = func() { b.src.change() }
	sure := map[int]uint64{} // writes of the store: position that was waited for
	for round := range 6 {
		s := b.start()
		for range 40 {
			at := b.src.change()
			if rnd.IntN(3) > 0 {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := s.Wait(ctx, at); err != nil {
				t.Fatal(err)
			}
			cancel()
			b.store.mu.Lock()
			sure[len(b.store.history)] = at
			b.store.mu.Unlock()
		}
		if round == 2 {
			b.settle(s)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if round == 3 {
			b.src.change()
			b.src.forget()
		}
	}
	least, found := uint64(0), false
	for i, objects := range b.store.history {
		least = max(least, sure[i+1])
		state, _, err := rebuild(t.Context(), &memStore{objects: objects}, b.keys)
		if errors.Is(err, objstore.NotFound) && !found && least == 0 {
			continue
		}
		if err != nil {
			t.Fatalf("after %d writes: %v", i+1, err)
		}
		found = true
		at := slices.IndexFunc(b.src.states[least:], func(s map[string]string) bool { return maps.Equal(s, state) })
		if at < 0 {
			t.Fatalf("after %d of %d writes, the state is none of those from %d on", i+1, len(b.store.history), least)
		}
	}
	if !found {
		t.Fatal("nothing was shipped")
	}
}

// TestWhatIsNotNeededGoes: after several checkpoints nothing is outside that is not
// needed, but for what a checkpoint that Close interrupted has written.
func TestWhatIsNotNeededGoes(t *testing.T) {
	b := newBench(t)
	s := b.start()
	for deadline := time.Now().Add(2 * time.Minute); s.Stats().Checkpoints < 4; {
		b.src.change()
		b.settle(s)
		if time.Now().After(deadline) {
			t.Fatal("no checkpoints")
		}
	}
	s.Close()
	_, f, err := rebuild(t.Context(), b.store, b.keys)
	if err != nil {
		t.Fatal(err)
	}
	needed, interrupted := f.Names(), partName(1, f.Manifest.Checkpoint.Number+1, 0)
	for name := range b.store.objects {
		if !needed[name] && name != interrupted {
			t.Errorf("object %s is still there", name)
		}
	}
}

func TestRebuiltHostGoesOnAndTheOldOneIsFenced(t *testing.T) {
	b := newBench(t)
	old := b.start()
	for range 10 {
		b.src.change()
	}
	b.settle(old)
	state, f, err := rebuild(t.Context(), b.store, b.keys)
	if err != nil || !maps.Equal(state, b.src.state) {
		t.Fatalf("%v: the state is another", err)
	}
	next := &bench{t, b.store, newMemSource(), t.TempDir(), b.keys}
	st, err := f.Claim(t.Context(), next.dir, "cloud")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.TakeOver(t.Context(), st, 0, json.RawMessage(`{}`)); err != nil {
		t.Fatal(err)
	}
	next.src.state, next.src.states = maps.Clone(state), []map[string]string{maps.Clone(state)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := old.Wait(ctx, b.src.change()); !errors.Is(err, objstore.Fenced) {
		t.Errorf("the old host: %v", err)
	}
	<-old.Fenced()
	old.Close()
	s := next.start()
	for range 3 {
		next.src.change()
		next.settle(s)
	}
	s.Close()
	if state, _, err = rebuild(t.Context(), b.store, b.keys); err != nil || !maps.Equal(state, next.src.state) {
		t.Errorf("after the takeover: %v", err)
	}
	again := b.start() // comes back, knowing nothing
	<-again.Fenced()
	again.Close()
	if state, _, err = rebuild(t.Context(), b.store, b.keys); err != nil || !maps.Equal(state, next.src.state) {
		t.Errorf("after the old host came back: %v", err)
	}
}

func TestACopyFromBeforeIsNotShipped(t *testing.T) {
	b := newBench(t)
	s := b.start()
	b.src.change()
	b.settle(s)
	s.Close()
	before, err := LoadState(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	s = b.start()
	b.src.change()
	b.settle(s)
	s.Close()
	want, _, err := rebuild(t.Context(), b.store, b.keys)
	if err != nil {
		t.Fatal(err)
	}
	// What this host knows may be somewhat old: it was killed.
	now, err := LoadState(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	now.Pos = before.Pos
	if err := now.Save(); err != nil {
		t.Fatal(err)
	}
	s = b.start()
	b.settle(s)
	s.Close()
	if got, _, err := rebuild(t.Context(), b.store, b.keys); err != nil || !maps.Equal(got, want) {
		t.Errorf("from a position of before: %v", err)
	}
	if err := before.Save(); err != nil {
		t.Fatal(err)
	}
	b.src.log = b.src.log[:1]
	b.src.change() // another one
	s = b.start()
	for deadline := time.Now().Add(time.Minute); err == nil && time.Now().Before(deadline); err, _ = s.Health() {
		time.Sleep(time.Millisecond)
	}
	s.Close()
	if !errors.Is(err, objstore.Exist) {
		t.Errorf("a directory from before: %v", err)
	}
	if got, _, err := rebuild(t.Context(), b.store, b.keys); err != nil || !maps.Equal(got, want) {
		t.Errorf("what was shipped has changed: %v", err)
	}
}

// TestLies: an object that is missing, damaged, exchanged for another or put back
// to what it was is found out, whichever it is.
func TestLies(t *testing.T) {
	b := newBench(t)
	s := b.start()
	for range 5 {
		b.src.change()
		b.settle(s)
	}
	s.Close()
	s = b.start()
	for range 3 {
		b.src.change()
		b.settle(s)
	}
	s.Close()
	try := func(what string, change func(objects map[string][]byte)) {
		t.Helper()
		objects := maps.Clone(b.store.objects)
		change(objects)
		state, f, err := rebuild(t.Context(), &memStore{objects: objects}, b.keys)
		if err == nil && !f.Newer && !maps.Equal(state, b.src.state) {
			t.Errorf("%s: not found out", what)
		}
	}
	names := slices.Sorted(maps.Keys(b.store.objects))
	last := names[len(names)-1] // of the open run: that it was is known to nobody else
	for _, name := range names {
		if name != last && !strings.Contains(name, "/r00000002-0000000000000003") {
			try("without "+name, func(o map[string][]byte) { delete(o, name) })
		}
		for _, at := range []int{0, 10, 20, 40, 100} {
			try("damaged "+name, func(o map[string][]byte) {
				if c := bytes.Clone(o[name]); at < len(c) {
					c[at] ^= 1
					o[name] = c
				}
			})
		}
		for _, other := range names {
			try(other+" for "+name, func(o map[string][]byte) { o[name] = o[other] })
		}
		for _, was := range b.store.history {
			if was[name] != nil && !strings.HasSuffix(name, "manifest") {
				try(name+" put back", func(o map[string][]byte) { o[name] = was[name] })
			}
		}
	}
	other := (*seal.MasterKeys)(nil).With(seal.NewMasterKey())
	if _, _, err := rebuild(t.Context(), b.store, other); !errors.Is(err, objstore.NoKey) {
		t.Errorf("with another master key: %v", err)
	}
	for name, obj := range b.store.objects {
		for _, text := range []string{"value", "key1", "fsid", "depth"} {
			if bytes.Contains(obj, []byte(text)) {
				t.Errorf("object %s shows %q", name, text)
			}
		}
	}
}

func FuzzObject(f *testing.F) {
	s := &sealer{key: make([]byte, 32)}
	rec := record{from: 1, to: 2, delta: volume.Delta{{Key: []byte("k"), Value: []byte("v")}}}
	obj, _, err := s.seal("meta/x", rec.encode())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(obj)
	f.Fuzz(func(t *testing.T, b []byte) { // in another process, where the salt is another
		if got, _, err := s.open("meta/x", b); err == nil && !bytes.Equal(got, rec.encode()) {
			t.Fatalf("%x opens as %q", b, got)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add((&record{from: 1, to: 2, delta: volume.Delta{{Key: []byte("k"), Value: []byte("v")}, {Key: []byte("gone")}}}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		if again, err := parseRecord(r.encode()); err != nil || again.to != r.to || len(again.delta) != len(r.delta) {
			t.Fatalf("%x reads as %+v, then %v", b, r, err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"format":1,"open":{"first":1,"before":"AAAAAAAAAAAAAAAAAAAAAA=="}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseManifest(b); err == nil && m.Format > manifestFormat {
			t.Fatalf("%q is taken for a manifest", b)
		}
	})
}

func FuzzMark(f *testing.F) {
	keys, err := seal.ParseKeys([]byte("pillarbox master keys 1\n1825102d1e490640 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= 2026-01-02T03:04:05Z\n"))
	if err != nil {
		f.Fatal(err)
	}
	key := make([]byte, 32)
	wrapped, err := keys.Newest().WrapShip(key)
	if err != nil {
		f.Fatal(err)
	}
	b, err := encodeMark(&sealer{key: key}, wrapped, Mark{Epoch: 1, ID: "x"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		if _, m, err := parseMark(in, 1, keys); err == nil && m.ID != "x" {
			t.Fatalf("%x reads as %+v", in, m)
		}
	})
}
