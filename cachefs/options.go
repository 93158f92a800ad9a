package cachefs

import (
	"context"
	"errors"
	"log/slog"

	"pillarbox/objstore"
)

// Options of an FS. The zero value means the defaults.
type Options struct {
	DirtyMax     int64           // bytes of buffered writes over all files; 64 MiB
	DirtyPerFile int64           // the same of one file; 16 MiB
	Uploads      int             // chunks on their way to the data pool at a time; 8
	DirSync      bool            // every change waits until it is Committed
	Log          *slog.Logger    // slog.Default()
	Base         context.Context // of background work; context.Background(). Its cancellation is ignored: Close ends the work
}

func (o Options) withDefaults() Options {
	if o.DirtyMax == 0 {
		o.DirtyMax = 64 << 20
	}
	if o.DirtyPerFile == 0 {
		o.DirtyPerFile = min(16<<20, o.DirtyMax)
	}
	if o.Uploads == 0 {
		o.Uploads = 8
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
	case o.Uploads < 1:
		return errors.New("at least 1 upload is needed")
	}
	return nil
}
