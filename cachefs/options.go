package cachefs

import (
	"context"
	"errors"
	"log/slog"

	"pillarbox/objstore"
)

// Bodies keeps bytes of chunks near. Its methods may be called from any goroutine,
// and whatever goes wrong in it costs time only.
type Bodies interface {
	// Get fills p with a chunk's bytes from off on and says whether it has them.
	Get(id objstore.ChunkID, off uint32, p []byte) bool
	// Put may keep a chunk's first bytes; data is Bodies' from then on. It does not wait.
	Put(id objstore.ChunkID, data []byte)
	// Has says whether a chunk's first n bytes seem to be there; nothing is read.
	Has(id objstore.ChunkID, n uint32) bool
	// Room waits until more can be Put without being left out.
	Room()
	// Spare is how many bytes can be Put now without others having to go for them.
	Spare() int64
}

// Options of an FS. The zero value means the defaults.
type Options struct {
	DirtyMax     int64                       // bytes of buffered writes over all files; 64 MiB
	DirtyPerFile int64                       // the same of one file; 16 MiB
	BodyMax      int64                       // bytes of small bodies that are kept while their files are open, over all files; 32 MiB
	Uploads      int                         // chunks on their way to the data pool at a time; 8
	DirSync      bool                        // every change waits until it is Committed
	Bodies       Bodies                      // what was read and written, kept on this host; nil: none
	Ahead        int64                       // bytes of messages that are brought to Bodies before they are read, ahead of each reader; 0: none
	Local        func(objstore.ChunkID) bool // chunks that are on this host anyway, so that Bodies is not for them; nil: none are
	Log          *slog.Logger                // slog.Default()
	Base         context.Context             // of background work; context.Background(). Its cancellation is ignored: Close ends the work
}

func (o Options) withDefaults() Options {
	if o.DirtyMax == 0 {
		o.DirtyMax = 64 << 20
	}
	if o.DirtyPerFile == 0 {
		o.DirtyPerFile = min(16<<20, o.DirtyMax)
	}
	if o.BodyMax == 0 {
		o.BodyMax = 32 << 20
	}
	if o.Uploads == 0 {
		o.Uploads = 8
	}
	if o.Local == nil {
		o.Local = func(objstore.ChunkID) bool { return false }
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Base == nil {
		o.Base = context.Background()
	}
	return o
}

// Validate says what is wrong with the options, defaults filled in.
func (o Options) Validate() error {
	switch {
	case o.DirtyMax < objstore.ChunkSize:
		return errors.New("too little DirtyMax: smaller than a chunk")
	case o.DirtyPerFile < objstore.ChunkSize:
		return errors.New("too little DirtyPerFile: smaller than a chunk")
	case o.BodyMax < 0:
		return errors.New("BodyMax: must not be negative")
	case o.Uploads < 1:
		return errors.New("at least 1 upload is needed")
	}
	return nil
}
