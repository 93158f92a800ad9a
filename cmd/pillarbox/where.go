package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

func whereCommand() *cli.Command {
	return &cli.Command{
		Name:      "where",
		Usage:     "say where a file of a cluster's mount is stored",
		ArgsUsage: "PATH",
		Flags:     adminFlags(),
		Action:    runWhere,
	}
}

// location is where something is stored.
type location struct {
	Pool   string           `json:"pool"`
	PG     uint32           `json:"pg"`
	OSDs   []int            `json:"osds"`             // the first one leads, or is asked first, when all are up; by shard in an erasure-coded pool, -1: none
	Coding *objstore.Coding `json:"coding,omitempty"` // of an erasure-coded pool
}

func placeOf(m *objstore.Map, p *objstore.Pool, pg uint32) location {
	return location{p.Name, pg, m.Acting(p, pg), p.Coding}
}

func (p location) String() string {
	if len(p.OSDs) == 0 {
		return p.Pool + ", outside"
	}
	on := "on"
	if p.Coding != nil {
		on = fmt.Sprintf("as %d+%d shards on", p.Coding.K, p.Coding.M)
	}
	return fmt.Sprintf("%s.%d %s %s", p.Pool, p.PG, on, osdNames(p.OSDs))
}

func osdNames(ids []int) string {
	var names []string
	for _, id := range ids {
		name := "none"
		if id >= 0 {
			name = fmt.Sprint("osd.", id)
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// whereAnswer is where a file is.
type whereAnswer struct {
	Path    string        `json:"path"`
	Inode   objstore.Ino  `json:"inode"`
	Volume  uint32        `json:"volume"`
	Size    uint64        `json:"size"`
	Meta    location      `json:"meta"`
	Extents []whereExtent `json:"extents"`
}

// whereExtent is where a part of it is.
type whereExtent struct {
	Off   uint64   `json:"off"`
	Len   uint32   `json:"len"`
	Kind  string   `json:"kind"` // inline: in the inode's record; resident: beside the volume; pooled: a chunk
	Chunk string   `json:"chunk,omitempty"`
	Place location `json:"place"`
}

func runWhere(c *cli.Context) error {
	if c.Args().Len() != 1 {
		return usageError("pillarbox where needs one PATH")
	}
	path := c.Args().First()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := onMount(path); err != nil {
		return err
	}
	s, err := openStore(c)
	if err != nil {
		return err
	}
	defer s.close()
	m, store := s.cmap, s.store
	ino := objstore.Ino(st.Ino)
	a, err := store.GetAttr(c.Context, ino)
	if err != nil {
		return fmt.Errorf("%s, inode %v of the cluster of %s: %w", path, ino, c.String("conf"), err)
	}
	ans := whereAnswer{Path: path, Inode: ino, Volume: uint32(ino.Volume()), Size: a.Size, Meta: placeOf(m, m.Meta(), m.Group(ino.Volume())), Extents: []whereExtent{}}
	if a.Mode&objstore.ModeType == objstore.ModeRegular {
		list, err := store.Extents(c.Context, ino, 0, math.MaxInt64)
		if err != nil {
			return err
		}
		for _, e := range list {
			ans.Extents = append(ans.Extents, whereIs(m, ans.Meta, &e))
		}
	}
	return show(c, ans, func(w io.Writer) error { return writeWhere(w, &ans) })
}

func whereIs(m *objstore.Map, meta location, e *objstore.Extent) whereExtent {
	w := whereExtent{Off: e.Off, Len: e.Len, Place: meta}
	switch e.Kind {
	case objstore.Hole:
		w.Kind = "hole"
	case objstore.Inline:
		w.Kind = "inline"
	case objstore.Resident:
		w.Kind, w.Chunk = "resident", e.Chunk.String()
	case objstore.Pooled:
		w.Kind, w.Chunk, w.Place = "pooled", e.Chunk.String(), location{Pool: fmt.Sprint("pool ", e.Chunk.Pool())}
		if p := m.PoolOf(e.Chunk); p != nil {
			w.Place = placeOf(m, p, p.ChunkPG(e.Chunk))
		}
	}
	return w
}

func writeWhere(w io.Writer, a *whereAnswer) error {
	fmt.Fprintf(w, "%s: inode %v of volume %d, %d bytes\nmetadata: %v\n", a.Path, a.Inode, a.Volume, a.Size, a.Meta)
	if len(a.Extents) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "OFFSET\tLENGTH\tKIND\tCHUNK\tPLACE")
	for _, e := range a.Extents {
		fmt.Fprintf(t, "%d\t%d\t%s\t%s\t%v\n", e.Off, e.Len, e.Kind, e.Chunk, e.Place)
	}
	return t.Flush()
}

func pgCommand() *cli.Command {
	return &cli.Command{Name: "pg", Usage: "look at placement groups", Subcommands: []*cli.Command{{
		Name: "dump", Usage: "list them all, with their OSDs", Flags: adminFlags(), Action: runPGDump,
	}}}
}

// pgAnswer is one placement group.
type pgAnswer struct {
	location
	Up []int `json:"up"` // of its OSDs, those that are up
}

func runPGDump(c *cli.Context) error {
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
	var list []pgAnswer
	for i := range m.Pools {
		p := &m.Pools[i]
		for pg := range uint32(p.PGs) {
			a := pgAnswer{placeOf(m, p, pg), []int{}}
			for _, id := range a.OSDs {
				if o := m.OSD(id); o != nil && o.Up {
					a.Up = append(a.Up, id)
				}
			}
			list = append(list, a)
		}
	}
	if c.String("format") == "json" {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(list)
	}
	t := tabwriter.NewWriter(c.App.Writer, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "PG\tACTING\tUP")
	for _, a := range list {
		fmt.Fprintf(t, "%s.%d\t%v\t%v\n", a.Pool, a.PG, a.OSDs, a.Up)
	}
	return t.Flush()
}
