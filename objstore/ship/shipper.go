package ship

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/seal"
	"pillarbox/objstore/volume"
)

// Source is the store that is shipped: package osd has it. Positions are those of
// its log.
type Source interface {
	// ReadLog reads what was logged durably from one position to another, about room
	// bytes at once, and says where to go on. NotFound: the log is not kept so far back.
	ReadLog(from, upTo uint64, room int) ([]volume.Delta, uint64, error)
	// KeepLog says that the log from a position on will be read.
	KeepLog(from uint64)
	// LoggedTo is how far the log is durable.
	LoggedTo() uint64
	// Picture calls begin with a position, then fn with every key of the state as
	// of then or somewhat later.
	Picture(ctx context.Context, begin func(from uint64) error, fn func(volume.Write) error) error
}

// Options configure a Shipper.
type Options struct {
	Store pool.Store
	State *State
	Keys  func() (*seal.MasterKeys, error)
	// About tells what else a rebuilt store has to know, as JSON.
	About func(ctx context.Context) (json.RawMessage, error)
	FSID  string
	Log   *slog.Logger

	Every time.Duration // between objects where nobody waits; default 1 s
	Grow  int64         // bytes in runs from which on a new checkpoint is due, at least; default 64 MiB
}

const (
	objectTime  = 2 * time.Minute // for one object, with all retries of the driver
	closingTime = 10 * time.Second
	checkEvery  = 10 * time.Second // whether the epoch is still ours, and About still true
	partsAtOnce = 3
	maxRetry    = 15 * time.Second
)

// Shipper ships a store until Close.
type Shipper struct {
	opt    Options
	log    *slog.Logger
	src    Source
	sealer *sealer

	// Of the loop only.
	man     *Manifest // as it is outside; nil: none
	run     Run       // that goes on
	seq     uint64    // of its next object
	before  Salt
	pending *pending
	ends    []end // of the run's objects since the last checkpoint
	grown   int64 // bytes of them
	picture *picture
	rest    time.Time // no new checkpoint before
	checked time.Time
	counted int64         // objects when it was checked
	newest  seal.MasterID // that the owner mark is wrapped by
	mark    Mark

	mu      sync.Mutex // a leaf
	pos     uint64     // shipped up to here
	sure    uint64     // and to here nobody had taken over afterwards
	whole   bool       // the manifest leads there
	waiting int        // for sure to grow
	failed  error
	since   time.Time
	changed chan struct{} // closed when any of these changes
	stats   Stats

	now    chan struct{}
	tried  chan struct{} // closed when the outside store was first asked
	fenced chan struct{}
	cancel context.CancelCauseFunc
	ending chan struct{}
	wg     sync.WaitGroup
}

// Stats counts what was written in this run of the program.
type Stats struct{ Objects, Bytes, Checkpoints int64 }

// end is how far the log is outside with an object of the run.
type end struct {
	seq      uint64
	from, to uint64
	before   Salt
}

// pending is an object on its way: tried again byte for byte, for the attempt
// before may yet arrive.
type pending struct {
	name string
	obj  []byte
	salt Salt
	rec  *record
}

// Start ships a store. What of the log is not outside yet must be kept from
// State.Position on.
func Start(ctx context.Context, src Source, opt Options) *Shipper {
	if opt.Every == 0 {
		opt.Every = time.Second
	}
	if opt.Grow == 0 {
		opt.Grow = 64 << 20
	}
	s := &Shipper{
		opt: opt, log: opt.Log, src: src, pos: opt.State.Pos.To, changed: make(chan struct{}),
		now: make(chan struct{}, 1), tried: make(chan struct{}), fenced: make(chan struct{}), ending: make(chan struct{}),
	}
	if s.pos == 0 { // all that was logged before is for the first checkpoint
		s.pos = src.LoggedTo()
	}
	run, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	s.cancel = cancel
	s.wg.Go(func() { s.loop(run) })
	return s
}

// Close ships what is left, unless that takes long, and ends.
func (s *Shipper) Close() error {
	close(s.ending)
	stop := time.AfterFunc(closingTime, func() { s.cancel(errClosed) })
	defer stop.Stop()
	s.wg.Wait()
	s.cancel(errClosed)
	if behind := s.Behind(); behind > 0 {
		s.log.Warn("not all is shipped outside yet; the next start goes on", "bytes", behind)
	}
	return nil
}

var errClosed = fmt.Errorf("shipping has ended: %w", objstore.Unavailable)

// Fenced is closed when another host has taken over.
func (s *Shipper) Fenced() <-chan struct{} { return s.fenced }

// Tried is closed once the outside store has been asked, or did not answer.
func (s *Shipper) Tried() <-chan struct{} { return s.tried }

