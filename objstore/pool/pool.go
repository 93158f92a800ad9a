// Package pool is the stores of others that data pools can lie in: Amazon S3 and
// its kin, Azure, Swift and so on. Whoever has a pool open is a mail host, for it
// has the credentials; OSDs never talk to an outside store. What goes there is
// sealed (package seal).
//
// Every driver is a package of its own below this one, passes pooltest, and is
// named in package types. It does one request for one call; what all of them need
// besides (trying again, not asking for too much, counting) is in package layer.
package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pillarbox/objstore"
)

// Store is an outside store, or a part of one that nobody else writes to. Its
// methods may be called from any goroutine, and return soon after their context
// ended. The caller owns the slices. Of what fails, Unavailable can be tried
// again; a store that wants fewer requests says so by a Throttled in the error.
type Store interface {
	// Put stores an object; it is durable on return. Put again under the same
	// name, the object is the later one. Names are of letters, digits, '-', '.',
	// '_' and '/', which neither begins, ends nor comes twice in a row.
	Put(ctx context.Context, name string, data []byte) error
	// Get fills p, which is not empty, with the object's bytes from off on.
	// NotFound; Corrupt if there are fewer.
	Get(ctx context.Context, name string, off int64, p []byte) error
	// Delete removes objects. Those that are not there are no error.
	Delete(ctx context.Context, names []string) error
	// List returns some of the objects, in no order, and where to go on; that is
	// "" at the beginning and again at the end.
	List(ctx context.Context, from string) (list []Object, next string, err error)
}

// Object is what List tells of one.
type Object struct {
	Name     string
	Size     int64
	Modified time.Time
}

// Each calls fn for every object, in no order, until fn fails.
func Each(ctx context.Context, s Store, fn func(Object) error) error {
	for from := ""; ; {
		list, next, err := s.List(ctx, from)
		if err != nil {
			return err
		}
		for _, o := range list {
			if err := fn(o); err != nil {
				return err
			}
		}
		if from = next; from == "" {
			return nil
		}
	}
}

// Throttled is the error of a store that wants fewer requests, which is always
// Unavailable, too.
type Throttled struct {
	After time.Duration // no request before; 0: it did not say
	Err   error
}

func (t *Throttled) Error() string {
	if t.After > 0 {
		return fmt.Sprintf("too many requests, none for %v: %v", t.After, t.Err)
	}
	return fmt.Sprintf("too many requests: %v", t.Err)
}

// Unwrap makes errors.Is(err, Unavailable) hold, and shows what the store said.
func (t *Throttled) Unwrap() []error { return []error{objstore.Unavailable, t.Err} }

// IsThrottled says whether a store wants fewer requests, and until when none.
func IsThrottled(err error) (after time.Duration, ok bool) {
	var t *Throttled
	if !errors.As(err, &t) {
		return 0, false
	}
	return t.After, true
}

// Name is that of a chunk's object: numbers only, which tell nobody whose mail it
// is. The first byte spreads them over the store.
func Name(id objstore.ChunkID) string {
	spread := byte((uint64(id.Ino)*0x9e3779b97f4a7c15 ^ id.Version*0xff51afd7ed558ccd) >> 56)
	return fmt.Sprintf("%02x/%016x-%08x-%016x", spread, uint64(id.Ino), id.Index, id.Version)
}

// ParseName is the chunk that an object is; false: it is something else.
func ParseName(name string) (id objstore.ChunkID, ok bool) {
	var spread byte
	n, err := fmt.Sscanf(name, "%02x/%016x-%08x-%016x", &spread, (*uint64)(&id.Ino), &id.Index, &id.Version)
	return id, err == nil && n == 4 && Name(id) == name
}
