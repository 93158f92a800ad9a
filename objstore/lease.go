package objstore

import (
	"context"
	"time"
)

// LeaseTime is how long a client that is not heard of keeps what it was granted:
// until then changes of what it may still know wait for it.
const LeaseTime = 10 * time.Second

// Lease says under which stream of pushes a request is made. An OSD tells those
// whose requests it answered in a volume of every change that another session
// makes there, before that change returns.
type Lease struct {
	Session uint64
	Stream  uint64 // as the OSD numbered it
	Turn    uint64 // of the session's in telling leaders which locks it has; what is of an earlier one came late
}

type leaseKey struct{}

// WithLease makes requests with ctx ones under a lease.
func WithLease(ctx context.Context, l Lease) context.Context {
	return context.WithValue(ctx, leaseKey{}, l)
}

// LeaseOf is the lease that a request with ctx is made under, if any.
func LeaseOf(ctx context.Context) (Lease, bool) {
	l, ok := ctx.Value(leaseKey{}).(Lease)
	return l, ok
}

// EventKind says what happened to a name or an inode.
type EventKind uint8

// The kinds of event.
const (
	Created  EventKind = iota + 1 // Ino got the name Name in Dir
	Removed                       // Name is gone from Dir; Ino may have others
	Moved                         // from Name in Dir to NewName in NewDir
	Modified                      // contents or size of Ino
	Touched                       // other attributes of Ino, or where its bytes lie
	Purged                        // Ino, which has no name, is about to be freed: who has it open must say so
)

// Event is what a change did, as those who did not make it must hear it.
type Event struct {
	Kind    EventKind
	Ino     Ino
	Type    uint32 // ModeType bits of Ino, of Created, Removed and Moved
	Dir     Ino
	Name    string
	NewDir  Ino
	NewName string
}

// Push tells a client what another one changed in a volume.
type Push struct {
	Seq    uint64 // to be acknowledged with it
	Volume VolumeID
	Events []Event
	Index  uint64 // see Result; 0: not told
	Attrs  []Attr // what the change made of inodes that the events are about
}

// Ack is the answer to a Push: nothing that was known of before is served any
// more. Busy lists inodes of Purged events that are open; they become the
// client's to purge.
type Ack struct {
	Seq  uint64
	Busy []Ino
}

// DirsOf are the directories that a change changes names in; 0 is none.
func DirsOf(c Change) (dirs [2]Ino) {
	switch c := c.(type) {
	case Create:
		if c.Name != "" {
			dirs[0] = c.Parent
		}
	case Link:
		dirs[0] = c.Parent
	case Remove:
		dirs[0] = c.Parent
	case Rename:
		dirs[0] = c.OldParent
		if c.NewParent != c.OldParent {
			dirs[1] = c.NewParent
		}
	}
	return dirs
}

// AttrsOf are the attributes that a change which was made with result r left: of
// the inode it is about, unless that lost its last name, and of directories.
func AttrsOf(r Result) (list []Attr) {
	for _, a := range [...]Attr{r.Attr, r.Dirs[0], r.Dirs[1]} {
		if a.Ino != 0 && a.Nlink > 0 {
			list = append(list, a)
		}
	}
	return list
}

// EventsOf is what a change that was made with result r did.
func EventsOf(c Change, r Result) []Event {
	kind := r.Attr.Mode & ModeType
	switch c := c.(type) {
	case Create:
		if c.Name == "" {
			return nil
		}
		return []Event{{Kind: Created, Ino: r.Attr.Ino, Type: kind, Dir: c.Parent, Name: c.Name}}
	case Link:
		list := []Event{{Kind: Created, Ino: c.Ino, Type: kind, Dir: c.Parent, Name: c.Name}}
		if c.Over != 0 {
			list = append(list, Event{Kind: Touched, Ino: c.Over})
		}
		return list
	case AttachVolume:
		return []Event{{Kind: Created, Ino: VolumeRoot(c.Vol), Type: ModeDir, Dir: c.Parent, Name: c.Name}}
	case Remove:
		return []Event{{Kind: Removed, Ino: r.Attr.Ino, Type: kind, Dir: c.Parent, Name: c.Name}}
	case Rename:
		list := []Event{{Kind: Moved, Ino: r.Attr.Ino, Type: kind, Dir: c.OldParent, Name: c.OldName, NewDir: c.NewParent, NewName: c.NewName}}
		if c.Exchange {
			list = append(list, Event{Kind: Moved, Dir: c.NewParent, Name: c.NewName, NewDir: c.OldParent, NewName: c.OldName})
		}
		if r.Over != 0 {
			list = append(list, Event{Kind: Touched, Ino: r.Over})
		}
		return list
	case Write:
		return []Event{{Kind: Modified, Ino: c.Ino, Type: kind}}
	case Share:
		return []Event{{Kind: Modified, Ino: c.Ino, Type: kind}}
	case SetAttr:
		if c.Set&SetSize != 0 {
			return []Event{{Kind: Modified, Ino: c.Ino, Type: kind}}
		}
		return []Event{{Kind: Touched, Ino: c.Ino, Type: kind}}
	case MoveChunk:
		return []Event{{Kind: Touched, Ino: c.Ino, Type: kind}}
	case Reparent:
		return []Event{{Kind: Touched, Ino: VolumeRoot(c.Vol)}}
	case Pack:
		list := make([]Event, len(c.Moves))
		for i, m := range c.Moves {
			list[i] = Event{Kind: Touched, Ino: m.Ino, Type: ModeRegular}
		}
		return list
	case SetXattr:
		return []Event{{Kind: Touched, Ino: c.Ino}}
	case RemoveXattr:
		return []Event{{Kind: Touched, Ino: c.Ino}}
	}
	return nil
}
