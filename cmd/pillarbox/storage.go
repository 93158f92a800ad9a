package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"pillarbox/mon"
	"pillarbox/mon/monrpc"
	"pillarbox/mon/pki"
	"pillarbox/objstore"
	"pillarbox/osd"
	"pillarbox/osd/osdrpc"
)

const osdData = "osd" // in an OSD's directory

// osdOptions are those of the daemon.
type osdOptions struct {
	dir, addr, token string
	host, rack       string
	weight           float64
	metrics          string
	leftoverAfter    time.Duration
}

func osdCommand() *cli.Command {
	return &cli.Command{
		Name:  "osd",
		Usage: "run an object storage daemon, until Ctrl-C; with a subcommand: look after OSDs",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "data", Usage: "`DIR` on the OSD's disk; made if missing"},
			&cli.StringFlag{Name: "addr", Usage: "`HOST:PORT` where the OSD serves, as others reach it"},
			&cli.StringFlag{Name: "token", Usage: "one-time `TOKEN` to join with, at the first start", EnvVars: []string{"PILLARBOX_TOKEN"}},
			&cli.StringFlag{Name: "host", Usage: "`NAME` of the machine, for the failure domains (default: its host name)"},
			&cli.StringFlag{Name: "rack", Usage: "`NAME` of the rack"},
			&cli.Float64Flag{Name: "weight", Usage: "share of the data (default: the disk's size in TiB)"},
			&cli.DurationFlag{Name: "leftover-after", Value: time.Hour, Usage: "`TIME` that chunks are kept which a dead client stored and never named, from when scrub finds them"},
			metricsFlag(),
		}, logFlags()...),
		Subcommands: osdAdminCommands(),
		Action: func(c *cli.Context) error {
			if _, err := operands(c); err != nil {
				return err
			}
			opt := osdOptions{c.String("data"), c.String("addr"), c.String("token"), c.String("host"), c.String("rack"), c.Float64("weight"), c.String("metrics"), c.Duration("leftover-after")}
			if opt.dir == "" {
				return usageError("pillarbox osd needs --data DIR")
			}
			if err := checkMetrics(opt.metrics); err != nil {
				return err
			}
			if opt.leftoverAfter < time.Second {
				return usageError("--leftover-after %v: must be a second at least", opt.leftoverAfter)
			}
			log, err := newLog(c.App.ErrWriter, c.String("log-format"), c.Bool("debug"))
			if err != nil {
				return err
			}
			return untilSignal(c.Context, log, func(ctx context.Context) error { return runOSD(ctx, opt, log) })
		},
	}
}

// runOSD joins the cluster if need be, and serves.
func runOSD(ctx context.Context, opt osdOptions, log *slog.Logger) (err error) {
	if err := os.MkdirAll(opt.dir, 0o700); err != nil {
		return err
	}
	lock := &dataDir{path: opt.dir}
	if err := lock.takeLock(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	if err := firstStart(ctx, opt); err != nil {
		return err
	}
	self, err := openMember(opt.dir, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, self.mons.Close()) }()
	if self.conf.OSD == nil {
		return failure(exitForeign, "%s belongs to %s, which is no OSD", opt.dir, self.conf.Name)
	}
	if opt.addr != "" && opt.addr != self.conf.Addr {
		self.conf.Addr = opt.addr
		if err := self.conf.save(opt.dir); err != nil {
			return err
		}
	}
	if err := checkAddr(self.conf.Addr); err != nil {
		return err
	}
	return self.serveOSD(ctx, opt, log)
}

// firstStart trades the token of an OSD that has not joined yet.
func firstStart(ctx context.Context, opt osdOptions) error {
	err := unusedConf(opt.dir)
	if err != nil {
		return nil // it has joined
	}
	if opt.token == "" {
		return usageError("%s has not joined a cluster: --token is needed; 'pillarbox token create osd' makes one", opt.dir)
	}
	t, err := pki.ParseToken(opt.token)
	if err != nil {
		return usageError("%w", err)
	}
	if err := checkAddr(opt.addr); err != nil {
		return err
	}
	o := objstore.OSDInfo{UUID: mon.NewFSID(), Host: opt.host, Rack: opt.rack, Weight: opt.weight}
	if o.Host == "" {
		if o.Host, err = os.Hostname(); err != nil {
			return err
		}
	}
	if o.Weight == 0 {
		if o.Weight, err = weightOf(opt.dir); err != nil {
			return err
		}
	}
	_, err = joinCluster(ctx, opt.dir, t, o, &clusterConf{Addr: opt.addr})
	return err
}

