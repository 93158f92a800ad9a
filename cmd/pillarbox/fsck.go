package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"pillarbox/mon"
	"pillarbox/objstore"
	"pillarbox/osd"
)

// The exit codes of fsck are those of fsck(8).
const (
	fsckClean    = 0
	fsckRepaired = 1
	fsckLeft     = 4
	fsckFailed   = 8
)

func fsckCommand() *cli.Command {
	return &cli.Command{
		Name:      "fsck",
		Usage:     "check a stopped store, and mend it",
		ArgsUsage: " ",
		Description: "Compares names with inodes, link counts, extents with chunks, and every chunk with its\n" +
			"checksum. Changes nothing without --repair. The store must be stopped.\n\n" +
			"Exit codes: 0 clean, 1 problems were repaired, 4 problems are left, 8 the check could not run.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "data", Usage: "the store's data `DIR`"},
			&cli.BoolFlag{Name: "repair", Usage: "mend names and counts, remove chunks that nothing names"},
			&cli.BoolFlag{Name: "quick", Usage: "do not read the chunks to verify their checksums"},
			&cli.StringFlag{Name: "format", Value: "text", Usage: "text or json"},
		},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error { return failure(fsckFailed, "fsck: %w", err) },
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return failure(fsckFailed, "fsck takes no argument: %q", c.Args().First())
			}
			if c.String("data") == "" {
				return failure(fsckFailed, "fsck needs --data DIR; see 'pillarbox fsck --help'")
			}
			if f := c.String("format"); f != "text" && f != "json" {
				return failure(fsckFailed, "format %q: must be text or json", f)
			}
			rep, err := runFsck(c)
			if err != nil {
				return failure(fsckFailed, "%w", err)
			}
			if err := printFsck(c.App.Writer, c.String("format"), rep); err != nil {
				return failure(fsckFailed, "%w", err)
			}
			return fsckVerdict(rep)
		},
	}
}

func runFsck(c *cli.Context) (*osd.CheckReport, error) {
	path, err := absolute(c.String("data"))
	if err != nil {
		return nil, err
	}
	d, err := findDataDir(path)
	if err != nil {
		return nil, err
	}
	if d.info == nil {
		return nil, fmt.Errorf("%s holds no store", d.path)
	}
	if err := d.takeLock(); err != nil {
		return nil, err
	}
	defer d.release()
	if err := mon.Check(d.file(monDir)); err != nil {
		return nil, err
	}
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelError}))
	opt := osd.CheckOptions{Deep: !c.Bool("quick")}
	if term.IsTerminal(int(os.Stderr.Fd())) {
		bar := progressbar.NewOptions(-1, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription("checking volumes"), progressbar.OptionClearOnFinish())
		opt.Step = func(done, total int) {
			bar.ChangeMax(total)
			bar.Set(done)
		}
	}
	rep, m, err := checkOnce(c.Context, osd.Options{Dir: d.file(osdDir), ReadOnly: true, Log: log}, opt)
	if err != nil || len(rep.Problems) == 0 || !c.Bool("repair") {
		return rep, err
	}
	opt.Repair = true
	rep, _, err = checkOnce(c.Context, osd.Options{Dir: d.file(osdDir), Map: m, Log: log}, opt)
	return rep, err
}

// checkOnce opens the OSD, checks it and closes it.
func checkOnce(ctx context.Context, o osd.Options, opt osd.CheckOptions) (*osd.CheckReport, *objstore.Map, error) {
	store, err := osd.Open(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	rep, err := store.Check(ctx, opt)
	return rep, store.Map(), errors.Join(err, store.Close())
}

func printFsck(w io.Writer, format string, rep *osd.CheckReport) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(rep)
	}
	for _, p := range rep.Problems {
		fmt.Fprintln(w, p)
	}
	if rep.Leftovers > 0 {
		fmt.Fprintf(w, "the store was not closed: its next start will remove %d chunks that nothing names\n", rep.Leftovers)
	}
	if rep.Outside > 0 {
		fmt.Fprintf(w, "%d of the chunks are in outside pools: 'pillarbox verify' looks there\n", rep.Outside)
	}
	_, err := fmt.Fprintf(w, "%d volumes, %d inodes, %d chunks, %d bytes: %d problems\n",
		rep.Volumes, rep.Inodes, rep.Chunks, rep.Bytes, len(rep.Problems))
	return err
}

// fsckVerdict makes the exit code. What --repair mended is reported again by
// the check behind it only if it is still there.
func fsckVerdict(rep *osd.CheckReport) error {
	left := 0
	for _, p := range rep.Problems {
		if !p.Repaired {
			left++
		}
	}
	switch {
	case left > 0:
		return failure(fsckLeft, "%d problems are left", left)
	case len(rep.Problems) > 0:
		return failure(fsckRepaired, "%d problems were repaired", len(rep.Problems))
	}
	return nil
}
