package layer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

// Metrics are what is counted of requests to outside stores, as Prometheus wants
// it and as status shows it. It may be shared by stores.
type Metrics struct {
	requests *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	away     *prometheus.GaugeVec

	mu    sync.Mutex
	pools map[string]*Stats
}

// Stats are of one pool since this process has it open.
type Stats struct {
	Pool      string    `json:"pool"`
	Requests  uint64    `json:"requests"`
	Failed    uint64    `json:"failed"`    // of them, for which the store was to blame
	Throttled uint64    `json:"throttled"` // of those, because the store wanted fewer
	Sent      uint64    `json:"bytes_sent"`
	Received  uint64    `json:"bytes_received"`
	Away      string    `json:"away,omitempty"`           // why nothing has worked lately
	Slowed    time.Time `json:"throttled_until,omitzero"` // throttledFor after the store last wanted fewer requests
}

// Problem is what is wrong with the pool now; nil: nothing.
func (s *Stats) Problem() error {
	switch {
	case s.Away != "":
		return fmt.Errorf("POOL_AWAY: pool %q does not answer: %s", s.Pool, s.Away)
	case time.Now().Before(s.Slowed):
		return fmt.Errorf("POOL_SLOW: pool %q wants fewer requests: %d were refused for that", s.Pool, s.Throttled)
	}
	return nil
}

// throttledFor is how long a store counts as one that wants fewer requests.
const throttledFor = time.Minute

// NewMetrics makes them.
func NewMetrics() *Metrics {
	return &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pillarbox_pool_requests_total", Help: "requests to outside pools by operation and result"}, []string{"pool", "operation", "result"}),
		bytes:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pillarbox_pool_bytes_total", Help: "bytes of bodies sent to and received from outside pools"}, []string{"pool", "direction"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "pillarbox_pool_request_seconds", Help: "how long requests to outside pools took, by operation",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9)}, []string{"pool", "operation"}),
		away:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "pillarbox_pool_away", Help: "1 while an outside pool answers nothing"}, []string{"pool"}),
		pools: make(map[string]*Stats),
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range []prometheus.Collector{m.requests, m.bytes, m.seconds, m.away} {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{m.requests, m.bytes, m.seconds, m.away} {
		c.Collect(ch)
	}
}

// Pools are the stats of all pools that were opened, by name.
func (m *Metrics) Pools() []Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]Stats, 0, len(m.pools))
	for _, s := range m.pools {
		list = append(list, *s)
	}
	slices.SortFunc(list, func(a, b Stats) int { return strings.Compare(a.Pool, b.Pool) })
	return list
}

// measured counts the requests to a store.
type measured struct {
	next  pool.Store
	name  string
	m     *Metrics
	stats *Stats // under m.mu
}

// Measure counts the requests to a store, as those of a pool.
func (m *Metrics) Measure(s pool.Store, name string) pool.Store {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pools[name] == nil {
		m.pools[name] = &Stats{Pool: name}
	}
	return &measured{s, name, m, m.pools[name]}
}

// blame is how a request ended, and whether the store is to blame for it.
func blame(ctx context.Context, err error) (result string, blamed bool) {
	_, throttled := pool.IsThrottled(err)
	switch {
	case err == nil:
		return "ok", false
	case errors.Is(err, objstore.NotFound):
		return "not found", false
	case throttled:
		return "throttled", true
	case errors.Is(ctx.Err(), context.Canceled): // by us
		return "canceled", false
	case errors.Is(err, objstore.NotPermitted):
		return "not permitted", true
	case errors.Is(err, objstore.Corrupt):
		return "corrupt", true
	}
	return "failed", true
}

// count notes a request; one made in vain sent and received nothing.
func (s *measured) count(ctx context.Context, operation string, begun time.Time, sent, received int, err error) {
	result, blamed := blame(ctx, err)
	if err != nil {
		sent, received = 0, 0
	}
	s.m.requests.WithLabelValues(s.name, operation, result).Inc()
	s.m.seconds.WithLabelValues(s.name, operation).Observe(time.Since(begun).Seconds())
	s.m.bytes.WithLabelValues(s.name, "sent").Add(float64(sent))
	s.m.bytes.WithLabelValues(s.name, "received").Add(float64(received))
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.stats.Requests++
	s.stats.Sent += uint64(sent)
	s.stats.Received += uint64(received)
	switch {
	case result == "canceled":
		return
	case result == "throttled":
		s.stats.Throttled++
		s.stats.Slowed = time.Now().Add(throttledFor)
	case blamed && result != "corrupt":
		s.stats.Away = err.Error()
	default:
		s.stats.Away = ""
	}
	if blamed {
		s.stats.Failed++
	}
	gone := 0.0
	if s.stats.Away != "" {
		gone = 1
	}
	s.m.away.WithLabelValues(s.name).Set(gone)
}

// Put implements pool.Store.
func (s *measured) Put(ctx context.Context, name string, data []byte) error {
	begun := time.Now()
	err := s.next.Put(ctx, name, data)
	s.count(ctx, "put", begun, len(data), 0, err)
	return err
}

// Get implements pool.Store.
func (s *measured) Get(ctx context.Context, name string, off int64, p []byte) error {
	begun := time.Now()
	err := s.next.Get(ctx, name, off, p)
	s.count(ctx, "get", begun, 0, len(p), err)
	return err
}

// Delete implements pool.Store.
func (s *measured) Delete(ctx context.Context, names []string) error {
	begun := time.Now()
	err := s.next.Delete(ctx, names)
	s.count(ctx, "delete", begun, 0, 0, err)
	return err
}

// List implements pool.Store.
func (s *measured) List(ctx context.Context, from string) ([]pool.Object, string, error) {
	begun := time.Now()
	list, next, err := s.next.List(ctx, from)
	s.count(ctx, "list", begun, 0, 0, err)
	return list, next, err
}
