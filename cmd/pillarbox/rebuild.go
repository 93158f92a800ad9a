package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"pillarbox/mon"
	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/layer"
	"pillarbox/objstore/seal"
	"pillarbox/objstore/ship"
	"pillarbox/objstore/volume"
	"pillarbox/osd"
)

// rebuildMark is in a data directory whose rebuild is not done.
const rebuildMark = "rebuilding"

// sparedSessions is how many session ids a rebuild leaves out: those that the host
// which is no more may have used after what it shipped last.
const sparedSessions = 4096

func rebuildCommand() *cli.Command {
	return &cli.Command{
		Name: "rebuild", Usage: "bring a store of one host back from the outside pool it was shipped to", ArgsUsage: " ",
		Description: "Makes DIR, which must be empty, or hold a rebuild that was cut short: that begins anew. Then start 'pillarbox up'\n" +
			"as before. The old host is taken off: it ends if it runs, and is refused should it come back. The manual is docs/outside.md.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "from", Required: true, Usage: "settings of the pool, the `FILE` that --pool had"},
			&cli.StringFlag{Name: "key-file", Required: true, Usage: "`FILE` with the master keys"},
			&cli.StringFlag{Name: "data", Usage: "`DIR` to make"},
			&cli.BoolFlag{Name: "dry-run", Usage: "instead of --data: only read everything and say whether a rebuild would work; the host that ships goes on"},
		},
		Action: func(c *cli.Context) error {
			if _, err := operands(c); err != nil {
				return err
			}
			if c.Bool("dry-run") == (c.String("data") != "") {
				return usageError("rebuild needs --data DIR, or --dry-run")
			}
			if c.Bool("dry-run") {
				return withCode(dryRebuild(c.Context, c.App.Writer, c.String("from"), c.String("key-file")))
			}
			path, err := absolute(c.String("data"))
			if err != nil {
				return failure(exitFailure, "%w", err)
			}
			r := rebuilder{out: c.App.Writer, log: slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelWarn}))}
			return withCode(r.run(c.Context, path, c.String("from"), c.String("key-file")))
		},
	}
}

// openPlace opens the place that a file with a pool's settings says.
func openPlace(ctx context.Context, path string) (pool.Store, error) {
	kind, settings, err := readPoolFile(path)
	if err != nil {
		return nil, err
	}
	p := &objstore.Pool{Name: "pool", Outside: &objstore.Outside{Type: kind, Settings: settings}}
	return poolFiles{}.open(ctx, p, layer.NewMetrics())
}

// findShipped looks for what was shipped to a place.
func findShipped(ctx context.Context, store pool.Store, keyFile string) (*ship.Found, *shipped, error) {
	keys, err := seal.ReadKeys(keyFile)
	if err != nil {
		return nil, nil, err
	}
	found, err := ship.Find(ctx, store, keys)
	if err != nil {
		return nil, nil, err
	}
	about := &shipped{}
	if err := json.Unmarshal(found.Manifest.About, about); err != nil || about.Map == nil {
		return nil, nil, fmt.Errorf("what was shipped does not say what store it is: %w", errors.Join(objstore.Corrupt, err))
	}
	return found, about, about.Map.Validate()
}

