package ship

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/seal"
	"pillarbox/objstore/volume"
)

// Found is what a pool holds of a store that was shipped to it.
type Found struct {
	Mark     Mark // of the epoch whose manifest it is
	Manifest *Manifest

	// Newer, after Read: objects of a later run are there. Its host was shipping
	// everything anew and did not finish; or the provider gives an old manifest.
	Newer bool

	store  pool.Store
	keys   *seal.MasterKeys
	sealer *sealer
	newest uint32 // epoch
	runs   []Run  // that Read has read, all closed
}

// Find looks for what was shipped to a pool. NotFound: nothing was. NoKey.
func Find(ctx context.Context, store pool.Store, keys *seal.MasterKeys) (*Found, error) {
	newest, mark, err := newestMark(ctx, store)
	if err != nil {
		return nil, err
	}
	for epoch := newest; epoch > 0; epoch-- {
		if epoch != newest {
			if mark, err = getMark(ctx, store, epoch); err != nil {
				return nil, err
			}
		}
		s, m, err := parseMark(mark, epoch, keys)
		if err != nil {
			return nil, err
		}
		man, err := s.getManifest(ctx, store, epoch)
		if errors.Is(err, objstore.NotFound) {
			continue // a rebuild that did not get that far
		}
		if err != nil {
			return nil, err
		}
		return &Found{Mark: *m, Manifest: man, store: store, keys: keys, sealer: s, newest: newest}, nil
	}
	return nil, fmt.Errorf("nothing that a store could be rebuilt from was shipped to this pool: %w", objstore.NotFound)
}

// Read calls fn for everything that makes the state, in order, and progress with
// the bytes read so far and, as far as known, in all. Corrupt: something is missing, damaged, or not
// what it was.
func (f *Found) Read(ctx context.Context, fn func(volume.Delta) error, progress func(done, total int64)) error {
	c, done := f.Manifest.Checkpoint, int64(0)
	for i, ref := range c.Parts {
		name := partName(c.Epoch, c.Number, i)
		b, err := f.sealer.getRef(ctx, f.store, name, ref)
		if err != nil {
			return err
		}
		d, err := volume.ParseDelta(b)
		if err == nil {
			err = fn(d)
		}
		if err != nil {
			return fmt.Errorf("object %s: %w", name, err)
		}
		done += int64(ref.Size)
		progress(done, max(done, c.Bytes))
	}
	f.runs = nil
	for _, r := range f.Manifest.Closed {
		last, err := f.readRun(ctx, r, false, fn, func(n int64) { done += n; progress(done, done) })
		if err != nil {
			return err
		}
		if last != r.Last {
			return fmt.Errorf("object %s is missing: %w", runName(r.Epoch, r.Number, last+1), objstore.Corrupt)
		}
		f.runs = append(f.runs, r)
	}
	open := f.Manifest.Open
	last, err := f.readRun(ctx, open, true, fn, func(n int64) { done += n; progress(done, done) })
	if err != nil {
		return err
	}
	if open.Last = last; open.Last >= open.First {
		f.runs = append(f.runs, open)
	}
	return f.lookBeyond(ctx, open)
}

// readRun reads a run's objects, and says which was the last.
func (f *Found) readRun(ctx context.Context, r Run, open bool, fn func(volume.Delta) error, progress func(int64)) (last uint64, err error) {
	before := r.Before
	for seq := r.First; open || seq <= r.Last; seq++ {
		name := runName(r.Epoch, r.Number, seq)
		b, salt, err := f.sealer.get(ctx, f.store, name)
		if errors.Is(err, objstore.NotFound) {
			return seq - 1, nil
		}
		if err != nil {
			return 0, err
		}
		rec, err := parseRecord(b)
		if err == nil && !bytes.Equal(rec.before[:], before) {
			err = fmt.Errorf("it does not follow the one before: one of them was exchanged or put back to an earlier state: %w", objstore.Corrupt)
		}
		if err == nil {
			err = fn(rec.delta)
		}
		if err != nil {
			return 0, fmt.Errorf("object %s: %w", name, err)
		}
		before = salt[:]
		progress(int64(len(b)))
	}
	return r.Last, nil
}

// beyond is how many names behind the end of the open run are looked at.
const beyond = 16

// lookBeyond looks for objects that must not be there if all before them are.
func (f *Found) lookBeyond(ctx context.Context, open Run) error {
	there := func(name string) (bool, error) {
		err := f.store.Get(ctx, name, 0, make([]byte, headSize))
		if errors.Is(err, objstore.NotFound) {
			return false, nil
		}
		return err == nil, err
	}
	for i := range uint64(beyond) {
		is, err := there(runName(open.Epoch, open.Number, open.Last+2+i))
		if err != nil {
			return err
		}
		if is {
			return fmt.Errorf("object %s is missing, later ones are there: %w", runName(open.Epoch, open.Number, open.Last+1), objstore.Corrupt)
		}
	}
	for i := range uint32(4) {
		is, err := there(runName(open.Epoch, open.Number+1+i, 1))
		if err != nil {
			return err
		}
		f.Newer = f.Newer || is
	}
	return nil
}

// Claim makes the next epoch, owned by the data directory dir: from then on no
// other host writes what counts.
func (f *Found) Claim(ctx context.Context, dir, poolName string) (*State, error) {
	st, err := NewState(dir, poolName, f.newest+1)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname() // only to tell people
	m := Mark{ID: st.ID, Epoch: st.Epoch, FSID: f.Mark.FSID, Host: host, Created: time.Now().UTC().Truncate(time.Second)}
	if err := putMark(ctx, f.store, f.sealer, f.keys, m); err != nil {
		return nil, err
	}
	b, err := getMark(ctx, f.store, st.Epoch)
	if err != nil {
		return nil, err
	}
	if _, there, err := parseMark(b, st.Epoch, f.keys); err != nil {
		return nil, err
	} else if there.ID != st.ID {
		return nil, ErrFenced
	}
	st.Claimed = true
	return st, st.Save()
}

// TakeOver makes the epoch's manifest: what was read, and a run that begins with
// position from of the new store's log.
func (f *Found) TakeOver(ctx context.Context, st *State, from uint64, about json.RawMessage) error {
	if err := superseded(ctx, f.store, st.Epoch); err != nil {
		return err
	}
	st.Runs = 1
	m := &Manifest{
		Format: manifestFormat, About: about, Checkpoint: f.Manifest.Checkpoint, Closed: f.runs, Garbage: f.Manifest.Garbage,
		Open: Run{Epoch: st.Epoch, Number: 1, First: 1, Before: make([]byte, saltSize), From: from},
	}
	if err := f.sealer.putManifest(ctx, f.store, st.Epoch, m); err != nil {
		return err
	}
	st.Pos = Position{Run: 1, Seq: 1, To: from, Before: make([]byte, saltSize)}
	return st.Save()
}

// Names are those of all objects that count, after Read.
func (f *Found) Names() map[string]bool {
	names := map[string]bool{}
	for epoch := uint32(1); epoch <= f.newest; epoch++ {
		names[ownerName(epoch)], names[manifestName(epoch)] = true, true
	}
	c := f.Manifest.Checkpoint
	for i := range c.Parts {
		names[partName(c.Epoch, c.Number, i)] = true
	}
	for _, r := range f.runs {
		for seq := r.First; seq <= r.Last; seq++ {
			names[runName(r.Epoch, r.Number, seq)] = true
		}
	}
	for _, s := range f.Manifest.Garbage { // it is about to go
		for _, name := range s.names() {
			names[name] = true
		}
	}
	return names
}
