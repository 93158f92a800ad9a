package pool

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"pillarbox/objstore"
)

// OwnerName is the object that says whose a pool's place is.
const OwnerName = "pillarbox-store"

// owned is a Store that changes nothing in a place of another store.
type owned struct {
	Store
	mark []byte
	sure atomic.Bool
}

// Owned is a Store in a place that belongs to a store of Pillarbox, by its id. The
// first change marks the place, or finds by the mark of another that it was given
// to two: ids of chunks are no different there, and one would overwrite and remove
// what the other has. Reading needs no mark.
func Owned(s Store, fsid string) Store { return &owned{Store: s, mark: []byte(fsid)} }

// Claim marks a place for a store, if it is not. NotPermitted: it is another's.
func Claim(ctx context.Context, s Store, fsid string) error {
	return (&owned{Store: s, mark: []byte(fsid)}).claim(ctx)
}

func (o *owned) claim(ctx context.Context) error {
	if o.sure.Load() {
		return nil
	}
	for range 2 { // what was put is read again, for another may have come at the same time
		there := make([]byte, len(o.mark))
		err := o.Store.Get(ctx, OwnerName, 0, there)
		switch {
		case errors.Is(err, objstore.NotFound):
			if err := o.Store.Put(ctx, OwnerName, o.mark); err != nil {
				return fmt.Errorf("mark the place as this store's: %w", err)
			}
			continue
		case errors.Is(err, objstore.Corrupt), err == nil && string(there) != string(o.mark):
			return fmt.Errorf("its place belongs to another store, as the object %s there says (%q; this is %q): %w", OwnerName, there, o.mark, objstore.NotPermitted)
		case err != nil:
			return fmt.Errorf("look whose the place is: %w", err)
		}
		o.sure.Store(true)
		return nil
	}
	return fmt.Errorf("the mark that was put is not there: %w", objstore.Unavailable)
}

// Put implements Store.
func (o *owned) Put(ctx context.Context, name string, data []byte) error {
	if err := o.claim(ctx); err != nil {
		return err
	}
	return o.Store.Put(ctx, name, data)
}

// Delete implements Store.
func (o *owned) Delete(ctx context.Context, names []string) error {
	if err := o.claim(ctx); err != nil {
		return err
	}
	return o.Store.Delete(ctx, names)
}
