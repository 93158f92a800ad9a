package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
	"pillarbox/objstore/pack"
	"pillarbox/objstore/pool/layer"
	"pillarbox/objstore/volume"
)

// The admin API of a mount is HTTP with JSON on the unix socket admin.sock, for
// root only, in the data directory, or of a cluster's mount in that of its lock:
// GET /status answers a statusReport, GET /stats mountStats, GET /profile profiled
// ones for as long as the asker listens, POST /warmup and /drop fill and empty
// caches, POST /command carries out a command of the
// monitor in this process, GET /debug/{profile} answers a profile of it by its
// name in runtime/pprof (heap, goroutine, ...). Who asks is in ask.go.

// adminStop is how long running admin requests may take when the daemon ends.
const adminStop = 2 * time.Second

// maxSocketPath is what fits into a socket address, in bytes.
const maxSocketPath = 107

// statusReport is the state of a running mount and its store. Sizes are in bytes.
type statusReport struct {
	FSID       string          `json:"fsid"`
	Version    string          `json:"version"`
	Pid        int             `json:"pid"`
	Uptime     float64         `json:"uptime_seconds"`
	Health     string          `json:"health"` // "ok" or "error"
	Problems   []string        `json:"problems"`
	Mountpoint string          `json:"mountpoint"`
	Data       string          `json:"data,omitempty"`
	Conf       string          `json:"conf,omitempty"` // of a cluster's mount
	Epoch      uint64          `json:"map_epoch"`
	Depth      int             `json:"volume_depth"`
	OSDs       osdCounts       `json:"osds"`
	PGs        int             `json:"pgs"`
	Pools      []objstore.Pool `json:"pools"`
	Bytes      byteCounts      `json:"bytes"`
	Files      *uint64         `json:"files,omitempty"`         // absent: not counted
	Outside    []layer.Stats   `json:"outside_pools,omitempty"` // since they were first needed
	Shipped    *shipReport     `json:"shipped,omitempty"`
	Packed     *pack.Stats     `json:"packed,omitempty"` // since the start
}

type osdCounts struct {
	Total int `json:"total"`
	Up    int `json:"up"`
	In    int `json:"in"`
}

type byteCounts struct {
	Total uint64 `json:"total"`
	Used  uint64 `json:"used"`
	Avail uint64 `json:"avail"`
}

// admin serves the admin API until close.
type admin struct {
	s       *stack
	opt     upOptions
	log     *slog.Logger
	since   time.Time
	server  *http.Server
	dir     *os.File // of the socket; its descriptor may be part of the socket's path
	served  chan error
	started bool
	closing chan struct{} // closed when answers that go on must end
}

// startAdmin serves it in a directory that this process has locked.
func startAdmin(ctx context.Context, d *dataDir, s *stack, opt upOptions, log *slog.Logger) (*admin, error) {
	a := &admin{s: s, opt: opt, log: log, since: time.Now(), served: make(chan error, 1), closing: make(chan struct{})}
	if err := os.Remove(d.file(sockFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return a, fmt.Errorf("remove the old admin socket: %w", err)
	}
	path, dir, err := socketPath(d.path)
	if err != nil {
		return a, err
	}
	a.dir = dir
	l, err := net.Listen("unix", path)
	if err != nil {
		return a, fmt.Errorf("listen on the admin socket: %w", err)
	}
	if err := os.Chmod(d.file(sockFile), 0o600); err != nil {
		return a, errors.Join(fmt.Errorf("protect the admin socket: %w", err), l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", a.serveStatus)
	if s.mon != nil {
		mux.HandleFunc("POST /command", a.serveCommand)
	}
	mux.HandleFunc("GET /stats", a.serveStats)
	mux.HandleFunc("GET /profile", a.serveOps)
	mux.HandleFunc("POST /warmup", a.serveWarmup)
	mux.HandleFunc("POST /drop", a.serveDrop)
	mux.HandleFunc("GET /debug/{profile}", a.serveProfile)
	a.server = &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second,
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	a.started = true
	go func() { a.served <- a.server.Serve(l) }()
	return a, nil
}

// close ends the API and removes its socket; a nil one does nothing.
func (a *admin) close() error {
	if a == nil {
		return nil
	}
	var errs []error
	if a.started {
		close(a.closing)
		ctx, cancel := context.WithTimeout(context.Background(), adminStop)
		defer cancel()
		if err := a.server.Shutdown(ctx); err != nil {
			errs = append(errs, a.server.Close())
		}
		if err := <-a.served; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, fmt.Errorf("serve the admin socket: %w", err))
		}
	}
	if a.dir != nil {
		errs = append(errs, a.dir.Close())
	}
	return errors.Join(errs...)
}

// socketPath is the path of a data directory's admin socket: one through a
// descriptor of the directory, to be kept open, if the true one is too long.
func socketPath(dir string) (string, *os.File, error) {
	path := filepath.Join(dir, sockFile)
	if len(path) <= maxSocketPath {
		return path, nil, nil
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open data directory: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), sockFile), f, nil
}

