package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"pillarbox/osd/osdrpc"
)

func scrubCommand() *cli.Command {
	return &cli.Command{
		Name:      "scrub",
		Usage:     "have OSDs read all their chunks now, and heal what is damaged",
		ArgsUsage: "[OSD...]",
		Description: "Without OSDs, all that are up. Waits until they are done. Exits with 9 when chunks are damaged\n" +
			"that no other OSD has a good copy of. OSDs scrub by themselves about once a week.",
		Flags:  adminFlags(),
		Action: runScrub,
	}
}

// scrubAnswer is what one OSD's scrub came to.
type scrubAnswer struct {
	OSD    int       `json:"osd"`
	Ended  time.Time `json:"ended,omitzero"`
	Chunks int       `json:"chunks"`
	Healed int       `json:"healed"`
	Bad    int       `json:"bad"`
	Error  string    `json:"error,omitempty"`
}

func runScrub(c *cli.Context) error {
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelError}))
	self, err := openMember(c.String("conf"), log)
	if err != nil {
		return err
	}
	defer self.mons.Close()
	m, err := self.mons.Map(c.Context)
	if err != nil {
		return err
	}
	var answers []scrubAnswer
	for _, arg := range c.Args().Slice() {
		id, err := strconv.Atoi(strings.TrimPrefix(arg, "osd."))
		if err != nil || m.OSD(id) == nil {
			return usageError("no OSD %q", arg)
		}
		answers = append(answers, scrubAnswer{OSD: id})
	}
	if len(answers) == 0 {
		for _, o := range m.OSDs {
			if o.Up {
				answers = append(answers, scrubAnswer{OSD: o.ID})
			}
		}
	}
	conns := osdrpc.NewConns(osdrpc.Options{Self: -1, TLS: self.tls, Log: log})
	defer conns.Close()
	if err := conns.SetMap(m); err != nil {
		return err
	}
	var g errgroup.Group
	for i := range answers {
		a := &answers[i]
		g.Go(func() error {
			conn, err := conns.Conn(a.OSD)
			if err == nil {
				s, serr := conn.Scrub(c.Context)
				a.Ended, a.Chunks, a.Healed, a.Bad, err = s.Ended, s.Chunks, s.Healed, s.Bad, serr
			}
			if err != nil {
				a.Error = err.Error()
			}
			return nil
		})
	}
	g.Wait()
	if c.String("format") == "json" {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		err = enc.Encode(answers)
	} else {
		err = writeScrubs(c.App.Writer, answers)
	}
	if err != nil {
		return err
	}
	return scrubVerdict(answers)
}

func writeScrubs(w io.Writer, answers []scrubAnswer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "OSD\tCHUNKS\tHEALED\tDAMAGED\t")
	for _, a := range answers {
		fmt.Fprintf(t, "osd.%d\t%d\t%d\t%d\t%s\n", a.OSD, a.Chunks, a.Healed, a.Bad, a.Error)
	}
	return t.Flush()
}

func scrubVerdict(answers []scrubAnswer) error {
	bad, failed := 0, 0
	for _, a := range answers {
		bad += a.Bad
		if a.Error != "" {
			failed++
		}
	}
	switch {
	case bad > 0:
		return failure(exitDamaged, "%d chunks are damaged, and no other OSD has a good copy", bad)
	case failed > 0:
		return fmt.Errorf("%d of %d OSDs could not be scrubbed", failed, len(answers))
	}
	return nil
}
