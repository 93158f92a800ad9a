package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"pillarbox/cachefs"
	"pillarbox/fusefs"
	"pillarbox/mon"
	"pillarbox/objstore"
	"pillarbox/objstore/s3"
)

const (
	s3Addr        = "127.0.0.1:7480" // the port of Ceph's gateway
	s3Off         = "off"
	s3Drain       = 30 * time.Second // how long requests may go on when a gateway ends
	s3UsersFresh  = 5 * time.Second  // how old the users known may be
	s3HealthTime  = 3 * time.Second
	s3HeaderTime  = 20 * time.Second
	s3IdleTime    = 2 * time.Minute
	s3HeaderBytes = 64 << 10
)

func s3Command() *cli.Command {
	where := []cli.Flag{
		confFlag(),
		&cli.StringFlag{Name: "data", Usage: "instead of --conf: `DIR` of a store of one host that is up"},
		&cli.StringFlag{Name: "format", Value: "text", Usage: "`FORMAT` of the answer: text or json"},
	}
	keyFlags := []cli.Flag{
		&cli.StringFlag{Name: "access-key", Usage: "`KEY` to have instead of a new one, with --secret-key-file"},
		&cli.StringFlag{Name: "secret-key-file", Usage: "`FILE` with the secret of --access-key; - is standard input"},
	}
	changed := func(words, usage, args string) *cli.Command {
		return &cli.Command{Name: lastWord(words), Usage: usage, ArgsUsage: args, Flags: where, Action: func(c *cli.Context) error {
			return s3Give(c, append(strings.Fields(words), c.Args().Slice()...), nil, &mon.Changed{}, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "done")
				return err
			})
		}}
	}
	return &cli.Command{
		Name: "s3", Usage: "serve a cluster's store by S3, until Ctrl-C; with a subcommand: look after S3 users",
		Flags: append([]cli.Flag{confFlag(), metricsFlag(), &cli.StringFlag{Name: "addr", Value: s3Addr, Usage: "`HOST:PORT` to serve on"}}, append(s3Flags(), logFlags()...)...),
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usageError("unknown subcommand %q", c.Args().First())
			}
			return runS3(c)
		},
		Subcommands: []*cli.Command{
			{Name: "user", Usage: "make, list, suspend or remove users", Subcommands: []*cli.Command{
				{
					Name: "create", Usage: "make a user, and show the first key: it is shown only once", ArgsUsage: "USER",
					Flags: append(append([]cli.Flag{
						&cli.StringFlag{Name: "display-name", Usage: "`NAME` to show"},
						&cli.StringFlag{Name: "email", Usage: "`ADDRESS` that ACLs may name the user by"},
						&cli.StringFlag{Name: "uid", Usage: "`ID` of the owner of the files in the user's buckets (default: 0)"},
						&cli.StringFlag{Name: "gid", Usage: "`ID` of their group (default: 0)"},
					}, keyFlags...), where...),
					Action: func(c *cli.Context) error { return s3NewKey(c, "s3 user create") },
				},
				{Name: "ls", Usage: "list users", Flags: where, Action: s3ListUsers},
				changed("s3 user suspend", "refuse a user's requests", "USER"),
				changed("s3 user enable", "take a user's requests again", "USER"),
				changed("s3 user rm", "remove a user; the buckets stay", "USER"),
			}},
			{Name: "key", Usage: "make or remove access keys", Subcommands: []*cli.Command{
				{Name: "create", Usage: "make another key, and show it once", ArgsUsage: "USER", Flags: append(keyFlags, where...),
					Action: func(c *cli.Context) error { return s3NewKey(c, "s3 key create") }},
				changed("s3 key rm", "remove a key", "ACCESS-KEY"),
			}},
			{Name: "quota", Usage: "bound what a user's buckets hold", Subcommands: []*cli.Command{{
				Name: "set", Usage: "set the bound: bytes, or as 10GiB; 0 is none", ArgsUsage: "USER SIZE", Flags: where, Action: s3SetQuota,
			}}},
			changed("s3 grant", "open a top-level directory that S3 did not make, such as a mail domain, to a user: read, write or none", "DIRECTORY USER RIGHT"),
		},
	}
}

// s3Flags are those of everything that serves S3.
func s3Flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "s3-domain", Usage: "`NAME` below which bucket names are host names: bucket.NAME; may be repeated"},
		&cli.StringFlag{Name: "s3-region", Value: "us-east-1", Usage: "`REGION` that clients are told"},
		&cli.StringFlag{Name: "s3-access-log", Usage: "`FILE` for the access log, in the format of S3's"},
		&cli.StringFlag{Name: "s3-tls-cert", Usage: "`FILE` with the certificate, PEM; without it the port is plain HTTP"},
		&cli.StringFlag{Name: "s3-tls-key", Usage: "`FILE` with its key"},
		&cli.DurationFlag{Name: "s3-lifecycle-day", Value: 24 * time.Hour, Hidden: true, Usage: "how long a day of lifecycle rules is, for tests"},
	}
}

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

