// Package osd is one object storage daemon: one disk's share of the store.
//
// An OSD keeps replicas of volumes and chunks of file bodies in a directory:
//
//	wal/     the write-ahead log all volume groups share (package wal)
//	chunks/  file bodies in segment files (package chunkstore)
//	db/      badger: the groups' keys and where each chunk lies
//
// A change of a volume goes through its placement group (group.go): worked out
// by package volume against the group's state, logged through raft, applied to
// a layer in memory (state.go). A flush (flush.go) writes layers, bodies and
// chunk locations down in one go and releases the log before them. What a
// crash leaves is the database of the last flush and the log since then.
//
// Goroutines: one syncs the log and tells the groups (sync.go), one flushes
// (flush.go), one removes chunks nobody names any more (reap.go). Open starts
// them, Close ends them and waits. A failed write or sync is final: the OSD
// refuses everything from then on rather than guess what the disk holds.
package osd

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
	"pillarbox/objstore/ec"
	"pillarbox/objstore/volume"
	"pillarbox/osd/chunkstore"
	"pillarbox/osd/wal"
)

// Options configure Open.
type Options struct {
	Dir string // the OSD's directory; made if missing
	ID  int
	// Map is the cluster map; the directory is refused if it is another store's.
	// A read-only OSD without one goes by the map it saw last.
	Map      *objstore.Map
	ReadOnly bool // for checking: nothing is changed, nothing can be
	Log      *slog.Logger

	// Peers reaches the other OSDs; nil when there are none, ever.
	Peers Peers

	// Founder says that an empty directory makes all placement groups, this OSD
	// being the only member. One OSD of a cluster does so, once.
	Founder bool

	// Reserve is how much of the disk stays free, in bytes: when less is free,
	// what would grow the store fails with NoSpace. Default: a sixteenth of the
	// disk, at least 96 MiB, at most 4 GiB.
	Reserve uint64

	// Unclean says that the state is that of a run which did not end: its files
	// that were open and have no name are removed.
	Unclean bool

	// Keep, of a store that is shipped outside, is the position in the log from
	// which on it was not shipped yet; nil: it is not shipped. See ship.go.
	Keep *uint64
	// Shipped, unless nil, returns once the log up to a position is outside; what
	// is Committed waits for it.
	Shipped func(ctx context.Context, upTo uint64) error
	// Grow, unless nil, says why nothing may be taken that makes the store grow, as
	// when too much waits to be shipped: NoSpace, as of a full disk. It is asked often.
	Grow func() error

	// LeftoverAfter is how long a chunk that a dead client never named is kept at
	// least, from when scrub found it on; orphans are kept that long, or a minute.
	// Default: an hour.
	LeftoverAfter time.Duration
}

