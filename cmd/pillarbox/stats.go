package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"pillarbox/cachefs/diskcache"
	"pillarbox/fusefs"
	"pillarbox/objstore/client"
)

func statsCommand() *cli.Command {
	return &cli.Command{
		Name:      "stats",
		Usage:     "show what a mount does, a line each second, until Ctrl-C",
		ArgsUsage: "MOUNTPOINT",
		Description: "OPS/S, MEAN and P99: what the kernel asked, and how long it took (waits for locks left out)\n" +
			"READ/S, WRITE/S: bytes of files; COMMIT/S and SIZE: changes of files' bytes, and how large\n" +
			"DIRTY: bytes not committed yet; META and DISK: what this host's caches answered, of metadata and of bytes of bodies\n" +
			"CACHE: size of the disk cache; PUSH/S: changes of other hosts; AWAY: placement groups that cannot be reached",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "interval", Value: time.Second, Usage: "`TIME` between lines"},
			&cli.IntFlag{Name: "count", Usage: "end after `N` lines"},
			formatFlagFor("`FORMAT`: text, or json, one object a line"),
		},
		Action: runStats,
	}
}

// statsLine is what a mount did in an interval.
type statsLine struct {
	Time        time.Time         `json:"time"`
	Seconds     float64           `json:"seconds"`
	OpsRate     float64           `json:"ops_per_second"`
	Mean        time.Duration     `json:"mean_ns"`
	P99         time.Duration     `json:"p99_ns"`
	Failed      uint64            `json:"failed"`
	ReadRate    float64           `json:"read_bytes_per_second"`
	WriteRate   float64           `json:"written_bytes_per_second"`
	CommitRate  float64           `json:"commits_per_second"`
	CommitBytes float64           `json:"bytes_per_commit"`
	Dirty       int64             `json:"dirty_bytes"`
	Meta        *float64          `json:"metadata_hits,omitempty"` // a part of 1; absent: nothing was asked
	Disk        *float64          `json:"disk_cache_hits,omitempty"`
	CacheBytes  *int64            `json:"disk_cache_bytes,omitempty"`
	PushRate    *float64          `json:"pushes_per_second,omitempty"`
	Away        *int              `json:"groups_away,omitempty"`
	Ops         map[string]uint64 `json:"ops"` // requests by kind
}

func runStats(c *cli.Context) error {
	args, err := operands(c, "MOUNTPOINT")
	if err != nil {
		return err
	}
	interval, count, format := c.Duration("interval"), c.Int("count"), c.String("format")
	switch {
	case interval < 10*time.Millisecond || count < 0:
		return usageError("--interval must be 10ms or more, --count positive")
	}
	dir, err := adminOf(args[0])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM)
	defer stop()
	ask := func() (*mountStats, error) {
		st := &mountStats{}
		return st, askSocket(ctx, dir, http.MethodGet, "/stats", nil, st)
	}
	before, err := ask()
	if err != nil {
		return err
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for i := 0; count == 0 || i < count; i++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		now, err := ask()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		line := between(before, now)
		before = now
		if format == "json" {
			err = json.NewEncoder(c.App.Writer).Encode(line)
		} else {
			err = line.write(c.App.Writer, i%20 == 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// between is what a mount did between two moments.
func between(a, b *mountStats) *statsLine {
	l := &statsLine{Time: b.Time, Seconds: b.Time.Sub(a.Time).Seconds(), Dirty: b.Files.Dirty, Ops: map[string]uint64{}}
	rate := func(from, to uint64) float64 { return float64(to-from) / max(l.Seconds, 1e-9) }
	var all fusefs.Times
	ops := uint64(0)
	for op, t := range b.Ops {
		t = t.Since(a.Ops[op])
		if t.Count == 0 {
			continue
		}
		l.Ops[op] = t.Count
		ops += t.Count
		l.Failed += t.Failed
		if op != "setlkw" { // what it takes says how long others had the lock
			all.Add(t)
		}
	}
	l.OpsRate, l.Mean, l.P99 = rate(0, ops), all.Total/time.Duration(max(all.Count, 1)), all.Below(0.99)
	l.ReadRate, l.WriteRate = rate(a.ReadBytes, b.ReadBytes), rate(a.WrittenBytes, b.WrittenBytes)
	l.CommitRate = rate(a.Files.Commits, b.Files.Commits)
	l.CommitBytes = float64(b.Files.CommitBytes-a.Files.CommitBytes) / float64(max(b.Files.Commits-a.Files.Commits, 1))
	if b.Client != nil {
		was := a.Client
		if was == nil {
			was = &client.Stats{}
		}
		pushes := rate(was.Pushes, b.Client.Pushes)
		l.PushRate, l.Away = &pushes, &b.Client.GroupsAway
		l.Meta = part(
			b.Client.Names.Hits-was.Names.Hits+b.Client.Attrs.Hits-was.Attrs.Hits+b.Client.Extents.Hits-was.Extents.Hits,
			b.Client.Names.Misses-was.Names.Misses+b.Client.Attrs.Misses-was.Attrs.Misses+b.Client.Extents.Misses-was.Extents.Misses)
	}
	if b.Cache != nil {
		was := a.Cache
		if was == nil {
			was = &diskcache.Stats{}
		}
		l.Disk = part(b.Cache.HitBytes-was.HitBytes, b.Cache.MissBytes-was.MissBytes)
		l.CacheBytes = &b.Cache.Used
	}
	return l
}

func part(hits, misses uint64) *float64 {
	if hits+misses == 0 {
		return nil
	}
	p := float64(hits) / float64(hits+misses)
	return &p
}

func (l *statsLine) write(w io.Writer, head bool) error {
	const format = "%8s %8s %8s %9s %9s %8s %9s %9s %5s %5s %9s %7s %5s\n"
	if head {
		if _, err := fmt.Fprintf(w, format, "OPS/S", "MEAN", "P99", "READ/S", "WRITE/S", "COMMIT/S", "SIZE", "DIRTY", "META", "DISK", "CACHE", "PUSH/S", "AWAY"); err != nil {
			return err
		}
	}
	percent := func(p *float64) string {
		if p == nil {
			return "-"
		}
		return fmt.Sprintf("%.0f%%", 100**p)
	}
	cached, pushes, away := "-", "-", "-"
	if l.CacheBytes != nil {
		cached = shortBytes(float64(*l.CacheBytes))
	}
	if l.PushRate != nil {
		pushes, away = fmt.Sprintf("%.0f", *l.PushRate), fmt.Sprint(*l.Away)
	}
	_, err := fmt.Fprintf(w, format, fmt.Sprintf("%.0f", l.OpsRate), shortTime(l.Mean), shortTime(l.P99), shortBytes(l.ReadRate), shortBytes(l.WriteRate),
		fmt.Sprintf("%.0f", l.CommitRate), shortBytes(l.CommitBytes), shortBytes(float64(l.Dirty)), percent(l.Meta), percent(l.Disk), cached, pushes, away)
	return err
}

func shortBytes(n float64) string { return strings.ReplaceAll(humanize.IBytes(uint64(n)), " ", "") }

// shortTime has about three digits.
func shortTime(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= 10*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d >= 100*time.Microsecond:
		return d.Round(time.Microsecond).String()
	}
	return d.Round(100 * time.Nanosecond).String()
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
