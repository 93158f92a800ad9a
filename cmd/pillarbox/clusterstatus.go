package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"pillarbox/mon"
	"pillarbox/objstore"
	"pillarbox/objstore/client"
)

// watchEvery is how often a status that is watched is looked at.
const watchEvery = time.Second

// progress is how far recovery is in a cluster.
type progress struct {
	left    uint64 // chunks found that are not where they belong yet
	looking bool   // there may be more
	looked  uint64 // percent of the chunks looked at
	moved   uint64 // bytes, since the OSDs started
}

func progressOf(st *mon.Status) (p progress) {
	var all, seen uint64
	for _, o := range st.OSDs {
		r := o.Report
		if r == nil {
			continue
		}
		p.left, p.moved, p.looking = p.left+r.Missing, p.moved+r.Moved, p.looking || r.Unchecked
		var chunks uint64
		for _, u := range r.Pools {
			chunks += u.Chunks
		}
		all += chunks
		if r.Unchecked {
			chunks = min(chunks, r.Seen)
		}
		seen += chunks
	}
	if p.looked = 100; p.looking && all > 0 {
		p.looked = min(99, 100*seen/all)
	}
	return p
}

func (p progress) String() string {
	if p.looking {
		return fmt.Sprintf("%d chunks to go, %d %% of all looked at", p.left, p.looked)
	}
	return fmt.Sprintf("%d chunks to go", p.left)
}

func writeCluster(w io.Writer, st *mon.Status) error {
	up, in, leads, degraded, groups := 0, 0, 0, 0, 0
	for _, o := range st.OSDs {
		if o.Up {
			up++
		}
		if o.In {
			in++
		}
		if o.Report != nil {
			leads += o.Report.Leads
			degraded += o.Report.Degraded
		}
	}
	for _, p := range st.Pools {
		groups += p.PGs
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "id\t%s\n", st.FSID)
	fmt.Fprintf(tw, "health\t%s\n", st.Health)
	for _, ch := range st.Checks {
		fmt.Fprintf(tw, "\t%s: %s\n", ch.Code, ch.Summary)
	}
	fmt.Fprintf(tw, "mon\t%d: %d in the quorum, epoch %d\n", len(st.Mons), len(st.Mons)-len(st.Away), st.Epoch)
	fmt.Fprintf(tw, "osd\t%d: %d up, %d in\n", len(st.OSDs), up, in)
	fmt.Fprintf(tw, "pools\t%d, %d placement groups\n", len(st.Pools), groups)
	fmt.Fprintf(tw, "volumes\t%d groups led, %d degraded\n", leads, degraded)
	if p := progressOf(st); p.left > 0 || p.looking {
		fmt.Fprintf(tw, "recovery\t%v\n", p)
	}
	fmt.Fprintf(tw, "space\t%s, %s used, %s free (raw)\n", humanize.IBytes(st.Total), humanize.IBytes(st.Total-st.Free), humanize.IBytes(st.Free))
	return tw.Flush()
}

