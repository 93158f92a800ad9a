package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"pillarbox/mon"
	"pillarbox/objstore"
	"pillarbox/objstore/s3"
)

// s3Options are the values of s3Flags.
type s3Options struct {
	addr      string // s3Off: none
	asked     bool   // not just the default
	domains   []string
	region    string
	accessLog string
	cert, key string
	day       time.Duration
}

func parseS3(c *cli.Context, addrFlag string) (s3Options, error) {
	o := s3Options{
		addr: c.String(addrFlag), asked: c.IsSet(addrFlag), domains: c.StringSlice("s3-domain"), region: c.String("s3-region"),
		accessLog: c.String("s3-access-log"), cert: c.String("s3-tls-cert"), key: c.String("s3-tls-key"), day: c.Duration("s3-lifecycle-day"),
	}
	if o.addr == s3Off {
		return o, nil
	}
	if _, _, err := net.SplitHostPort(o.addr); err != nil {
		return o, usageError("--%s %q: must be HOST:PORT", addrFlag, o.addr)
	}
	if (o.cert == "") != (o.key == "") {
		return o, usageError("--s3-tls-cert and --s3-tls-key belong together")
	}
	if o.day <= 0 {
		return o, usageError("--s3-lifecycle-day: must be positive")
	}
	for _, f := range []*string{&o.accessLog, &o.cert, &o.key} {
		if *f == "" {
			continue
		}
		var err error
		if *f, err = filepath.Abs(*f); err != nil {
			return o, err
		}
	}
	return o, nil
}

// args are the flags of up that mean the same.
func (o *s3Options) args() []string {
	args := []string{"--s3-region", o.region, "--s3-lifecycle-day", o.day.String()}
	if o.asked {
		args = append(args, "--s3", o.addr)
	}
	for _, d := range o.domains {
		args = append(args, "--s3-domain", d)
	}
	for _, f := range [][2]string{{"--s3-access-log", o.accessLog}, {"--s3-tls-cert", o.cert}, {"--s3-tls-key", o.key}} {
		if f[1] != "" {
			args = append(args, f[0], f[1])
		}
	}
	return args
}

// runS3 is a gateway of its own.
func runS3(c *cli.Context) error {
	opt, err := parseS3(c, "addr")
	if err == nil {
		err = checkMetrics(c.String("metrics"))
	}
	if err != nil {
		return err
	}
	log, err := newLog(c.App.ErrWriter, c.String("log-format"), c.Bool("debug"))
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(s3Garbage)
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	up := upOptions{conf: c.String("conf"), dirtyPerFile: s3PerRequest, keyFile: c.String("key-file")}
	if err := up.checkKeys(); err != nil {
		return err
	}
	if up.pools, err = parsePools(c.StringSlice("pool")); err != nil {
		return err
	}
	s, err := openClusterStack(c.Context, up, log)
	if err != nil {
		return err
	}
	s.fs.SetKernel(noKernel{})
	fetch := func(ctx context.Context) (users []mon.S3User, err error) {
		return users, s.mons.Command(ctx, mon.S3KeysCommand, nil, &users)
	}
	g, err := serveS3(c.Context, opt, s3Namespace{FS: s.fs}, fetch, log)
	if err != nil {
		return errors.Join(err, s.close())
	}
	shown, err := serveMetrics(c.String("metrics"), log, g.metrics, s.pools)
	if err != nil {
		return errors.Join(err, g.close(), s.close())
	}
	fmt.Fprintf(c.App.Writer, "Pillarbox serves S3 on %s. Ctrl-C finishes what is under way and ends.\n", g.addr())
	sig := <-signals
	log.Info("ending: finishing what is under way", "signal", sig.String())
	return errors.Join(g.close(), shown.close(), s.close())
}

// s3Server is a gateway that serves.
type s3Server struct {
	http     *http.Server
	listener net.Listener
	log      *slog.Logger
	access   *os.File // nil: none
	metrics  *s3Metrics
	draining atomic.Bool
	served   chan error
	stop     context.CancelFunc
	work     sync.WaitGroup
}

func (g *s3Server) addr() string { return g.listener.Addr().String() }

