package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"pillarbox/cmd/internal/bench"
)

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "measure a directory under the work of mail software",
		ArgsUsage: "DIR",
		Description: "Rows: " + strings.Join(bench.RowNames(), ", ") + ".\n\n" +
			"All that is written is read back and compared; a difference ends the run with exit code 1.\n" +
			"Works in a directory DIR/bench-<random>.test and removes it at the end.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "vs", Usage: "measure `DIR2` as well, in turns, and show the ratio DIR/DIR2"},
			&cli.StringFlag{Name: "workers", Value: "1,8,32", Usage: "numbers of parallel workers, one phase each"},
			&cli.IntFlag{Name: "messages", Value: 400, Usage: "messages in the mailbox of each worker"},
			&cli.StringFlag{Name: "mean-size", Value: "75KiB", Usage: "mean size of a message"},
			&cli.StringFlag{Name: "attach-size", Value: "64MiB", Usage: "size of an attachment"},
			&cli.StringFlag{Name: "rows", Usage: "measure only these rows, separated by commas"},
			&cli.StringFlag{Name: "mail", Usage: "use the mails in the files below `DIR` instead of made-up ones"},
			&cli.Uint64Flag{Name: "seed", Value: 1, Usage: "contents and sizes follow from it"},
			&cli.IntFlag{Name: "rounds", Value: 4, Usage: "rounds to measure, behind one to warm up"},
			&cli.Float64Flag{Name: "seconds", Usage: "more rounds, until each row was measured so long in each directory"},
			&cli.BoolFlag{Name: "drop-caches", Value: true, Usage: "drop the kernel's caches before cold rows (needs root)"},
			&cli.StringFlag{Name: "format", Value: "text", Usage: "text or json"},
		},
		Action: runBench,
	}
}

func runBench(c *cli.Context) error {
	o, err := benchOptions(c)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	bar := newBar("bench")
	o.Progress = func(what string, done, total int) { bar.show(what, int64(done), int64(total)) }
	rep, err := bench.Run(ctx, o)
	bar.close()
	interrupted := ctx.Err() != nil && err != nil
	switch {
	case interrupted && (rep == nil || len(rep.Results) == 0):
		return fmt.Errorf("bench was interrupted: %w", err)
	case interrupted:
		err = fmt.Errorf("bench was interrupted; the phases that were whole are shown: %w", err)
	case err != nil:
		return fmt.Errorf("bench: %w", err)
	}
	if c.String("format") == "json" {
		return errors.Join(err, rep.WriteJSON(c.App.Writer))
	}
	return errors.Join(err, rep.WriteText(c.App.Writer))
}

func benchOptions(c *cli.Context) (bench.Options, error) {
	args, err := operands(c, "DIR")
	if err != nil {
		return bench.Options{}, err
	}
	o := bench.Defaults(args[0])
	o.Versus, o.Messages, o.MailDir, o.Seed = c.String("vs"), c.Int("messages"), c.String("mail"), c.Uint64("seed")
	o.Rounds, o.DropCaches = c.Int("rounds"), c.Bool("drop-caches")
	o.Time = time.Duration(c.Float64("seconds") * float64(time.Second))
	var errs []error
	o.Workers = nil
	for s := range strings.SplitSeq(c.String("workers"), ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil {
			errs = append(errs, fmt.Errorf("--workers %q: must be numbers separated by commas", c.String("workers")))
			break
		}
		o.Workers = append(o.Workers, n)
	}
	if rows := c.String("rows"); rows != "" {
		for s := range strings.SplitSeq(rows, ",") {
			o.Rows = append(o.Rows, strings.TrimSpace(s))
		}
	}
	size := func(flag string) int {
		n, err := humanize.ParseBytes(c.String(flag))
		if err != nil || n > 1<<40 {
			errs = append(errs, fmt.Errorf("--%s %q: must be a size such as 75KiB", flag, c.String(flag)))
		}
		return int(n)
	}
	o.MeanSize, o.AttachSize = size("mean-size"), size("attach-size")
	if f := c.String("format"); f != "text" && f != "json" {
		errs = append(errs, fmt.Errorf("--format %q: must be text or json", f))
	}
	if err := errors.Join(errs...); err != nil {
		return o, usageError("bench: %w", err)
	}
	if err := o.Validate(); err != nil {
		return o, usageError("bench: %w", err)
	}
	return o, nil
}

// bar is a progress bar on stderr; none if that is no terminal.
type bar struct{ p *progressbar.ProgressBar }

func newBar(what string) *bar {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return &bar{}
	}
	return &bar{progressbar.NewOptions64(-1, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription(what),
		progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionFullWidth())}
}

// show draws the bar. Errors of drawing are nobody's concern.
func (b *bar) show(what string, done, total int64) {
	if b.p == nil || total <= 0 {
		return
	}
	b.p.Describe(what)
	b.p.ChangeMax64(total)
	_ = b.p.Set64(min(done, total))
}

func (b *bar) close() {
	if b.p != nil {
		_ = b.p.Clear()
	}
}
