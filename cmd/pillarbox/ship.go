package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"pillarbox/mon"
	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/seal"
	"pillarbox/objstore/ship"
	"pillarbox/osd"
)

const (
	durabilityLocal  = "local"
	durabilityRemote = "remote"

	remoteTime    = 2 * time.Minute // how long a change waits for the outside store
	shipPatience  = 30 * time.Second
	startPatience = 5 * time.Second

	defaultBacklog = "10GiB"
	backlogOff     = "off"
)

func shipFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "durability", Value: durabilityLocal, Usage: "with --pool: `WHERE` a message must be before it is acknowledged: local (this disk; outside a second later) or remote (in the outside pool)"},
		&cli.StringFlag{Name: "backlog", Value: defaultBacklog, Usage: "of a store that is shipped: `SIZE` of what may wait for the outside pool before no more mail is taken (ENOSPC), or off"},
		&cli.StringFlag{Name: "ship", Usage: "with --data: `NAME` of the outside pool that everything is shipped to, for 'pillarbox rebuild', or off (default: the first)"},
	}
}

// shipOptions are those of up and mount about shipping.
type shipOptions struct{ durability, to, backlog string }

const shipOff = "off"

func (o *upOptions) checkShip(c *cli.Context) error {
	s := &o.ship
	if v := c.String("durability"); c.IsSet("durability") || s.durability == "" {
		s.durability = v
	}
	if c.IsSet("ship") {
		s.to = c.String("ship")
	}
	if c.IsSet("backlog") || s.backlog == "" {
		s.backlog = c.String("backlog")
	}
	if _, err := s.limit(); err != nil {
		return err
	}
	if s.backlog != defaultBacklog && len(o.pools) == 0 {
		return usageError("--backlog needs --pool NAME=FILE")
	}
	switch s.durability {
	case durabilityLocal, durabilityRemote, "":
	default:
		return usageError("--durability %s: must be local or remote", s.durability)
	}
	remote := s.durability == durabilityRemote
	switch {
	case (remote || s.to != "" || s.backlog != defaultBacklog) && o.conf != "":
		return usageError("--durability remote, --ship and --backlog are for stores of one host")
	case remote && (len(o.pools) == 0 || s.to == shipOff):
		return usageError("--durability remote needs --pool NAME=FILE, and shipping")
	case s.to != "" && s.to != shipOff && o.pools[s.to] == "":
		return usageError("--ship %s: there is no --pool of that name", s.to)
	}
	return nil
}

// limit is how many bytes may wait to be shipped; 0: any number.
func (s shipOptions) limit() (uint64, error) {
	if s.backlog == backlogOff {
		return 0, nil
	}
	n, err := humanize.ParseBytes(s.backlog)
	if err != nil || n == 0 {
		return 0, usageError("--backlog %q: must be a number of bytes, as in %s, or off", s.backlog, defaultBacklog)
	}
	return n, nil
}

func (s shipOptions) args() (args []string) {
	if s.backlog != defaultBacklog {
		args = append(args, "--backlog", s.backlog)
	}
	if s.durability == durabilityRemote {
		args = append(args, "--durability", s.durability)
	}
	if s.to != "" {
		args = append(args, "--ship", s.to)
	}
	return args
}

// shipping is how a store of one host is shipped to an outside pool.
type shipping struct {
	state *ship.State // nil: it is not shipped
	pool  *objstore.Pool
	files poolFiles
	armed atomic.Bool   // Committed waits for the outside store
	limit atomic.Uint64 // of Behind; 0: none, or not yet
	*ship.Shipper
}

