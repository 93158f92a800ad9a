package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"golang.org/x/sys/unix"

	"pillarbox/cachefs"
	"pillarbox/cachefs/diskcache"
	"pillarbox/fusefs"
	"pillarbox/mon"
	"pillarbox/mon/monrpc"
	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/objstore/pack"
	"pillarbox/objstore/pool/layer"
	"pillarbox/objstore/seal"
	"pillarbox/osd"
)

// stack is the whole embedded store: a monitor, an OSD, a client, and above
// them what a mail host needs. Its parts are closed in reverse order.
type stack struct {
	mon    *mon.Monitor
	cmap   *objstore.Map
	osd    *osd.OSD
	client *client.Client
	sealed *seal.Store
	fs     *cachefs.FS
	mount  *fusefs.Mounted
	dev    uint64           // of the mount
	cache  *diskcache.Cache // nil: none
	memory memory           // that the mount may keep
	pools  *layer.Metrics   // of outside pools
	ship   *shipping        // nil in a cluster
	packer *pack.Packer     // nil: small mail stays here

	mons    *monrpc.Client // of a cluster
	closers []func() error // of what a cluster's client has instead of monitor and OSD
}

// openStack opens the store in a locked data directory, without mounting it. A
// new store gets what store.json says.
func openStack(ctx context.Context, d *dataDir, opt upOptions, log *slog.Logger) (_ *stack, err error) {
	s := &stack{pools: layer.NewMetrics()}
	defer func() {
		if err != nil {
			err = withCode(errors.Join(err, s.close()))
		}
	}()
	s.mon, err = mon.Open(ctx, mon.Options{Dir: d.file(monDir), FSID: d.info.FSID, VolumeDepth: d.info.VolumeDepth, Log: log})
	if err != nil {
		return nil, err
	}
	if s.cmap, err = s.mon.Map(ctx); err != nil {
		return nil, err
	}
	if s.cmap.FSID != d.info.FSID || s.cmap.VolumeDepth != d.info.VolumeDepth {
		return nil, failure(exitForeign, "%s says store %s, its monitor says %s: parts of two stores are mixed in %s",
			storeFile, d.info.FSID, s.cmap.FSID, d.path)
	}
	if s.cmap, err = opt.pools.register(ctx, s.mon, s.cmap); err != nil {
		return nil, err
	}
	if s.ship, err = planShipping(d, opt, s.cmap, log); err != nil {
		return nil, err
	}
	if s.osd, err = osd.Open(ctx, s.ship.options(osd.Options{Dir: d.file(osdDir), ID: 0, Map: s.cmap, Log: log})); err != nil {
		return nil, err
	}
	session, err := s.mon.NewSession(ctx)
	if err != nil {
		return nil, err
	}
	if err = s.startShipping(ctx, d, opt, session, log); err != nil {
		return nil, err
	}
	if s.client, err = client.New(ctx, s.cmap, session, client.Embedded(s.osd), client.Options{Log: log, Found: s.found, Outside: s.openGuarded(opt.pools), Sealed: s.isSealed}); err != nil {
		return nil, err
	}
	if err = s.openKeys(d, opt, log); err != nil {
		return nil, err
	}
	if err = s.openFS(ctx, opt, log); err != nil {
		return nil, err
	}
	s.startPacking(ctx, opt, log)
	return s, nil
}

// found makes a new account encrypted, where that is wanted.
func (s *stack) found(ctx context.Context, vol objstore.VolumeID, parent objstore.Ino) ([]objstore.Change, error) {
	return s.sealed.Found(ctx, vol, parent)
}

// isSealed says whether an account is encrypted.
func (s *stack) isSealed(ctx context.Context, vol objstore.VolumeID) (bool, error) {
	return s.sealed.Sealed(ctx, vol)
}

// openKeys puts the encryption between client and cachefs. A data directory that
// may have encrypted accounts from now on says so; d is nil in a cluster.
func (s *stack) openKeys(d *dataDir, opt upOptions, log *slog.Logger) (err error) {
	if s.sealed, err = seal.New(s.client, opt.keyFile, log); err != nil {
		return err
	}
	if d == nil || opt.keyFile == "" || d.info.Format >= storeFormat {
		return nil
	}
	newer := *d.info
	newer.Format = storeFormat
	return d.writeInfo(&newer)
}

// mountAt mounts the open store.
func (s *stack) mountAt(ctx context.Context, point, dataDir string, opt upOptions, log *slog.Logger) error {
	mnt, err := fusefs.Mount(point, s.fs, fusefs.Options{
		Helper: []string{"/proc/self/exe", helperCommand},
		Source: sourcePrefix + dataDir, Shared: opt.conf != "", Suid: opt.suid, Dev: opt.dev, NoExec: opt.noExec, Log: log, Base: ctx,
	})
	if err != nil {
		return failure(exitMount, "%w", err)
	}
	s.mount = mnt
	var st unix.Stat_t
	if err := unix.Stat(point, &st); err != nil {
		return errors.Join(failure(exitMount, "stat the new mount %s: %w", point, err), mnt.UnmountLazily())
	}
	s.dev = st.Dev
	return nil
}

// close flushes and closes everything; the mount must have ended.
func (s *stack) close() error {
	var errs []error
	if s.packer != nil {
		s.packer.Close()
	}
	if s.fs != nil {
		errs = append(errs, wrap("flush", s.fs.Close()))
	}
	if s.client != nil {
		errs = append(errs, wrap("close the client", s.client.Close()))
	}
	for _, c := range slices.Backward(s.closers) {
		errs = append(errs, c())
	}
	errs = append(errs, wrap("end shipping", s.ship.close()))
	if s.osd != nil {
		errs = append(errs, wrap("close the OSD", s.osd.Close()))
	}
	if s.mon != nil {
		errs = append(errs, wrap("close the monitor", s.mon.Close()))
	}
	return errors.Join(errs...)
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// withCode gives a failure to open a store its exit code.
func withCode(err error) error {
	var e *exitError
	switch {
	case errors.As(err, &e):
		return err
	case errors.Is(err, osd.ErrForeign):
		return &exitError{exitForeign, err}
	case errors.Is(err, objstore.Corrupt):
		return &exitError{exitDamaged, err}
	case errors.Is(err, objstore.Unsupported):
		return &exitError{exitNewer, err}
	}
	return err
}
