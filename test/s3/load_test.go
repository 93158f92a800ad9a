package s3

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// load makes requests to a bucket that is open to all.
type load struct {
	url    string
	client *http.Client
}

func newLoad(url string) *load {
	return &load{url, &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
}

func (l *load) do(method, key string, body []byte) error {
	req, err := http.NewRequestWithContext(context.Background(), method, l.url+"/"+key, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-Amz-Acl", "public-read-write")
	res, err := l.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 || method == http.MethodGet && n == 0 {
		return fmt.Errorf("%s %s: %s, %d bytes, %w", method, key, res.Status, n, err)
	}
	return nil
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