// planShipping says where a store is shipped to, before anything is opened.
func planShipping(d *dataDir, opt upOptions, cm *objstore.Map, log *slog.Logger) (*shipping, error) {
	sh := &shipping{files: opt.pools}
	if opt.ship.to == shipOff || opt.keyFile == "" {
		return sh, nil
	}
	st, err := ship.LoadState(d.path)
	switch {
	case errors.Is(err, objstore.NotFound):
		if len(opt.pools) == 0 {
			return sh, nil
		}
		name := opt.ship.to
		if name == "" {
			name = slices.Min(slices.Collect(maps.Keys(opt.pools)))
		}
		if st, err = ship.NewState(d.path, name, 1); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case opt.ship.to != "" && opt.ship.to != st.Pool:
		return nil, usageError("--ship %s: this store is shipped to pool %s; to begin anew elsewhere, remove ship.json and ship.pos in %s", opt.ship.to, st.Pool, d.path)
	case opt.pools[st.Pool] == "":
		log.Warn("this store was shipped to a pool, and is not now: no --pool says how to get there", "pool", st.Pool)
		return sh, nil
	}
	if sh.pool = cm.PoolNamed(st.Pool); sh.pool == nil || sh.pool.Outside == nil {
		return nil, usageError("this store has no outside pool %q to be shipped to", st.Pool)
	}
	sh.state = st
	return sh, nil
}

// options adds to an OSD's options what shipping needs.
func (sh *shipping) options(o osd.Options) osd.Options {
	if sh.state == nil {
		return o
	}
	keep := sh.state.Pos.To
	o.Keep, o.Grow = &keep, sh.mayGrow
	o.Shipped = func(ctx context.Context, upTo uint64) error {
		if !sh.armed.Load() {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, remoteTime)
		defer cancel()
		return sh.Wait(ctx, upTo)
	}
	return o
}

// bound makes mail be refused from now on while too much waits to be shipped. What a
// start has to write is not.
func (sh *shipping) bound(opt shipOptions) error {
	if sh.Shipper == nil {
		return nil
	}
	limit, err := opt.limit()
	sh.limit.Store(limit)
	return err
}

// mayGrow refuses mail when as much waits to be shipped as may. What is refused is
// what a full disk refuses, too: mail servers keep the message, and users can go on
// reading and removing.
func (sh *shipping) mayGrow() error {
	limit := sh.limit.Load()
	if limit == 0 || sh.Behind() < limit {
		return nil
	}
	return fmt.Errorf("%s wait for pool %s, the limit is %s: %w", humanize.IBytes(sh.Behind()), sh.state.Pool, humanize.IBytes(limit), objstore.NoSpace)
}

// shipped is what a store is beside its state, for a rebuild.
type shipped struct {
	FSID        string        `json:"fsid"`
	VolumeDepth int           `json:"volume_depth"`
	Created     time.Time     `json:"created"`
	Pool        string        `json:"pool"`
	Session     uint64        `json:"session"`
	Map         *objstore.Map `json:"map"`
	S3          []mon.S3User  `json:"s3"`
}

// startShipping begins to ship an open OSD.
func (s *stack) startShipping(ctx context.Context, d *dataDir, opt upOptions, session uint64, log *slog.Logger) error {
	sh := s.ship
	if sh.state == nil {
		return nil
	}
	store, err := s.openPool(opt.pools)(ctx, sh.pool)
	if err != nil {
		return fmt.Errorf("open pool %q: %w", sh.pool.Name, err)
	}
	info := *d.info
	sh.Shipper = ship.Start(ctx, s.osd, ship.Options{
		Store: store, State: sh.state, FSID: info.FSID, Log: log,
		Keys: func() (*seal.MasterKeys, error) { return seal.ReadKeys(opt.keyFile) },
		About: func(ctx context.Context) (json.RawMessage, error) {
			cm, err := s.mon.Map(ctx)
			if err != nil {
				return nil, err
			}
			users, err := s.mon.S3Keys(ctx)
			if err != nil {
				return nil, err
			}
			return json.Marshal(shipped{info.FSID, info.VolumeDepth, info.Created, sh.state.Pool, session, cm, users})
		},
	})
	select {
	case <-sh.Tried():
	case <-time.After(startPatience):
		log.Warn("the outside store has not answered yet; the mount does not wait for it", "pool", sh.pool.Name)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-sh.Fenced():
		return sh.fencedError()
	default:
		return nil
	}
}

func (sh *shipping) fencedError() error {
	return failure(exitForeign, "this store was rebuilt elsewhere from pool %s: it must not be served here any more", sh.state.Pool)
}