// Behind is how many bytes of log are not outside.
func (s *Shipper) Behind() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(s.src.LoggedTo(), s.pos) - s.pos
}

// Whole says that there is something to rebuild the store from.
func (s *Shipper) Whole() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whole
}

// Health is what keeps shipping from going on, and for how long it has; nil:
// nothing.
func (s *Shipper) Health() (err error, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed, s.since
}

// Stats counts what was written.
func (s *Shipper) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Wait returns when the log up to a position is outside, and a rebuild would find it.
func (s *Shipper) Wait(ctx context.Context, upTo uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting++
	defer func() { s.waiting-- }()
	for !s.whole || s.sure < upTo {
		changed := s.changed
		s.mu.Unlock()
		kick(s.now)
		var err error
		select {
		case <-changed:
		case <-s.fenced:
			err = ErrFenced
		case <-s.ending:
			err = errClosed
		case <-ctx.Done():
			err = fmt.Errorf("wait until it is outside: %w: %w", objstore.Unavailable, context.Cause(ctx))
		}
		s.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// Settle returns when all that was logged until now is outside.
func (s *Shipper) Settle(ctx context.Context) error { return s.Wait(ctx, s.src.LoggedTo()) }

// own makes sure that nobody has taken over.
func (s *Shipper) own(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, objectTime)
	defer cancel()
	err := superseded(ctx, s.opt.Store, s.opt.State.Epoch)
	if errors.Is(err, ErrFenced) {
		s.fence()
	}
	return err
}

func (s *Shipper) fence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.fenced:
	default:
		s.log.Error("another host has taken this store over: what is written here is shipped no longer")
		s.failed = ErrFenced
		close(s.fenced)
	}
}

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// note tells all who wait, and says how it went.
func (s *Shipper) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.failed, ErrFenced) {
		return
	}
	if err == nil && s.failed != nil {
		s.log.Info("shipping outside goes on")
	}
	if err != nil && s.failed == nil {
		s.since = time.Now()
		s.log.Warn("shipping outside does not get on; it is tried again", "err", err)
	}
	s.failed = err
}

// loop connects, then ships until Close.
func (s *Shipper) loop(ctx context.Context) {
	defer s.stopPicture()
	connected := false
	tried := sync.OnceFunc(func() { close(s.tried) })
	defer tried()
	retry := time.Duration(0)
	tick := time.NewTimer(0)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-tick.C:
		case <-s.now:
			if retry > 0 { // whoever waits does not hurry who is away
				continue
			}
		case <-s.pictureDone(retry > 0):
		case <-s.ending:
			last = true
		case <-s.fenced:
			return
		}
		var err error
		if !connected {
			if err = s.connect(ctx); err == nil {
				connected = true
			}
		}
		if !errors.Is(err, ErrFenced) {
			tried()
		}
		if connected {
			err = s.once(ctx, last)
		}
		if errors.Is(err, ErrFenced) {
			s.fence()
			return
		}
		s.note(err)
		next := s.opt.Every
		if err == nil {
			retry = 0
		} else {
			retry = min(max(2*retry, s.opt.Every), maxRetry)
			next = retry
		}
		tick.Reset(next)
	}
}

// once ships what there is, and does what is due.
func (s *Shipper) once(ctx context.Context, last bool) error {
	if s.running() {
		if err := s.ship(ctx); err != nil && !errors.Is(err, objstore.NotFound) {
			return err
		} else if err != nil {
			s.log.Warn("the log does not reach back to what was shipped last: everything is shipped anew", "err", err)
			s.lose()
		}
	}
	if err := s.confirm(ctx); err != nil || last {
		return err
	}
	if err := s.finishPicture(ctx); err != nil {
		return err
	}
	if s.picture == nil && s.due() {
		s.startPicture(ctx)
	}
	if time.Since(s.checked) < checkEvery {
		return nil
	}
	s.checked = time.Now()
	if n := s.Stats().Objects; n != s.counted { // an idle store costs no requests
		if err := s.own(ctx); err != nil {
			return err
		}
		s.counted = n
	}
	if err := s.rewrap(ctx); err != nil {
		return err
	}
	return s.refresh(ctx)
}

// confirm looks for who waits whether anybody has taken over since what is outside
// was written. A rebuild makes its epoch first and reads afterwards: if there was
// none, it will find all that.
func (s *Shipper) confirm(ctx context.Context) error {
	s.mu.Lock()
	pos, wanted := s.pos, s.waiting > 0 && s.whole && s.sure < s.pos
	s.mu.Unlock()
	if !wanted {
		return nil
	}
	if err := s.own(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sure = pos
	s.tell()
	return nil
}

// tell wakes all who wait. Called with mu held.
func (s *Shipper) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}
