package main

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"pillarbox/mon"
	"pillarbox/objstore"
)

func adminFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{confFlag(), formatFlag()}, more...)
}

// give sends a command to the monitors and shows the answer.
func give(c *cli.Context, words []string, options map[string]string, answer any, text func(io.Writer) error) error {
	return giveAs(c, words, options, answer, func() any { return answer }, text)
}

// giveAs shows what the answer is turned into.
func giveAs(c *cli.Context, words []string, options map[string]string, answer any, shown func() any, text func(io.Writer) error) error {
	if err := askMons(c, words, options, answer); err != nil {
		return err
	}
	return show(c, shown(), text)
}

// askMons sends a command to the monitors.
func askMons(c *cli.Context, words []string, options map[string]string, answer any) error {
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelError}))
	self, err := openMember(c.String("conf"), log)
	if err != nil {
		return err
	}
	defer self.mons.Close()
	if err := self.mons.Command(c.Context, words, options, answer); err != nil {
		return err
	}
	if m, err := self.mons.Map(c.Context); err == nil {
		self.learn(m, log)
	}
	return nil
}

// changing is a subcommand that changes the map: its words go to the monitors
// as they are.
func changing(words, usage, args string, flags ...cli.Flag) *cli.Command {
	name := words[strings.LastIndexByte(words, ' ')+1:]
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: args, Flags: adminFlags(flags...),
		Action: func(c *cli.Context) error {
			return giveChange(c, append(strings.Fields(words), c.Args().Slice()...), nil)
		},
	}
}

// giveChange sends a command that changes the map, with options besides --force.
func giveChange(c *cli.Context, words []string, options map[string]string) error {
	if options == nil {
		options = map[string]string{}
	}
	if c.Bool("force") {
		options["force"] = "true"
	}
	var done mon.Changed
	return give(c, words, options, &done, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "done; epoch %d\n", done.Epoch)
		return err
	})
}

func forceFlag() cli.Flag {
	return &cli.BoolFlag{Name: "force", Usage: "do it although data may be lost"}
}

func osdAdminCommands() []*cli.Command {
	return []*cli.Command{
		{Name: "tree", Usage: "show racks, hosts and OSDs", Flags: adminFlags(), Action: func(c *cli.Context) error { return giveStatus(c, writeTree) }},
		{Name: "df", Usage: "show how full each OSD is", Flags: adminFlags(), Action: func(c *cli.Context) error { return giveStatus(c, writeOSDDF) }},
		changing("osd in", "place data on OSDs (again)", "OSD..."),
		changing("osd out", "bring the data of OSDs elsewhere", "OSD..."),
		changing("osd down", "mark OSDs down; a live one comes up again", "OSD..."),
		changing("osd reweight", "let an OSD take a part of its share, 0 to 1", "OSD PART"),
		changing("osd set-nearfull-ratio", "set the part of its disk in use from which on an OSD is near full, a warning (default: 0.85)", "RATIO"),
		changing("osd set-backfillfull-ratio", "set the part of its disk in use from which on an OSD is given nothing by recovery (default: 0.90)", "RATIO"),
		changing("osd set-full-ratio", "set the part of its disk in use from which on an OSD takes nothing that grows (default: 0.95)", "RATIO"),
		changing("osd rm", "forget an OSD that is down and out", "OSD", forceFlag()),
		{Name: "crush", Usage: "change where OSDs stand and what they weigh", Subcommands: []*cli.Command{
			changing("osd crush reweight", "set an OSD's weight", "OSD WEIGHT"),
			changing("osd crush move", "move an OSD", "OSD host=NAME rack=NAME"),
		}},
	}
}

func clusterCommands() []*cli.Command {
	return []*cli.Command{
		changing("set", "set a flag: noout, nodown, noscrub, norecover, norebalance", "FLAG"),
		changing("unset", "take a flag back", "FLAG"),
		poolCommand(),
		{Name: "token", Usage: "make one-time tokens to join with", Subcommands: []*cli.Command{{
			Name: "create", Usage: "make a token for an OSD, a client or an admin", ArgsUsage: "osd | client client.NAME | admin",
			Flags: adminFlags(&cli.StringFlag{Name: "ttl", Value: "1h", Usage: "`TIME` it can be used"}),
			Action: func(c *cli.Context) error {
				var t struct {
					Token   string `json:"token"`
					Expires string `json:"expires"`
				}
				return give(c, append([]string{"token", "create"}, c.Args().Slice()...), map[string]string{"ttl": c.String("ttl")}, &t, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, t.Token)
					return err
				})
			},
		}}},
		{Name: "health", Usage: "say what is wrong with the cluster; exits with 1 unless all is well", ArgsUsage: "[detail]", Flags: adminFlags(), Action: health},
	}
}

func giveStatus(c *cli.Context, text func(io.Writer, *mon.Status) error) error {
	if _, err := operands(c); err != nil {
		return err
	}
	var st mon.Status
	return give(c, []string{"status"}, nil, &st, func(w io.Writer) error { return text(w, &st) })
}

