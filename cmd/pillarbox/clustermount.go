package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/objstore/pool/layer"
	"pillarbox/osd/osdrpc"
)

// upCluster mounts a cluster's store until a signal or an unmount ends it.
func upCluster(ctx context.Context, opt upOptions, log *slog.Logger, hooks upHooks) (err error) {
	d, err := mountLock(opt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.release()) }()
	dead, err := checkMountpoint(opt.point, opt.nonempty)
	if err != nil {
		return err
	}
	if err := errors.Join(checkFuse(), hooks.locked()); err != nil {
		return err
	}
	if dead {
		if err := clearDead(opt.point, log); err != nil {
			return err
		}
	}
	signal.Ignore(unix.SIGPIPE)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)

	s, err := openClusterStack(ctx, opt, log)
	if err != nil {
		return err
	}
	if err := s.mountAt(ctx, opt.point, d.path, opt, log); err != nil {
		return errors.Join(err, s.close())
	}
	adm, err := startAdmin(ctx, d, s, opt, log)
	var shown locals
	if err == nil {
		shown, err = serveLocals(opt, log, newMountMetrics(s), s.pools)
	}
	if err == nil {
		err = hooks.ready(nil)
	}
	if err != nil {
		return errors.Join(err, shown.close(), adm.close(), shutdown(s, opt, log, signals))
	}
	log.Info("serving", "mountpoint", opt.point, "fsid", s.cmap.FSID)
	select {
	case sig := <-signals:
		log.Info("ending: flushing and unmounting", "signal", sig.String())
	case <-s.mount.Done():
		log.Info("ending: the mount was taken down from outside", "mountpoint", opt.point)
	}
	return errors.Join(shown.close(), adm.close(), shutdown(s, opt, log, signals))
}

// mountLock is the directory whose lock the process of a cluster's mount holds,
// and where its admin socket is, for other commands to find it by: a host can have several mounts with one configuration.
func mountLock(opt upOptions) (*dataDir, error) {
	sum := sha256.Sum256([]byte(opt.point))
	d := &dataDir{path: filepath.Join(opt.conf, "mounts", hex.EncodeToString(sum[:8]))}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return nil, fmt.Errorf("lock the mount: %w", err)
	}
	if err := d.takeLock(); err != nil {
		return nil, err
	}
	return d, d.writePid()
}

// openClusterStack opens the store of a cluster that this host is a client of.
func openClusterStack(ctx context.Context, opt upOptions, log *slog.Logger) (_ *stack, err error) {
	self, err := openMember(opt.conf, log)
	if err != nil {
		return nil, err
	}
	s := &stack{mons: self.mons, pools: layer.NewMetrics()}
	defer func() {
		if err != nil {
			err = withCode(errors.Join(err, s.close()))
		}
	}()
	s.closers = append(s.closers, self.mons.Close)
	if s.cmap, err = self.mons.Map(ctx); err != nil {
		return nil, err
	}
	if s.cmap.FSID != self.conf.FSID {
		return nil, failure(exitForeign, "%s belongs to cluster %s, the monitors to %s", opt.conf, self.conf.FSID, s.cmap.FSID)
	}
	conns := osdrpc.NewConns(osdrpc.Options{Self: -1, TLS: self.tls, Log: log})
	s.closers = append(s.closers, conns.Close)
	if err := conns.SetMap(s.cmap); err != nil {
		return nil, err
	}
	session, err := self.mons.NewSession(ctx)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("name of this host: %w", err)
	}
	memory, err := opt.cache.shares()
	if err != nil {
		return nil, err
	}
	if s.client, err = client.New(ctx, s.cmap, session, conns, client.Options{Log: log, Host: host, Timeout: opt.timeout, Cache: memory.metadata, Found: s.found, Outside: s.openPool(opt.pools), Sealed: s.isSealed}); err != nil {
		return nil, err
	}
	if err = s.openKeys(nil, opt, log); err != nil {
		return nil, err
	}
	watching, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		self.mons.Watch(watching, func(m *objstore.Map) {
			self.learn(m, log)
			if err := conns.SetMap(m); err != nil {
				log.Error("take in the cluster map", "epoch", m.Epoch, "err", err)
			}
			s.client.SetMap(m)
		})
	}()
	s.closers = append(s.closers, func() error { stop(); <-ended; return nil })
	if err = s.openFS(ctx, opt, log); err != nil {
		return nil, err
	}
	s.client.SetWatcher(s.sealed.Watcher(s.fs))
	if opt.encrypt {
		err = s.sealed.Encrypt(ctx)
	}
	return s, err
}