// serveS3 begins to serve.
func serveS3(ctx context.Context, opt s3Options, ns s3.Namespace, fetch func(context.Context) ([]mon.S3User, error), log *slog.Logger) (_ *s3Server, err error) {
	g := &s3Server{log: log, metrics: newS3Metrics(), served: make(chan error, 1)}
	gate := s3.Options{Users: &s3Users{fetch: fetch}, Domains: opt.domains, Region: opt.region, Log: log, Access: g.note}
	if opt.accessLog != "" {
		if g.access, err = os.OpenFile(opt.accessLog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640); err != nil {
			return nil, fmt.Errorf("open the S3 access log: %w", err)
		}
	}
	defer func() {
		if err != nil && g.access != nil {
			err = errors.Join(err, g.access.Close())
		}
	}()
	var cfg *tls.Config
	if opt.cert != "" {
		cert, err := tls.LoadX509KeyPair(opt.cert, opt.key)
		if err != nil {
			return nil, fmt.Errorf("load the certificate of the S3 gateway: %w", err)
		}
		cfg = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	if g.listener, err = net.Listen("tcp", opt.addr); err != nil {
		return nil, fmt.Errorf("serve S3 on %s: %w", opt.addr, err)
	}
	gateway := s3.New(ns, gate)
	g.http = &http.Server{
		Handler: g.health(ns, gateway), TLSConfig: cfg, ReadHeaderTimeout: s3HeaderTime, IdleTimeout: s3IdleTime, MaxHeaderBytes: s3HeaderBytes,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	go func() {
		if cfg != nil {
			g.served <- g.http.ServeTLS(g.listener, "", "")
		} else {
			g.served <- g.http.Serve(g.listener)
		}
	}()
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	g.stop = stop
	life := &s3.Lifecycle{Gateway: gateway, Every: min(time.Hour, max(opt.day/4, time.Second)), Day: opt.day}
	g.work.Go(func() { life.Run(run) })
	log.Info("serving S3", "addr", g.addr())
	return g, nil
}

// health answers load balancers, and passes on everything else.
func (g *s3Server) health(ns s3.Namespace, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" || r.Header.Get("Authorization") != "" || r.URL.RawQuery != "" {
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), s3HealthTime)
		defer cancel()
		if _, err := ns.GetAttr(ctx, objstore.VolumeRoot(objstore.RootVolume)); err != nil || g.draining.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}

// close finishes what is under way and ends.
func (g *s3Server) close() error {
	if g == nil {
		return nil
	}
	g.draining.Store(true)
	g.stop()
	ctx, cancel := context.WithTimeout(context.Background(), s3Drain)
	defer cancel()
	var errs []error
	if err := g.http.Shutdown(ctx); err != nil {
		errs = append(errs, g.http.Close())
	}
	if err := <-g.served; !errors.Is(err, http.ErrServerClosed) {
		errs = append(errs, fmt.Errorf("serve S3: %w", err))
	}
	g.work.Wait()
	if g.access != nil {
		errs = append(errs, g.access.Close())
	}
	return errors.Join(errs...)
}

// note takes in that a request was answered.
func (g *s3Server) note(a s3.Access) {
	g.metrics.note(a)
	if g.access != nil {
		g.logAccess(a)
	}
}

// logAccess writes a line in the format of S3's server access logs.
func (g *s3Server) logAccess(a s3.Access) {
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	quote := func(s string) string {
		if s == "" {
			return "-"
		}
		return strconv.QuoteToASCII(s)
	}
	number := func(n int64) string {
		if n < 0 {
			return "-"
		}
		return strconv.FormatInt(n, 10)
	}
	line := fmt.Sprintf("- %s [%s] %s %s %s REST.%s.%s %s %s %d %s %d %s %d - %s %s %s %s %s - %s %s - -\n",
		dash(a.Bucket), a.Time.UTC().Format("02/Jan/2006:15:04:05 +0000"), dash(a.Remote), dash(a.User), a.ID, a.Method, a.Operation,
		dash(strings.ReplaceAll(quote(a.Key), `"`, "")), quote(a.Method+" "+a.URI+" HTTP/1.1"), a.Status, dash(a.Code), a.Sent, number(a.Size),
		a.Took.Milliseconds(), quote(a.Referer), quote(a.UserAgent), dash(a.Version), a.ID, dash(a.SigKind), dash(a.SigHow), dash(a.Host))
	if _, err := g.access.WriteString(line); err != nil {
		g.log.Warn("write the S3 access log", "err", err)
	}
}
