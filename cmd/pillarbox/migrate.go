package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"pillarbox/cmd/internal/poolmove"
	"pillarbox/objstore"
)

func poolMigrateCommand() *cli.Command {
	return &cli.Command{
		Name: "migrate", Usage: "bring the bodies below a directory into another data pool, and let new ones go there", ArgsUsage: "/PATH POOL",
		Description: "Mail stays readable and deliverable. Cut short, it goes on where it was when run again. Encrypted accounts\n" +
			"need the key file, pools outside their credentials. With --data the store must be stopped.",
		Flags: adminFlags(
			&cli.StringFlag{Name: "data", Usage: "`DIR` of a store of one host, instead of a cluster"}, keyFileFlag(), poolFlag(),
			&cli.IntFlag{Name: "workers", Value: 4, Usage: "`N` files at a time"},
		),
		Action: func(c *cli.Context) error {
			args, err := operands(c, "PATH", "POOL")
			if err != nil {
				return err
			}
			if n := c.Int("workers"); n < 1 || n > 64 {
				return usageError("--workers %d: must be 1 to 64", n)
			}
			rep, err := migrate(c, args[0], args[1])
			if rep != nil {
				err = errors.Join(err, show(c, rep, func(w io.Writer) error { return writeMigrated(w, rep) }))
			}
			if err == nil && rep.Errors > 0 {
				err = failure(exitFailure, "%d bodies could not be read and stay where they were", rep.Errors)
			}
			return err
		},
	}
}

func migrate(c *cli.Context, path, pool string) (_ *poolmove.Report, err error) {
	opt := upOptions{keyFile: c.String("key-file"), data: c.String("data"), conf: c.String("conf")}
	if err := opt.checkKeys(); err != nil {
		return nil, err
	}
	if opt.pools, err = parsePools(c.StringSlice("pool")); err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelError}))
	s, end, err := openToVerify(c.Context, opt, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	move := poolmove.Options{Store: s.sealed, Sealed: s.isSealed, Workers: c.Int("workers")}
	if err := s.choosePool(c.Context, path, pool, &move); err != nil {
		return nil, err
	}
	bar := newBar("moving")
	defer bar.close()
	move.Progress = func(done, total int64) { bar.show("moving", done, total) }
	rep, err := poolmove.Run(c.Context, move)
	if err != nil {
		return rep, fmt.Errorf("%d chunks were moved; run it again for the rest: %w", rep.Chunks, err)
	}
	return rep, nil
}

// choosePool lets the new bodies below a directory go to a pool, after a look at
// whether those that are there can go, too. It fills in what is to be moved.
func (s *stack) choosePool(ctx context.Context, path, pool string, move *poolmove.Options) error {
	dir, err := findDirectory(ctx, s.sealed, s.cmap, path)
	if err != nil {
		return err
	}
	move.Map, move.Dir, move.Path = s.cmap, dir.chain[0], dir.path
	move.Pool = s.cmap.PoolNamed(pool)
	if move.Pool == nil || move.Pool.Kind != objstore.DataPool {
		return fmt.Errorf("data pool %q: %w", pool, objstore.NotFound)
	}
	if err := poolmove.Check(ctx, *move); err != nil {
		return err
	}
	command := s.command
	if s.mon != nil {
		command = s.mon.Command
	}
	if _, err := command(ctx, dir.rule(pool), nil); err != nil {
		return err
	}
	if s.mons != nil {
		s.cmap, err = s.mons.Map(ctx)
	} else {
		s.cmap, err = s.mon.Map(ctx)
	}
	if err != nil {
		return err
	}
	s.client.SetMap(s.cmap)
	return nil
}

// command has the monitors of a cluster carry something out.
func (s *stack) command(ctx context.Context, words []string, options map[string]string) (answer any, err error) {
	return answer, s.mons.Command(ctx, words, options, &answer)
}

func writeMigrated(w io.Writer, rep *poolmove.Report) error {
	for _, k := range rep.Kept {
		fmt.Fprintf(w, "%s has a pool of its own and was left as it is\n", k)
	}
	for _, f := range rep.Failed {
		fmt.Fprintf(w, "%s: %s\n", f.Path, f.Error)
	}
	_, err := fmt.Fprintf(w, "%s: %d chunks, %s moved to pool %s\n", rep.Path, rep.Chunks, humanize.IBytes(uint64(rep.Bytes)), rep.Pool)
	return err
}
