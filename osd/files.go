package osd

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/dgraph-io/badger/v4"

	"pillarbox/objstore/volume"
)

// fileCount is how many inodes the volumes of each group have, as of the last flush.
// Every volume keeps its own number, so a start adds these up once, beside what it
// serves meanwhile, and from then on each flush adds what it changed.
type fileCount struct {
	mu    sync.Mutex // a leaf
	of    map[uint32]int64
	known bool // what there was at the start is in
}

func (f *fileCount) add(changed map[uint32]int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of == nil {
		f.of = map[uint32]int64{}
	}
	for pg, n := range changed {
		f.of[pg] += n
	}
}

// recordOf says whether a key of the database is that of a volume's record, and of which group.
func recordOf(key []byte) (pg uint32, ok bool) {
	if len(key) < 3 || key[0] != keyState || !volume.IsRecordKey(key[3:]) {
		return 0, false
	}
	return uint32(binary.BigEndian.Uint16(key[1:])), true
}

// inodes is what a volume's record counts for, 0 if there is none.
func inodes(key, record []byte) (int64, error) {
	if record == nil {
		return 0, nil
	}
	n, err := volume.Inodes(key[3:], record)
	return int64(n), err
}

// countFiles adds up what the database has at this moment.
func (o *OSD) countFiles(ctx context.Context) error {
	o.flushMu.Lock()
	ts := o.ts
	o.counts.mu.Lock()
	o.counts.of = map[uint32]int64{}
	o.counts.mu.Unlock()
	o.holdTS(ts, +1)
	o.flushMu.Unlock()
	defer o.holdTS(ts, -1)
	txn := o.db.NewTransactionAt(ts, false)
	defer txn.Discard()
	found, err := scanFiles(ctx, txn)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		o.log.Warn("inodes are not counted", "err", err)
		return nil
	}
	o.counts.add(found)
	o.counts.mu.Lock()
	o.counts.known = true
	o.counts.mu.Unlock()
	return nil
}

// scanFiles goes from one volume's record to the next.
func scanFiles(ctx context.Context, txn *badger.Txn) (map[uint32]int64, error) {
	found := map[uint32]int64{}
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyState}})
	defer it.Close()
	for it.Rewind(); it.Valid() && ctx.Err() == nil; {
		key := it.Item().KeyCopy(nil)
		record, next, ok := volume.RecordKey(key[3:])
		if !ok {
			return nil, fmt.Errorf("short key %x", key)
		}
		full := append(key[:3:3], record...)
		if it.Seek(full); it.Valid() && bytes.Equal(it.Item().Key(), full) {
			pg, _ := recordOf(full)
			err := it.Item().Value(func(v []byte) error {
				n, err := inodes(full, v)
				found[pg] += n
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		it.Seek(append(key[:3:3], next...))
	}
	return found, nil
}

// led is how many inodes the groups have that this OSD leads, 0 while it is not known.
func (f *fileCount) led(groups []*group) uint64 {
	var n int64
	for _, g := range groups {
		g.mu.RLock()
		leads := g.leads
		g.mu.RUnlock()
		if leads {
			f.mu.Lock()
			n += f.of[g.id]
			f.mu.Unlock()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.known {
		return 0
	}
	return uint64(max(n, 0))
}
