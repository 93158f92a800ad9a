package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pillarbox/cachefs"
	"pillarbox/cachefs/diskcache"
	"pillarbox/fusefs"
	"pillarbox/objstore/client"
)

// mountStats are how a mount is doing, as its admin socket answers GET /stats.
type mountStats struct {
	Time time.Time `json:"time"`
	fusefs.Stats
	Files  cachefs.Stats    `json:"files"`
	Client *client.Stats    `json:"client,omitempty"`     // of a cluster's mount
	Cache  *diskcache.Stats `json:"disk_cache,omitempty"` // where there is one
	Memory memoryUse        `json:"memory"`
}

// memoryUse is what a mount keeps in memory, in bytes, and how much that may be.
type memoryUse struct {
	Used int64 `json:"used_bytes"`
	Max  int64 `json:"max_bytes"`
}

func (s *stack) stats() *mountStats {
	st := &mountStats{Time: time.Now(), Stats: s.mount.Stats(), Files: s.fs.Stats()}
	st.Memory.Used = st.Files.Dirty + st.Files.Bodies
	if s.osd == nil {
		c := s.client.Stats()
		st.Client = &c
		st.Memory.Used += c.Bytes
	}
	if s.cache != nil {
		c := s.cache.Stats()
		st.Cache = &c
		st.Memory.Used += c.Waiting
	}
	st.Memory.Max = s.memory.total
	return st
}

// mountMetrics are those of a mount.
type mountMetrics struct {
	s       *stack
	seconds *prometheus.Desc
	failed  *prometheus.Desc
	values  map[string]*prometheus.Desc
}

func newMountMetrics(s *stack) *mountMetrics {
	m := &mountMetrics{
		s:       s,
		seconds: desc("pillarbox_mount_op_seconds", "how long the kernel's requests took, by kind", "op"),
		failed:  desc("pillarbox_mount_op_failed_total", "those of them that were answered with an input/output error", "op"),
		values:  map[string]*prometheus.Desc{},
	}
	m.each(&mountStats{Client: &client.Stats{}, Cache: &diskcache.Stats{}}, func(v mountValue) {
		if m.values[v.name] == nil {
			m.values[v.name] = desc(v.name, v.help, v.labels()...)
		}
	})
	return m
}

// mountValue is one metric's value. Those called _total only grow.
type mountValue struct {
	name, help string
	value      float64
	grows      bool
	what       string // the label's value; empty: it has none
}

func (v *mountValue) labels() []string {
	if v.what == "" {
		return nil
	}
	return []string{"what"}
}

