package main

import (
	"context"
	"log/slog"
	"math"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"pillarbox/cachefs"
	"pillarbox/cachefs/diskcache"
)

// cacheOptions are those of a mount's caches, as given.
type cacheOptions struct{ dir, size, free, memory, ahead string }

func cacheFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "cache-dir", Usage: "existing `DIR` of this host to keep message bodies in that lie elsewhere: in a cluster, in a pool outside; see docs/cache.md"},
		&cli.StringFlag{Name: "cache-size", Value: "10GiB", Usage: "how many `BYTES` of disk --cache-dir may take"},
		&cli.StringFlag{Name: "cache-free", Value: "1GiB", Usage: "how many `BYTES` of that disk are left free"},
		&cli.StringFlag{Name: "cache-ahead", Value: "4MiB", Usage: "how many `BYTES` of a mailbox's newest messages come into --cache-dir when it is opened, and of the next ones when it is read; 0: none"},
		&cli.StringFlag{Name: "cache-memory", Value: "192MiB", Usage: "how many `BYTES` of memory may be taken by all that the mount keeps: names and attributes, bodies, and what waits to be written"},
	}
}

func parseCache(c *cli.Context) cacheOptions {
	return cacheOptions{c.String("cache-dir"), c.String("cache-size"), c.String("cache-free"), c.String("cache-memory"), c.String("cache-ahead")}
}

// options are those of package diskcache, for the store with this id.
func (o *cacheOptions) options(fsid string, log *slog.Logger) (d diskcache.Options, err error) {
	m, err := o.shares()
	if err != nil {
		return d, err
	}
	d = diskcache.Options{Dir: o.dir, Store: fsid, Queue: m.waiting, Log: log}
	if d.Size, err = parseSize("size", o.size); err != nil {
		return d, err
	}
	if d.Free, err = parseSize("free", o.free); err != nil {
		return d, err
	}
	if err := d.Validate(); err != nil {
		return d, usageError("%v", err)
	}
	return d, nil
}

func parseSize(name, value string) (int64, error) {
	n, err := humanize.ParseBytes(value)
	if err != nil || n == 0 || n > math.MaxInt64 {
		return 0, usageError("--cache-%s %q: must be a number of bytes, as in 100GiB", name, value)
	}
	return int64(n), nil
}

// leastMemory lets every share of it do its work.
const leastMemory = 32 << 20

// memory is what a mount may keep of each kind, in bytes; 0: the defaults. What
// is not needed for writing and for open files is for metadata.
type memory struct {
	dirty    int64 // written by programs, and not committed yet
	bodies   int64 // of small files that are open
	waiting  int64 // on the way into the disk cache
	metadata int64 // of a cluster's volumes
	total    int64
}

// shares divides the memory that a mount may take.
func (o *cacheOptions) shares() (m memory, err error) {
	if o.memory == "" {
		return m, nil
	}
	if m.total, err = parseSize("memory", o.memory); err != nil {
		return m, err
	}
	if m.total < leastMemory {
		return m, usageError("--cache-memory %q: must be 32MiB or more", o.memory)
	}
	m.dirty, m.bodies = min(64<<20, m.total/3), min(32<<20, m.total/6)
	if o.dir != "" {
		m.waiting = min(32<<20, m.total/6)
	}
	m.metadata = m.total - m.dirty - m.bodies - m.waiting
	return m, nil
}

// aheadBytes are those of messages that are brought before they are read.
func (o *cacheOptions) aheadBytes() (int64, error) {
	if o.ahead == "0" || o.ahead == "" {
		return 0, nil
	}
	return parseSize("ahead", o.ahead)
}

// check refuses what could never work, before anything is mounted.
func (o *cacheOptions) check(up *upOptions) error {
	if _, err := o.shares(); err != nil || o.dir == "" {
		return err
	}
	var err error
	if o.dir, err = absolute(o.dir); err != nil {
		return usageError("--cache-dir: %v", err)
	}
	if within(o.dir, up.point) {
		return usageError("--cache-dir %s lies in the mount that it is for", o.dir)
	}
	if up.data != "" && within(o.dir, up.data) {
		return usageError("--cache-dir %s lies in the data directory", o.dir)
	}
	_, err = o.options("any", nil)
	if err == nil {
		_, err = o.aheadBytes()
	}
	return err
}

func (o *cacheOptions) args() []string {
	args := []string{"--cache-memory", o.memory}
	if o.dir == "" {
		return args
	}
	return append(args, "--cache-dir", o.dir, "--cache-size", o.size, "--cache-free", o.free, "--cache-ahead", o.ahead)
}

// openFS opens what a mount serves, over the open store, with its disk cache.
func (s *stack) openFS(ctx context.Context, opt upOptions, log *slog.Logger) (err error) {
	if err := s.openCache(opt.cache, log); err != nil {
		return err
	}
	ahead, err := opt.cache.aheadBytes()
	if err != nil {
		return err
	}
	if s.memory, err = opt.cache.shares(); err != nil {
		return err
	}
	limitMemory(s.memory.total)
	o := cachefs.Options{DirSync: opt.dirSync, DirtyMax: s.memory.dirty, DirtyPerFile: opt.dirtyPerFile, BodyMax: s.memory.bodies, Local: s.client.Local, Ahead: ahead, Log: log, Base: ctx}
	if s.cache != nil {
		o.Bodies = s.sealed.Bodies(s.cache, s.client.Local)
	}
	s.fs, err = cachefs.New(s.sealed, o)
	return err
}

// openCache opens the disk cache of a mount; nil: it has none.
func (s *stack) openCache(o cacheOptions, log *slog.Logger) error {
	if o.dir == "" {
		return nil
	}
	if s.osd != nil && !s.cmap.HasOutside() {
		return usageError("--cache-dir: the store has no pool outside (--pool), so all bodies are on this host already")
	}
	opt, err := o.options(s.cmap.FSID, log)
	if err != nil {
		return err
	}
	if s.cache, err = diskcache.Open(opt); err != nil {
		return err
	}
	s.closers = append(s.closers, s.cache.Close)
	return nil
}
