package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func tiny(t *testing.T) Options {
	o := Defaults(t.TempDir())
	o.Workers, o.Messages, o.MeanSize, o.AttachSize = []int{1, 3}, 8, 4<<10, 300<<10
	o.Rounds, o.DropCaches = 2, false
	return o
}

func wantEmpty(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if left, err := os.ReadDir(d); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", d, left, err)
		}
	}
}

func TestEveryRowAgainstAnotherDirectory(t *testing.T) {
	o := tiny(t)
	o.Versus = t.TempDir()
	steps := 0
	o.Progress = func(_ string, done, total int) {
		if steps++; done > total {
			t.Errorf("%d of %d steps", done, total)
		}
	}
	rep, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Results) != 2*len(Rows()) || steps == 0 {
		t.Errorf("%d results, %d steps of progress", len(rep.Results), steps)
	}
	for _, r := range rep.Results {
		if r.Versus == nil || r.Dir.Ops == 0 || r.Dir.Ops != r.Versus.Ops || r.Dir.Rate <= 0 ||
			r.Low > r.Ratio || r.Ratio > r.High || r.Low <= 0 ||
			r.Dir.P50 <= 0 || r.Dir.P50 > r.Dir.P95 || r.Dir.P95 > r.Dir.P99 {
			t.Errorf("%+v, %+v", r, r.Versus)
		}
		if (r.Dir.MBps > 0) != strings.HasPrefix(r.Row, "attach-") {
			t.Errorf("%s: %v MB/s", r.Row, r.Dir.MBps)
		}
	}
	wantEmpty(t, o.Dir, o.Versus)
	var text, js bytes.Buffer
	if err := errors.Join(rep.WriteText(&text), rep.WriteJSON(&js)); err != nil {
		t.Fatal(err)
	}
	for _, want := range append(RowNames(), "3 workers", "1 worker\n", "not cold") {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	var again Report
	if err := json.Unmarshal(js.Bytes(), &again); err != nil || len(again.Results) != len(rep.Results) {
		t.Errorf("%v in\n%s", err, &js)
	}
}

