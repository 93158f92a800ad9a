// Package pool is the stores of others that data pools can lie in: Amazon S3 and
// its kin. Whoever has a pool open is a mail host, for it has the credentials;
// OSDs never talk to an outside store. What goes there is sealed (package seal).
//
// Every driver is a package of its own below this one, and passes pooltest.
package pool

import (
	"context"
	"fmt"
	"time"

	"pillarbox/objstore"
)

// Store is an outside store, or a part of one that nobody else writes to. Its
// methods may be called from any goroutine, and retry what can be retried; an
// error is final for that call. The caller owns the slices.
type Store interface {
	// Put stores an object; it is durable on return. Put again under the same
	// name, the object is the later one.
	Put(ctx context.Context, name string, data []byte) error
	// Get fills p with the object's bytes from off on. NotFound; Corrupt if there
	// are fewer.
	Get(ctx context.Context, name string, off int64, p []byte) error
	// Delete removes objects. Those that are not there are no error.
	Delete(ctx context.Context, names []string) error
	// List calls fn for every object, in no order, until fn fails.
	List(ctx context.Context, fn func(Object) error) error
}

// Object is what List tells of one.
type Object struct {
	Name     string
	Size     int64
	Modified time.Time
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
