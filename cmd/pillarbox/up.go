package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"pillarbox/mon"
	"pillarbox/objstore"
)

// upOptions are those of up and mount, checked.
type upOptions struct {
	data, point string // absolute and resolved
	conf        string // of a cluster's client, instead of data

	volumeDepth       int // 0: not said
	dirSync, nonempty bool
	timeout           time.Duration // of an operation of a cluster; 0: the client's default
	suid, dev, noExec bool
	debug             bool
	logFormat         string
	logFile           string // only in the background
	s3                s3Options
	metrics, pprof    string
	dirtyPerFile      int64  // bytes; 0: cachefs's default
	keyFile           string // of encrypted accounts; empty: none
	encrypt           bool   // new accounts
	cache             cacheOptions
	pools             poolFiles
	ship              shipOptions
	packAfter         time.Duration // 0: small mail stays on this disk
	poolArgs          []string      // of -o
}

const defaultVolumeDepth = 2

func upFlags() []cli.Flag {
	return append(append([]cli.Flag{
		&cli.StringFlag{Name: "data", Usage: "`DIR` that holds the store; made if missing"},
		&cli.StringFlag{Name: "conf", Usage: "instead of --data: `DIR` with the credentials of a cluster's client ('pillarbox join')"},
		&cli.IntFlag{Name: "volume-depth", Usage: "of a new store: accounts are the directories `N` levels below the mount point (default: 2, /<domain>/<user>)"},
		&cli.BoolFlag{Name: "dirsync", Usage: "make every rename, unlink, create and chmod wait until it is on stable storage"},
		&cli.BoolFlag{Name: "nonempty", Usage: "mount over a directory that is not empty"},
		&cli.StringFlag{Name: "o", Usage: "mount `OPTIONS` as in /etc/fstab, separated by commas"},
		&cli.StringFlag{Name: "s3", Value: s3Addr, Usage: "with --data: `HOST:PORT` to serve S3 on, or off"},
		keyFileFlag(), poolFlag(), packFlag(),
		&cli.BoolFlag{Name: "encrypt", Usage: "with --key-file: encrypt the mail of accounts that are made from now on, and of all in a new store"},
		metricsFlag(), pprofFlag(),
	}, append(append(cacheFlags(), s3Flags()...), shipFlags()...)...), logFlags()...)
}

func upCommand() *cli.Command {
	return &cli.Command{
		Name:      "up",
		Usage:     "open a store and mount it, until Ctrl-C",
		ArgsUsage: "MOUNTPOINT",
		Flags: append(upFlags(),
			&cli.IntFlag{Name: "ready-fd", Hidden: true, Value: -1},
			&cli.StringFlag{Name: "log-file", Hidden: true}),
		Action: func(c *cli.Context) error {
			opt, err := parseUp(c)
			if err != nil {
				return err
			}
			if fd := c.Int("ready-fd"); fd >= 0 {
				return upInBackground(c.Context, opt, os.NewFile(uintptr(fd), "ready"))
			}
			log, err := newLog(c.App.ErrWriter, opt.logFormat, opt.debug)
			if err != nil {
				return err
			}
			return up(c.Context, opt, log, upHooks{
				locked: func() error { return nil },
				ready:  func(d *dataDir) error { return greet(c.App.Writer, opt, d) },
			})
		},
	}
}

func greet(w io.Writer, opt upOptions, d *dataDir) error {
	point, data := shellQuote(opt.point), shellQuote(opt.data)
	if d == nil {
		_, err := fmt.Fprintf(w, "Pillarbox is up: the cluster's mail is in %s. Ctrl-C flushes, unmounts and ends.\n", point)
		return err
	}
	_, err := fmt.Fprintf(w, `Pillarbox is up: the mail lives in %[1]s
(store %[2]s in %[3]s; accounts are directories %[4]d levels deep)

Try next, in another terminal:
  mkdir -p %[1]s/example.org/alice/Maildir/new %[1]s/example.org/alice/Maildir/cur %[1]s/example.org/alice/Maildir/tmp
  pillarbox status --data %[3]s
  pillarbox bench %[1]s
then point Postfix and Dovecot at it. Ctrl-C flushes, unmounts and ends.
`, point, d.info.FSID, data, d.info.VolumeDepth)
	if errors.Is(err, unix.EPIPE) {
		return nil // whoever read our output has gone; the mail is served all the same
	}
	return err
}

