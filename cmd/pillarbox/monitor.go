package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pillarbox/mon"
	"pillarbox/mon/monrpc"
	"pillarbox/mon/pki"
	"pillarbox/objstore"
)

func initCommand() *cli.Command {
	return &cli.Command{
		Name:  "init",
		Usage: "make a new cluster: its id, its certificate authority and its first monitor",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "data", Required: true, Usage: "`DIR` of the monitor; made"},
			&cli.StringFlag{Name: "addr", Required: true, Usage: "`HOST:PORT` where the monitor serves"},
			&cli.StringFlag{Name: "peer-addr", Usage: "`HOST:PORT` where the monitor hears the others (default: the next port)"},
			&cli.StringFlag{Name: "name", Value: "a", Usage: "`NAME` of the monitor"},
			&cli.IntFlag{Name: "volume-depth", Value: defaultVolumeDepth, Usage: "accounts are the directories `N` levels below the mount point; for life"},
			&cli.StringFlag{Name: "from", Usage: "make the cluster of the stopped one-host store in `DIR`, which becomes its first OSD; no mail is copied"},
			&cli.StringFlag{Name: "osd-addr", Usage: "with --from: `HOST:PORT` where that OSD will serve"},
			confFlag(),
		}, logFlags()...),
		Action: func(c *cli.Context) error {
			if _, err := operands(c); err != nil {
				return err
			}
			log, err := newLog(c.App.ErrWriter, c.String("log-format"), c.Bool("debug"))
			if err != nil {
				return err
			}
			if c.IsSet("osd-addr") && !c.IsSet("from") || c.IsSet("volume-depth") && c.IsSet("from") {
				return usageError("--osd-addr goes with --from, and --volume-depth does not")
			}
			return initCluster(c, log)
		},
	}
}

func checkAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" {
		return usageError("--addr %q: must be HOST:PORT, as others reach it", addr)
	}
	return nil
}

func initCluster(c *cli.Context, log *slog.Logger) (err error) {
	dir, conf, addr := c.String("data"), c.String("conf"), c.String("addr")
	id := pki.Identity{Role: pki.Mon, Name: "mon." + c.String("name")}
	if err := errors.Join(checkAddr(addr), id.Check()); err != nil {
		return usageError("%w", err)
	}
	peerAddr, err := peerAddrOf(c.String("peer-addr"), addr)
	if err != nil {
		return err
	}
	for _, d := range []string{dir, conf} {
		if err := unusedConf(d); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(dir, monDir)); err == nil {
		return failure(exitForeign, "%s holds a monitor already", dir)
	}
	fsid, depth := mon.NewFSID(), c.Int("volume-depth")
	var g *grown
	var seed *mon.Seed
	if from := c.String("from"); from != "" {
		if g, err = openGrown(c.Context, from, c.String("osd-addr"), log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, g.close()) }()
		seed, fsid, depth = g.seed, g.seed.Map.FSID, g.seed.Map.VolumeDepth
	}
	// The monitor's certificate is needed to start it, so the authority comes first.
	ca, err := pki.NewCA(fsid)
	if err != nil {
		return err
	}
	creds, err := mon.IssueBy(ca, id)
	if err != nil {
		return err
	}
	if err := creds.Save(dir); err != nil {
		return err
	}
	m, err := mon.Open(c.Context, mon.Options{
		Dir: filepath.Join(dir, monDir), FSID: fsid, Cluster: true, VolumeDepth: depth, Seed: seed, Log: log,
		Peer: &mon.Peer{Name: id.Name, Addr: peerAddr, TLS: dir},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.KeepCA(c.Context, ca); err != nil {
		return err
	}
	if seed != nil {
		if err := m.KeepS3(c.Context, seed.S3); err != nil {
			return err
		}
	}
	if err := m.Announce(c.Context, objstore.MonInfo{Name: id.Name, Addr: addr}); err != nil {
		return err
	}
	cm, err := m.Map(c.Context)
	if err != nil {
		return err
	}
	for _, who := range []struct {
		id  pki.Identity
		dir string
	}{{id, dir}, {pki.Identity{Role: pki.Admin, Name: "admin"}, conf}} {
		if who.id.Role != pki.Mon {
			creds, err := m.Issue(c.Context, who.id)
			if err != nil {
				return err
			}
			if err := creds.Save(who.dir); err != nil {
				return err
			}
		}
		cc := &clusterConf{FSID: cm.FSID, Name: who.id.Name, Mons: []string{addr}}
		if who.id.Role == pki.Mon {
			cc.Addr, cc.PeerAddr = addr, peerAddr
		}
		if err := cc.save(who.dir); err != nil {
			return err
		}
	}
	if g != nil {
		if err := g.finish(c.Context, m, addr); err != nil {
			return fmt.Errorf("make %s an OSD: %w", g.dir.path, err)
		}
		fmt.Fprintf(c.App.Writer, "The store in %s is osd.%d of it now: pillarbox osd --data %[1]s\n", g.dir.path, seed.Map.OSDs[0].ID)
	}
	_, err = fmt.Fprintf(c.App.Writer, `Cluster %[1]s is made; the admin's credentials are in %[2]s.

Next, on this machine:      pillarbox mon --data %[3]s
and then, for each disk:    pillarbox token create osd --conf %[2]s
on the disk's machine:      pillarbox osd --data /DISK --addr HOST:PORT --token TOKEN
for each mail host:         pillarbox token create client client.NAME --conf %[2]s
on the mail host:           pillarbox join TOKEN && pillarbox mount --conf %[4]s /mail
`, cm.FSID, shellQuote(conf), shellQuote(dir), defaultConf)
	return err
}

func monCommand() *cli.Command {
	return &cli.Command{
		Name:  "mon",
		Usage: "run a monitor, until Ctrl-C; with a subcommand: look after monitors",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "data", Usage: "`DIR` of the monitor, as 'pillarbox init' or the first start made it"},
			&cli.StringFlag{Name: "token", Usage: "one-time `TOKEN` to join with, at the first start of a further monitor", EnvVars: []string{"PILLARBOX_TOKEN"}},
			&cli.StringFlag{Name: "addr", Usage: "`HOST:PORT` where a further monitor serves"},
			&cli.StringFlag{Name: "peer-addr", Usage: "`HOST:PORT` where it hears the other monitors (default: the next port)"},
			&cli.DurationFlag{Name: "out-after", Value: mon.OutAfter, Usage: "`TIME` that an OSD is down before its data are brought elsewhere"},
			metricsFlag(),
		}, logFlags()...),
		Subcommands: []*cli.Command{
			{Name: "stat", Usage: "list the monitors", Flags: adminFlags(), Action: func(c *cli.Context) error { return giveStatus(c, writeMons) }},
			changing("mon rm", "remove a monitor from the quorum", "mon.NAME"),
		},
		Action: func(c *cli.Context) error {
			if _, err := operands(c); err != nil {
				return err
			}
			if c.String("data") == "" {
				return usageError("pillarbox mon needs --data DIR")
			}
			if err := checkMetrics(c.String("metrics")); err != nil {
				return err
			}
			log, err := newLog(c.App.ErrWriter, c.String("log-format"), c.Bool("debug"))
			if err != nil {
				return err
			}
			if err := joinMon(c); err != nil {
				return err
			}
			return untilSignal(c.Context, log, func(ctx context.Context) error {
				return runMon(ctx, c.String("data"), c.String("metrics"), mon.Options{OutAfter: c.Duration("out-after"), Log: log}, log)
			})
		},
	}
}