func health(c *cli.Context) error {
	detail := c.Args().First() == "detail"
	if c.NArg() > 1 || c.NArg() == 1 && !detail {
		return usageError("pillarbox health takes at most the word detail")
	}
	var st mon.Status
	err := give(c, []string{"status"}, nil, &st, func(w io.Writer) error { return writeHealth(w, &st, detail) })
	if err == nil && st.Health != mon.HealthOK {
		return failure(exitFailure, "%s", st.Health)
	}
	return err
}

func writeHealth(w io.Writer, st *mon.Status, detail bool) error {
	if _, err := fmt.Fprintln(w, st.Health); err != nil {
		return err
	}
	for _, ch := range st.Checks {
		if _, err := fmt.Fprintf(w, "%s %s: %s\n", strings.TrimPrefix(ch.Severity, "HEALTH_"), ch.Code, ch.Summary); err != nil {
			return err
		}
		if !detail {
			continue
		}
		for _, line := range ch.Detail {
			if _, err := fmt.Fprintf(w, "    %s\n", line); err != nil {
				return err
			}
		}
	}
	if detail {
		return writeDropped(w, st)
	}
	return nil
}

// writeDropped says what came to OSDs' ports since they were started and was not
// for them. It makes nothing unhealthy: anybody in the network can bring it about.
func writeDropped(w io.Writer, st *mon.Status) error {
	for _, o := range st.OSDs {
		if o.Report == nil {
			continue
		}
		for _, reason := range slices.Sorted(maps.Keys(o.Report.Dropped)) {
			if n := o.Report.Dropped[reason]; n > 0 {
				if _, err := fmt.Fprintf(w, "INFO osd.%d dropped at its port: %d of reason %s\n", o.ID, n, reason); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func upDown(o mon.OSDStatus) string {
	s := "down"
	if o.Up {
		s = "up"
	}
	if o.In {
		return s + ", in"
	}
	return s + ", out"
}

func reweight(o objstore.OSDInfo) float64 {
	switch {
	case !o.In:
		return 0
	case o.Reweight == 0:
		return 1
	}
	return o.Reweight
}

func writeTree(w io.Writer, st *mon.Status) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tWEIGHT\tNAME\tSTATUS\tREWEIGHT")
	osds := slices.Clone(st.OSDs)
	slices.SortStableFunc(osds, func(a, b mon.OSDStatus) int {
		return strings.Compare(a.Rack+"\x00"+a.Host, b.Rack+"\x00"+b.Host)
	})
	weight := func(match func(mon.OSDStatus) bool) (sum float64) {
		for _, o := range osds {
			if match(o) {
				sum += o.Weight
			}
		}
		return sum
	}
	fmt.Fprintf(tw, "\t%.5f\troot default\t\t\n", weight(func(mon.OSDStatus) bool { return true }))
	rack, host := "\x00", "\x00"
	for _, o := range osds {
		indent := "  "
		if o.Rack != rack {
			rack, host = o.Rack, "\x00"
			if rack != "" {
				fmt.Fprintf(tw, "\t%.5f\t  rack %s\t\t\n", weight(func(p mon.OSDStatus) bool { return p.Rack == rack }), rack)
			}
		}
		if rack != "" {
			indent = "    "
		}
		if o.Host != host {
			host = o.Host
			fmt.Fprintf(tw, "\t%.5f\t%shost %s\t\t\n", weight(func(p mon.OSDStatus) bool { return p.Rack == rack && p.Host == host }), indent, host)
		}
		fmt.Fprintf(tw, "%d\t%.5f\t%s  osd.%d\t%s\t%.5f\n", o.ID, o.Weight, indent, o.ID, upDown(o), reweight(o.OSDInfo))
	}
	return tw.Flush()
}

func writeOSDDF(w io.Writer, st *mon.Status) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "%s\n", "ID\tWEIGHT\tREWEIGHT\tSIZE\tFREE\tUSE %\tPGS\tLEADS\tSTATUS\t")
	for _, o := range st.OSDs {
		r := o.Report
		if r == nil {
			r = &mon.Report{}
		}
		use := 0.0
		if r.Total > 0 {
			use = 100 * (1 - float64(r.Free)/float64(r.Total))
		}
		fmt.Fprintf(tw, "%d\t%.5f\t%.5f\t%s\t%s\t%.1f\t%d\t%d\t%s\t\n", o.ID, o.Weight, reweight(o.OSDInfo), humanize.IBytes(r.Total), humanize.IBytes(r.Free), use, r.Groups, r.Leads, upDown(o))
	}
	return tw.Flush()
}

func writeMons(w io.Writer, st *mon.Status) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NAME\tADDRESS")
	for _, m := range st.Mons {
		fmt.Fprintf(tw, "%s\t%s\n", m.Name, m.Addr)
	}
	return tw.Flush()
}
