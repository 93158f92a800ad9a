package osd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// fabric joins the OSDs of a test: messages between two arrive in order, late,
// or, where the test cuts a link, not at all.
type fabric struct {
	t        *testing.T
	dir      string
	mu       sync.Mutex
	m        *objstore.Map
	osds     map[int]*OSD
	cut      map[[2]int]bool                        // from, to
	lost     func(from, to int, m RaftMessage) bool // says which messages the network loses; called with mu held
	leftover time.Duration
	ends     map[int]*endpoint
	seq      atomic.Uint64 // of changes without a request
}

type endpoint struct {
	f     *fabric
	id    int
	boxes map[int]chan []RaftMessage
	stop  chan struct{}
	wg    sync.WaitGroup
}

func (e *endpoint) Send(to int, ms []RaftMessage) {
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	if e.f.lost != nil {
		ms = slices.DeleteFunc(ms, func(m RaftMessage) bool { return e.f.lost(e.id, to, m) })
	}
	box := e.boxes[to]
	if box == nil {
		box = make(chan []RaftMessage, 1000)
		e.boxes[to] = box
		e.wg.Add(1)
		go func() {
			defer e.wg.Done()
			for {
				select {
				case ms := <-box:
					if o := e.f.reach(e.id, to); o != nil {
						if err := o.Step(context.Background(), e.id, ms); err != nil {
							e.f.t.Errorf("step: %v", err)
						}
					}
				case <-e.stop:
					return
				}
			}
		}()
	}
	select {
	case box <- ms:
	default:
	}
}

func (f *fabric) reach(from, to int) *OSD {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut[[2]int{from, to}] {
		return nil
	}
	return f.osds[to]
}

func (e *endpoint) PullGroup(ctx context.Context, from int, pg uint32, take func(GroupPiece) error) error {
	o := e.f.reach(e.id, from)
	if o == nil {
		return objstore.Unavailable
	}
	return o.PullGroup(ctx, pg, take)
}

func (e *endpoint) Peer(id int) (Peer, error) {
	if o := e.f.reach(e.id, id); o != nil {
		return o, nil
	}
	return nil, objstore.Unavailable
}

func newFabric(t *testing.T, osds int, changes ...func(*objstore.Map)) *fabric {
	return newFabricOf(t, osds, 0, changes...)
}

// newFabricOf has OSDs with another Options.LeftoverAfter.
func newFabricOf(t *testing.T, osds int, leftover time.Duration, changes ...func(*objstore.Map)) *fabric {
	m := testMap("test")
	m.Pools[0].Size, m.Pools[0].MinSize, m.Pools[1].Size, m.Pools[1].MinSize = min(3, osds), 1, min(3, osds), 1
	m.OSDs = nil
	m.Ratios, m.Format = objstore.Ratios{NearFull: 1, Full: 1}, objstore.RatiosFormat // the disk is not the tests' own
	for i := range osds {
		m.OSDs = append(m.OSDs, objstore.OSDInfo{ID: i, Host: fmt.Sprint("h", i), Weight: 1, Up: true, In: true})
	}
	for _, change := range changes {
		change(m)
	}
	f := &fabric{t: t, leftover: leftover, dir: t.TempDir(), m: m, osds: map[int]*OSD{}, cut: map[[2]int]bool{}, ends: map[int]*endpoint{}}
	t.Cleanup(func() {
		for _, id := range slices.Collect(maps.Keys(f.ends)) {
			f.stop(id)
		}
	})
	for i := range osds {
		f.start(i)
	}
	return f
}

func (f *fabric) start(id int) *OSD {
	f.t.Helper()
	e := &endpoint{f: f, id: id, boxes: map[int]chan []RaftMessage{}, stop: make(chan struct{})}
	o, err := Open(f.t.Context(), Options{Dir: filepath.Join(f.dir, fmt.Sprint("osd.", id)), ID: id, Map: f.m, Reserve: 1 << 20, Peers: e, Founder: id == 0, LeftoverAfter: f.leftover})
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.osds[id], f.ends[id] = o, e
	f.mu.Unlock()
	return o
}

