package main

import (
	"log/slog"
	"math"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"pillarbox/cachefs/diskcache"
)

// cacheOptions are those of the disk cache of a cluster's mount, as given.
type cacheOptions struct{ dir, size, free string }

func cacheFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "cache-dir", Usage: "with --conf: existing `DIR` of this host to keep message bodies in; see docs/cache.md"},
		&cli.StringFlag{Name: "cache-size", Value: "10GiB", Usage: "how many `BYTES` of disk --cache-dir may take"},
		&cli.StringFlag{Name: "cache-free", Value: "1GiB", Usage: "how many `BYTES` of that disk are left free"},
	}
}

func parseCache(c *cli.Context) cacheOptions {
	return cacheOptions{c.String("cache-dir"), c.String("cache-size"), c.String("cache-free")}
}

// options are those of package diskcache, for the store with this id.
func (o *cacheOptions) options(fsid string, log *slog.Logger) (d diskcache.Options, err error) {
	d = diskcache.Options{Dir: o.dir, Store: fsid, Log: log}
	for _, f := range []struct {
		name, value string
		to          *int64
	}{{"size", o.size, &d.Size}, {"free", o.free, &d.Free}} {
		n, err := humanize.ParseBytes(f.value)
		if err != nil || n == 0 || n > math.MaxInt64 {
			return d, usageError("--cache-%s %q: must be a number of bytes, as in 100GiB", f.name, f.value)
		}
		*f.to = int64(n)
	}
	if err := d.Validate(); err != nil {
		return d, usageError("%v", err)
	}
	return d, nil
}

// check refuses what could never work, before anything is mounted.
func (o *cacheOptions) check(up *upOptions) error {
	if o.dir == "" {
		return nil
	}
	if up.conf == "" {
		return usageError("--cache-dir is for a cluster's mount, with --conf: a store with --data is on this host already")
	}
	var err error
	if o.dir, err = absolute(o.dir); err != nil {
		return usageError("--cache-dir: %v", err)
	}
	if within(o.dir, up.point) {
		return usageError("--cache-dir %s lies in the mount that it is for", o.dir)
	}
	_, err = o.options("any", nil)
	return err
}

func (o *cacheOptions) args() []string {
	if o.dir == "" {
		return nil
	}
	return []string{"--cache-dir", o.dir, "--cache-size", o.size, "--cache-free", o.free}
}

// openCache opens the disk cache of a mount; nil: it has none.
func (s *stack) openCache(o cacheOptions, log *slog.Logger) error {
	if o.dir == "" {
		return nil
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
