package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
)

func dfCommand() *cli.Command {
	return &cli.Command{
		Name:  "df",
		Usage: "show the space of a cluster, or of a running store of one host",
		Flags: reportFlags(),
		Action: func(c *cli.Context) error {
			if c.String("data") != "" {
				return report(c, writeSpace)
			}
			if _, err := operands(c); err != nil {
				return err
			}
			return clusterDF(c)
		},
	}
}

func writeSpace(w io.Writer, st *statusReport) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	percent := 0.0
	if st.Bytes.Total > 0 {
		percent = 100 * float64(st.Bytes.Used) / float64(st.Bytes.Total)
	}
	fmt.Fprintln(tw, "SIZE\tUSED\tAVAIL\tUSE%\tMOUNTED ON")
	fmt.Fprintf(tw, "%s\t%s\t%s\t%.0f%%\t%s\n\n", humanize.IBytes(st.Bytes.Total), humanize.IBytes(st.Bytes.Used),
		humanize.IBytes(st.Bytes.Avail), percent, st.Mountpoint)
	fmt.Fprintln(tw, "POOL\tKIND\tREPLICAS\tMINIMUM\tGROUPS")
	for _, p := range st.Pools {
		groups := "-"
		if p.PGs > 0 {
			groups = fmt.Sprint(p.PGs)
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%s\n", p.Name, p.Kind, p.Size, p.MinSize, groups)
	}
	if len(st.Outside) > 0 {
		fmt.Fprintln(tw, "\nOUTSIDE\tREQUESTS\tFAILED\tTHROTTLED\tSENT\tRECEIVED")
	}
	for _, p := range st.Outside {
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%s\t%s\n", p.Pool, p.Requests, p.Failed, p.Throttled, humanize.IBytes(p.Sent), humanize.IBytes(p.Received))
	}
	if p := st.Packed; p != nil {
		fmt.Fprintf(tw, "\nPACKED\tOBJECTS\tFILES\tBYTES\nsince the start\t%d\t%d\t%s\n", p.Packs, p.Files, humanize.IBytes(uint64(p.Bytes)))
	}
	return tw.Flush()
}
