package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tally is what was measured of one row in one directory by one number of
// workers.
type tally struct {
	lat   histogram
	ops   int
	bytes int64
	time  time.Duration
	rates []float64 // of each round, per second
}

// phase measures all rows with one number of workers.
type phase struct {
	opt     *Options
	rows    []Row
	sites   []*site
	workers int
	tallies [][]tally // by row and site
	round   int       // 0 is the warm-up
}

// Run measures and reports. Everything it made is removed when it returns; an
// error of that is joined to the others. A MismatchError says that a directory
// did not give back what was written. With the error of an end of ctx comes what was
// measured until then: the phases that are whole.
func Run(ctx context.Context, o Options) (rep *Report, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	c, err := newContent(&o)
	if err != nil {
		return nil, err
	}
	if err := checkSpace(&o, c.mean); err != nil {
		return nil, err
	}
	rep = newReport(&o, c.mean)
	if o.DropCaches {
		if err := dropCaches(); err != nil {
			o.DropCaches = false
			rep.note("The cold rows are not cold: " + err.Error() + ".")
		}
	} else {
		rep.note("The cold rows are not cold: caches were not dropped, as asked.")
	}
	rep.CachesDropped = o.DropCaches
	var sites []*site
	defer func() {
		for _, s := range sites {
			err = errors.Join(err, s.remove())
		}
	}()
	for _, d := range o.dirs() {
		s, err := newSite(d, &o, c)
		if err != nil {
			return nil, err
		}
		sites = append(sites, s)
	}
	for _, n := range o.Workers {
		p := &phase{opt: &o, rows: o.rows(), sites: sites, workers: n}
		if err := p.run(ctx); err != nil {
			if bad := (*MismatchError)(nil); ctx.Err() != nil && !errors.As(err, &bad) { // each worker says so
				return rep, fmt.Errorf("with %d workers: %w", n, context.Cause(ctx))
			}
			return nil, fmt.Errorf("with %d workers: %w", n, err)
		}
		rep.add(p)
	}
	return rep, nil
}

func (p *phase) run(ctx context.Context) error {
	// A thread that waits in a system call then keeps no other from running.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(p.workers + 2))
	p.tallies = make([][]tally, len(p.rows))
	for i := range p.tallies {
		p.tallies[i] = make([]tally, len(p.sites))
	}
	for _, s := range p.sites {
		if err := s.accounts(ctx, p.workers); err != nil {
			return err
		}
	}
	for p.round = 0; p.round <= p.opt.Rounds || !p.longEnough(); p.round++ {
		messages := p.opt.Messages
		if p.round == 0 {
			messages = max(messages/8, 2)
		}
		if err := p.oneRound(ctx, messages); err != nil {
			return err
		}
	}
	for _, s := range p.sites {
		if err := s.dropAccounts(); err != nil {
			return err
		}
	}
	return nil
}

// longEnough says whether each row was measured for the time asked.
func (p *phase) longEnough() bool {
	for i := range p.tallies {
		for j := range p.tallies[i] {
			if p.tallies[i][j].time < p.opt.Time {
				return false
			}
		}
	}
	return true
}

func (p *phase) oneRound(ctx context.Context, messages int) error {
	for _, s := range p.sites {
		s.start(ctx, p.round, messages)
	}
	for i, r := range p.rows {
		p.progress(r.Name, i)
		verify := r.Name == "expunge" || i == len(p.rows)-1
		for k := range p.sites {
			// The second one finds the processor's caches warmer: take turns.
			j := (k + p.round) % len(p.sites)
			s := p.sites[j]
			if err := p.pass(r, s, &p.tallies[i][j], verify); err != nil {
				return fmt.Errorf("%s in %s: %w", r.Name, s.dir, err)
			}
		}
	}
	for _, s := range p.sites {
		if _, err := s.each((*worker).empty); err != nil {
			return fmt.Errorf("tidy up %s: %w", s.dir, err)
		}
	}
	p.progress("", len(p.rows))
	return nil
}

// pass does a row once in one directory. With verify all messages are read and
// compared before they are expunged, or behind the last row.
func (p *phase) pass(r Row, s *site, t *tally, verify bool) error {
	verify = verify && !p.reads()
	for range r.passes(p.workers) {
		if _, err := s.each(func(w *worker) error { return w.prepare(r.wants) }); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
		if verify && r.Name == "expunge" {
			if _, err := s.each((*worker).verifyBox); err != nil {
				return err
			}
		}
		if err := p.calm(r, s); err != nil {
			return err
		}
		if err := p.measure(r, s, t); err != nil {
			return err
		}
		if p.opt.afterRow != nil {
			p.opt.afterRow(r.Name, s)
		}
	}
	if verify {
		_, err := s.each((*worker).verifyBox)
		return err
	}
	return nil
}

// reads says whether a chosen row reads all messages anyway.
func (p *phase) reads() bool {
	for _, r := range p.rows {
		if strings.HasPrefix(r.Name, "read-") {
			return true
		}
	}
	return false
}

// calm makes the caches cold or warm and the disks quiet.
func (p *phase) calm(r Row, s *site) error {
	for _, s := range p.sites {
		if err := s.settle(); err != nil {
			return err
		}
	}
	if r.wants.cold && p.opt.DropCaches {
		return dropCaches()
	}
	if r.wants.warm {
		_, err := s.each(r.measure)
		return err
	}
	return nil
}

func (p *phase) measure(r Row, s *site, t *tally) error {
	warmUp := p.round == 0
	for _, w := range s.workers {
		w.lat, w.ops, w.bytes = &histogram{}, 0, 0
	}
	d, err := s.each(r.measure)
	ops, bytes := 0, int64(0)
	for _, w := range s.workers {
		ops, bytes = ops+w.ops, bytes+w.bytes
		if !warmUp {
			t.lat.merge(w.lat)
		}
		w.lat = nil
	}
	if err != nil || warmUp {
		return err
	}
	t.ops, t.bytes, t.time = t.ops+ops, t.bytes+bytes, t.time+d
	t.rates = append(t.rates, float64(ops)/d.Seconds())
	return nil
}

func (p *phase) progress(row string, i int) {
	if p.opt.Progress == nil {
		return
	}
	what := fmt.Sprintf("%d workers", p.workers)
	if row != "" {
		what += ", " + row
	}
	rounds := p.opt.Rounds + 1
	total := max(rounds, p.round+1) * len(p.rows)
	p.opt.Progress(what, min(p.round*len(p.rows)+i, total), total)
}

// system describes the machine for the report.
func system() string {
	var u unix.Utsname
	host, _ := os.Hostname() // only informs
	if err := unix.Uname(&u); err != nil {
		return host
	}
	return fmt.Sprintf("%s, Linux %s, %d processors", host, unix.ByteSliceToString(u.Release[:]), runtime.NumCPU())
}