// peerAddrOf is the peers' address, by default the service's with the next port.
func peerAddrOf(said, addr string) (string, error) {
	if said != "" {
		return said, checkAddr(said)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", usageError("--addr %q: must be HOST:PORT, as others reach it", addr)
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65534 {
		return "", usageError("--addr %q: give --peer-addr, too, for this port has no next one", addr)
	}
	return net.JoinHostPort(host, strconv.Itoa(n+1)), nil
}

// joinMon makes a further monitor of a cluster at its first start.
func joinMon(c *cli.Context) error {
	dir := c.String("data")
	if unusedConf(dir) != nil {
		return nil // it has joined
	}
	text := c.String("token")
	if text == "" {
		return usageError("%s holds no monitor: 'pillarbox init' makes the first one, and --token joins a further one ('pillarbox token create mon mon.NAME')", dir)
	}
	t, err := pki.ParseToken(text)
	if err != nil {
		return usageError("%w", err)
	}
	addr := c.String("addr")
	if err := checkAddr(addr); err != nil {
		return err
	}
	peerAddr, err := peerAddrOf(c.String("peer-addr"), addr)
	if err != nil {
		return err
	}
	_, err = joinCluster(c.Context, dir, t, objstore.OSDInfo{}, &clusterConf{Addr: addr, PeerAddr: peerAddr})
	return err
}

// untilSignal runs a daemon until a signal ends its context.
func untilSignal(ctx context.Context, log *slog.Logger, run func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	err := run(ctx)
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		log.Info("ended by a signal")
		return nil
	}
	return err
}

func runMon(ctx context.Context, dir, metricsAddr string, opt mon.Options, log *slog.Logger) (err error) {
	conf, err := readConf(dir)
	if err != nil {
		return err
	}
	lock := &dataDir{path: dir}
	if err := lock.takeLock(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	creds, err := pki.Load(dir)
	if err != nil {
		return err
	}
	cfg, err := creds.TLS()
	if err != nil {
		return err
	}
	opt.Dir, opt.FSID, opt.Cluster = filepath.Join(dir, monDir), conf.FSID, true
	opt.Peer = &mon.Peer{Name: conf.Name, Addr: conf.PeerAddr, TLS: dir, Initial: conf.Initial}
	log.Info("starting; a majority of the monitors is needed", "name", conf.Name)
	m, err := mon.Open(ctx, opt)
	if err != nil {
		return withCode(err)
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	l, err := net.Listen("tcp", conf.Addr)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	s := monrpc.NewServer(m, cfg, log)
	shown, err := serveMetrics(metricsAddr, log, monMetrics(m, log), droppedMetrics(s.Dropped))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, shown.close()) }()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Serve(l) })
	g.Go(func() error { return m.Serve(ctx, objstore.MonInfo{Name: conf.Name, Addr: conf.Addr}) })
	g.Go(func() error {
		<-ctx.Done()
		s.Stop()
		return nil
	})
	log.Info("serving", "name", conf.Name, "addr", conf.Addr, "fsid", conf.FSID)
	return g.Wait()
}
