package mon

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"pillarbox/objstore"
)

// Options configure Open.
type Options struct {
	Dir         string        // the monitor's directory; made 0700 if missing
	FSID        string        // of a new store; random. An old store keeps its own
	VolumeDepth int           // of a new store: the depth of the directories that are volumes; 2. An old store keeps its own
	Cluster     bool          // of a new store: made for many machines: no OSD yet, pools of size 3
	Seed        *Seed         // of a new store that continues another
	OutAfter    time.Duration // how long an OSD is down before its data go elsewhere; OutAfter
	Peer        *Peer         // nil: the only monitor, for now, which opens no socket
	Log         *slog.Logger
}

// Seed is what a new monitor begins with when its store exists already.
type Seed struct {
	Map     *objstore.Map
	Session uint64 // the last session id given out
	S3      []S3User
}

// Peer is how a monitor speaks to the others.
type Peer struct {
	Name    string // of this monitor, for life
	Addr    string // host:port where it hears the others
	TLS     string // directory of its credentials (package pki)
	Initial string // the members as they were when it joined (Joined.Initial); empty: it is the first
}

func peerURL(addr string) string { return "https://" + addr }

func (o Options) withDefaults() Options {
	if o.VolumeDepth == 0 {
		o.VolumeDepth = 2
	}
	if o.OutAfter == 0 {
		o.OutAfter = OutAfter
	}
	if o.FSID == "" {
		o.FSID = NewFSID()
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

// Validate says what is wrong with the options, defaults filled in.
func (o Options) Validate() error {
	switch {
	case o.Dir == "":
		return errors.New("a monitor needs a directory")
	case o.VolumeDepth < 1 || o.VolumeDepth > objstore.MaxVolumeDepth:
		return fmt.Errorf("volume depth %d: must be 1 to %d", o.VolumeDepth, objstore.MaxVolumeDepth)
	}
	return nil
}