// Validate checks the options and fills in defaults.
func (o *Options) Validate() error {
	if o.Dir == "" {
		return errors.New("an OSD needs a directory")
	}
	if o.Map == nil && !o.ReadOnly {
		return errors.New("an OSD needs a cluster map")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.LeftoverAfter = cmp.Or(o.LeftoverAfter, leftoverAfter)
	return nil
}

// OSD is an open object storage daemon.
type OSD struct {
	opt     Options
	log     *slog.Logger
	db      *badger.DB
	dbFiles *dbFiles // as found
	clone   string   // read-only: the copy of the database that db has open
	wal     *wal.Log
	chunks  *chunkstore.Store
	groups  []atomic.Pointer[group] // nil: no replica here
	table   chunkTable
	cmap    atomic.Pointer[objstore.Map]
	ticks   atomic.Int64
	ticked  atomic.Int64 // when the last tick began, in nanoseconds since started

	makeMu sync.Mutex        // while a group is made or removed; before group.mu
	terms  map[uint32]uint64 // of groups without a state here that may not go back in time
	since  map[uint32]wal.LSN
	pulls  chan pullJob
	leaves chan *group
	holdMu sync.Mutex
	holds  map[uint64]int // timestamps of the database that are being read; holdMu

	base      snapshot // as of the last flush; changes under flushMu and baseMu
	baseMu    sync.RWMutex
	ts        uint64 // badger timestamp of base
	unflushed atomic.Int64
	full      fullness

	pendMu  sync.Mutex
	pending map[*group]struct{}

	syncing   sync.Mutex // held while the log is synced and the groups told; before group.mu
	syncNow   chan struct{}
	flushNow  chan struct{}
	reapNow   chan struct{}
	reap      reaper
	leftovers leftoverWatch
	recovery  recovery
	codes     ec.Codes
	subs      subscriptions
	scrubs    scrubs
	healing   sync.Mutex    // one resident body at a time; before flushMu
	settled   chan struct{} // closed when what the last run left is cleared up

	counts      fileCount
	flushMu     sync.Mutex       // one flush at a time
	released    wal.LSN          // the log before is not needed; flushMu
	discardTS   uint64           // holdMu
	garbage     []chunkstore.Loc // forgotten durably, to be punched; flushMu
	flushErr    error            // sticky; flushMu
	cancel      context.CancelCauseFunc
	run         *errgroup.Group
	files       sync.RWMutex // held shared by what walks the database for others; first of all locks
	filesClosed bool
	closeOnce   sync.Once
	closeErr    error
	unclean     bool // the last run did not close properly
	abandonDB   bool // Close leaves the database as a crash would
}

func (o *OSD) member() uint64 { return memberID(o.opt.ID) }

// Open opens an OSD, making it if its directory is empty, and brings back what
// a crash left in the log. Damage is an error wrapping objstore.Corrupt that
// names file and offset.
func Open(ctx context.Context, opt Options) (*OSD, error) {
	if err := opt.Validate(); err != nil {
		return nil, err
	}
	o := &OSD{
		opt: opt, log: opt.Log.With("osd", opt.ID), pending: make(map[*group]struct{}),
		syncNow: make(chan struct{}, 1), flushNow: make(chan struct{}, 1), reapNow: make(chan struct{}, 1),
		leftovers: leftoverWatch{now: make(chan struct{}, 1)}, settled: make(chan struct{}),
	}
	o.recovery.now = make(chan struct{}, 1)
	o.table.init()
	if opt.Peers == nil {
		o.table.unnamed = make(map[objstore.ChunkID]struct{})
	}
	o.cmap.Store(opt.Map)
	if err := o.open(); err != nil {
		o.closeFiles()
		return nil, fmt.Errorf("open osd.%d: %w", opt.ID, err)
	}
	if opt.ReadOnly {
		return o, nil
	}
	runCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	o.cancel = cancel
	o.run = &errgroup.Group{}
	o.run.Go(func() error { return o.syncLoop(runCtx) })
	if err := o.elect(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open osd.%d: %w", opt.ID, err), o.Close())
	}
	left, err := o.gather()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open osd.%d: %w", opt.ID, err), o.Close())
	}
	o.run.Go(func() error { return o.flushLoop(runCtx) })
	o.run.Go(func() error { return o.reapLoop(runCtx, left) })
	o.run.Go(func() error { return o.countFiles(runCtx) })
	if opt.Peers != nil {
		o.run.Go(func() error { return o.tickLoop(runCtx) })
		o.run.Go(func() error { return o.pullLoop(runCtx) })
		o.run.Go(func() error { return o.leaveLoop(runCtx) })
		o.run.Go(func() error { return o.recoverLoop(runCtx) })
		o.run.Go(func() error { return o.scrubLoop(runCtx) })
		o.run.Go(func() error { return o.leftoverLoop(runCtx) })
	}
	return o, nil
}