func lastWord(s string) string { return s[strings.LastIndexByte(s, ' ')+1:] }

// s3Give gives a command about S3 to a cluster's monitors or a store of one host.
func s3Give(c *cli.Context, words []string, options map[string]string, answer any, text func(io.Writer) error) error {
	data := c.String("data")
	if data == "" {
		return give(c, words, options, answer, text)
	}
	if err := commandAt(c.Context, data, words, options, answer); err != nil {
		return err
	}
	switch c.String("format") {
	case "text":
		return text(c.App.Writer)
	case "json":
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(answer)
	}
	return usageError("format %q: must be text or json", c.String("format"))
}

func s3NewKey(c *cli.Context, words string) error {
	args, err := operands(c, "USER")
	if err != nil {
		return err
	}
	options := map[string]string{}
	for _, name := range []string{"display-name", "email", "uid", "gid", "access-key"} {
		if s := c.String(name); s != "" {
			options[name] = s
		}
	}
	if (c.String("access-key") == "") != (c.String("secret-key-file") == "") {
		return usageError("--access-key and --secret-key-file belong together")
	}
	if path := c.String("secret-key-file"); path != "" {
		f := os.Stdin
		if path != "-" {
			if f, err = os.Open(path); err != nil {
				return err
			}
			defer f.Close()
		}
		b, err := io.ReadAll(io.LimitReader(f, 4096))
		if err != nil {
			return fmt.Errorf("read the secret key: %w", err)
		}
		options["secret-key"] = strings.TrimSpace(string(b))
	}
	var k mon.S3Key
	return s3Give(c, append(strings.Fields(words), args...), options, &k, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "user        %s\naccess key  %s\nsecret key  %s\n", k.User, k.Access, k.Secret)
		return err
	})
}

func s3SetQuota(c *cli.Context) error {
	args, err := operands(c, "USER", "SIZE")
	if err != nil {
		return err
	}
	n, err := humanize.ParseBytes(args[1])
	if err != nil {
		return usageError("size %q: must be a number of bytes, or as 10GiB", args[1])
	}
	return s3Give(c, []string{"s3", "quota", "set", args[0], strconv.FormatUint(n, 10)}, nil, &mon.Changed{}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, "done")
		return err
	})
}

func s3ListUsers(c *cli.Context) error {
	var users []mon.S3User
	return s3Give(c, []string{"s3", "user", "ls"}, nil, &users, func(w io.Writer) error {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "USER\tNAME\tEMAIL\tSTATE\tQUOTA\tKEYS\tGRANTS")
		for _, u := range users {
			state := "active"
			if u.Suspended {
				state = "suspended"
			}
			quota := "none"
			if u.Quota > 0 {
				quota = humanize.IBytes(u.Quota)
			}
			var keys, grants []string
			for k := range u.Keys {
				keys = append(keys, k)
			}
			for b, right := range u.Grants {
				grants = append(grants, b+":"+right)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", u.ID, u.Name, u.Email, state, quota, strings.Join(keys, ","), strings.Join(grants, ","))
		}
		return t.Flush()
	})
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
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	s, err := openClusterStack(c.Context, upOptions{conf: c.String("conf")}, log)
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
	shown, err := serveMetrics(c.String("metrics"), log, g.metrics)
	if err != nil {
		return errors.Join(err, g.close(), s.close())
	}
	fmt.Fprintf(c.App.Writer, "Pillarbox serves S3 on %s. Ctrl-C finishes what is under way and ends.\n", g.addr())
	sig := <-signals
	log.Info("ending: finishing what is under way", "signal", sig.String())
	return errors.Join(g.close(), shown.close(), s.close())
}

// noKernel stands for the mount that a gateway does not have.
type noKernel struct{}

func (noKernel) Drop(objstore.Ino)       {}
func (noKernel) Happened(objstore.Event) {}

// s3Namespace is an FS as the gateway wants it. A mount of the same process is
// told what the gateway changes.
type s3Namespace struct {
	*cachefs.FS
	mount *fusefs.Mounted // nil: none
}

type s3File struct{ *cachefs.Handle }

func (f s3File) Write(ctx context.Context, p []byte, off uint64) (int, error) {
	return f.Handle.Write(ctx, p, off, cachefs.WriteOptions{})
}

func (n s3Namespace) Open(ctx context.Context, ino objstore.Ino) (s3.File, error) {
	h, err := n.FS.Open(ctx, ino)
	if err != nil {
		return nil, err
	}
	return s3File{h}, nil
}

