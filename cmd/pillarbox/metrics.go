package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/urfave/cli/v2"

	"pillarbox/guard"
	"pillarbox/mon"
	"pillarbox/objstore/s3"
	"pillarbox/osd"
)

// What daemons tell Prometheus; docs/monitoring.md explains every name. Most is
// asked of the parts when somebody scrapes, so that it costs nothing otherwise.

const scrapeTime = 3 * time.Second

func metricsFlag() cli.Flag {
	return &cli.StringFlag{Name: "metrics", Usage: "`HOST:PORT` of this machine to serve Prometheus metrics on, in plain HTTP; loopback only"}
}

// metrics is what is served to this machine only, until close; a nil one does nothing.
type metrics struct {
	server *http.Server
	served chan error
}

// checkMetrics refuses an address that others could reach: metrics are neither
// encrypted nor protected.
func checkMetrics(addr string) error { return checkLocal("metrics", addr) }

// checkLocal refuses an address, given with a flag, that is not this machine's own.
func checkLocal(flag, addr string) error {
	if addr == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return usageError("--%s %q: must be HOST:PORT", flag, addr)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return usageError("--%s %q: must be a loopback address; let a proxy with TLS stand before it", flag, addr)
	}
	return nil
}

func serveMetrics(addr string, log *slog.Logger, parts ...prometheus.Collector) (*metrics, error) {
	if addr == "" {
		return nil, nil
	}
	if err := checkMetrics(addr); err != nil {
		return nil, err
	}
	reg := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "pillarbox_build_info", ConstLabels: prometheus.Labels{"version": version()}})
	info.Set(1)
	for _, c := range append(parts, info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})) {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}))
	return serveLocal("metrics", addr, mux, log)
}

// serveLocal serves something on an address of this machine.
func serveLocal(what, addr string, h http.Handler, log *slog.Logger) (*metrics, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", what, err)
	}
	m := &metrics{&http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}, make(chan error, 1)}
	go func() { m.served <- m.server.Serve(l) }()
	log.Info("serving "+what, "addr", l.Addr().String())
	return m, nil
}