func (o *OSD) open() error {
	if err := o.openDB(); err != nil {
		return err
	}
	var err error
	o.chunks, err = chunkstore.Open(chunkstore.Options{Dir: filepath.Join(o.opt.Dir, "chunks"), ReadOnly: o.opt.ReadOnly, Log: o.log})
	if err != nil {
		return err
	}
	o.base = snapshot{txn: o.db.NewTransactionAt(o.ts, false), chunks: o.chunks}
	if err := o.checkStore(); err != nil {
		return err
	}
	m, err := o.loadMark()
	if err != nil {
		return err
	}
	if err := o.makeGroups(); err != nil {
		return err
	}
	o.released = m.lsn
	replayed := 0
	o.wal, err = wal.Open(wal.Options{Dir: filepath.Join(o.opt.Dir, "wal"), ReadOnly: o.opt.ReadOnly, Keep: (*wal.LSN)(o.opt.Keep), Log: o.log}, m.lsn,
		func(lsn wal.LSN, r wal.Record) error {
			if r.Type == recFlush {
				return o.checkFlushed(r.Payload)
			}
			replayed++
			if int(r.Group) >= len(o.groups) {
				return fmt.Errorf("log record of group %d, the store has %d: %w", r.Group, len(o.groups), objstore.Corrupt)
			}
			if lsn < o.since[r.Group] {
				return nil
			}
			g, err := o.replayed(r.Group)
			if err != nil {
				return err
			}
			return g.replayRecord(lsn, r)
		})
	if err != nil {
		return err
	}
	o.unclean = o.unclean || replayed > 0 || o.opt.Unclean
	if err := o.findRecent(m); err != nil {
		return err
	}
	if o.opt.ReadOnly {
		return o.replayInto()
	}
	if o.opt.Peers != nil { // it looks at every chunk's key, and a store of one host reports to nobody
		if err := o.table.count(); err != nil {
			return err
		}
	}
	return o.loadGarbage()
}

// checkFlushed compares the database with what the log says was flushed to it.
// Badger cuts its own log at the first broken record without a word.
func (o *OSD) checkFlushed(payload []byte) error {
	if len(payload) != 8 {
		return fmt.Errorf("flush record of %d bytes: %w", len(payload), objstore.Corrupt)
	}
	if want := binary.BigEndian.Uint64(payload); o.ts < want {
		return o.dbFiles.lost(o.ts, want)
	}
	return nil
}

// replayInto applies the log to the state without raft, for a read-only look.
// The only member's log is the truth.
func (o *OSD) replayInto() error {
	for _, g := range o.hosted() {
		if g.last == g.executed || !g.soleVoter() {
			continue // what others may have decided differently is no truth
		}
		entries, err := g.storage.Entries(g.executed+1, g.last+1, 1<<62)
		if err != nil {
			return fmt.Errorf("group %d: read back the log: %w", g.id, err)
		}
		for _, e := range entries {
			if err := g.execute(e); err != nil {
				return fmt.Errorf("group %d: %w", g.id, err)
			}
		}
	}
	return nil
}

func (o *OSD) openDB() error {
	dir := filepath.Join(o.opt.Dir, "db")
	if !o.opt.ReadOnly {
		if err := errors.Join(os.MkdirAll(dir, 0o700), removeClones(o.opt.Dir)); err != nil {
			return fmt.Errorf("create database: %w", err)
		}
	}
	if err := o.full.init(o.opt.Dir, o.opt.Reserve); err != nil {
		return err
	}
	if err := o.full.roomFor(openRoom); err != nil && !o.opt.ReadOnly {
		return err
	}
	var err error
	if o.dbFiles, err = checkDB(dir); err != nil {
		return err
	}
	opt := o.dbOptions(dir).WithReadOnly(o.opt.ReadOnly)
	// Memtable logs are there only when the last run did not close.
	crashed, err := filesIn(dir, ".mem")
	if err != nil {
		return err
	}
	o.unclean = len(crashed) > 0
	if o.opt.ReadOnly && o.unclean {
		if o.clone, err = cloneDB(o.opt.Dir, dir); err != nil {
			return err
		}
		opt = opt.WithDir(o.clone).WithValueDir(o.clone).WithReadOnly(false)
	}
	db, err := badger.OpenManaged(opt)
	if err != nil {
		return fmt.Errorf("open database %s: %w", dir, err)
	}
	o.db = db
	if o.ts = db.MaxVersion(); o.ts < o.dbFiles.newest {
		return o.dbFiles.lost(o.ts, o.dbFiles.newest)
	}
	return nil
}

func (o *OSD) dbOptions(dir string) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(badgerLogger{o.log}).
		WithSyncWrites(true).WithDetectConflicts(false).WithMetricsEnabled(false).
		WithMemTableSize(32 << 20).WithNumMemtables(2).WithNumCompactors(2).
		WithBlockCacheSize(32 << 20).WithIndexCacheSize(16 << 20).
		WithValueThreshold(1 << 20).WithValueLogFileSize(16 << 20). // values stay in the tree: bodies live in segments
		WithChecksumVerificationMode(options.OnBlockRead)           // every block read is verified: damage is an error, not an answer
}