func (*mountMetrics) each(st *mountStats, put func(mountValue)) {
	gauge := func(name, help string, value float64) { put(mountValue{name: name, help: help, value: value}) }
	count := func(name, help string, value uint64) {
		put(mountValue{name: name, help: help, value: float64(value), grows: true})
	}
	count("pillarbox_mount_read_bytes_total", "bytes of files that the kernel read", st.ReadBytes)
	count("pillarbox_mount_written_bytes_total", "bytes of files that the kernel wrote", st.WrittenBytes)
	gauge("pillarbox_mount_dirty_bytes", "bytes written and not yet committed", float64(st.Files.Dirty))
	gauge("pillarbox_mount_open_files", "files that are open", float64(st.Files.OpenFiles))
	gauge("pillarbox_mount_memory_bytes", "memory that what the mount keeps takes: metadata, bodies, and what waits to be written", float64(st.Memory.Used))
	gauge("pillarbox_mount_memory_max_bytes", "how much that may be", float64(st.Memory.Max))
	count("pillarbox_mount_commits_total", "changes of files' bytes", st.Files.Commits)
	count("pillarbox_mount_commit_extents_total", "pieces of files that those brought", st.Files.CommitExtents)
	count("pillarbox_mount_commit_bytes_total", "bytes that those brought", st.Files.CommitBytes)
	count("pillarbox_mount_prefetched_bytes_total", "bytes of messages brought into the disk cache before anybody asked for them", st.Files.Prefetched)
	count("pillarbox_mount_prefetch_used_bytes_total", "those of them that were read since", st.Files.Used)
	count("pillarbox_mount_prefetch_wasted_bytes_total", "those of them that were not read, and are not waited for any more", st.Files.Wasted)
	if c := st.Client; c != nil {
		for _, f := range []struct {
			what string
			client.Found
		}{{"names", c.Names}, {"attributes", c.Attrs}, {"extents", c.Extents}} {
			put(mountValue{"pillarbox_client_cache_hits_total", "what was asked of metadata and known on this host", float64(f.Hits), true, f.what})
			put(mountValue{"pillarbox_client_cache_misses_total", "what was asked of metadata and had to be asked of an OSD", float64(f.Misses), true, f.what})
		}
		gauge("pillarbox_client_cache_bytes", "memory that metadata kept on this host take, about", float64(c.Bytes))
		count("pillarbox_client_pushes_total", "changes of other hosts that this one was told of", c.Pushes)
		count("pillarbox_client_leases_lost_total", "leases of placement groups that were over before they could be renewed", c.LeasesLost)
		gauge("pillarbox_client_groups_away", "placement groups of volumes that cannot be reached, so that operations fail at once", float64(c.GroupsAway))
		gauge("pillarbox_client_osds_silent", "OSDs that do not answer this host", float64(c.OSDsSilent))
	}
	if c := st.Cache; c != nil {
		count("pillarbox_disk_cache_hits_total", "reads that the disk cache answered", c.Hits)
		count("pillarbox_disk_cache_hit_bytes_total", "bytes of those", c.HitBytes)
		count("pillarbox_disk_cache_misses_total", "reads that it could not answer", c.Misses)
		count("pillarbox_disk_cache_miss_bytes_total", "bytes of those", c.MissBytes)
		count("pillarbox_disk_cache_stored_total", "bodies that were put into it", c.Stored)
		count("pillarbox_disk_cache_evicted_total", "bodies that had to make room", c.Evicted)
		count("pillarbox_disk_cache_damaged_total", "bodies found damaged and removed", c.Damaged)
		count("pillarbox_disk_cache_skipped_total", "bodies not kept because too many waited, or the disk would not have them", c.Skipped)
		gauge("pillarbox_disk_cache_bytes", "bytes of disk that it takes", float64(c.Used))
		gauge("pillarbox_disk_cache_size_bytes", "bytes that it may take", float64(c.Size))
		gauge("pillarbox_disk_cache_away", "1: its directory cannot be used", truth(c.Away != ""))
	}
}

// Describe implements prometheus.Collector.
func (m *mountMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.seconds
	ch <- m.failed
	for _, d := range m.values {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *mountMetrics) Collect(ch chan<- prometheus.Metric) {
	st := m.s.stats()
	m.each(st, func(v mountValue) {
		kind := prometheus.GaugeValue
		if v.grows {
			kind = prometheus.CounterValue
		}
		var labels []string
		if v.what != "" {
			labels = []string{v.what}
		}
		ch <- prometheus.MustNewConstMetric(m.values[v.name], kind, v.value, labels...)
	})
	for op, t := range st.Ops {
		ch <- prometheus.MustNewConstMetric(m.failed, prometheus.CounterValue, float64(t.Failed), op)
		ch <- prometheus.MustNewConstHistogram(m.seconds, t.Count, t.Total.Seconds(), bucketsOf(&t), op)
	}
}

// Prometheus is given fewer buckets than are counted: the powers of four from
// shortBucket to longBucket, as nanoseconds.
const (
	shortBucket = time.Duration(1) << 14 // 16 us
	longBucket  = time.Duration(1) << 34 // 17 s
)

func bucketsOf(t *fusefs.Times) map[float64]uint64 {
	buckets := map[float64]uint64{}
	sum, next := uint64(0), shortBucket
	for i, n := range t.Steps {
		sum += n
		if end := fusefs.StepEnd(i); end == next && next <= longBucket {
			buckets[end.Seconds()] = sum
			next *= 4
		}
	}
	return buckets
}