// fencedOff is closed when another host has taken the store over.
func (sh *shipping) fencedOff() <-chan struct{} {
	if sh == nil || sh.Shipper == nil {
		return nil
	}
	return sh.Fenced()
}

func (sh *shipping) close() error {
	if sh == nil || sh.Shipper == nil {
		return nil
	}
	sh.armed.Store(false) // all who could be told have been
	return sh.Close()
}

// arm makes what is Committed wait for the outside store, once that has all there is.
func (sh *shipping) arm(ctx context.Context, log *slog.Logger) error {
	for {
		short, cancel := context.WithTimeout(ctx, shipPatience)
		err := sh.Settle(short)
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil || errors.Is(err, objstore.Fenced) {
			sh.armed.Store(err == nil)
			return err
		}
		if failed, _ := sh.Health(); failed != nil {
			log.Error("the outside store is away: what is to be kept there fails until it is back", "pool", sh.state.Pool, "err", failed)
			sh.armed.Store(true)
			return nil
		}
		log.Info("shipping everything outside before the mount", "objects", sh.Stats().Objects)
	}
}

// health says what is wrong with shipping.
func (sh *shipping) health() []error {
	if sh == nil || sh.Shipper == nil {
		return nil
	}
	return []error{sh.stuck(), sh.backlog()}
}

func (sh *shipping) stuck() error {
	err, since := sh.Health()
	if err == nil || time.Since(since) < shipPatience && !errors.Is(err, objstore.Fenced) {
		return nil
	}
	return fmt.Errorf("POOL_BEHIND: nothing was shipped to pool %s for %v, %s of the log wait: %w", sh.state.Pool, time.Since(since).Round(time.Second), humanize.IBytes(sh.Behind()), err)
}

// backlog says when what waits is at its limit, or will soon be.
func (sh *shipping) backlog() error {
	behind, limit := sh.Behind(), sh.limit.Load()
	switch {
	case limit == 0 || behind < limit/2:
		return nil
	case behind < limit:
		return fmt.Errorf("POOL_BACKLOG: %s wait for pool %s; no mail is taken from %s on", humanize.IBytes(behind), sh.state.Pool, humanize.IBytes(limit))
	}
	return fmt.Errorf("POOL_BACKLOG_FULL: no mail is taken: %s wait for pool %s, the limit is %s", humanize.IBytes(behind), sh.state.Pool, humanize.IBytes(limit))
}

// guarded is an outside store where chunks are removed only when what was shipped
// names them no longer, and no other host has taken the store over.
type guarded struct {
	pool.Store
	sh *shipping
}

// Delete implements pool.Store.
func (g guarded) Delete(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, remoteTime)
	defer cancel()
	if err := g.sh.Settle(ctx); err != nil {
		return fmt.Errorf("before chunks are removed: %w", err)
	}
	return g.Store.Delete(ctx, names)
}

// openGuarded is openPool for bodies.
func (s *stack) openGuarded(files poolFiles) func(context.Context, *objstore.Pool) (pool.Store, error) {
	open := s.openPool(files)
	return func(ctx context.Context, p *objstore.Pool) (pool.Store, error) {
		st, err := open(ctx, p)
		if err != nil || s.ship.Shipper == nil {
			return st, err
		}
		return guarded{st, s.ship}, nil
	}
}

// shipReport is what status says of shipping, since the start.
type shipReport struct {
	Pool        string `json:"pool"`
	Objects     int64  `json:"objects"`
	Bytes       int64  `json:"bytes"`
	Checkpoints int64  `json:"checkpoints"`
	Behind      uint64 `json:"behind_bytes"` // of the log
	Whole       bool   `json:"whole"`        // a store can be rebuilt from what is there
}

func (sh *shipping) report() *shipReport {
	if sh == nil || sh.Shipper == nil {
		return nil
	}
	n := sh.Stats()
	return &shipReport{Pool: sh.state.Pool, Objects: n.Objects, Bytes: n.Bytes, Checkpoints: n.Checkpoints, Behind: sh.Behind(), Whole: sh.Whole()}
}