// checkStore makes sure that the directory is this store's, claiming a new one,
// and keeps a copy of the map.
func (o *OSD) checkStore() error {
	v, err := o.base.get([]byte{keyStore})
	if err != nil {
		return err
	}
	if v == nil {
		if o.opt.ReadOnly {
			return fmt.Errorf("%s holds no OSD: %w", o.opt.Dir, objstore.NotFound)
		}
		return o.claim()
	}
	have, id, err := decodeStoreRecord(v)
	if err != nil {
		return err
	}
	switch {
	case o.opt.Map == nil:
		o.opt.Map, o.opt.ID = have, id
		o.cmap.Store(have)
		return nil
	case have.FSID != o.opt.Map.FSID || id != o.opt.ID:
		return fmt.Errorf("%s is osd.%d of store %s, not osd.%d of %s: %w", o.opt.Dir, id, have.FSID, o.opt.ID, o.opt.Map.FSID, ErrForeign)
	case have.Meta().PGs != o.opt.Map.Meta().PGs:
		return fmt.Errorf("%s has %d placement groups, the map says %d: %w", o.opt.Dir, have.Meta().PGs, o.opt.Map.Meta().PGs, ErrForeign)
	case have.Epoch >= o.opt.Map.Epoch || o.opt.ReadOnly:
		return nil
	}
	return o.record(nil)
}

// claim makes a new directory this OSD's.
func (o *OSD) claim() error {
	var kvs []kv
	for i := range o.opt.Map.Meta().PGs {
		if !o.opt.Founder && o.opt.Peers != nil {
			break
		}
		// Raft wants a first entry that all replicas agree on without having it.
		rec := groupRecord{applied: 1, appliedTerm: 1, term: 1, members: &raftpb.ConfState{Voters: []uint64{o.member()}}}
		kvs = append(kvs, kv{groupKey(uint32(i)), rec.encode()})
	}
	return o.record(kvs)
}

// record writes down the map, and whatever goes with it.
func (o *OSD) record(kvs []kv) error {
	v, err := encodeStoreRecord(o.Map(), o.opt.ID)
	if err != nil {
		return err
	}
	b := newBatch(o)
	b.add(append(kvs, kv{[]byte{keyStore}, v}))
	if err := b.commit(); err != nil {
		return fmt.Errorf("claim the database: %w", err)
	}
	return nil
}

// ErrForeign says that a directory is another store's.
var ErrForeign = errors.New("not this store's")

// advance moves base to the transaction just committed at ts+1.
func (o *OSD) advance() {
	o.ts++
	o.baseMu.Lock()
	o.base.txn = o.db.NewTransactionAt(o.ts, false)
	o.baseMu.Unlock()
}

// flushed is the database as of the last flush, for who is not one.
func (o *OSD) flushed() snapshot {
	o.baseMu.RLock()
	defer o.baseMu.RUnlock()
	return o.base
}

func (o *OSD) loadMark() (mark, error) {
	v, err := o.base.get([]byte{keyMark})
	if err != nil || v == nil {
		return mark{}, err
	}
	return decodeMark(v)
}

func (o *OSD) makeGroups() error {
	n := o.opt.Map.Meta().PGs
	o.groups = make([]atomic.Pointer[group], n)
	o.terms, o.since, o.holds = map[uint32]uint64{}, map[uint32]wal.LSN{}, map[uint64]int{}
	o.pulls, o.leaves = make(chan pullJob, n), make(chan *group, n)
	for i := range uint32(n) {
		v, err := o.base.get(groupKey(i))
		if err != nil {
			return err
		}
		if v == nil {
			continue
		}
		rec, err := decodeGroupRecord(v)
		if err != nil {
			return fmt.Errorf("group %d: %w", i, err)
		}
		o.since[i] = rec.since
		if rec.state != groupWhole {
			o.terms[i] = rec.term
			continue
		}
		g, err := newGroup(o, i, rec)
		if err != nil {
			return err
		}
		o.groups[i].Store(g)
	}
	return nil
}