func (n s3Namespace) Create(ctx context.Context, c objstore.Create) (objstore.Attr, s3.File, error) {
	a, h, err := n.FS.Create(ctx, c)
	if err != nil {
		return a, nil, err
	}
	return a, s3File{h}, nil
}

// change makes a change of names, and tells the mount.
func (n s3Namespace) change(a, b objstore.Ino, fn func() (objstore.Event, error)) error {
	if n.mount == nil {
		_, err := fn()
		return err
	}
	done := n.mount.Change(a, b)
	e, err := fn()
	if err != nil {
		done()
		return err
	}
	done(e)
	return nil
}

func (n s3Namespace) Make(ctx context.Context, c objstore.Create) (a objstore.Attr, err error) {
	return a, n.change(c.Parent, c.Parent, func() (objstore.Event, error) {
		a, err = n.FS.Make(ctx, c)
		return objstore.Event{Kind: objstore.Created, Ino: a.Ino, Type: objstore.ModeDir, Dir: c.Parent, Name: c.Name}, err
	})
}

func (n s3Namespace) MakeAccount(ctx context.Context, c objstore.Create) (a objstore.Attr, err error) {
	return a, n.change(c.Parent, c.Parent, func() (objstore.Event, error) {
		a, err = n.FS.MakeAccount(ctx, c)
		return objstore.Event{Kind: objstore.Created, Ino: a.Ino, Type: objstore.ModeDir, Dir: c.Parent, Name: c.Name}, err
	})
}

func (n s3Namespace) Link(ctx context.Context, c objstore.Link) (a objstore.Attr, err error) {
	return a, n.change(c.Parent, c.Parent, func() (objstore.Event, error) {
		a, err = n.FS.Link(ctx, c)
		return objstore.Event{Kind: objstore.Created, Ino: c.Ino, Type: objstore.ModeRegular, Dir: c.Parent, Name: c.Name}, err
	})
}

func (n s3Namespace) Remove(ctx context.Context, c objstore.Remove) error {
	return n.change(c.Parent, c.Parent, func() (objstore.Event, error) {
		typ := objstore.ModeRegular
		if c.Dir {
			typ = objstore.ModeDir
		}
		return objstore.Event{Kind: objstore.Removed, Ino: c.Only, Type: typ, Dir: c.Parent, Name: c.Name}, n.FS.Remove(ctx, c)
	})
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

// s3Users are the monitors' users, as they were a moment ago.
type s3Users struct {
	fetch func(context.Context) ([]mon.S3User, error)

	mu    sync.Mutex // held while they are fetched
	at    time.Time
	byID  map[string]*s3.User
	byKey map[string]s3Secret
}

type s3Secret struct {
	user   *s3.User
	secret string
}

// look finds something among the users. What is not found may be new.
func (u *s3Users) look(ctx context.Context, found func() bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	age := time.Since(u.at)
	if age < s3UsersFresh && (found() || age < time.Second/5) {
		return nil
	}
	list, err := u.fetch(ctx)
	if err != nil {
		if u.byID != nil && age < 10*s3UsersFresh && found() {
			return nil // the monitors will be back
		}
		return fmt.Errorf("ask for the S3 users: %w: %w", objstore.Unavailable, err)
	}
	u.at, u.byID, u.byKey = time.Now(), map[string]*s3.User{}, map[string]s3Secret{}
	for _, m := range list {
		user := &s3.User{ID: m.ID, Name: m.Name, Email: m.Email, Uid: m.Uid, Gid: m.Gid, Suspended: m.Suspended, Grants: m.Grants, Quota: m.Quota}
		u.byID[m.ID] = user
		for access, secret := range m.Keys {
			u.byKey[access] = s3Secret{user, secret}
		}
	}
	found()
	return nil
}

func (u *s3Users) ByKey(ctx context.Context, key string) (*s3.User, string, error) {
	var k s3Secret
	if err := u.look(ctx, func() (ok bool) { k, ok = u.byKey[key]; return ok }); err != nil {
		return nil, "", err
	}
	if k.user == nil {
		return nil, "", s3.ErrNoKey
	}
	return k.user, k.secret, nil
}

func (u *s3Users) ByID(ctx context.Context, id string) (user *s3.User, err error) {
	if err = u.look(ctx, func() bool { user = u.byID[id]; return user != nil }); err == nil && user == nil {
		err = s3.ErrNoUser
	}
	return user, err
}

func (u *s3Users) ByEmail(ctx context.Context, email string) (user *s3.User, err error) {
	err = u.look(ctx, func() bool {
		user = nil
		for _, o := range u.byID {
			if o.Email != "" && strings.EqualFold(o.Email, email) {
				user = o
			}
		}
		return user != nil
	})
	if err == nil && user == nil {
		err = s3.ErrNoUser
	}
	return user, err
}
