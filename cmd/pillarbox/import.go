package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"pillarbox/cmd/internal/mailimport"
)

// exitMismatch is import's own: the copy is not what the source is.
const exitMismatch = 3

func importCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "bring existing Maildirs and mbox files in",
		ArgsUsage: "SRC DST",
		Description: "SRC is a Maildir, a tree with Maildirs and mbox files in it, or an mbox file; what is in it is\n" +
			"recreated in the directory DST. Run again after an interruption, the import goes on. All is\n" +
			"compared with SRC at the end.\n\n" +
			"Exit codes: 0 done, 1 something failed, 2 usage, 3 the comparison found differences.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "workers", Value: 8, Usage: "files copied at a time"},
			&cli.StringFlag{Name: "mbox", Value: string(mailimport.Folders), Usage: "what several mbox files of one directory become: folders of one Maildir++ (folders) or Maildirs of their own (maildirs)"},
			&cli.BoolFlag{Name: "no-verify", Usage: "do not compare at the end"},
			&cli.BoolFlag{Name: "dry-run", Usage: "count what would be imported, change nothing"},
			&cli.StringFlag{Name: "state", Usage: "the journal `FILE` (default: one for SRC and DST in $XDG_STATE_HOME/pillarbox or ~/.local/state/pillarbox)"},
			&cli.StringFlag{Name: "format", Value: "text", Usage: "text or json"},
		},
		Action: runImport,
	}
}

func runImport(c *cli.Context) error {
	args, err := operands(c, "SRC", "DST")
	if err != nil {
		return err
	}
	format := c.String("format")
	if format != "text" && format != "json" {
		return usageError("import: --format %q: must be text or json", format)
	}
	o := mailimport.Defaults(args[0], args[1])
	o.Workers, o.Mbox, o.State = c.Int("workers"), mailimport.Layout(c.String("mbox")), c.String("state")
	o.NoVerify, o.DryRun = c.Bool("no-verify"), c.Bool("dry-run")
	if err := o.Validate(); err != nil {
		return usageError("import: %w", err)
	}
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	bar := newBar("import")
	o.Progress = bar.show
	rep, err := mailimport.Run(ctx, o)
	bar.close()
	if rep != nil && (err == nil || format == "json" || rep.Copied+rep.Present+rep.Failed > 0) {
		if e := printImport(c.App.Writer, format, rep, &o); e != nil {
			return errors.Join(err, e)
		}
	}
	return importVerdict(ctx, err, rep)
}

func importVerdict(ctx context.Context, err error, rep *mailimport.Report) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mailimport.ErrMismatch):
		return failure(exitMismatch, "import: %w: %d differences", err, rep.Mismatches)
	case errors.Is(err, mailimport.ErrFailed):
		return failure(exitFailure, "import: %w: %d errors; run the same command again to go on", err, rep.Failed)
	case ctx.Err() != nil:
		return failure(exitFailure, "import was interrupted; run the same command again to go on")
	}
	return failure(exitFailure, "import: %w", err)
}

func printImport(w io.Writer, format string, rep *mailimport.Report, o *mailimport.Options) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(rep)
	}
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	line("found: %d directories, %d files, %d hard links, %d symlinks, %d messages in %d mbox files, %s",
		rep.Directories, rep.Files, rep.HardLinks, rep.Symlinks, rep.Messages, rep.Mboxes, humanize.IBytes(uint64(rep.Bytes)))
	if rep.LocksLeft+rep.Special+rep.Internal > 0 {
		line("left out: %d lock files, %d sockets, pipes and devices, %d notes of mail readers in mbox files", rep.LocksLeft, rep.Special, rep.Internal)
	}
	if !o.DryRun {
		line("copied: %d, there already: %d, failed: %d", rep.Copied, rep.Present, rep.Failed)
		if !o.NoVerify && rep.Failed == 0 {
			line("compared: %d, different: %d", rep.Verified, rep.Mismatches)
		}
	}
	if rep.Gone > 0 {
		line("%d were copied by an earlier run and have been removed since; remove %s to have them copied again", rep.Gone, rep.Journal)
	}
	if rep.SplitLinks > 0 {
		line("%d hard links became copies, for their names lie in different accounts", rep.SplitLinks)
	}
	names := make([]string, 0, len(rep.Refused))
	for name := range rep.Refused {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		line("the destination does not take the attribute %s: left out of %d", name, rep.Refused[name])
	}
	for _, e := range rep.Errors {
		line("  %s", e)
	}
	if n := rep.Failed + rep.Mismatches - int64(len(rep.Errors)); n > 0 {
		line("  and %d more", n)
	}
	return nil
}
