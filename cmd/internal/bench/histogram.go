package bench

import (
	"math/bits"
	"time"
)

const (
	subBits = 6 // 64 buckets per power of two: percentiles are exact to 1.6 %
	subs    = 1 << subBits
)

// histogram counts durations in buckets of bounded relative width. Not safe
// for concurrent use.
type histogram struct {
	counts [(64 - subBits + 1) * subs]uint64
	n      uint64
}

func bucketOf(ns uint64) int {
	shift := max(bits.Len64(ns)-subBits-1, 0)
	return shift*subs + int(ns>>shift)
}

// upper is the largest duration of a bucket, in nanoseconds.
func upper(bucket int) uint64 {
	if bucket < 2*subs {
		return uint64(bucket)
	}
	shift := bucket/subs - 1
	return (uint64(bucket-shift*subs)+1)<<shift - 1
}

func (h *histogram) add(d time.Duration) {
	h.counts[bucketOf(uint64(max(d, 0)))]++
	h.n++
}

func (h *histogram) merge(o *histogram) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
}

// percentile is the duration that p percent of all were not longer than.
func (h *histogram) percentile(p float64) time.Duration {
	want, seen := uint64(float64(h.n)*p/100+0.999999), uint64(0)
	for i, c := range h.counts {
		if seen += c; c > 0 && seen >= want {
			return time.Duration(upper(i))
		}
	}
	return 0
}