// replayed is the group that a record of the log is of. One that the database
// does not know was just becoming a member when the last run ended.
func (o *OSD) replayed(id uint32) (*group, error) {
	if g := o.groups[id].Load(); g != nil {
		return g, nil
	}
	g, err := newGroup(o, id, groupRecord{term: o.terms[id], members: &raftpb.ConfState{}})
	if err == nil {
		o.groups[id].Store(g)
	}
	return g, err
}

// elect starts the groups and waits until those that need nobody else serve.
func (o *OSD) elect(ctx context.Context) error {
	groups := o.hosted()
	for _, g := range groups {
		if err := g.start(); err != nil {
			return err
		}
	}
	for _, g := range groups {
		g.mu.RLock()
		sole := g.soleVoter()
		g.mu.RUnlock()
		for sole {
			o.syncForMe()
			select {
			case <-g.led:
				sole = false
			case <-ctx.Done():
				return fmt.Errorf("elect: %w", context.Cause(ctx))
			case <-time.After(lazySync):
				g.mu.RLock()
				err := g.err
				g.mu.RUnlock()
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Close flushes, stops and closes everything. A later call returns the same.
func (o *OSD) Close() error {
	o.closeOnce.Do(func() {
		var errs []error
		if !o.opt.ReadOnly {
			if err := o.closingFlush(); err != nil {
				errs = append(errs, err)
			}
			o.cancel(ErrClosed)
			errs = append(errs, o.run.Wait())
			for _, g := range o.hosted() {
				g.mu.Lock()
				g.fail(ErrClosed)
				g.mu.Unlock()
			}
		}
		o.closeErr = errors.Join(append(errs, o.closeFiles())...)
	})
	return o.closeErr
}

// closingFlush removes what was stored in vain and flushes. On a disk without
// room it leaves everything to the log and the next start.
func (o *OSD) closingFlush() error {
	err := errors.Join(o.reapUnnamed(), o.flushAll())
	if err == nil {
		err = o.full.roomFor(dbRoom) // closing the database writes a table
	}
	if errors.Is(err, errNoRoom) {
		o.log.Warn("closing without a flush; the next start makes up for it", "err", err)
		o.abandonDB = true
		return nil
	}
	select {
	case <-o.settled:
	default: // the next start goes on with what the last run had left
		o.abandonDB = o.unclean
	}
	return err
}

// ErrClosed is the cause of failures after Close.
var ErrClosed = errors.New("osd closed")

func (o *OSD) closeFiles() error {
	o.files.Lock()
	defer o.files.Unlock()
	o.filesClosed = true
	var errs []error
	if o.wal != nil {
		errs = append(errs, o.wal.Close())
	}
	if o.chunks != nil {
		errs = append(errs, o.chunks.Close())
	}
	if o.db != nil && !o.abandonDB {
		errs = append(errs, o.db.Close())
	}
	if o.clone != "" {
		errs = append(errs, os.RemoveAll(o.clone))
	}
	return errors.Join(errs...)
}

// Apply makes a change in a placement group; see objstore.Store. With a
// Request, one that was made before is not made again but answered as then.
// A LeaderError when another OSD has to be asked.
func (o *OSD) Apply(ctx context.Context, pg uint32, r objstore.Request, c objstore.Change, p objstore.Promise) (objstore.Result, error) {
	g, err := o.group(pg)
	if err != nil {
		return objstore.Result{}, err
	}
	if o.Map().Group(c.Volume()) != pg {
		return objstore.Result{}, fmt.Errorf("a change of volume %d sent to placement group %d: %w", c.Volume(), pg, objstore.Invalid)
	}
	if grows(c) {
		if err := o.roomToGrow(); err != nil {
			return objstore.Result{}, err
		}
	}
	if err := o.hold(ctx, g, c.Volume()); err != nil {
		return objstore.Result{}, err
	}
	if purge, ok := c.(objstore.Purge); ok {
		if c, err = o.unlessOpen(ctx, g, r.Session, purge); err != nil {
			return objstore.Result{}, err
		}
	}
	delta, res, at, err := g.apply(ctx, r, c)
	if err != nil {
		return objstore.Result{}, err
	}
	o.table.named(c)
	o.afterApply(delta)
	if p == objstore.Committed {
		if err := g.durable(ctx, at); err != nil {
			return objstore.Result{}, err
		}
	}
	_, err = o.tell(ctx, g, r.Session, objstore.Push{
		Volume: c.Volume(), Events: objstore.EventsOf(c, res), Index: res.Index, Attrs: objstore.AttrsOf(res),
	})
	return res, err
}

// place says where in the group's order a change has its place, and spares clients
// that keep attributes the question after those of directories. Under mu, right
// after the change.
func (g *group) place(res *objstore.Result, c objstore.Change) {
	res.Index = g.executed
	for i, dir := range objstore.DirsOf(c) {
		if dir == 0 {
			continue
		}
		if a, err := volume.GetAttr(&g.st, dir); err == nil {
			res.Dirs[i] = a
		}
	}
}

// unlessOpen takes out of a purge what other clients have open.
func (o *OSD) unlessOpen(ctx context.Context, g *group, self uint64, c objstore.Purge) (objstore.Purge, error) {
	events := make([]objstore.Event, len(c.Inos))
	for i, ino := range c.Inos {
		events[i] = objstore.Event{Kind: objstore.Purged, Ino: ino}
	}
	busy, err := o.tell(ctx, g, self, objstore.Push{Volume: c.Vol, Events: events})
	if err != nil || len(busy) == 0 {
		return c, err
	}
	c.Inos = slices.DeleteFunc(slices.Clone(c.Inos), func(ino objstore.Ino) bool { return busy[ino] })
	return c, nil
}

// apply works a change out and logs it.
func (g *group) apply(ctx context.Context, r objstore.Request, c objstore.Change) (delta volume.Delta, res objstore.Result, at moment, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.waitRoom(); err != nil {
		return nil, res, at, err
	}
	if err := g.canLead(); err != nil {
		return nil, res, at, err
	}
	// The client may have given the change up, and a lock that it was made under.
	if ctx.Err() != nil {
		return nil, res, at, fmt.Errorf("%w: %w", objstore.Unavailable, context.Cause(ctx))
	}
	// Others go on when the lease is over, which is logged under mu.
	lease, leased := objstore.LeaseOf(ctx)
	if leased {
		if err := g.osd.under(lease); err != nil {
			return nil, res, at, err
		}
	}
	if r.Session != 0 {
		if before, made, err := g.seen.result(&g.st, r); made || err != nil {
			return nil, before, g.moment(g.executed), err
		}
	}
	delta, res, err = volume.Apply(&g.st, c, time.Now().UnixNano())
	if err != nil || len(delta) == 0 {
		return nil, res, g.moment(g.executed), err
	}
	logged := delta
	if r.Session != 0 {
		logged = g.seen.keep(delta, r, res, g.osd.ticks.Load())
	}
	index, err := g.propose(logged)
	if err == nil && leased {
		g.place(&res, c)
	}
	return delta, res, g.moment(index), err
}

// Sync waits until everything a group has logged so far is committed.
func (o *OSD) Sync(ctx context.Context, pg uint32) error {
	g, unlock, err := o.leading(pg)
	if err != nil {
		return err
	}
	at := g.moment(g.executed)
	unlock()
	return g.durable(ctx, at)
}

// View runs fn on a group's state, which does not change meanwhile. fn must not
// keep the view. Only a leader, or a read-only OSD, has a state worth asking;
// unlike what clients read, it may know changes that are not committed.
func (o *OSD) View(pg uint32, fn func(volume.View) error) error {
	g, err := o.group(pg)
	if err != nil {
		return err
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	if err := g.canLead(); err != nil && !o.opt.ReadOnly {
		return err
	}
	return fn(&g.st)
}

// Groups is the number of placement groups.
func (o *OSD) Groups() int { return len(o.groups) }

// grows says whether a change needs room on the disk that is not given back.
func grows(c objstore.Change) bool {
	switch c := c.(type) {
	case objstore.Create, objstore.Link, objstore.Share, objstore.SetXattr, objstore.ReserveVolume, objstore.AttachVolume:
		return true // not InitVolume: every start does that to the root, a full store's, too
	case objstore.Write:
		for _, e := range c.Extents {
			if e.Kind != objstore.Hole {
				return true
			}
		}
	}
	return false
}
