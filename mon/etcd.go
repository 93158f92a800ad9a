package mon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"pillarbox/mon/pki"
	"pillarbox/objstore"
)

// smallLog keeps etcd from setting 128 MiB aside for its log. The setting is a
// variable of etcd's package, so it is made once, before any log is opened.
var smallLog = sync.OnceFunc(func() { wal.SegmentSizeBytes = 2 << 20 })

const memberName = "mon.0"

// The only member needs no address to be reached at; etcd wants one to name it
// by. A member that joins later brings its own and gives this one a true one.
var nowhere = url.URL{Scheme: "http", Host: "127.0.0.1:1"}

func etcdConfig(dir string, peer *Peer, zl *zap.Logger) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name = memberName
	cfg.Dir = dir
	cfg.ListenPeerUrls, cfg.ListenClientUrls = nil, nil
	cfg.AdvertisePeerUrls, cfg.AdvertiseClientUrls = []url.URL{nowhere}, nil
	cfg.InitialCluster = cfg.InitialClusterFromName(memberName)
	cfg.EnableGRPCGateway = false
	cfg.AuthToken = "" // no users: who may open the directory may do all
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zl)
	// A single member elects itself after one to five ticks.
	cfg.TickMs, cfg.ElectionMs = 50, 250
	// A map and a counter: little history, little memory.
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 1000, 100
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModeRevision, "100"
	cfg.QuotaBackendBytes = 256 << 20
	cfg.MaxConcurrentStreams = 64
	if peer != nil {
		peer.configure(cfg)
	}
	return cfg
}

// configure makes etcd hear the other monitors, and nobody else: the name that
// their certificates alone have is asked for on both sides.
func (p *Peer) configure(cfg *embed.Config) {
	at := url.URL{Scheme: "https", Host: p.Addr}
	cfg.Name = p.Name
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{at}, []url.URL{at}
	cfg.TickMs, cfg.ElectionMs = 100, 1000
	cfg.InitialCluster = cfg.InitialClusterFromName(p.Name)
	if p.Initial != "" {
		cfg.InitialCluster, cfg.ClusterState = p.Initial, embed.ClusterStateFlagExisting
	}
	cfg.PeerTLSInfo = transport.TLSInfo{
		CertFile: filepath.Join(p.TLS, pki.CertFile), KeyFile: filepath.Join(p.TLS, pki.KeyFile), TrustedCAFile: filepath.Join(p.TLS, pki.CAFile),
		ClientCertAuth: true, SkipClientSANVerify: true, ServerName: pki.MonHost, AllowedHostnames: []string{pki.MonHost}, MinVersion: tls.VersionTLS13,
	}
}

// startEtcd starts etcd and waits until it serves.
func startEtcd(ctx context.Context, dir string, peer *Peer, log *slog.Logger) (_ *embed.Etcd, err error) {
	smallLog()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the monitor's directory: %w", err)
	}
	hook := &deathHook{failed: make(chan error, 1)}
	hook.opening.Store(true)
	defer hook.opening.Store(false)
	zl := zap.New(&slogCore{log: log}, zap.WithFatalHook(hook), zap.WithPanicHook(hook))
	e, err := hook.start(etcdConfig(dir, peer, zl))
	if err != nil {
		return nil, fmt.Errorf("start the monitor in %s: %w", dir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
		return e, nil
	case err = <-hook.failed:
		return nil, fmt.Errorf("start the monitor in %s: %w", dir, err)
	case err = <-e.Err():
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	e.Close()
	return nil, fmt.Errorf("start the monitor in %s: %w", dir, err)
}

// deathHook is what follows etcd's fatal and panic log lines, its answer to
// whatever is wrong on disk, from whichever goroutine. While Open runs they
// make Open fail; later they end the process, as etcd's own would: its state on
// disk is no longer known.
type deathHook struct {
	opening atomic.Bool
	failed  chan error // the first one
}

func (h *deathHook) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	if !h.opening.Load() {
		os.Exit(1)
	}
	h.fail(logError(ce.Message, fields))
	runtime.Goexit()
}

func (h *deathHook) fail(err error) {
	select {
	case h.failed <- classify(err):
	default:
	}
}

// start runs StartEtcd where it can be left behind when etcd gives up.
func (h *deathHook) start(cfg *embed.Config) (*embed.Etcd, error) {
	type result struct {
		etcd *embed.Etcd
		err  error
	}
	started := make(chan result, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil { // a log that does not even begin right; clean-up after a failure, too
				h.fail(fmt.Errorf("etcd cannot make sense of its files (%v)", r))
			}
		}()
		e, err := embed.StartEtcd(cfg)
		started <- result{e, err}
	}()
	select {
	case r := <-started:
		if r.err != nil {
			return nil, classify(r.err)
		}
		return r.etcd, nil
	case err := <-h.failed:
		return nil, err
	}
}

// classify calls an error damage unless the system refused something.
func classify(err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return err
	}
	return fmt.Errorf("%w: %w", err, objstore.Corrupt)
}

func logError(msg string, fields []zapcore.Field) error {
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			return fmt.Errorf("%s: %w", msg, err)
		}
	}
	return errors.New(msg)
}