func (m *metrics) close() error {
	if m == nil {
		return nil
	}
	err := m.server.Close()
	if serr := <-m.served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// gauges is a collector that asks when it is scraped.
type gauges struct {
	descs map[string]*prometheus.Desc
	ask   func(ctx context.Context, set func(name string, value float64, labels ...string)) error
	log   *slog.Logger
}

func newGauges(log *slog.Logger, descs map[string]*prometheus.Desc, ask func(context.Context, func(string, float64, ...string)) error) *gauges {
	return &gauges{descs, ask, log}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range g.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	err := g.ask(ctx, func(name string, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(g.descs[name], prometheus.GaugeValue, value, labels...)
	})
	if err != nil {
		g.log.Warn("gather metrics", "err", err)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// osdMetrics are of an OSD.
func osdMetrics(o *osd.OSD, log *slog.Logger) prometheus.Collector {
	return newGauges(log, map[string]*prometheus.Desc{
		"groups":   desc("pillarbox_osd_groups", "placement groups of volumes with a replica here"),
		"leads":    desc("pillarbox_osd_groups_led", "those of them that this OSD leads"),
		"degraded": desc("pillarbox_osd_groups_degraded", "those of them that lack members"),
		"missing":  desc("pillarbox_osd_chunks_missing", "chunks still to be brought where they belong"),
		"bad":      desc("pillarbox_osd_chunks_bad", "chunks that scrub found damaged and could not heal"),
		"epoch":    desc("pillarbox_osd_map_epoch", "the map that the OSD goes by"),
		"total":    desc("pillarbox_osd_disk_bytes", "size of the disk"),
		"free":     desc("pillarbox_osd_disk_free_bytes", "what the store may still use of it"),
	}, func(ctx context.Context, set func(string, float64, ...string)) error {
		r := reportOf(ctx, o)
		set("groups", float64(r.Groups))
		set("leads", float64(r.Leads))
		set("degraded", float64(r.Degraded))
		set("missing", float64(r.Missing))
		set("bad", float64(r.Bad))
		set("epoch", float64(r.Epoch))
		set("total", float64(r.Total))
		set("free", float64(r.Free))
		return nil
	})
}

// shipMetrics are of a store that is shipped outside; none of one that is not.
func shipMetrics(sh *shipping, log *slog.Logger) prometheus.Collector {
	return newGauges(log, map[string]*prometheus.Desc{
		"behind": desc("pillarbox_ship_behind_bytes", "bytes of the log that are not in the outside pool yet"),
		"whole":  desc("pillarbox_ship_whole", "1 when the store can be rebuilt from what is in the outside pool"),
		"failed": desc("pillarbox_ship_failed", "1 while shipping does not get on"),
	}, func(_ context.Context, set func(string, float64, ...string)) error {
		if sh.Shipper == nil {
			return nil
		}
		err, _ := sh.Health()
		set("behind", float64(sh.Behind()))
		set("whole", truth(sh.Whole()))
		set("failed", truth(err != nil))
		return nil
	})
}

// packMetrics are of a store whose small mail is packed.
func packMetrics(s *stack, log *slog.Logger) prometheus.Collector {
	return newGauges(log, map[string]*prometheus.Desc{
		"packs": desc("pillarbox_packs", "objects with small mail stored in outside pools since the start"),
		"files": desc("pillarbox_packed_files", "files whose bodies are in them"),
		"bytes": desc("pillarbox_packed_bytes", "bytes of these bodies"),
	}, func(_ context.Context, set func(string, float64, ...string)) error {
		if n := s.packed(); n != nil {
			set("packs", float64(n.Packs))
			set("files", float64(n.Files))
			set("bytes", float64(n.Bytes))
		}
		return nil
	})
}

// monMetrics are of the cluster, as a monitor sees it.
func monMetrics(m *mon.Monitor, log *slog.Logger) prometheus.Collector {
	return newGauges(log, map[string]*prometheus.Desc{
		"health": desc("pillarbox_health", "0: HEALTH_OK, 1: HEALTH_WARN, 2: HEALTH_ERR"),
		"check":  desc("pillarbox_health_check", "1 for each code that is not as it should be", "code"),
		"epoch":  desc("pillarbox_map_epoch", "the cluster map's"),
		"mons":   desc("pillarbox_mons", "monitors in the map"),
		"quorum": desc("pillarbox_mons_in_quorum", "those of them that are there"),
		"up":     desc("pillarbox_osd_up", "whether an OSD is up", "osd"),
		"in":     desc("pillarbox_osd_in", "whether an OSD has data placed on it", "osd"),
		"total":  desc("pillarbox_disk_bytes", "size of all disks"),
		"free":   desc("pillarbox_disk_free_bytes", "free on all disks"),
		"moving": desc("pillarbox_chunks_missing", "chunks still to be brought where they belong, on all OSDs"),
	}, func(ctx context.Context, set func(string, float64, ...string)) error {
		st, err := m.Status(ctx)
		if err != nil {
			return err
		}
		set("health", map[string]float64{mon.HealthOK: 0, mon.HealthWarn: 1, mon.HealthErr: 2}[st.Health])
		for _, c := range st.Checks {
			set("check", 1, c.Code)
		}
		set("epoch", float64(st.Epoch))
		set("mons", float64(len(st.Mons)))
		set("quorum", float64(len(st.Mons)-len(st.Away)))
		for _, o := range st.OSDs {
			set("up", truth(o.Up), strconv.Itoa(o.ID))
			set("in", truth(o.In), strconv.Itoa(o.ID))
		}
		set("total", float64(st.Total))
		set("free", float64(st.Free))
		chunks := progressOf(st).left
		set("moving", float64(chunks))
		return nil
	})
}

// dropped is a collector of what a port dropped.
type dropped struct {
	c    *guard.Counter
	desc *prometheus.Desc
}

func droppedMetrics(c *guard.Counter) prometheus.Collector {
	return &dropped{c, desc("pillarbox_dropped_total", "what came to the daemon's port and was not for it, by reason", "reason")}
}

// Describe implements prometheus.Collector.
func (d *dropped) Describe(ch chan<- *prometheus.Desc) { ch <- d.desc }

// Collect implements prometheus.Collector.
func (d *dropped) Collect(ch chan<- prometheus.Metric) {
	for reason, n := range d.c.Counts() {
		ch <- prometheus.MustNewConstMetric(d.desc, prometheus.CounterValue, float64(n), reason)
	}
}

// s3Metrics are of a gateway's requests.
type s3Metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	sent     prometheus.Counter
}

func newS3Metrics() *s3Metrics {
	return &s3Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pillarbox_s3_requests_total", Help: "requests by operation, HTTP status and S3 error code"},
			[]string{"operation", "status", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "pillarbox_s3_request_seconds", Help: "how long requests took, by operation",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 10)}, []string{"operation"}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{Name: "pillarbox_s3_sent_bytes_total", Help: "bytes of answers"}),
	}
}

// Describe implements prometheus.Collector.
func (m *s3Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.requests.Describe(ch)
	m.seconds.Describe(ch)
	m.sent.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *s3Metrics) Collect(ch chan<- prometheus.Metric) {
	m.requests.Collect(ch)
	m.seconds.Collect(ch)
	m.sent.Collect(ch)
}

func (m *s3Metrics) note(a s3.Access) {
	m.requests.WithLabelValues(a.Operation, strconv.Itoa(a.Status), a.Code).Inc()
	m.seconds.WithLabelValues(a.Operation).Observe(a.Took.Seconds())
	m.sent.Add(float64(a.Sent))
}
