package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"pillarbox/objstore/volume"
)

// The admin API is HTTP with JSON on the unix socket DIR/admin.sock, for root
// only: GET /status answers a statusReport, POST /command carries out a
// monitor's command, GET /debug/{profile} answers a profile of this process by
// its name in runtime/pprof (heap, goroutine, ...).

// adminStop is how long running admin requests may take when the daemon ends.
const adminStop = 2 * time.Second

// maxSocketPath is what fits into a socket address, in bytes.
const maxSocketPath = 107

// statusReport is the state of a running store. Sizes are in bytes.
type statusReport struct {
	FSID       string          `json:"fsid"`
	Version    string          `json:"version"`
	Pid        int             `json:"pid"`
	Uptime     float64         `json:"uptime_seconds"`
	Health     string          `json:"health"` // "ok" or "error"
	Problems   []string        `json:"problems"`
	Mountpoint string          `json:"mountpoint"`
	Data       string          `json:"data"`
	Epoch      uint64          `json:"map_epoch"`
	Depth      int             `json:"volume_depth"`
	OSDs       osdCounts       `json:"osds"`
	PGs        int             `json:"pgs"`
	Pools      []objstore.Pool `json:"pools"`
	Bytes      byteCounts      `json:"bytes"`
	Files      *uint64         `json:"files,omitempty"` // absent: not counted
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
	d       *dataDir
	s       *stack
	log     *slog.Logger
	since   time.Time
	server  *http.Server
	dir     *os.File // of the socket; its descriptor may be part of the socket's path
	served  chan error
	started bool
}

func startAdmin(ctx context.Context, d *dataDir, s *stack, log *slog.Logger) (*admin, error) {
	a := &admin{d: d, s: s, log: log, since: time.Now(), served: make(chan error, 1)}
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
	mux.HandleFunc("POST /command", a.serveCommand)
	mux.HandleFunc("GET /debug/{profile}", a.serveProfile)
	a.server = &http.Server{
		Handler: mux, ReadTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second,
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	a.started = true
	go func() { a.served <- a.server.Serve(l) }()
	return a, nil
}

// close ends the API and removes its socket.
func (a *admin) close() error {
	var errs []error
	if a.started {
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
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(a.status(ctx)); err != nil {
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
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(out); err != nil {
		a.log.Warn("answer an admin request", "err", err)
	}
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
		FSID: a.d.info.FSID, Version: version(), Pid: os.Getpid(), Uptime: time.Since(a.since).Seconds(),
		Problems: []string{}, Mountpoint: a.s.mount.Point(), Data: a.d.path, Depth: a.d.info.VolumeDepth,
	}
	problem := func(err error) {
		if err != nil {
			st.Problems = append(st.Problems, oneLine(err))
		}
	}
	m, err := a.s.mon.Map(ctx)
	problem(err)
	if err == nil {
		st.Epoch, st.Pools, st.PGs, st.OSDs.Total = m.Epoch, m.Pools, m.Meta().PGs, len(m.OSDs)
		for _, o := range m.OSDs {
			if o.Up {
				st.OSDs.Up++
			}
			if o.In {
				st.OSDs.In++
			}
		}
	}
	problem(a.osdHealth())
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

// askStatus asks the Pillarbox that runs on a data directory.
func askStatus(ctx context.Context, data string) (*statusReport, error) {
	st := &statusReport{}
	return st, askAdmin(ctx, data, http.MethodGet, "/status", nil, st)
}

// commandAt gives a monitor's command to the Pillarbox that runs on a data
// directory.
func commandAt(ctx context.Context, data string, words []string, options map[string]string, answer any) error {
	var out adminAnswer
	if err := askAdmin(ctx, data, http.MethodPost, "/command", adminCommand{words, options}, &out); err != nil {
		return err
	}
	if out.Error != "" {
		if out.Kind != 0 {
			return &answered{out.Error, out.Kind}
		}
		return errors.New(out.Error)
	}
	return json.Unmarshal(out.Answer, answer)
}

// answered is an error that another process answered with.
type answered struct {
	text string
	kind objstore.Kind
}

func (e *answered) Error() string { return e.text }
func (e *answered) Unwrap() error { return e.kind }

// maxAnswer is how long an answer of the admin API may be, in bytes.
const maxAnswer = 16 << 20

// askAdmin makes a request to the admin API of a data directory.
func askAdmin(ctx context.Context, data, method, what string, request, answer any) error {
	data, err := absolute(data)
	if err != nil {
		return err
	}
	d, err := findDataDir(data)
	if err != nil {
		return err
	}
	if d.info == nil {
		return failure(exitNotRunning, "there is no store in %s", data)
	}
	path, dir, err := socketPath(data)
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	defer tr.CloseIdleConnections()
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode a request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://pillarbox"+what, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: tr}).Do(req)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return failure(exitNotRunning, "no Pillarbox runs on %s", data)
	}
	if err != nil {
		return fmt.Errorf("ask the Pillarbox on %s: %w", data, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask the Pillarbox on %s: %w", data, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the Pillarbox on %s: %s", data, res.Status)
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("answer of the Pillarbox on %s: %w", data, err)
	}
	return nil
}