func (a *admin) serveStatus(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	a.answer(w, a.status(ctx))
}

func (a *admin) serveStats(w http.ResponseWriter, _ *http.Request) { a.answer(w, a.s.stats()) }

func (a *admin) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		a.log.Warn("answer an admin request", "err", err)
	}
}

// adminCommand is a monitor's command, and adminAnswer what came of it.
type adminCommand struct {
	Words   []string
	Options map[string]string
}

type adminAnswer struct {
	Answer json.RawMessage
	Error  string
	Kind   objstore.Kind
}

func (a *admin) serveCommand(w http.ResponseWriter, r *http.Request) {
	var c adminCommand
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&c); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	var out adminAnswer
	answer, err := a.s.mon.Command(ctx, c.Words, c.Options)
	if err == nil {
		out.Answer, err = json.Marshal(answer)
	}
	if err != nil {
		out.Error = oneLine(err)
		errors.As(err, &out.Kind)
	}
	a.answer(w, out)
}

func (a *admin) serveProfile(w http.ResponseWriter, r *http.Request) {
	p := pprof.Lookup(r.PathValue("profile"))
	if p == nil {
		http.NotFound(w, r)
		return
	}
	if err := p.WriteTo(w, 0); err != nil {
		a.log.Warn("answer an admin request", "err", err)
	}
}

// status asks every part how it is.
func (a *admin) status(ctx context.Context) *statusReport {
	st := &statusReport{
		FSID: a.s.cmap.FSID, Version: version(), Pid: os.Getpid(), Uptime: time.Since(a.since).Seconds(),
		Problems: []string{}, Mountpoint: a.s.mount.Point(), Data: a.opt.data, Conf: a.opt.conf, Depth: a.s.cmap.VolumeDepth,
	}
	problem := func(err error) {
		if err != nil {
			st.Problems = append(st.Problems, oneLine(err))
		}
	}
	m := a.s.client.Map()
	st.Epoch, st.Pools, st.PGs, st.OSDs.Total = m.Epoch, m.Pools, m.Meta().PGs, len(m.OSDs)
	for _, o := range m.OSDs {
		if o.Up {
			st.OSDs.Up++
		}
		if o.In {
			st.OSDs.In++
		}
	}
	if a.s.osd != nil {
		problem(a.osdHealth())
		for _, err := range a.s.ship.health() {
			problem(err)
		}
	}
	if cl := a.s.client.Stats(); cl.GroupsAway > 0 {
		problem(fmt.Errorf("%d of %d placement groups of volumes cannot be reached; %d OSDs do not answer", cl.GroupsAway, cl.Groups, cl.OSDsSilent))
	}
	sf, err := a.s.client.StatFS(ctx)
	problem(err)
	if err == nil {
		st.Bytes = byteCounts{Total: sf.Total, Used: sf.Total - sf.Free, Avail: sf.Avail}
		if files := sf.Files - sf.FilesFree; files > 0 {
			st.Files = &files
		}
		if sf.Avail == 0 {
			problem(errors.New("the store is full"))
		}
	}
	st.Outside = a.s.pools.Pools()
	st.Shipped = a.s.ship.report()
	st.Packed = a.s.packed()
	for _, p := range st.Outside {
		problem(p.Problem())
	}
	st.Health = "ok"
	if len(st.Problems) > 0 {
		st.Health = "error"
	}
	return st
}

// osdHealth is the error that made the OSD refuse service, if one did.
func (a *admin) osdHealth() error {
	for pg := range a.s.osd.Groups() {
		if err := a.s.osd.View(uint32(pg), func(volume.View) error { return nil }); err != nil {
			return fmt.Errorf("osd.0: %w", err)
		}
	}
	return nil
}