// shellQuote makes a path ready to be pasted into a shell.
func shellQuote(s string) string {
	safe := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("/._-+:@%,", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !safe(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// upHooks are called when up has locked the data directory, and when the mount
// answers.
type upHooks struct {
	locked func() error
	ready  func(*dataDir) error
}

// up serves the store until a signal or an unmount ends it.
func up(ctx context.Context, opt upOptions, log *slog.Logger, hooks upHooks) (err error) {
	if opt.conf != "" {
		return upCluster(ctx, opt, log, hooks)
	}
	d, dead, err := prepare(opt)
	if d != nil {
		defer func() { err = errors.Join(err, d.release()) }()
	}
	if err != nil {
		return err
	}
	if err := hooks.locked(); err != nil {
		return err
	}
	if dead {
		if err := clearDead(opt.point, log); err != nil {
			return err
		}
		if _, err := checkMountpoint(opt.point, opt.nonempty); err != nil {
			return err
		}
	}
	signal.Ignore(unix.SIGPIPE) // a reader of our output that goes away must not end the mail
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)

	s, err := start(ctx, d, opt, log, signals)
	if err != nil {
		return err
	}
	adm, err := startAdmin(ctx, d, s, opt, log)
	var gateway *s3Server
	if err == nil {
		gateway, err = upS3(ctx, opt.s3, s, log)
	}
	var shown locals
	if err == nil {
		parts := []prometheus.Collector{osdMetrics(s.osd, log), newMountMetrics(s), s.pools, shipMetrics(s.ship, log), packMetrics(s, log)}
		if gateway != nil {
			parts = append(parts, gateway.metrics)
		}
		shown, err = serveLocals(opt, log, parts...)
	}
	if err == nil {
		err = hooks.ready(d)
	}
	if err != nil {
		return errors.Join(err, shown.close(), gateway.close(), adm.close(), shutdown(s, opt, log, signals))
	}
	debug.FreeOSMemory() // opening a store leaves much behind that is not needed again
	log.Info("serving", "mountpoint", opt.point, "data", opt.data, "fsid", d.info.FSID)
	select {
	case sig := <-signals:
		log.Info("ending: flushing and unmounting", "signal", sig.String())
	case <-s.mount.Done():
		log.Info("ending: the mount was taken down from outside", "mountpoint", opt.point)
	case <-s.ship.fencedOff():
		err = s.ship.fencedError()
	}
	return errors.Join(err, shown.close(), gateway.close(), adm.close(), shutdown(s, opt, log, signals))
}

// upS3 serves S3 beside the mount; nil: it does not.
func upS3(ctx context.Context, opt s3Options, s *stack, log *slog.Logger) (*s3Server, error) {
	if opt.addr == s3Off {
		return nil, nil
	}
	g, err := serveS3(ctx, opt, s3Namespace{s.fs, s.mount}, s.mon.S3Keys, log)
	if errors.Is(err, unix.EADDRINUSE) && !opt.asked {
		log.Warn("S3 is not served: another process has the port; --s3 chooses another", "addr", opt.addr)
		return nil, nil
	}
	return g, err
}

// prepare checks everything that can be checked without a change, then locks
// the data directory, making it if it is new.
func prepare(opt upOptions) (d *dataDir, dead bool, err error) {
	if err := checkApart(opt.point, opt.data); err != nil {
		return nil, false, err
	}
	if d, err = findDataDir(opt.data); err != nil {
		return nil, false, err
	}
	if d.info != nil {
		if err := d.takeLock(); err != nil {
			return nil, false, err
		}
		if opt.volumeDepth != 0 && opt.volumeDepth != d.info.VolumeDepth {
			return d, false, usageError("--volume-depth %d: the store in %s was made with %d, for life", opt.volumeDepth, d.path, d.info.VolumeDepth)
		}
	}
	if dead, err = checkMountpoint(opt.point, opt.nonempty); err != nil {
		return d, false, err
	}
	if err := checkFuse(); err != nil {
		return d, false, err
	}
	if d.info == nil {
		if d, err = makeStore(d, opt); err != nil {
			return d, false, err
		}
	}
	return d, dead, d.writePid()
}

// makeStore makes the data directory of a new store, unless another process
// just did.
func makeStore(d *dataDir, opt upOptions) (*dataDir, error) {
	if err := d.create(); err != nil {
		return d, err
	}
	if err := d.takeLock(); err != nil {
		return d, err
	}
	now, err := findDataDir(d.path)
	if err != nil {
		return d, err
	}
	if now.info != nil {
		d.info = now.info
		return d, nil
	}
	depth := opt.volumeDepth
	if depth == 0 {
		depth = defaultVolumeDepth
	}
	return d, d.writeInfo(&storeInfo{Format: firstStoreFormat, FSID: mon.NewFSID(), Created: time.Now().UTC().Truncate(time.Second), VolumeDepth: depth})
}

// start opens the store and mounts it. A signal cancels it.
func start(ctx context.Context, d *dataDir, opt upOptions, log *slog.Logger, signals <-chan os.Signal) (*stack, error) {
	opening, cancel := context.WithCancelCause(ctx)
	opened := make(chan struct{})
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case sig := <-signals:
			cancel(fmt.Errorf("interrupted by signal: %v", sig))
		case <-opened:
		}
	}()
	s, err := openStack(opening, d, opt, log)
	if err == nil && opt.ship.durability == durabilityRemote {
		if err = s.ship.arm(opening, log); err != nil {
			err = errors.Join(err, s.close())
		}
	}
	close(opened)
	<-watching
	defer cancel(nil)
	if err != nil {
		return nil, err
	}
	if err = context.Cause(opening); err == nil && !d.info.Complete {
		whole := *d.info
		whole.Complete = true
		err = d.writeInfo(&whole)
	}
	if err == nil && opt.encrypt {
		err = s.sealed.Encrypt(ctx)
	}
	if err == nil {
		err = s.ship.bound(opt.ship)
	}
	if err == nil {
		err = s.mountAt(ctx, opt.point, d.path, opt, log)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// checkKeys makes the key file's path absolute.
func (o *upOptions) checkKeys() error {
	if o.keyFile == "" {
		if o.encrypt {
			return usageError("--encrypt needs --key-file FILE; 'pillarbox key create' makes one")
		}
		return nil
	}
	path, err := absolute(o.keyFile)
	if err != nil {
		return failure(exitFailure, "key file: %w", err)
	}
	o.keyFile = path
	return nil
}

// parseUp reads the options of up and mount.
func parseUp(c *cli.Context) (upOptions, error) {
	opt := upOptions{
		volumeDepth: c.Int("volume-depth"), dirSync: c.Bool("dirsync"), nonempty: c.Bool("nonempty"),
		cache: parseCache(c),
		debug: c.Bool("debug"), logFormat: c.String("log-format"), logFile: c.String("log-file"), data: c.String("data"), conf: c.String("conf"),
		keyFile: c.String("key-file"), encrypt: c.Bool("encrypt"),
	}
	if c.IsSet("volume-depth") && opt.volumeDepth == 0 {
		opt.volumeDepth = -1 // refused below
	}
	if err := opt.parseMountOptions(c.String("o")); err != nil {
		return opt, err
	}
	var err error
	if opt.s3, err = parseS3(c, "s3"); err != nil {
		return opt, err
	}
	for flag, to := range map[string]*string{"metrics": &opt.metrics, "pprof": &opt.pprof} {
		if addr := c.String(flag); addr != "" {
			*to = addr
		}
		if err := checkLocal(flag, *to); err != nil {
			return opt, err
		}
	}
	names := []string{"MOUNTPOINT"}
	if c.NArg() == 2 && opt.data == "" && c.Command.Name == "mount" { // as mount(8) calls it
		names = []string{"DIR", "MOUNTPOINT"}
	}
	args, err := operands(c, names...)
	if err != nil {
		return opt, err
	}
	if len(args) == 2 {
		opt.data = trimSource(args[0])
	}
	if (opt.data == "") == (opt.conf == "") {
		return opt, usageError("pillarbox %s needs --data DIR, the directory that holds the store, or --conf DIR for a cluster's", c.Command.Name)
	}
	if opt.volumeDepth < 0 || opt.volumeDepth > objstore.MaxVolumeDepth {
		return opt, usageError("--volume-depth: must be 1 to %d", objstore.MaxVolumeDepth)
	}
	if _, err := newLog(io.Discard, opt.logFormat, opt.debug); err != nil {
		return opt, err
	}
	if opt.conf != "" {
		if opt.conf, err = absolute(opt.conf); err != nil {
			return opt, failure(exitFailure, "%w", err)
		}
	} else if opt.data, err = absolute(opt.data); err != nil {
		return opt, failure(exitFailure, "%w", err)
	}
	if err := opt.checkKeys(); err != nil {
		return opt, err
	}
	if opt.pools, err = parsePools(append(c.StringSlice("pool"), opt.poolArgs...)); err != nil {
		return opt, err
	}
	if len(opt.pools) > 0 && opt.keyFile == "" {
		return opt, usageError("--pool needs --key-file: only encrypted mail goes outside")
	}
	if opt.point, err = absolute(args[len(args)-1]); err != nil {
		return opt, failure(exitMountpoint, "mount point: %w", err)
	}
	if err := opt.checkShip(c); err != nil {
		return opt, err
	}
	if err := opt.checkPack(c); err != nil {
		return opt, err
	}
	return opt, opt.cache.check(&opt)
}