// Each row must prepare for itself whatever it needs.
func TestEachRowAlone(t *testing.T) {
	for _, name := range RowNames() {
		o := tiny(t)
		o.Rows, o.Rounds, o.Workers = []string{name}, 1, []int{2}
		rep, err := Run(context.Background(), o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if len(rep.Results) != 1 || rep.Results[0].Versus != nil || rep.Results[0].Dir.Ops == 0 {
			t.Errorf("%s: %+v", name, rep)
		}
		wantEmpty(t, o.Dir)
	}
}

func TestRealMailAndTime(t *testing.T) {
	o := tiny(t)
	o.MailDir = t.TempDir()
	if err := os.WriteFile(filepath.Join(o.MailDir, "1"), []byte("Subject: a\n\nb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.Rows, o.Workers, o.Time = []string{"read-warm"}, []int{1}, 5*time.Millisecond
	rep, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Results[0].Dir.Seconds < 0.005 || rep.MeanSize != 14 {
		t.Errorf("%+v", rep)
	}
}

func TestCorruptionIsFound(t *testing.T) {
	flip := func(path string) error {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		b[len(b)-1] ^= 1
		return os.WriteFile(path, b, 0o600)
	}
	truncate := func(path string) error { return os.Truncate(path, 100) }
	for name, c := range map[string]struct {
		rows   []string
		after  string
		glob   string
		damage func(string) error
	}{
		"a bit, read cold":         {nil, "deliver-rename", "new/*", flip},
		"a message cut short":      {[]string{"new-to-cur", "read-warm"}, "new-to-cur", "cur/*", truncate},
		"no row reads":             {[]string{"deliver-link", "expunge"}, "deliver-link", "new/*", flip},
		"the last row":             {[]string{"deliver-link"}, "deliver-link", "new/*", flip},
		"a message vanished":       {[]string{"deliver-link", "deliver-rename", "open-warm"}, "deliver-rename", "new/*", os.Remove},
		"an attachment":            {nil, "attach-write", "tmp/attachment-*", flip},
		"an attachment, cut short": {nil, "attach-write", "tmp/attachment-*", truncate},
	} {
		t.Run(name, func(t *testing.T) {
			o := tiny(t)
			o.Rows = c.rows
			o.afterRow = func(row string, s *site) {
				if row != c.after {
					return
				}
				found, err := filepath.Glob(filepath.Join(s.domain, "user0/Maildir", c.glob))
				if err == nil && len(found) == 0 {
					err = errors.New("nothing to damage")
				}
				if err == nil {
					err = c.damage(found[0])
				}
				if err != nil {
					t.Error(err)
				}
			}
			_, err := Run(context.Background(), o)
			var bad *MismatchError
			if !errors.As(err, &bad) && !(name == "a message vanished" && errors.Is(err, os.ErrNotExist)) {
				t.Errorf("%v", err)
			}
			// What the damage made the benchmark lose sight of goes too.
			wantEmpty(t, o.Dir)
		})
	}
}

func TestInterruptTidiesUp(t *testing.T) {
	stop := errors.New("stopped by the test")
	for _, at := range []string{"deliver-link", "attach-write", "expunge"} {
		o := tiny(t)
		ctx, cancel := context.WithCancelCause(context.Background())
		o.Progress = func(what string, _, _ int) {
			if strings.HasSuffix(what, at) {
				cancel(stop)
			}
		}
		if _, err := Run(ctx, o); !errors.Is(err, stop) {
			t.Errorf("%s: %v", at, err)
		}
		wantEmpty(t, o.Dir)
	}
}

// TestInterruptKeepsPhases: what was measured whole is there, and why it ended is
// said once.
func TestInterruptKeepsPhases(t *testing.T) {
	stop := errors.New("stopped by the test")
	o := tiny(t)
	o.Workers = []int{1, 3}
	ctx, cancel := context.WithCancelCause(context.Background())
	o.Progress = func(what string, _, _ int) {
		if strings.HasPrefix(what, "3 workers") {
			cancel(stop)
		}
	}
	rep, err := Run(ctx, o)
	if !errors.Is(err, stop) || strings.Count(err.Error(), stop.Error()) != 1 {
		t.Errorf("%v", err)
	}
	if rep == nil || len(rep.Results) != len(RowNames()) || rep.Results[0].Workers != 1 {
		t.Errorf("%+v", rep)
	}
	wantEmpty(t, o.Dir)
}

func TestValidate(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"no directory": func(o *Options) { o.Dir = "" },
		"missing":      func(o *Options) { o.Dir += "/none" },
		"a file":       func(o *Options) { o.Versus = "/proc/self/status" },
		"no workers":   func(o *Options) { o.Workers = nil },
		"0 workers":    func(o *Options) { o.Workers = []int{0} },
		"messages":     func(o *Options) { o.Messages = 1 },
		"row":          func(o *Options) { o.Rows = []string{"fly"} },
		"size":         func(o *Options) { o.MeanSize = 1 },
		"time":         func(o *Options) { o.Time = -1 },
		"rounds":       func(o *Options) { o.Rounds = 0 },
		"attachment":   func(o *Options) { o.AttachSize = 0 },
	} {
		o := Defaults(t.TempDir())
		change(&o)
		if _, err := Run(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	o := Defaults(t.TempDir())
	o.Workers, o.Messages = []int{1024}, 1_000_000
	if _, err := Run(context.Background(), o); err == nil || !strings.Contains(err.Error(), "GiB free") {
		t.Errorf("too big: %v", err)
	}
}

func TestHistogram(t *testing.T) {
	var h, sum histogram
	for i := 1; i <= 100_000; i++ {
		h.add(time.Duration(i) * time.Microsecond)
	}
	h.add(math.MaxInt64)
	sum.merge(&h)
	for _, p := range []float64{50, 95, 99} {
		got, want := float64(sum.percentile(p)), p*1e6
		if math.Abs(got/want-1) > 0.016 {
			t.Errorf("p%v = %v, want %v", p, got, want)
		}
	}
	for ns := uint64(1); ns < 1<<62; ns = ns*3 + 1 {
		if up := upper(bucketOf(ns)); up < ns || float64(up) > float64(ns)*1.016 {
			t.Errorf("%d lies in a bucket up to %d", ns, up)
		}
	}
}

func TestContent(t *testing.T) {
	o := Defaults(t.TempDir())
	c, err := newContent(&o)
	if err != nil {
		t.Fatal(err)
	}
	total, n := 0, 20_000
	var seen []int
	for i := range n {
		head, body := c.message(uint64(i), nil)
		total += len(head) + len(body)
		seen = append(seen, len(head)+len(body))
	}
	if mean := float64(total) / float64(n); math.Abs(mean/float64(o.MeanSize)-1) > 0.1 {
		t.Errorf("mean size %v, want %d", mean, o.MeanSize)
	}
	slices.Sort(seen)
	if median := seen[n/2]; median > o.MeanSize/2 {
		t.Errorf("median %d", median)
	}
	d, err := newContent(&o)
	if err != nil {
		t.Fatal(err)
	}
	h1, b1 := c.message(77, nil)
	h2, b2 := d.message(77, nil)
	if !bytes.Equal(h1, h2) || !bytes.Equal(b1, b2) {
		t.Error("the same seed makes other contents")
	}
}