func (mem *member) boot(ctx context.Context) (*objstore.Map, error) {
	return mem.mons.Boot(ctx, objstore.OSDInfo{ID: *mem.conf.OSD, UUID: mem.conf.UUID, Addr: mem.conf.Addr})
}

// announce says that the OSD is up. Monitors may start after it, as when the power
// of all comes back.
func (mem *member) announce(ctx context.Context, log *slog.Logger) (*objstore.Map, error) {
	told := false
	for {
		m, err := mem.boot(ctx)
		if !errors.Is(err, monrpc.ErrAway) || ctx.Err() != nil {
			return m, err
		}
		if !told {
			log.Warn("waiting for the monitors", "err", err)
			told = true
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// serveOSD announces the OSD and serves until ctx ends.
func (mem *member) serveOSD(ctx context.Context, opt osdOptions, log *slog.Logger) (err error) {
	id := *mem.conf.OSD
	l, err := net.Listen("tcp", mem.conf.Addr)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	defer l.Close()
	m, err := mem.announce(ctx, log)
	if err != nil {
		return err
	}
	founder := m.Founder == mem.conf.UUID && !mem.conf.Founded
	var o *osd.OSD
	conns := osdrpc.NewConns(osdrpc.Options{Self: id, TLS: mem.tls, Log: log, OnLost: func(peer int) {
		if o != nil {
			o.PeerLost(peer)
		}
	}})
	defer func() { err = errors.Join(err, conns.Close()) }()
	o, err = osd.Open(ctx, osd.Options{Dir: filepath.Join(mem.dir, osdData), ID: id, Map: m, Log: log, Peers: conns, Founder: founder, LeftoverAfter: opt.leftoverAfter})
	if err != nil {
		return withCode(err)
	}
	defer func() { err = errors.Join(err, wrap("close the OSD", o.Close())) }()
	if founder {
		mem.conf.Founded = true
		if err := mem.conf.save(mem.dir); err != nil {
			return err
		}
	}
	if err := conns.SetMap(m); err != nil {
		return err
	}
	s, err := osdrpc.NewServer(o, osdrpc.ServerOptions{TLS: mem.tls, Log: log, Heard: conns.Retry})
	if err != nil {
		return err
	}
	shown, err := serveMetrics(opt.metrics, log, osdMetrics(o, log), droppedMetrics(s.Dropped))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, shown.close()) }()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Serve(l) })
	g.Go(func() error {
		mem.mons.Watch(ctx, func(m *objstore.Map) {
			mem.learn(m, log)
			if err := errors.Join(conns.SetMap(m), o.SetMap(m)); err != nil {
				log.Error("take in the cluster map", "epoch", m.Epoch, "err", err)
			}
			if me := m.OSD(id); me != nil && !me.Up { // marked down by mistake
				if _, err := mem.boot(ctx); err != nil {
					log.Warn("announce again", "err", err)
				}
			}
		})
		return nil
	})
	g.Go(func() error {
		mem.mons.Beat(ctx, func() mon.Report {
			r := reportOf(ctx, o)
			r.Dropped = s.Dropped.Counts()
			return r
		})
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		s.Stop()
		return nil
	})
	log.Info("serving", "osd", id, "addr", mem.conf.Addr, "fsid", mem.conf.FSID)
	return g.Wait()
}

// reportOf is what an OSD tells the monitors.
func reportOf(ctx context.Context, o *osd.OSD) mon.Report {
	st := o.Stats()
	r := mon.Report{Epoch: st.Epoch, Groups: st.Groups, Leads: st.Leads, Degraded: st.Degraded, Missing: uint64(st.Missing), Lost: uint64(st.Lost), Bad: st.Bad, Unchecked: st.Unchecked, Moved: uint64(st.Moved)}
	if st.Unchecked {
		r.Seen = uint64(st.Seen)
	}
	if d, err := o.Space(ctx); err == nil {
		r.Total, r.Free = d.Total, d.Free
	}
	r.Pools = map[int]mon.PoolUse{}
	for id, u := range o.PoolUse() {
		r.Pools[id] = mon.PoolUse{Chunks: uint64(u.Chunks), Bytes: uint64(u.Bytes)}
	}
	return r
}
