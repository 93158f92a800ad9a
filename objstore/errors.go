package objstore

import (
	"errors"
	"fmt"
)

// Kind classifies a failure. It is what crosses package and wire borders:
// fusefs maps it to an errno and the S3 gateway to a code, both with errors.Is,
// never by an error's text. Wrap a Kind with fmt.Errorf("doing what: %w", kind).
type Kind uint8

// The kinds of failure, each with the errno that a mount answers.
const (
	NotFound     Kind = iota + 1 // ENOENT: no such name or inode
	Exist                        // EEXIST: the name is taken
	NotDir                       // ENOTDIR
	IsDir                        // EISDIR
	NotEmpty                     // ENOTEMPTY
	CrossVolume                  // EXDEV: link or rename across volumes
	NoSpace                      // ENOSPC: the store is full; nothing was changed
	Quota                        // EDQUOT
	Stale                        // ESTALE: the inode was removed for good
	NameTooLong                  // ENAMETOOLONG
	Invalid                      // EINVAL: an argument that can never work
	NoAttr                       // ENODATA: no such extended attribute
	TooManyLinks                 // EMLINK
	TooBig                       // EFBIG or, for an attribute, E2BIG
	NotPermitted                 // EPERM
	Corrupt                      // EIO: a checksum does not match; never served as data
	Unavailable                  // EIO, or EAGAIN for fsync and close: the store cannot be reached or is shutting down
	Unsupported                  // EOPNOTSUPP
	Fenced                       // EIO: the session has ended; its changes are refused
	Elsewhere                    // EIO: another OSD has to be asked; see LeaderError
	Deadlock                     // EDEADLK: waiting for a lock would never end
	NoKey                        // EACCES: encrypted, and the key is not here or was destroyed
)

var kindText = [...]string{
	NotFound: "not found", Exist: "already exists", NotDir: "not a directory", IsDir: "is a directory",
	NotEmpty: "directory not empty", CrossVolume: "crosses volumes", NoSpace: "no space left", Quota: "quota exceeded",
	Stale: "stale inode", NameTooLong: "name too long", Invalid: "invalid argument", NoAttr: "no such attribute",
	TooManyLinks: "too many links", TooBig: "too big", NotPermitted: "not permitted", Corrupt: "corrupt data",
	Unavailable: "store unavailable", Unsupported: "not supported", Fenced: "session fenced",
	Elsewhere: "to be asked of another OSD", Deadlock: "deadlock", NoKey: "no key",
}

func (k Kind) Error() string {
	if int(k) < len(kindText) && kindText[k] != "" {
		return kindText[k]
	}
	return "unknown failure"
}

// Gone says whether a failure is that there is no such name or inode (any more).
func Gone(err error) bool { return errors.Is(err, NotFound) || errors.Is(err, Stale) }

// LeaderError says who leads a placement group of the meta pool, as far as the
// OSD asked knows.
type LeaderError struct {
	PG     uint32
	Leader int // -1: unknown
}

func (e *LeaderError) Error() string {
	if e.Leader < 0 {
		return fmt.Sprintf("placement group %d has no leader known here", e.PG)
	}
	return fmt.Sprintf("placement group %d is led by osd.%d", e.PG, e.Leader)
}

// Unwrap makes errors.Is(err, Elsewhere) hold.
func (e *LeaderError) Unwrap() error { return Elsewhere }
