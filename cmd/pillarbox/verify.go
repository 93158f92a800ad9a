package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/ship"
)

// leftFor is how old an object that nothing names must be to be removed: should
// another store use the same prefix against all advice, what is new there is spared.
const leftFor = 7 * 24 * time.Hour

// verifySpan is how many bytes of a file are looked at in one go.
const verifySpan = 1 << 30

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "prove that everything in an outside pool is there and can be decrypted", ArgsUsage: "POOL",
		Description: "Reads every body in the pool; needs the key file. With --data the store must be stopped; if it is shipped to the\n" +
			"pool, everything shipped is read, too, and compared with the store, as a rebuild would find it.\n" +
			"Exit codes: 0 all is well, 1 something is missing or damaged.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "data", Usage: "`DIR` of a store of one host"}, confFlag(), keyFileFlag(), poolFlag(),
			&cli.BoolFlag{Name: "remove", Usage: "with --data: remove objects a week old that no file names: those of a host that died"},
		},
		Action: func(c *cli.Context) error {
			args, err := operands(c, "POOL")
			if err != nil {
				return err
			}
			return runVerify(c, args[0])
		},
	}
}

func runVerify(c *cli.Context, name string) (err error) {
	opt := upOptions{keyFile: c.String("key-file"), data: c.String("data"), conf: c.String("conf")}
	if err := opt.checkKeys(); err != nil {
		return err
	}
	if opt.pools, err = parsePools(c.StringSlice("pool")); err != nil {
		return err
	}
	if c.Bool("remove") && opt.data == "" {
		return usageError("--remove needs a store that is stopped (--data): in one that runs, a file that moves meanwhile could be missed, and what it names be removed")
	}
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelError}))
	s, end, err := openToVerify(c.Context, opt, log)
	if err != nil {
		return err
	}
	v := &verifier{s: s, out: c.App.Writer, runs: opt.data == "", named: map[string]bool{}}
	err = v.run(c.Context, name, opt, c.Bool("remove"))
	if err2 := end(); err == nil {
		err = err2
	}
	return err
}

func openToVerify(ctx context.Context, opt upOptions, log *slog.Logger) (*stack, func() error, error) {
	if opt.data == "" {
		s, err := openClusterStack(ctx, opt, log)
		if err != nil {
			return nil, nil, err
		}
		s.fs.SetKernel(noKernel{})
		return s, s.close, nil
	}
	path, err := absolute(opt.data)
	if err != nil {
		return nil, nil, err
	}
	d, err := findDataDir(path)
	if err != nil {
		return nil, nil, err
	}
	if d.info == nil {
		return nil, nil, failure(exitForeign, "%s holds no store", path)
	}
	if err := d.takeLock(); err != nil {
		return nil, nil, err
	}
	s, err := openStack(ctx, d, opt, log)
	if err != nil {
		d.release()
		return nil, nil, err
	}
	return s, func() error {
		err := s.close()
		if err2 := d.release(); err == nil {
			err = err2
		}
		return err
	}, nil
}

// verifier goes through a store's files.
type verifier struct {
	s       *stack
	out     io.Writer
	runs    bool // the store does: files may go meanwhile
	pool    *objstore.Pool
	named   map[string]bool // objects
	checked bool            // what was shipped, too
	chunks  int
	bytes   uint64
	bad     int
}

func (v *verifier) run(ctx context.Context, name string, opt upOptions, remove bool) error {
	if v.pool = v.s.cmap.PoolNamed(name); v.pool == nil || v.pool.Outside == nil {
		return usageError("there is no outside pool %q", name)
	}
	if err := v.dir(ctx, objstore.VolumeRoot(objstore.RootVolume), "/"); err != nil {
		return err
	}
	store, err := v.s.openPool(opt.pools)(ctx, v.pool)
	if err != nil {
		return err
	}
	if err := v.s.client.EmptyOutside(ctx); err != nil {
		return err
	}
	shipped := v.shipped(ctx, store, opt.keyFile)
	if shipped != nil {
		fmt.Fprintf(v.out, "%v\n", shipped)
	}
	left, err := v.leftovers(ctx, store, remove)
	if err != nil {
		return err
	}
	fmt.Fprintf(v.out, "%d chunks, %d bytes: %d missing or damaged; %d objects that nothing names\n", v.chunks, v.bytes, v.bad, left)
	if v.bad > 0 {
		return failure(exitFailure, "%d chunks of pool %s are missing or damaged", v.bad, name)
	}
	return shipped
}

func (v *verifier) dir(ctx context.Context, dir objstore.Ino, path string) error {
	const page = 1000
	for after := uint64(0); ; {
		list, err := v.s.sealed.ReadDir(ctx, dir, after, page, false)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, e := range list {
			after = e.Cookie
			switch e.Type {
			case objstore.ModeDir:
				err = v.dir(ctx, e.Ino, path+e.Name+"/")
			case objstore.ModeRegular:
				err = v.file(ctx, e.Ino, path+e.Name)
			}
			if err != nil && !v.gone(err) {
				return err
			}
		}
		if len(list) < page {
			return nil
		}
	}
}

// gone says that what was to be looked at was removed meanwhile. In a store that
// does not run nothing is, and what cannot be looked at ends the run: its objects
// would be taken for leftovers.
func (v *verifier) gone(err error) bool {
	return v.runs && objstore.Gone(err)
}

// moved says that an extent lies elsewhere by now, in a store that runs.
func (v *verifier) moved(ctx context.Context, ino objstore.Ino, e objstore.Extent) bool {
	if !v.runs {
		return false
	}
	now, err := v.s.sealed.Extents(ctx, ino, e.Off, uint64(e.Len))
	return err == nil && !slices.ContainsFunc(now, func(n objstore.Extent) bool { return n.Chunk == e.Chunk })
}

func (v *verifier) file(ctx context.Context, ino objstore.Ino, path string) error {
	for off := uint64(0); ; {
		list, err := v.s.sealed.Extents(ctx, ino, off, verifySpan)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, e := range list {
			if e.Kind != objstore.Pooled || e.Chunk.Pool() != v.pool.ID {
				continue
			}
			v.named[pool.Name(e.Chunk)] = true
			v.chunks++
			v.bytes += uint64(e.Len)
			if err := v.s.sealed.ReadChunk(ctx, e.Chunk, e.ChunkOff, make([]byte, e.Len)); err != nil && (v.gone(err) || v.moved(ctx, ino, e)) {
				return nil // removed or written anew meanwhile
			} else if err != nil {
				v.bad++
				fmt.Fprintf(v.out, "%s: at %d: %v\n", path, e.Off, err)
			}
		}
		a, err := v.s.sealed.GetAttr(ctx, ino)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if off += verifySpan; off >= a.Size {
			return nil
		}
	}
}

// leftovers counts objects of the pool that no file names, and removes old ones.
func (v *verifier) leftovers(ctx context.Context, store pool.Store, remove bool) (n int, err error) {
	var old []string
	err = pool.Each(ctx, store, func(o pool.Object) error {
		if _, body := pool.ParseName(o.Name); v.named[o.Name] || !body && !(v.checked && ship.Is(o.Name)) {
			return nil
		}
		n++
		if time.Since(o.Modified) > leftFor {
			old = append(old, o.Name)
		}
		return nil
	})
	if err == nil && remove {
		err = store.Delete(ctx, old)
	}
	return n, err
}
