package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/signal"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"pillarbox/fusefs"
	"pillarbox/objstore"
)

func profileCommand() *cli.Command {
	return &cli.Command{
		Name:      "profile",
		Usage:     "say which requests a mount spends its time with, until Ctrl-C",
		ArgsUsage: "MOUNTPOINT",
		Description: "Counts what the kernel asks the mount from now on: how many, their total and mean time,\n" +
			"and what 99 of 100 stayed below. What the kernel answers from its own caches is not seen.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "seconds", Usage: "end after `N` seconds"},
			&cli.StringFlag{Name: "by", Usage: "tell apart `WHO` asked or what for, too: account, uid or pid"},
			&cli.IntFlag{Name: "rows", Value: 20, Usage: "how many `ROWS` to show, those with the most time"},
			formatFlagFor("`FORMAT`: text, or json, one object at the end"),
		},
		Action: runProfile,
	}
}

// profiled is what was counted after some time, as the admin socket answers it.
type profiled struct {
	Seconds float64      `json:"seconds"`
	By      fusefs.By    `json:"by,omitempty"`
	Rows    []profileRow `json:"rows"` // most time first
}

type profileRow struct {
	Op     string        `json:"op"`
	Of     string        `json:"of,omitempty"` // path of the account, user or process id; "others"
	Count  uint64        `json:"count"`
	Failed uint64        `json:"failed"`
	Total  time.Duration `json:"total_ns"`
	Mean   time.Duration `json:"mean_ns"`
	P99    time.Duration `json:"p99_ns"`
}

// profileRows is how many rows are told at most; of thousands none matters.
const profileRows = 1000

// serveOps tells what is counted every second, a line each, until the asker goes
// or the seconds that it asked for are over.
func (a *admin) serveOps(w http.ResponseWriter, r *http.Request) {
	by := fusefs.By(r.FormValue("by"))
	seconds := 0.0
	if _, err := fmt.Sscan(r.FormValue("seconds"), &seconds); err != nil || !goodBy(by) {
		http.Error(w, "seconds must be a number; by: account, uid or pid", http.StatusBadRequest)
		return
	}
	p, stop := a.s.mount.StartProfile(by)
	defer stop()
	ctx, began := r.Context(), time.Now()
	if seconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds*float64(time.Second)))
		defer cancel()
	}
	names := map[uint64]string{}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case <-tick.C:
		case <-a.closing:
			over = true
		case <-ctx.Done():
			over = true
		}
		out := profiled{Seconds: time.Since(began).Seconds(), By: by, Rows: []profileRow{}}
		for i, row := range p.Rows() {
			if i == profileRows {
				break
			}
			out.Rows = append(out.Rows, profileRow{row.Op, a.nameOf(r.Context(), by, row, names), row.Count, row.Failed, row.Total,
				row.Total / time.Duration(max(row.Count, 1)), row.Below(0.99)})
		}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			return
		}
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
	}
}

func goodBy(by fusefs.By) bool {
	return by == fusefs.ByNothing || by == fusefs.ByVolume || by == fusefs.ByUID || by == fusefs.ByPID
}

// nameOf says what a row is of. Paths of accounts are kept in names.
func (a *admin) nameOf(ctx context.Context, by fusefs.By, row fusefs.Row, names map[uint64]string) string {
	switch {
	case by == fusefs.ByNothing:
		return ""
	case row.Other:
		return "others"
	case by != fusefs.ByVolume:
		return fmt.Sprint(row.Of)
	}
	name, ok := names[row.Of]
	if !ok {
		var err error
		if name, err = a.s.fs.PathOf(ctx, objstore.VolumeRoot(objstore.VolumeID(row.Of))); err != nil {
			name = fmt.Sprint("volume ", row.Of)
		}
		names[row.Of] = name
	}
	return name
}

func runProfile(c *cli.Context) error {
	args, err := operands(c, "MOUNTPOINT")
	if err != nil {
		return err
	}
	by, format, seconds := fusefs.By(c.String("by")), c.String("format"), c.Int("seconds")
	switch {
	case !goodBy(by):
		return usageError("--by %q: must be account, uid or pid", by)
	case seconds < 0 || c.Int("rows") < 1:
		return usageError("--seconds and --rows must be positive")
	}
	dir, err := adminOf(args[0])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM)
	defer stop()
	body, err := openAdmin(ctx, dir, http.MethodGet, fmt.Sprintf("/profile?by=%s&seconds=%d", by, seconds), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	var last profiled
	live := format == "text" && seconds == 0 && isTerminal(c.App.Writer)
	for dec := json.NewDecoder(body); ; {
		var p profiled
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			break
		}
		if err != nil {
			return fmt.Errorf("profile %s: %w", args[0], err)
		}
		if last = p; live {
			fmt.Fprint(c.App.Writer, "\x1b[H\x1b[2J")
			if err := writeProfile(c.App.Writer, &p, c.Int("rows")); err != nil {
				return err
			}
		}
	}
	switch {
	case live:
		return nil
	case format == "json":
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(last)
	}
	return writeProfile(c.App.Writer, &last, c.Int("rows"))
}

func writeProfile(w io.Writer, p *profiled, rows int) error {
	all, count := time.Duration(0), uint64(0)
	for _, r := range p.Rows {
		all += r.Total
		count += r.Count
	}
	fmt.Fprintf(w, "%d requests in %.1f s, which took %v in all\n\n", count, p.Seconds, all.Round(time.Microsecond))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "TIME\tSHARE\tREQUESTS\tMEAN\tP99\tFAILED\t OP")
	if p.By != fusefs.ByNothing {
		fmt.Fprintf(t, "\t  OF %s", p.By)
	}
	fmt.Fprintln(t)
	for _, r := range p.Rows[:min(rows, len(p.Rows))] {
		fmt.Fprintf(t, "%s\t%.1f%%\t%d\t%s\t%s\t%d\t %s", shortTime(r.Total), 100*float64(r.Total)/float64(max(all, 1)), r.Count, shortTime(r.Mean), shortTime(r.P99), r.Failed, r.Op)
		if r.Of != "" {
			fmt.Fprintf(t, "\t  %s", r.Of)
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}
