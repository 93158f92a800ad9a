package osd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
	"pillarbox/osd/wal"
)

// A store of one host can be shipped outside (package objstore/ship): a picture of
// the whole state, and the log from there on. The OSD offers both and knows
// nothing of where they go. Positions are those of the write-ahead log. A picture
// is taken while changes go on: with the log from its position on applied to it,
// in order, it is the state; what it has already is made again, to the same end.
// Keys that are no volume's stay here: they are about the clients of this store.

func isVolumes(key []byte) bool { return len(key) > 0 && key[0] < holderPrefix }

// ReadLog reads what was logged durably from one position to another, as many
// deltas as have about room bytes, and returns where to go on. NotFound: the log is
// not kept so far back.
func (o *OSD) ReadLog(from, upTo uint64, room int) (deltas []volume.Delta, next uint64, err error) {
	at, err := o.wal.Read(wal.LSN(from), wal.LSN(upTo), room, func(r wal.Record) error {
		if r.Type != recEntry {
			return nil
		}
		e, err := decodeEntry(r.Payload)
		if err != nil || len(e.GetData()) == 0 || e.GetType() != 0 {
			return err
		}
		all, err := decodeDelta(e.GetData())
		if err != nil {
			return err
		}
		var d volume.Delta
		for _, w := range all {
			if isVolumes(w.Key) {
				d = append(d, w)
			}
		}
		if len(d) > 0 {
			deltas = append(deltas, d)
		}
		return nil
	})
	if errors.Is(err, wal.ErrGone) {
		err = fmt.Errorf("%w: %w", objstore.NotFound, err)
	}
	return deltas, uint64(at), err
}

// KeepLog says that the log from a position on will be read.
func (o *OSD) KeepLog(from uint64) { o.wal.Keep(wal.LSN(from)) }

// LoggedTo is how far the log is durable.
func (o *OSD) LoggedTo() uint64 { return uint64(o.wal.Synced()) }

// Picture calls begin with a position of the log, which is kept from there on if
// begin says so with KeepLog, then fn with every key of the state, as of that
// position or somewhat later, and with every body. What goes meanwhile may be left
// out; the log says so.
func (o *OSD) Picture(ctx context.Context, begin func(from uint64) error, fn func(volume.Write) error) error {
	if err := o.flush(ctx); err != nil {
		return err
	}
	o.files.RLock()
	defer o.files.RUnlock()
	if o.filesClosed {
		return ErrClosed
	}
	o.flushMu.Lock()
	err := begin(uint64(o.released))
	ts := o.ts
	o.holdTS(ts, +1)
	base := snapshot{txn: o.db.NewTransactionAt(ts, false), chunks: o.chunks}
	o.flushMu.Unlock()
	defer func() {
		base.txn.Discard()
		o.holdTS(ts, -1)
	}()
	if err != nil {
		return err
	}
	for _, g := range o.hosted() {
		var failed error
		_, err := base.scan(g.id, nil, nil, func(key, value []byte) bool {
			if failed = ctx.Err(); failed == nil && isVolumes(key) {
				failed = fn(volume.Write{Key: append([]byte(nil), key...), Value: append([]byte{}, value...)})
			}
			return failed == nil
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
	}
	return o.bodiesOf(ctx, base, fn)
}

func (o *OSD) bodiesOf(ctx context.Context, base snapshot, fn func(volume.Write) error) error {
	it := base.txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyChunk}})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		id, ok := parseChunkKey(it.Item().Key())
		if !ok {
			return fmt.Errorf("chunk key %x: %w", it.Item().Key(), objstore.Corrupt)
		}
		if !id.Resident() {
			continue
		}
		b, err := base.body(id)
		if err != nil && o.chunkGone(o.Map().Group(id.Ino.Volume()), id) {
			continue
		}
		if err == nil {
			err = fn(volume.Write{Key: volume.BodyKey(id), Value: b})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Restore puts keys and bodies that were shipped into a store that nobody uses
// yet, durably when it is closed.
func (o *OSD) Restore(d volume.Delta) error {
	o.flushMu.Lock()
	defer o.flushMu.Unlock()
	if o.flushErr != nil {
		return o.flushErr
	}
	if err := o.roomToFlush(); err != nil {
		return err
	}
	b := newBatch(o)
	for _, w := range d {
		if !isVolumes(w.Key) || len(w.Key) < 4 {
			return fmt.Errorf("restore key %x: %w", w.Key, objstore.Corrupt)
		}
		if id, body := volume.ParseBodyKey(w.Key); body && w.Value != nil {
			if _, had, err := o.base.locate(id); had || err != nil { // bodies never change
				if err != nil {
					return err
				}
				continue
			}
		}
		pg := o.Map().Group(objstore.VolumeID(binary.BigEndian.Uint32(w.Key)))
		if err := b.put(pg, w, b.add); err != nil {
			return err
		}
	}
	if err := b.commit(); err != nil {
		return err
	}
	o.finishFlush(nil)
	o.garbage = append(o.garbage, b.freed...)
	return o.chunks.Free(b.freed)
}

// Settled is closed when what the last run left behind is cleared up.
func (o *OSD) Settled() <-chan struct{} { return o.settled }
