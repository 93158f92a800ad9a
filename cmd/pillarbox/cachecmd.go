package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
)

func cacheCommand() *cli.Command {
	format := formatFlag()
	return &cli.Command{Name: "cache", Usage: "look at, and empty, what mounts of this host keep near", Subcommands: []*cli.Command{
		{
			Name: "stats", Usage: "say how the caches of a mount do, or of all mounts of this host", ArgsUsage: "[MOUNTPOINT]",
			Flags: []cli.Flag{format}, Action: runCacheStats,
		},
		{
			Name: "drop", Usage: "forget what is kept of what lies below some paths of a mount", ArgsUsage: "PATH...",
			Description: "Bodies in the disk cache and in the kernel's memory, and names and attributes of the accounts that they\n" +
				"lie in. What is not committed yet stays; everything comes again when it is asked for.",
			Flags: []cli.Flag{format}, Action: runCacheDrop,
		},
	}}
}

// cacheReport is how the caches of one mount do.
type cacheReport struct {
	Mountpoint string `json:"mountpoint"`
	*mountStats
}

func runCacheStats(c *cli.Context) error {
	points := c.Args().Slice()
	if len(points) > 1 {
		return usageError("pillarbox cache stats takes one MOUNTPOINT")
	}
	if len(points) == 0 {
		var err error
		if points, err = ourMounts(); err != nil {
			return err
		}
	}
	var list []cacheReport
	var failed error
	for _, p := range points {
		r := cacheReport{p, &mountStats{}}
		if err := askMount(c.Context, p, http.MethodGet, "/stats", nil, r.mountStats); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		r.Ops = nil // that is what stats is for
		list = append(list, r)
	}
	return errors.Join(show(c, list, func(w io.Writer) error { return writeCaches(w, list) }), failed)
}

func writeCaches(w io.Writer, list []cacheReport) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	answered := func(name string, hits, misses uint64, of string) {
		if p := part(hits, misses); p != nil {
			row("  "+name, "%.1f%% of %s answered here", 100**p, of)
			return
		}
		row("  "+name, "not asked yet")
	}
	found := func(name string, f client.Found) { answered(name, f.Hits, f.Misses, fmt.Sprint(f.Hits+f.Misses)) }
	for _, r := range list {
		row("mount point", "%s", r.Mountpoint)
		row("memory", "%s of %s", humanize.IBytes(uint64(r.Memory.Used)), humanize.IBytes(uint64(r.Memory.Max)))
		row("  not committed", "%s", humanize.IBytes(uint64(r.Files.Dirty)))
		row("  open files", "%s", humanize.IBytes(uint64(r.Files.Bodies)))
		if m := r.Client; m != nil {
			row("  metadata", "%s of %s", humanize.IBytes(uint64(m.Bytes)), humanize.IBytes(uint64(m.MaxBytes)))
			found("names", m.Names)
			found("attributes", m.Attrs)
			found("extents", m.Extents)
		}
		d := r.Cache
		switch {
		case d == nil && r.Client == nil:
			row("disk cache", "none: the store is on this host; of bodies in a pool outside --cache-dir keeps some")
			continue
		case d == nil:
			row("disk cache", "none; --cache-dir of the mount makes one")
			continue
		case d.Away != "":
			row("disk cache", "cannot be used: %s", d.Away)
		default:
			row("disk cache", "%s of %s", humanize.IBytes(uint64(d.Used)), humanize.IBytes(uint64(d.Size)))
		}
		answered("bytes", d.HitBytes, d.MissBytes, humanize.IBytes(d.HitBytes+d.MissBytes))
		row("  read ahead", "%s, of which %s were read and %s were not needed", humanize.IBytes(r.Files.Prefetched), humanize.IBytes(r.Files.Used), humanize.IBytes(r.Files.Wasted))
		row("  bodies", "%d stored, %d evicted, %d damaged, %d not kept", d.Stored, d.Evicted, d.Damaged, d.Skipped)
	}
	return t.Flush()
}

// cacheDropped is what was forgotten.
type cacheDropped struct {
	Bodies int   `json:"bodies"` // in the disk cache
	Bytes  int64 `json:"bytes"`  // of disk that they took
	Files  int   `json:"files"`  // that were looked at
}

func (a *admin) serveDrop(w http.ResponseWriter, r *http.Request) {
	var q treeRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAnswer)).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if a.s.osd != nil && a.s.cache == nil {
		http.Error(w, "a store of one host without --cache-dir keeps nothing beside itself", http.StatusBadRequest)
		return
	}
	var out cacheDropped
	vols, whole, inos := map[objstore.VolumeID]bool{}, map[objstore.VolumeID]bool{}, map[objstore.Ino]bool{}
	err := a.s.fs.Walk(r.Context(), q.Inos, func(at *objstore.Attr) error {
		vols[at.Ino.Volume()] = true
		if at.Ino.IsVolumeRoot() {
			whole[at.Ino.Volume()] = true
		}
		if at.Mode&objstore.ModeType == objstore.ModeRegular {
			out.Files++
			a.s.fs.DropPages(at.Ino)
			if !whole[at.Ino.Volume()] {
				inos[at.Ino] = true
			}
		}
		return nil
	})
	a.s.client.Forget(func(v objstore.VolumeID) bool { return vols[v] })
	if err == nil && a.s.cache != nil {
		a.s.cache.Wait() // for what is on its way into it
		out.Bodies, out.Bytes, err = a.s.cache.Drop(func(ino objstore.Ino) bool { return whole[ino.Volume()] || inos[ino] })
	}
	if err != nil {
		http.Error(w, oneLine(err), http.StatusInternalServerError)
		return
	}
	a.answer(w, out)
}

func runCacheDrop(c *cli.Context) error {
	format := c.String("format")
	if c.NArg() == 0 {
		return usageError("pillarbox cache drop needs a PATH")
	}
	trees, err := treesOf(c.Args().Slice())
	if err != nil {
		return err
	}
	var all cacheDropped
	for dir, inos := range trees {
		body, derr := openAdmin(c.Context, dir, http.MethodPost, "/drop", treeRequest{Inos: inos})
		if derr == nil {
			var d cacheDropped
			derr = errors.Join(json.NewDecoder(body).Decode(&d), body.Close())
			all = cacheDropped{all.Bodies + d.Bodies, all.Bytes + d.Bytes, all.Files + d.Files}
		}
		err = errors.Join(err, derr)
	}
	if err != nil && all == (cacheDropped{}) {
		return err
	}
	if format == "json" {
		return errors.Join(err, json.NewEncoder(c.App.Writer).Encode(all))
	}
	fmt.Fprintf(c.App.Writer, "%d files; %d bodies, %s of disk\n", all.Files, all.Bodies, humanize.IBytes(uint64(all.Bytes)))
	return err
}
