package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/urfave/cli/v2"

	"pillarbox/objstore"
	"pillarbox/objstore/pack"
)

const packFlagName = "pack-after"

func packFlag() cli.Flag {
	return &cli.DurationFlag{Name: packFlagName, Usage: "with --data and --pool: small mail that nobody has written for `TIME` leaves this disk for the outside pool, many messages in one object (default: it stays)"}
}

func (o *upOptions) checkPack(c *cli.Context) error {
	if c.IsSet(packFlagName) {
		o.packAfter = c.Duration(packFlagName)
		if o.packAfter < time.Second {
			return usageError("--%s: must be a time of 1s or more, as 720h", packFlagName)
		}
	}
	switch {
	case o.packAfter == 0:
	case o.conf != "":
		return usageError("--%s is for stores of one host", packFlagName)
	case len(o.pools) == 0:
		return usageError("--%s needs --pool NAME=FILE", packFlagName)
	}
	return nil
}

func (o *upOptions) packArgs() []string {
	if o.packAfter == 0 {
		return nil
	}
	return []string{"--" + packFlagName, o.packAfter.String()}
}

// startPacking begins to bring small mail to outside pools, if that is wanted.
func (s *stack) startPacking(ctx context.Context, opt upOptions, log *slog.Logger) {
	if opt.packAfter == 0 {
		return
	}
	s.packer = pack.Start(ctx, s.osd, pack.Options{
		Store: s.sealed, After: opt.packAfter, Log: log,
		Outside: func(id objstore.ChunkID) bool { return s.cmap.OutsideOf(id) != nil },
	})
}

// packed is what was packed since the start; nil: nothing is.
func (s *stack) packed() *pack.Stats {
	if s.packer == nil {
		return nil
	}
	n := s.packer.Stats()
	return &n
}
