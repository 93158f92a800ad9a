//go:build ceph

package s3

import (
	"flag"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pillarbox/test/harness"
)

var each = flag.Duration("each", 4*time.Second, "how long each of three measurements of a row takes")

// TestBesideCeph measures both gateways in turns, on one disk, and prints what
// docs/s3.md has.
func TestBesideCeph(t *testing.T) {
	theirs := harness.StartCeph(t, false)
	ours := newSite(t)
	ours.pillarbox("s3", "user", "create", "bench", "--access-key", "benchmark", "--secret-key-file", ours.write("secret", []byte("benchmark-secret")))
	ours.access, ours.secret = "benchmark", "benchmark-secret"
	var loads []*load
	for _, addr := range []string{ours.addr, theirs.Gateway} {
		if out, err := ours.client("/usr/bin/aws", "--endpoint-url", "http://"+addr, "s3api", "create-bucket", "--bucket", "bench", "--acl", "public-read-write"); err != nil {
			t.Fatal(err, out)
		}
		loads = append(loads, newLoad("http://"+addr+"/bench"))
	}
	t.Logf("%-12s %8s %12s %12s %6s", "", "clients", "Pillarbox/s", "Ceph/s", "ratio")
	for _, size := range []int{4 << 10, 75 << 10, 64 << 20} {
		for _, clients := range []int{8, 32} {
			if size == 64<<20 {
				if clients == 32 {
					continue
				}
				clients = 4
			}
			for _, l := range loads {
				if err := l.fill(size, clients); err != nil {
					t.Fatal(err)
				}
			}
			for _, method := range []string{http.MethodPut, http.MethodGet} {
				var figures [2][]float64
				for range 3 {
					for i, l := range loads {
						n, err := l.during(method, size, clients, *each)
						if err != nil {
							t.Fatal(err)
						}
						figures[i] = append(figures[i], n)
					}
				}
				a, b := median(figures[0]), median(figures[1])
				t.Logf("%s %4d KiB %8d %12.1f %12.1f %6.2f", method, size>>10, clients, a, b, a/b)
			}
		}
	}
}

// during is how many requests a second so many clients made. Before objects are
// got for the first time, all must have been put.
func (l *load) during(method string, size, clients int, d time.Duration) (float64, error) {
	body := random(size)
	if method == http.MethodGet {
		body = nil
	}
	begin := time.Now()
	n, err := l.all(clients, func(int64) bool { return time.Since(begin) < d }, func(i int64) error {
		return l.do(method, name(size, i), body)
	})
	return float64(n) / time.Since(begin).Seconds(), err
}

// fill puts all objects of a size.
func (l *load) fill(size, clients int) error {
	_, err := l.all(clients, func(i int64) bool { return i < names(size) }, func(i int64) error {
		return l.do(http.MethodPut, name(size, i), random(size))
	})
	return err
}

// names is how many objects of a size there are.
func names(size int) int64 { return int64(max(4, min(1000, 64<<20/size))) }

func name(size int, i int64) string { return fmt.Sprintf("%d/%d", size, i%names(size)) }

// all calls fn from so many goroutines while there is more, and says how often.
func (l *load) all(clients int, more func(int64) bool, fn func(int64) error) (int64, error) {
	var next, done atomic.Int64
	var g errgroup.Group
	for range clients {
		g.Go(func() error {
			for {
				i := next.Add(1) - 1
				if !more(i) {
					return nil
				}
				if err := fn(i); err != nil {
					return err
				}
				done.Add(1)
			}
		})
	}
	err := g.Wait()
	return done.Load(), err
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}