// kill ends an OSD as kill -9 would, for all that the others and its directory see.
func (f *fabric) kill(id int) {
	f.detach(id)
	o := f.take(id)
	for _, g := range o.hosted() { // a dead process answers nobody
		g.mu.Lock()
		g.fail(ErrClosed)
		g.mu.Unlock()
	}
	crash(f.t, o)
	for _, o := range f.all() {
		o.PeerLost(id)
	}
}

func (f *fabric) all() []*OSD {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.osds))
}

func (f *fabric) take(id int) *OSD {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.osds[id]
	delete(f.osds, id)
	return o
}

func (f *fabric) detach(id int) {
	f.mu.Lock()
	e := f.ends[id]
	delete(f.ends, id)
	f.mu.Unlock()
	if e != nil {
		close(e.stop)
		e.wg.Wait()
	}
}

func (f *fabric) stop(id int) {
	o := f.take(id)
	if o != nil {
		if err := o.Close(); err != nil {
			f.t.Errorf("close osd.%d: %v", id, err)
		}
	}
	f.detach(id)
}

// setMap changes the map everywhere.
func (f *fabric) setMap(change func(*objstore.Map)) {
	f.t.Helper()
	f.mu.Lock()
	m := f.m.Clone()
	change(m)
	m.Epoch++
	f.m = m
	f.mu.Unlock()
	for _, o := range f.all() {
		if err := o.SetMap(m); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fabric) eventually(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(3 * time.Minute); !ok(); {
		if time.Now().After(end) {
			f.dump()
			f.t.Fatalf("not in time: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// dump logs where each replica stands.
func (f *fabric) dump() {
	var stacks strings.Builder
	pprof.Lookup("goroutine").WriteTo(&stacks, 1)
	f.t.Log(stacks.String())
	for _, o := range f.all() {
		for _, g := range o.hosted() {
			g.mu.RLock()
			f.t.Logf("osd.%d group %d: %v, leader osd.%d, leads %v, term %d, last %d, committed %d, executed %d, applied %d, barrier %d, voters %v, hurry %d, unsynced %d, err %v",
				o.opt.ID, g.id, g.role, osdID(g.leader), g.leads, g.term, g.last, g.committed, g.executed, g.hard.applied, g.barrier, osdIDs(g.members.GetVoters()), g.hurry, len(g.unsynced), g.err)
			g.mu.RUnlock()
		}
	}
}

// whole says whether every group has the voters that the map wants, one of them
// leads, and the others follow its log: none of them has to get its state first.
func (f *fabric) whole() bool {
	for pg := range uint32(f.m.Meta().PGs) {
		want := f.m.Acting(f.m.Meta(), pg)
		slices.Sort(want)
		led := false
		for _, o := range f.all() {
			g := o.groups[pg].Load()
			if g == nil {
				continue
			}
			g.mu.RLock()
			if g.leads && slices.Equal(osdIDs(g.members.GetVoters()), want) && len(g.members.GetVotersOutgoing()) == 0 {
				led = true
				g.rn.WithProgress(func(_ uint64, _ raft.ProgressType, p tracker.Progress) {
					led = led && p.State == tracker.StateReplicate
				})
			}
			g.mu.RUnlock()
		}
		if !led {
			return false
		}
	}
	return true
}

// fabricSession is whose changes are that apply is given no request for.
const fabricSession = 1 << 20

// apply sends a change to whoever leads, again and again, as a client does.
func (f *fabric) apply(r objstore.Request, c objstore.Change) (res objstore.Result, err error) {
	if r == (objstore.Request{}) { // what is sent twice must be made once
		r = objstore.Request{Session: fabricSession, Seq: f.seq.Add(1)}
	}
	pg := f.m.Group(c.Volume())
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		for _, o := range f.all() {
			ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
			res, err = o.Apply(ctx, pg, r, c, objstore.Committed)
			cancel()
			if err == nil || !errors.Is(err, objstore.Elsewhere) && !errors.Is(err, objstore.Unavailable) {
				return res, err
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return res, err
}

// names lists a directory as its group's leader tells it.
func (f *fabric) names(dir objstore.Ino) map[string]objstore.Ino {
	f.t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		for _, o := range f.all() {
			list, err := o.ReadDir(f.t.Context(), f.m.Group(dir.Volume()), dir, 0, 1<<20, false)
			if err == nil {
				out := map[string]objstore.Ino{}
				for _, e := range list {
					out[e.Name] = e.Ino
				}
				return out
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	f.t.Fatal("nobody tells what is in the directory")
	return nil
}

func (f *fabric) makeVolumes(vols ...objstore.VolumeID) {
	f.t.Helper()
	for _, vol := range vols {
		_, err := f.apply(objstore.Request{}, objstore.InitVolume{Vol: vol, Parent: objstore.VolumeRoot(0), Mode: objstore.ModeDir | 0o755})
		if err != nil {
			f.t.Fatal(err)
		}
	}
}

// sameEverywhere waits until all replicas of all groups are at the same entry
// and compares them key by key.
func (f *fabric) sameEverywhere() {
	f.t.Helper()
	for pg := range uint32(f.m.Meta().PGs) {
		var dumps []map[string]string
		f.eventually(fmt.Sprintf("replicas of group %d agree", pg), func() bool {
			var at []uint64
			dumps = nil
			for _, o := range f.all() {
				g := o.groups[pg].Load()
				if g == nil {
					continue
				}
				g.mu.RLock()
				at = append(at, g.committed, g.executed)
				dump := map[string]string{}
				err := g.st.Scan(nil, nil, func(k, v []byte) bool { dump[string(k)] = string(v); return true })
				g.mu.RUnlock()
				if err != nil {
					f.t.Fatal(err)
				}
				dumps = append(dumps, dump)
			}
			slices.Sort(at)
			return len(at) > 0 && at[0] == at[len(at)-1]
		})
		for _, d := range dumps[1:] {
			if !maps.Equal(d, dumps[0]) {
				f.t.Fatalf("group %d: replicas differ: %d and %d keys", pg, len(dumps[0]), len(d))
			}
		}
	}
}

func TestGroupsSpreadOverNewOSDs(t *testing.T) {
	f := newFabric(t, 1)
	f.makeVolumes(0, 1, 2, 3)
	r := rand.New(rand.NewPCG(1, 2))
	body := map[string]objstore.Ino{}
	for i := range 200 {
		name := fmt.Sprint("m", i)
		res, err := f.apply(objstore.Request{}, objstore.Create{Parent: objstore.VolumeRoot(objstore.VolumeID(1 + i%3)), Name: name, Mode: objstore.ModeRegular | 0o600})
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 5000+r.IntN(20000))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		_, err = f.apply(objstore.Request{}, objstore.Write{Ino: res.Attr.Ino, Size: uint64(len(data)), Extents: []objstore.Extent{{Len: uint32(len(data)), Kind: objstore.Resident, Data: data}}})
		if err != nil {
			t.Fatal(err)
		}
		body[name] = res.Attr.Ino
	}
	// An embedded store becomes the first of three.
	f.setMap(func(m *objstore.Map) {
		m.Pools[0].Size = 3
		for i := 1; i < 3; i++ {
			m.OSDs = append(m.OSDs, objstore.OSDInfo{ID: i, Host: fmt.Sprint("h", i), Weight: 1, Up: true, In: true})
		}
	})
	f.start(1)
	f.start(2)
	f.eventually("three voters everywhere", f.whole)
	f.sameEverywhere()
	// The first one goes for good; nothing is lost.
	f.kill(0)
	f.makeVolumes(4)
	for name, ino := range body {
		if got := f.names(objstore.VolumeRoot(ino.Volume()))[name]; got != ino {
			t.Fatalf("%s is %v, want %v", name, got, ino)
		}
		pg := f.m.Group(ino.Volume())
		f.eventually("the body of "+name+" can be read", func() bool { // by who leads its group
			for _, o := range f.all() {
				ext, err := o.Extents(t.Context(), pg, ino, 0, 1<<30)
				if err != nil {
					continue
				}
				buf := make([]byte, ext[0].Len)
				if err := o.ReadChunk(t.Context(), pg, ext[0].Chunk, 0, buf); err != nil {
					t.Fatal(err)
				}
				return true
			}
			return false
		})
	}
}

// TestNoAcknowledgedChangeIsLost kills leaders under load and checks that every
// change was made exactly once.
func TestNoAcknowledgedChangeIsLost(t *testing.T) {
	f := newFabric(t, 3)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1, 2, 3, 4)
	done := make(chan struct{})
	// Work is given out in portions: who comes back must be able to catch up, however
	// slow the machine.
	work := make(chan struct{}, 1<<16)
	more := func() {
		for range 600 {
			work <- struct{}{}
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := map[string]objstore.Ino{}
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for seq := uint64(1); ; seq++ {
				select {
				case <-done:
					return
				case <-work:
				}
				name := fmt.Sprintf("w%d.%d", w, seq)
				parent := objstore.VolumeRoot(objstore.VolumeID(1 + (w+int(seq))%4))
				res, err := f.apply(objstore.Request{Session: uint64(w + 1), Seq: seq, Ack: seq}, objstore.Create{Parent: parent, Name: name, Mode: objstore.ModeRegular | 0o600})
				if err != nil {
					t.Errorf("create %s: %v", name, err) // Exist would be a change made twice
					return
				}
				mu.Lock()
				made[name] = res.Attr.Ino
				mu.Unlock()
			}
		}()
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(made) }
	for round := range 6 {
		more()
		n := count()
		f.eventually("work goes on", func() bool { return count() > n+200 || t.Failed() })
		victim := round % 3
		f.kill(victim)
		more()
		n = count()
		f.eventually(fmt.Sprintf("work goes on without osd.%d", victim), func() bool { return count() > n+200 || t.Failed() })
		if t.Failed() {
			f.dump()
			break
		}
		more()
		f.start(victim)
		f.eventually("whole again", f.whole)
	}
	close(done)
	wg.Wait()
	f.sameEverywhere()
	found := map[string]objstore.Ino{}
	for vol := range objstore.VolumeID(4) {
		maps.Copy(found, f.names(objstore.VolumeRoot(1+vol)))
	}
	for name, ino := range made {
		if found[name] != ino {
			t.Errorf("%s: acknowledged as %v, found %v", name, ino, found[name])
		}
	}
	t.Logf("%d files made", len(made))
}

// TestALeaderCutOffServesNothing: what it took in meanwhile is undone.
func TestALeaderCutOffServesNothing(t *testing.T) {
	f := newFabric(t, 3)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1)
	pg := f.m.Group(1)
	leader := -1
	for _, o := range f.all() {
		if _, err := o.ReadDir(t.Context(), pg, objstore.VolumeRoot(1), 0, 10, false); err == nil {
			leader = o.opt.ID
		}
	}
	old := f.osds[leader]
	f.mu.Lock()
	for i := range 3 {
		f.cut[[2]int{leader, i}], f.cut[[2]int{i, leader}] = true, true
	}
	f.mu.Unlock()
	// The old leader takes this in, for it does not know yet.
	_, err := old.Apply(t.Context(), pg, objstore.Request{}, objstore.Create{Parent: objstore.VolumeRoot(1), Name: "lost", Mode: objstore.ModeRegular}, objstore.Ordered)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if names, err := old.ReadDir(ctx, pg, objstore.VolumeRoot(1), 0, 10, false); err == nil {
		t.Fatalf("a leader that is cut off answers: %v", names)
	}
	f.mu.Lock()
	delete(f.osds, leader) // so that only the others are asked
	f.mu.Unlock()
	if _, err := f.apply(objstore.Request{}, objstore.Create{Parent: objstore.VolumeRoot(1), Name: "kept", Mode: objstore.ModeRegular}); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.osds[leader] = old
	clear(f.cut)
	f.mu.Unlock()
	f.sameEverywhere()
	if names := f.names(objstore.VolumeRoot(1)); len(names) != 1 || names["kept"] == 0 {
		t.Fatalf("found %v", names)
	}
}

// TestALeaderThatDoesNotLeadYetOffersItsStateAgain: a new leader needs a member
// that lacks its state, and the first offer of it was lost.
func TestALeaderThatDoesNotLeadYetOffersItsStateAgain(t *testing.T) {
	f := newFabric(t, 3)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1)
	pg := f.m.Group(1)
	f.kill(0)
	for i := range 50 {
		if _, err := f.apply(objstore.Request{}, objstore.Create{Parent: objstore.VolumeRoot(1), Name: fmt.Sprint(i), Mode: objstore.ModeRegular}); err != nil {
			t.Fatal(err)
		}
	}
	behind, err := f.osds[1].groups[pg].Load().storage.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	leader, follower := 1, 2 // for good: the first that is up of the group's OSDs gets the lead
	if acting := f.m.Acting(f.m.Meta(), pg); slices.Index(acting, 2) < slices.Index(acting, 1) {
		leader, follower = 2, 1
	}
	f.eventually("the follower keeps no log that goes back far enough", func() bool {
		_, unlock, err := f.osds[leader].leading(pg)
		if err != nil {
			return false
		}
		unlock()
		if err := f.osds[follower].flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		first, err := f.osds[follower].groups[pg].Load().storage.FirstIndex()
		return err == nil && first+10 > behind
	})
	offered := make(chan struct{})
	once := sync.OnceFunc(func() { close(offered) })
	f.mu.Lock()
	f.cut[[2]int{leader, 0}] = true
	f.lost = func(from, to int, m RaftMessage) bool {
		lose := to == 0 && m.PG == pg && m.Msg.GetType() == raftpb.MsgSnap
		if lose {
			once()
		}
		return lose
	}
	f.mu.Unlock()
	f.start(0)
	f.kill(leader)
	select {
	case <-offered:
	case <-time.After(60 * time.Second):
		f.dump()
		t.Fatal("no state was offered")
	}
	f.mu.Lock()
	f.lost = nil
	f.mu.Unlock()
	f.eventually("the new leader leads", func() bool {
		_, unlock, err := f.osds[follower].leading(pg)
		if err == nil {
			unlock()
		}
		return err == nil
	})
	if n := len(f.names(objstore.VolumeRoot(1))); n != 50 {
		t.Errorf("%d of 50 names left", n)
	}
}

// TestReplicaMoves takes an OSD out of four: another takes its place, and its
// own replicas go.
func TestReplicaMoves(t *testing.T) {
	f := newFabric(t, 4)
	f.eventually("three voters everywhere", f.whole)
	f.makeVolumes(0, 1, 2, 3, 4, 5)
	for i := range 300 {
		_, err := f.apply(objstore.Request{}, objstore.Create{Parent: objstore.VolumeRoot(objstore.VolumeID(1 + i%5)), Name: fmt.Sprint(i), Mode: objstore.ModeRegular})
		if err != nil {
			t.Fatal(err)
		}
	}
	f.setMap(func(m *objstore.Map) { m.OSDs[0].In = false })
	f.eventually("voters as the map wants", f.whole)
	f.eventually("osd.0 has nothing left", func() bool { return len(f.osds[0].hosted()) == 0 })
	f.sameEverywhere()
	files(t, 306, f.all()...)
	err := f.osds[0].View(1, func(volume.View) error { return nil })
	if !errors.Is(err, objstore.Elsewhere) {
		t.Fatalf("osd.0 answers %v", err)
	}
	f.stop(0)
	f.start(0)
	f.setMap(func(m *objstore.Map) { m.OSDs[0].In = true })
	f.eventually("back as before", f.whole)
	f.sameEverywhere()
	files(t, 306, f.all()...)
	n := 0
	for vol := range objstore.VolumeID(5) {
		n += len(f.names(objstore.VolumeRoot(1 + vol)))
	}
	if n != 300 {
		t.Fatalf("%d of 300 names left", n)
	}
}