// watchStatus shows the status, then a line for whatever changes, until Ctrl-C.
func watchStatus(c *cli.Context) error {
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelError}))
	self, err := openMember(c.String("conf"), log)
	if err != nil {
		return err
	}
	defer self.mons.Close()
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	var last *mon.Status
	at := time.Now()
	for {
		st := &mon.Status{}
		if err := self.mons.Command(ctx, []string{"status"}, nil, st); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		now := time.Now()
		switch {
		case c.String("format") == "json":
			err = json.NewEncoder(c.App.Writer).Encode(st)
		case last == nil:
			err = writeCluster(c.App.Writer, st)
		default:
			err = writeChanges(c.App.Writer, last, st, now, now.Sub(at))
		}
		if err != nil {
			return err
		}
		last, at = st, now
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

// writeChanges tells what is other than it was.
func writeChanges(w io.Writer, was, is *mon.Status, at time.Time, passed time.Duration) error {
	var errs []error
	line := func(format string, args ...any) {
		_, err := fmt.Fprintf(w, at.Format(time.TimeOnly)+" "+format+"\n", args...)
		errs = append(errs, err)
	}
	checks := func(st *mon.Status) map[string]string {
		m := map[string]string{}
		for _, ch := range st.Checks {
			m[ch.Code] = ch.Summary
		}
		return m
	}
	before, after := checks(was), checks(is)
	for _, ch := range is.Checks {
		if before[ch.Code] != ch.Summary {
			line("%s: %s", ch.Code, ch.Summary)
		}
	}
	for _, ch := range was.Checks {
		if _, still := after[ch.Code]; !still {
			line("%s is over", ch.Code)
		}
	}
	if was.Health != is.Health {
		line("health %s, was %s", is.Health, was.Health)
	}
	if was.Epoch != is.Epoch {
		line("epoch %d", is.Epoch)
	}
	then, now := progressOf(was), progressOf(is)
	moved := now.moved - min(now.moved, then.moved) // less: an OSD started anew
	if moved > 0 || now.left != then.left {
		line("recovery: %v, %s/s", now, humanize.IBytes(uint64(float64(moved)/passed.Seconds())))
	}
	return errors.Join(errs...)
}

// poolSpace is a pool with its room, for df.
type poolSpace struct {
	ID    int    `json:"id"`
	Name  string `json:"name"`
	Kind  string `json:"kind"`
	Size  int    `json:"size"`
	Used  uint64 `json:"used_bytes"` // on disk, with copies and coding; of data pools
	Total uint64 `json:"total_bytes"`
	Avail uint64 `json:"max_avail_bytes"` // before the first of its OSDs is full
}

type clusterSpace struct {
	Total uint64      `json:"total_bytes"` // of all disks
	Used  uint64      `json:"used_bytes"`
	Free  uint64      `json:"free_bytes"`
	Pools []poolSpace `json:"pools"`
}

// clusterDF shows the space of a cluster.
func clusterDF(c *cli.Context) error {
	var st mon.Status
	var df clusterSpace
	return giveAs(c, []string{"status"}, nil, &st, func() any {
		df = clusterSpace{Total: st.Total, Used: st.Total - st.Free, Free: st.Free}
		m := &objstore.Map{Pools: st.Pools, Ratios: st.Ratios}
		disks, used := map[int]objstore.Disk{}, map[int]uint64{}
		for _, o := range st.OSDs {
			m.OSDs = append(m.OSDs, o.OSDInfo)
			if o.Report != nil {
				disks[o.ID] = objstore.Disk{Total: o.Report.Total, Free: o.Report.Free}
				for id, u := range o.Report.Pools {
					used[id] += u.Bytes
				}
			}
		}
		for i := range st.Pools {
			p := &st.Pools[i]
			total, _, avail := client.PoolSpace(m, p, disks)
			df.Pools = append(df.Pools, poolSpace{p.ID, p.Name, string(p.Kind), p.Size, used[p.ID], total, avail})
		}
		return &df
	}, func(w io.Writer) error {
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		percent := 0.0
		if df.Total > 0 {
			percent = 100 * float64(df.Used) / float64(df.Total)
		}
		fmt.Fprintln(tw, "RAW SIZE\tUSED\tFREE\tUSE%")
		fmt.Fprintf(tw, "%s\t%s\t%s\t%.0f%%\n\n", humanize.IBytes(df.Total), humanize.IBytes(df.Used), humanize.IBytes(df.Free), percent)
		fmt.Fprintln(tw, "POOL\tKIND\tSIZE\tUSED (RAW)\tHOLDS\tMAX AVAIL")
		for i, p := range df.Pools {
			used := "-"
			if p.Kind == string(objstore.DataPool) {
				used = humanize.IBytes(p.Used)
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, p.Kind, redundancy(&st.Pools[i]), used, humanize.IBytes(p.Total), humanize.IBytes(p.Avail))
		}
		return tw.Flush()
	})
}
