package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/volume"
)

// dryRun is a rebuild that keeps nothing but what tells states apart.
type dryRun struct {
	seed maphash.Seed
	keys map[[16]byte]uint64 // hash of a key: hash of its value
}

func (d *dryRun) key(k []byte) (h [16]byte) {
	sum := sha256.Sum256(k)
	copy(h[:], sum[:])
	return h
}

func (d *dryRun) take(delta volume.Delta) error {
	for _, w := range delta {
		if w.Value == nil {
			delete(d.keys, d.key(w.Key))
		} else {
			d.keys[d.key(w.Key)] = maphash.Bytes(d.seed, w.Value)
		}
	}
	return nil
}

// differs counts keys in which the store is another than what was shipped of it.
func (d *dryRun) differs(ctx context.Context, s *stack) (n int, err error) {
	left := maps.Clone(d.keys)
	err = s.osd.Picture(ctx, func(uint64) error { return nil }, func(w volume.Write) error {
		k := d.key(w.Key)
		if have, ok := left[k]; !ok || have != maphash.Bytes(d.seed, w.Value) {
			n++
		}
		delete(left, k)
		return nil
	})
	return n + len(left), err
}

// verifyTries bounds how often the comparison is made again because something
// was cleared up meanwhile.
const verifyTries = 5

// shipped reads everything that was shipped to the pool and compares it with the
// store; v.named gets the names of its objects.
func (v *verifier) shipped(ctx context.Context, store pool.Store, keyFile string) error {
	sh := v.s.ship
	if sh == nil || sh.Shipper == nil || sh.pool.ID != v.pool.ID {
		return nil
	}
	for try := 1; ; try++ {
		if err := sh.Settle(ctx); err != nil {
			return err
		}
		at := v.s.osd.LoggedTo()
		found, _, err := findShipped(ctx, store, keyFile)
		if err != nil {
			return err
		}
		d := &dryRun{maphash.MakeSeed(), map[[16]byte]uint64{}}
		if err := found.Read(ctx, d.take, func(int64, int64) {}); err != nil {
			return fmt.Errorf("what was shipped: %w", err)
		}
		n, err := d.differs(ctx, v.s)
		if err != nil {
			return err
		}
		if n > 0 && try < verifyTries {
			if more, _, err := v.s.osd.ReadLog(at, v.s.osd.LoggedTo(), 1<<20); len(more) > 0 || errors.Is(err, objstore.NotFound) {
				continue
			}
		}
		maps.Copy(v.named, found.Names())
		v.checked = true
		if n > 0 {
			return failure(exitFailure, "what was shipped to pool %s is not the store: %d of %d keys differ", v.pool.Name, n, len(d.keys))
		}
		_, err = fmt.Fprintf(v.out, "shipped: %d keys, all as in the store\n", len(d.keys))
		return err
	}
}
