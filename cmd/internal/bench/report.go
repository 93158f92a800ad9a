package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what a run found.
type Report struct {
	Dir           string    `json:"dir"`
	Versus        string    `json:"versus,omitempty"`
	System        string    `json:"system"`
	Time          time.Time `json:"time"`
	Messages      int       `json:"messages"`  // in each worker's mailbox
	MeanSize      int       `json:"mean_size"` // bytes
	AttachSize    int       `json:"attachment_size"`
	Seed          uint64    `json:"seed"`
	CachesDropped bool      `json:"caches_dropped"` // else the cold rows are warm
	Notes         []string  `json:"notes"`
	Results       []Result  `json:"results"`
}

// Result is one row with one number of workers.
type Result struct {
	Row     string   `json:"row"`
	Workers int      `json:"workers"`
	Dir     Measure  `json:"dir"`
	Versus  *Measure `json:"versus,omitempty"`
	// Ratio is the rate in Dir divided by that in Versus; above 1, Dir is
	// faster. Low and High are the least and the greatest ratio of a round.
	Ratio float64 `json:"ratio,omitempty"`
	Low   float64 `json:"ratio_low,omitempty"`
	High  float64 `json:"ratio_high,omitempty"`
}

// Measure is one row in one directory. Latencies are in microseconds.
type Measure struct {
	Ops     int     `json:"ops"`
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"ops_per_second"`
	MBps    float64 `json:"mb_per_second,omitempty"` // 10^6 bytes; attachments only
	P50     float64 `json:"p50_us"`
	P95     float64 `json:"p95_us"`
	P99     float64 `json:"p99_us"`
}

func newReport(o *Options, mean int) *Report {
	return &Report{
		Dir: o.Dir, Versus: o.Versus, System: system(), Time: time.Now().UTC().Truncate(time.Second),
		Messages: o.Messages, MeanSize: mean, AttachSize: o.AttachSize, Seed: o.Seed, Notes: []string{},
	}
}

func (r *Report) note(s string) { r.Notes = append(r.Notes, s) }

func (r *Report) add(p *phase) {
	for i, row := range p.rows {
		res := Result{Row: row.Name, Workers: p.workers, Dir: p.tallies[i][0].measured()}
		if len(p.sites) > 1 {
			a, b := &p.tallies[i][0], &p.tallies[i][1]
			m := b.measured()
			res.Versus = &m
			res.Ratio = over(res.Dir.Rate, m.Rate)
			var rounds []float64
			for k := range min(len(a.rates), len(b.rates)) {
				rounds = append(rounds, over(a.rates[k], b.rates[k]))
			}
			res.Low, res.High = slices.Min(rounds), slices.Max(rounds)
		}
		r.Results = append(r.Results, res)
	}
}

func over(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func (t *tally) measured() Measure {
	us := func(p float64) float64 { return float64(t.lat.percentile(p)) / 1e3 }
	s := t.time.Seconds()
	return Measure{
		Ops: t.ops, Seconds: s, Rate: over(float64(t.ops), s), MBps: over(float64(t.bytes)/1e6, s),
		P50: us(50), P95: us(95), P99: us(99),
	}
}

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// WriteText writes the report as tables, one per number of workers.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "A = %s\n", r.Dir)
	if r.Versus != "" {
		fmt.Fprintf(&b, "B = %s\n", r.Versus)
	}
	fmt.Fprintf(&b, "%s; %d messages of %.1f KiB on average in each mailbox\n", r.System, r.Messages, float64(r.MeanSize)/1024)
	workers := -1
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, res := range r.Results {
		if res.Workers != workers {
			if err := tw.Flush(); err != nil {
				return err
			}
			workers = res.Workers
			fmt.Fprintf(&b, "\n%d worker%s\n", workers, map[bool]string{false: "s"}[workers == 1])
			head := "row           \tA per s\tp50\tp95\tp99\t"
			if res.Versus != nil {
				head += "B per s\tp50\tp95\tp99\tA/B\trounds\t"
			}
			fmt.Fprintln(tw, head)
		}
		fmt.Fprintln(tw, res.line())
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\nNote: %s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Result) line() string {
	s := fmt.Sprintf("%-14s\t%s", r.Row, r.Dir.cells())
	if r.Versus != nil {
		s += r.Versus.cells() + fmt.Sprintf("%.2f\t%.2f-%.2f\t", r.Ratio, r.Low, r.High)
	}
	return s
}

func (m *Measure) cells() string {
	rate := fmt.Sprintf("%.0f", m.Rate)
	if m.MBps > 0 {
		rate = fmt.Sprintf("%.0f MB", m.MBps)
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s\t", rate, short(m.P50), short(m.P95), short(m.P99))
}

// short writes microseconds in three digits.
func short(us float64) string {
	switch {
	case us < 1e3:
		return fmt.Sprintf("%.3gus", us)
	case us < 1e6:
		return fmt.Sprintf("%.3gms", us/1e3)
	}
	return fmt.Sprintf("%.3gs", us/1e6)
}
