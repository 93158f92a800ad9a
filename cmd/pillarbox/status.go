package main

import (
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
)

func reportFlags() []cli.Flag {
	return []cli.Flag{
		confFlag(),
		&cli.StringFlag{Name: "data", Usage: "instead of --conf: `DIR` of a store of one host"},
		formatFlag(),
	}
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "say how a cluster, a running store of one host, or a mount is",
		ArgsUsage: "[MOUNTPOINT]",
		Flags:     append(reportFlags(), &cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "of a cluster: go on, with a line for what changes"}),
		Action: func(c *cli.Context) error {
			switch {
			case c.String("data") != "" && c.Bool("watch"):
				return usageError("--watch is for clusters")
			case c.Args().Present() && (c.String("data") != "" || c.Bool("watch")):
				return usageError("a mount point goes without --data and --watch")
			case c.String("data") != "" || c.Args().Present():
				return report(c, writeStatus)
			case c.Bool("watch"):
				return watchStatus(c)
			}
			return giveStatus(c, writeCluster)
		},
	}
}

// report asks a running store, or the one behind a mount point, and writes the answer, as text or JSON.
func report(c *cli.Context, text func(io.Writer, *statusReport) error) error {
	st := &statusReport{}
	var err error
	if c.String("data") == "" {
		var args []string
		if args, err = operands(c, "MOUNTPOINT"); err == nil {
			err = askMount(c.Context, args[0], http.MethodGet, "/status", nil, st)
		}
	} else if _, err = operands(c); err == nil {
		err = askAdmin(c.Context, c.String("data"), http.MethodGet, "/status", nil, st)
	}
	if err != nil {
		return err
	}
	return show(c, st, func(w io.Writer) error { return text(w, st) })
}

func writeStatus(w io.Writer, st *statusReport) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(tw, name+"\t"+format+"\n", args...) }
	row("health", "%s", st.Health)
	for _, p := range st.Problems {
		row("", "%s", p)
	}
	row("store", "%s (map epoch %d)", st.FSID, st.Epoch)
	if st.Conf != "" {
		row("configuration", "%s", st.Conf)
	} else {
		row("data", "%s", st.Data)
	}
	row("mount point", "%s", st.Mountpoint)
	row("running", "for %v, pid %d, version %s", (time.Duration(st.Uptime) * time.Second), st.Pid, st.Version)
	row("osds", "%d: %d up, %d in", st.OSDs.Total, st.OSDs.Up, st.OSDs.In)
	row("groups", "%d", st.PGs)
	row("space", "%s, %s used, %s available", humanize.IBytes(st.Bytes.Total), humanize.IBytes(st.Bytes.Used), humanize.IBytes(st.Bytes.Avail))
	if sh := st.Shipped; sh != nil {
		if !sh.Whole {
			row("shipped", "not whole yet")
		}
		row("shipped", "to pool %s: %d objects, %s, %d checkpoints; %s of the log wait", sh.Pool, sh.Objects, humanize.IBytes(uint64(sh.Bytes)), sh.Checkpoints, humanize.IBytes(sh.Behind))
	}
	if st.Files != nil {
		row("files", "%d", *st.Files)
	}
	return tw.Flush()
}
