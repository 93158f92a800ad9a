package ec

import (
	"bytes"
	"errors"
	"math/bits"
	"math/rand/v2"
	"testing"

	"pillarbox/objstore"
)

func content(n int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func mustCode(t *testing.T, k, m int) *Code {
	t.Helper()
	c, err := New(k, m)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Every pattern of losses: up to m are made good, more are told.
func TestAllLossPatterns(t *testing.T) {
	c := mustCode(t, 4, 2)
	for _, n := range []int{0, 1, 3, 4, 5, 63, 64, 65, 1000, 70001} {
		data := content(n)
		whole, err := c.Encode(data)
		if err != nil {
			t.Fatal(err)
		}
		for lost := uint(0); lost < 1<<6; lost++ {
			left := make([][]byte, 6)
			for i := range left {
				if lost>>i&1 == 0 {
					left[i] = whole[i]
				}
			}
			got, err := c.Decode(left)
			if bits.OnesCount(lost) > 2 {
				if !errors.Is(err, objstore.Unavailable) {
					t.Fatalf("%d bytes, lost %06b: %v", n, lost, err)
				}
				continue
			}
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes, lost %06b: %d bytes, %v", n, lost, len(got), err)
			}
			if err := c.Repair(left); err != nil {
				t.Fatal(err)
			}
			for i := range left {
				if !bytes.Equal(left[i], whole[i]) {
					t.Fatalf("%d bytes, lost %06b: shard %d came back different", n, lost, i)
				}
			}
		}
	}
}

// Any range comes out of its parts, and with shards missing out of the same
// columns of the others.
func TestRanges(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for range 2000 {
		c := mustCode(t, 1+r.IntN(6), 1+r.IntN(3))
		data := content(1 + r.IntN(300))
		whole, err := c.Encode(data)
		if err != nil {
			t.Fatal(err)
		}
		off := r.IntN(len(data))
		n := r.IntN(len(data) - off + 1)
		parts, err := c.Parts(len(data), off, n)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, n)
		for _, p := range parts {
			cols := make([][]byte, c.K+c.M)
			for _, i := range r.Perm(c.K + c.M)[:c.K] {
				cols[i] = bytes.Clone(whole[i][HeaderSize+p.From : HeaderSize+p.To])
			}
			if err := c.Fill(cols); err != nil {
				t.Fatal(err)
			}
			copy(got[p.At:], cols[p.Shard])
		}
		if !bytes.Equal(got, data[off:off+n]) {
			t.Fatalf("%d+%d: %d bytes at %d of %d", c.K, c.M, n, off, len(data))
		}
	}
	c := mustCode(t, 4, 2)
	for _, bad := range [][2]int{{-1, 1}, {0, 11}, {10, 1}, {11, 0}, {0, -1}} {
		if _, err := c.Parts(10, bad[0], bad[1]); !errors.Is(err, objstore.Invalid) {
			t.Errorf("range %v: %v", bad, err)
		}
	}
}

func TestDamageIsSeen(t *testing.T) {
	c := mustCode(t, 4, 2)
	for at := range HeaderSize + c.ShardSize(100) {
		p, err := c.Encode(content(100))
		if err != nil {
			t.Fatal(err)
		}
		p[3][at] ^= 1
		if _, err := c.Decode(p); !errors.Is(err, objstore.Corrupt) {
			t.Fatalf("byte %d: %v", at, err)
		}
	}
	p, err := c.Encode(content(100))
	if err != nil {
		t.Fatal(err)
	}
	p[0], p[1] = p[1], p[0]
	if _, err := c.Decode(p); !errors.Is(err, objstore.Corrupt) {
		t.Errorf("shards swapped: %v", err)
	}
	if _, err := New(0, 2); !errors.Is(err, objstore.Invalid) {
		t.Errorf("0+2: %v", err)
	}
}

func FuzzParseHeader(f *testing.F) {
	c, err := New(4, 2)
	if err != nil {
		f.Fatal(err)
	}
	p, err := c.Encode(content(10))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p[5])
	f.Add([]byte("PBEC"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err == nil && (h.K < 1 || h.Index >= h.K+h.M || h.Length > objstore.StoredMax) {
			t.Fatalf("%+v", h)
		}
	})
}
