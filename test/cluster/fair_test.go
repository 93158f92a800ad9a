package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestFairness has four writers on each of two hosts deliver into one mailbox:
// none is starved, and every message is there.
func TestFairness(t *testing.T) {
	const writers, each = 4, 60
	_, a, b := twoMounts(t)
	var mu sync.Mutex
	var took [2][]time.Duration
	var half [2]int // messages of each host when the first one was through
	var wg sync.WaitGroup
	first := sync.OnceFunc(func() { half = [2]int{len(took[0]), len(took[1])} })
	for host, dir := range []string{a, b} {
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					name := fmt.Sprintf("%d.%d.%d", host, w, i)
					start := time.Now()
					if err := deliver(dir, name, []byte("to be kept: "+name)); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					took[host] = append(took[host], time.Since(start))
					if len(took[host]) == writers*each {
						first()
					}
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	if half[0]*4 < half[1] || half[1]*4 < half[0] {
		t.Errorf("one host had delivered %d messages and the other %d", half[0], half[1])
	}
	for host, d := range took {
		slices.Sort(d)
		t.Logf("host %d: a delivery took %v at the median, %v at the 99th percentile", host, d[len(d)/2], d[len(d)*99/100])
	}
	for _, dir := range []string{a, b} {
		list, err := os.ReadDir(filepath.Join(dir, "new"))
		if err != nil || len(list) != 2*writers*each {
			t.Fatalf("%d messages of %d, %v", len(list), 2*writers*each, err)
		}
		for _, e := range list {
			if got, err := os.ReadFile(filepath.Join(dir, "new", e.Name())); err != nil || string(got) != "to be kept: "+e.Name() {
				t.Errorf("%s: %q, %v", e.Name(), got, err)
			}
		}
	}
}

// deliver is Postfix's way.
func deliver(maildir, name string, data []byte) error {
	tmp := filepath.Join(maildir, "tmp", name)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Link(tmp, filepath.Join(maildir, "new", name))
	}
	if err != nil {
		return err
	}
	return os.Remove(tmp)
}
