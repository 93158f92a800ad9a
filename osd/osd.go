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
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
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

	// Reserve is how much of the disk stays free, in bytes: when less is free,
	// what would grow the store fails with NoSpace. Default: a sixteenth of the
	// disk, at least 96 MiB, at most 4 GiB.
	Reserve uint64
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
	groups  []*group
	table   chunkTable

	base      snapshot // as of the last flush; only flush and Open change it
	ts        uint64   // badger timestamp of base
	unflushed atomic.Int64
	full      fullness

	pendMu  sync.Mutex
	pending map[*group]struct{}

	syncing  sync.Mutex // held while the log is synced and the groups told; before group.mu
	syncNow  chan struct{}
	flushNow chan struct{}
	reapNow  chan struct{}
	reap     reaper
	settled  chan struct{} // closed when what the last run left is cleared up

	flushMu   sync.Mutex       // one flush at a time
	garbage   []chunkstore.Loc // forgotten durably, to be punched; flushMu
	flushErr  error            // sticky; flushMu
	cancel    context.CancelCauseFunc
	run       *errgroup.Group
	closeOnce sync.Once
	closeErr  error
	unclean   bool // the last run did not close properly
	abandonDB bool // Close leaves the database as a crash would
}

// raft member ids are never 0.
func (o *OSD) member() uint64 { return uint64(o.opt.ID) + 1 }

// Open opens an OSD, making it if its directory is empty, and brings back what
// a crash left in the log. Damage is an error wrapping objstore.Corrupt that
// names file and offset.
func Open(ctx context.Context, opt Options) (*OSD, error) {
	if err := opt.Validate(); err != nil {
		return nil, err
	}
	o := &OSD{
		opt: opt, log: opt.Log.With("osd", opt.ID), pending: make(map[*group]struct{}),
		syncNow: make(chan struct{}, 1), flushNow: make(chan struct{}, 1), reapNow: make(chan struct{}, 1), settled: make(chan struct{}),
	}
	o.table.init()
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
	replayed := 0
	o.wal, err = wal.Open(wal.Options{Dir: filepath.Join(o.opt.Dir, "wal"), ReadOnly: o.opt.ReadOnly, Log: o.log}, m.lsn,
		func(_ wal.LSN, r wal.Record) error {
			if r.Type == recFlush {
				return o.checkFlushed(r.Payload)
			}
			replayed++
			if int(r.Group) >= len(o.groups) {
				return fmt.Errorf("log record of group %d, the store has %d: %w", r.Group, len(o.groups), objstore.Corrupt)
			}
			return o.groups[r.Group].replayRecord(r)
		})
	if err != nil {
		return err
	}
	o.unclean = replayed > 0
	if err := o.findRecent(m); err != nil {
		return err
	}
	if o.opt.ReadOnly {
		return o.replayInto()
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
	for _, g := range o.groups {
		if g.last == g.executed {
			continue
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
	crashed, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return err
	}
	if o.opt.ReadOnly && len(crashed) > 0 {
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
		// Raft wants a first entry that all replicas agree on without having it.
		rec := groupRecord{applied: 1, appliedTerm: 1, term: 1}
		kvs = append(kvs, kv{groupKey(uint32(i)), rec.encode()})
	}
	return o.record(kvs)
}

// record writes down the map, and whatever goes with it.
func (o *OSD) record(kvs []kv) error {
	v, err := encodeStoreRecord(o.opt.Map, o.opt.ID)
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
	o.base.txn = o.db.NewTransactionAt(o.ts, false)
}

func (o *OSD) loadMark() (mark, error) {
	v, err := o.base.get([]byte{keyMark})
	if err != nil || v == nil {
		return mark{}, err
	}
	return decodeMark(v)
}

func (o *OSD) makeGroups() error {
	for i := range o.opt.Map.Meta().PGs {
		v, err := o.base.get(groupKey(uint32(i)))
		if err != nil {
			return err
		}
		rec, err := decodeGroupRecord(v)
		if err != nil {
			return fmt.Errorf("group %d: %w", i, err)
		}
		g, err := newGroup(o, uint32(i), rec)
		if err != nil {
			return err
		}
		o.groups = append(o.groups, g)
	}
	return nil
}

// elect starts the groups and waits until each one serves.
func (o *OSD) elect(ctx context.Context) error {
	for _, g := range o.groups {
		if err := g.start(); err != nil {
			return err
		}
	}
	for _, g := range o.groups {
		// A new leader logs an entry of its own: with it all before is committed.
		if err := g.wait(ctx, g.replayed+1); err != nil {
			return err
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
			for _, g := range o.groups {
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
	return err
}

// ErrClosed is the cause of failures after Close.
var ErrClosed = errors.New("osd closed")

func (o *OSD) closeFiles() error {
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

// group finds a placement group.
func (o *OSD) group(id uint32) (*group, error) {
	if int(id) >= len(o.groups) {
		return nil, fmt.Errorf("placement group %d of %d: %w", id, len(o.groups), objstore.Invalid)
	}
	return o.groups[id], nil
}

// Apply makes a change in a placement group; see objstore.Store.
func (o *OSD) Apply(ctx context.Context, pg uint32, c objstore.Change, p objstore.Promise) (objstore.Result, error) {
	g, err := o.group(pg)
	if err != nil {
		return objstore.Result{}, err
	}
	if grows(c) {
		if err := o.full.check(o.unflushed.Load()); err != nil {
			return objstore.Result{}, err
		}
	}
	g.mu.Lock()
	if err := g.waitRoom(); err != nil {
		g.mu.Unlock()
		return objstore.Result{}, err
	}
	index := g.last
	delta, res, err := volume.Apply(&g.st, c, time.Now().UnixNano())
	if err == nil && len(delta) > 0 {
		index, err = g.propose(delta)
	}
	g.mu.Unlock()
	if err != nil {
		return objstore.Result{}, err
	}
	o.table.named(c)
	o.afterApply(delta)
	if p == objstore.Committed {
		if err := g.wait(ctx, index); err != nil {
			return objstore.Result{}, err
		}
	}
	return res, nil
}

// Sync waits until everything a group has logged so far is committed.
func (o *OSD) Sync(ctx context.Context, pg uint32) error {
	g, err := o.group(pg)
	if err != nil {
		return err
	}
	g.mu.RLock()
	index := g.last
	g.mu.RUnlock()
	return g.wait(ctx, index)
}

// View runs fn on a group's state, which does not change meanwhile. fn must not
// keep the view.
func (o *OSD) View(pg uint32, fn func(volume.View) error) error {
	g, err := o.group(pg)
	if err != nil {
		return err
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.err != nil {
		return g.err
	}
	return fn(&g.st)
}

// Map is the cluster map the OSD goes by.
func (o *OSD) Map() *objstore.Map { return o.opt.Map }

// Groups is the number of placement groups.
func (o *OSD) Groups() int { return len(o.groups) }

// grows says whether a change needs room on the disk that is not given back.
func grows(c objstore.Change) bool {
	switch c := c.(type) {
	case objstore.Create, objstore.Link, objstore.SetXattr, objstore.ReserveVolume, objstore.AttachVolume:
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
