package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"pillarbox/cachefs"
	"pillarbox/objstore"
)

func warmupCommand() *cli.Command {
	return &cli.Command{
		Name:      "warmup",
		Usage:     "bring what lies below some paths of a mount into this host's caches",
		ArgsUsage: "PATH...",
		Description: "Names, attributes and bodies; of bodies as many bytes as the disk cache may have, or --bytes.\n" +
			"Four files are read at a time. Without a disk cache, bodies come into the memory of this host's kernel or OSDs only.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "bytes", Usage: "bring at most so many `BYTES` of bodies, as in 10GiB"},
			formatFlag(),
		},
		Action: runWarmup,
	}
}

// treeRequest names what a request to a mount is about.
type treeRequest struct {
	Inos []objstore.Ino
	Max  uint64 // bytes of bodies; 0: what the disk cache may have
}

// warmLine is how far a warmup is; one comes from time to time, and at the end.
type warmLine struct {
	Warmed cachefs.Warmed
	Done   bool
	Error  string
}

// treesOf sorts paths by the mounts that they lie in, whose directories with the
// admin socket are the keys.
func treesOf(paths []string) (map[string][]objstore.Ino, error) {
	trees := map[string][]objstore.Ino{}
	for _, path := range paths {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		at, err := absolute(path)
		if err != nil {
			return nil, err
		}
		var mnt *mountEntry
		for ; mnt == nil; at = filepath.Dir(at) {
			if mnt, err = mountAt(at); err != nil {
				return nil, err
			}
			if at == "/" {
				break
			}
		}
		dir, ok := mnt.dataDir()
		if !ok {
			return nil, failure(exitInUse, "%s is on no Pillarbox mount", path)
		}
		trees[dir] = append(trees[dir], objstore.Ino(st.Ino))
	}
	return trees, nil
}

func (a *admin) serveWarmup(w http.ResponseWriter, r *http.Request) {
	var q treeRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAnswer)).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if q.Max == 0 {
		if q.Max = 1 << 62; a.s.cache != nil {
			q.Max = uint64(a.s.cache.Stats().Size)
		}
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var warming cachefs.Warming
	ended := make(chan error, 1)
	go func() { ended <- a.s.fs.Warm(ctx, &warming, q.Max, q.Inos...) }()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	closing := a.closing
	for out := (warmLine{}); !out.Done; {
		select {
		case <-tick.C:
		case <-closing:
			cancel()
			closing = nil
		case err := <-ended:
			if out.Done = true; err != nil {
				out.Error = oneLine(err)
			}
		}
		out.Warmed = warming.So(q.Max)
		if err := json.NewEncoder(w).Encode(out); err != nil {
			cancel()
			if !out.Done {
				<-ended
			}
			return
		}
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
	}
}

func runWarmup(c *cli.Context) error {
	format, max := c.String("format"), uint64(0)
	if c.NArg() == 0 {
		return usageError("pillarbox warmup needs a PATH")
	}
	if s := c.String("bytes"); s != "" {
		var err error
		if max, err = humanize.ParseBytes(s); err != nil || max == 0 {
			return usageError("--bytes %q: must be a number of bytes, as in 10GiB", s)
		}
	}
	trees, err := treesOf(c.Args().Slice())
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM)
	defer stop()
	bar := progressbar.NewOptions(-1, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionClearOnFinish(), progressbar.OptionSetVisibility(isTerminal(os.Stderr)))
	var all cachefs.Warmed
	for dir, inos := range trees {
		got, werr := warmAt(ctx, dir, treeRequest{inos, max}, func(w cachefs.Warmed) {
			bar.Describe(fmt.Sprintf("%d messages, %s brought, %s near already", w.Files, humanize.IBytes(w.Bytes), humanize.IBytes(w.Near)))
			_ = bar.Add(1) // it only draws
		})
		all = cachefs.Warmed{
			Dirs: all.Dirs + got.Dirs, Files: all.Files + got.Files, Near: all.Near + got.Near, Bytes: all.Bytes + got.Bytes,
			Failed: all.Failed + got.Failed, Full: all.Full || got.Full,
		}
		err = errors.Join(err, werr)
	}
	_ = bar.Finish()
	if format == "json" {
		return errors.Join(json.NewEncoder(c.App.Writer).Encode(all), err)
	}
	fmt.Fprintf(c.App.Writer, "%d directories, %d messages and other files; %s of bodies brought, %s were near already\n",
		all.Dirs, all.Files, humanize.IBytes(all.Bytes), humanize.IBytes(all.Near))
	if all.Full {
		fmt.Fprintln(c.App.Writer, "Bodies were left out: what was asked for is more than the disk cache may have, or than --bytes.")
	}
	return err
}

func warmAt(ctx context.Context, dir string, q treeRequest, show func(cachefs.Warmed)) (cachefs.Warmed, error) {
	var line warmLine
	body, err := openAdmin(ctx, dir, http.MethodPost, "/warmup", q)
	if err != nil {
		return line.Warmed, err
	}
	defer body.Close()
	for dec := json.NewDecoder(body); !line.Done; {
		if err := dec.Decode(&line); err != nil {
			if ctx.Err() != nil {
				return line.Warmed, errors.New("interrupted")
			}
			if errors.Is(err, io.EOF) {
				err = errors.New("the mount ended")
			}
			return line.Warmed, fmt.Errorf("warm up: %w", err)
		}
		show(line.Warmed)
	}
	if line.Error != "" {
		return line.Warmed, fmt.Errorf("warm up: %s", line.Error)
	}
	return line.Warmed, nil
}