// dryRebuild reads all that a rebuild would.
func dryRebuild(ctx context.Context, out io.Writer, from, keyFile string) error {
	place, err := openPlace(ctx, from)
	if err != nil {
		return err
	}
	found, about, err := findShipped(ctx, place, keyFile)
	if err != nil {
		return err
	}
	n, shown := int64(0), newBar("reading")
	defer shown.close()
	err = found.Read(ctx, func(volume.Delta) error { return nil }, func(done, total int64) {
		n = done
		shown.show("reading", done, total)
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "store %s of host %s: all that was shipped is there, %s\n", about.FSID, found.Mark.Host, humanize.IBytes(uint64(n)))
	return err
}

// rebuilder makes a data directory of what was shipped.
type rebuilder struct {
	out io.Writer
	log *slog.Logger
}

func (r *rebuilder) run(ctx context.Context, path, from, keyFile string) (err error) {
	place, err := openPlace(ctx, from)
	if err != nil {
		return err
	}
	found, about, err := findShipped(ctx, place, keyFile)
	if err != nil {
		return err
	}
	store := pool.Owned(place, about.FSID)
	d, err := r.directory(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.release()) }()
	if found, _, err = findShipped(ctx, store, keyFile); err != nil { // through what makes sure of the place
		return err
	}
	st, err := found.Claim(ctx, d.path, about.Pool)
	if err != nil {
		return fmt.Errorf("take the store over: %w", err)
	}
	// Whatever the old host wrote until now is found from here on.
	if found, about, err = r.again(ctx, store, keyFile, found); err != nil {
		return err
	}
	n, err := r.fill(ctx, d, found, about)
	if err != nil {
		return err
	}
	if found.Newer {
		r.log.Warn("the pool has objects that are later than its manifest: the old host was shipping everything anew and did not finish, or the provider gives an old manifest; what follows is as of before")
	}
	about.Session += sparedSessions
	b, err := json.Marshal(about)
	if err != nil {
		return err
	}
	if err := found.TakeOver(ctx, st, 0, b); err != nil {
		return fmt.Errorf("take the store over: %w", err)
	}
	info := &storeInfo{Format: storeFormat, FSID: about.FSID, Created: about.Created, VolumeDepth: about.VolumeDepth, Complete: true}
	if err := os.Remove(d.file(rebuildMark)); err != nil { // before it is a store, which no later rebuild may clear
		return err
	}
	if err := d.writeInfo(info); err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.out, "rebuilt store %s in %s: %s of names and small bodies; large ones stay in the pool.\nStart it as before: pillarbox up --data %s --key-file %s --pool %s=%s ... MOUNTPOINT\n",
		about.FSID, d.path, humanize.IBytes(uint64(n)), shellQuote(d.path), shellQuote(keyFile), about.Pool, shellQuote(from))
	return err
}

// again reads the manifest once more, with the epoch that was just made.
func (r *rebuilder) again(ctx context.Context, store pool.Store, keyFile string, before *ship.Found) (*ship.Found, *shipped, error) {
	found, about, err := findShipped(ctx, store, keyFile)
	if err == nil && found.Mark.Epoch != before.Mark.Epoch {
		err = fmt.Errorf("another rebuild of this store has just finished: %w", objstore.Fenced)
	}
	return found, about, err
}

// directory makes the data directory, or clears what an earlier rebuild left.
func (r *rebuilder) directory(path string) (*dataDir, error) {
	d := &dataDir{path: path}
	if _, err := os.Stat(d.file(rebuildMark)); errors.Is(err, fs.ErrNotExist) {
		if d, err = findDataDir(path); err != nil {
			return nil, err
		}
		if d.info != nil {
			return nil, failure(exitForeign, "%s holds a store already", path)
		}
	} else if err != nil {
		return nil, err
	}
	if err := d.create(); err != nil {
		return nil, err
	}
	if err := d.takeLock(); err != nil {
		return nil, err
	}
	err := writeSynced(d.file(rebuildMark), nil)
	for _, name := range []string{storeFile, monDir, osdDir, ship.StateFile, ship.PosFile} {
		err = errors.Join(err, os.RemoveAll(d.file(name)))
	}
	if err != nil {
		return nil, errors.Join(err, d.release())
	}
	return d, nil
}

// fill makes monitor and OSD, and returns how many bytes came.
func (r *rebuilder) fill(ctx context.Context, d *dataDir, found *ship.Found, about *shipped) (n int64, err error) {
	m, err := mon.Open(ctx, mon.Options{Dir: d.file(monDir), FSID: about.FSID, VolumeDepth: about.VolumeDepth, Log: r.log,
		Seed: &mon.Seed{Map: about.Map, Session: about.Session + sparedSessions}})
	if err != nil {
		return 0, err
	}
	if err := errors.Join(m.KeepS3(ctx, about.S3), m.Close()); err != nil {
		return 0, err
	}
	keep := uint64(0)
	opt := osd.Options{Dir: d.file(osdDir), Map: about.Map, Keep: &keep, Log: r.log}
	o, err := osd.Open(ctx, opt)
	if err != nil {
		return 0, err
	}
	shown := newBar("fetching")
	err = found.Read(ctx, func(delta volume.Delta) error { return o.Restore(delta) }, func(done, total int64) {
		n = done
		shown.show("fetching", done, total)
	})
	shown.close()
	if err = errors.Join(err, o.Close()); err != nil {
		return 0, err
	}
	// What was open when the old host ended, and has no name, goes.
	opt.Unclean = true
	if o, err = osd.Open(ctx, opt); err != nil {
		return 0, err
	}
	select {
	case <-o.Settled():
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return n, errors.Join(err, o.Close())
}
