package main

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/urfave/cli/v2"
)

func pprofFlag() cli.Flag {
	return &cli.StringFlag{Name: "pprof", Usage: "`HOST:PORT` of this machine to serve Go's profiles of this process on, for 'go tool pprof'; loopback only"}
}

func servePprof(addr string, log *slog.Logger) (*metrics, error) {
	if addr == "" {
		return nil, nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return serveLocal("profiles of this process", addr, mux, log)
}

// locals are what a mount serves to its own machine only.
type locals []*metrics

// serveLocals serves what was asked for. The locals are to be closed after an error, too.
func serveLocals(opt upOptions, log *slog.Logger, parts ...prometheus.Collector) (l locals, err error) {
	shown, err := serveMetrics(opt.metrics, log, parts...)
	if err != nil {
		return nil, err
	}
	profiled, err := servePprof(opt.pprof, log)
	return locals{shown, profiled}, err
}

func (l locals) close() error {
	var errs []error
	for _, m := range l {
		errs = append(errs, m.close())
	}
	return errors.Join(errs...)
}
