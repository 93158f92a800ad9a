// Package fusefs translates the kernel's FUSE requests to cachefs and back. It
// has no policy and no I/O of its own: what a request means for the store is
// decided in cachefs, and what may be cached by the kernel is decided here.
//
// # What the kernel may keep
//
// The mount is the only way in, so names, attributes and pages stay valid until
// the kernel itself changes them, and the timeouts are long. The kernel voids
// what a change touches: size and times after a write, a directory's attributes
// and listing after a change of its names, nlink and ctime after link and
// unlink. One case it does not guard: a directory's attributes, asked for
// before a change of its names and answered after it, would be kept although
// they are old. Mail software finds new mail by the mtime of a directory, so
// attributes of directories that overlap a change are not kept at all, and
// others only for Options.DirTimeout.
//
// A store that other hosts change is different: what they do is pushed, and not
// over for them before it is taken in. The kernel keeps names and attributes of
// directories for Options.DirTimeout there, since every path begins with them, and
// nothing of files but pages. Attributes are voided by a push. They go to the kernel only
// with GETATTR, whose inode the kernel knows: what is voided while the reply is on
// its way is not kept then. A name cannot be voided without waiting for requests
// (kernel.go): a push that takes away one that may be shown is acknowledged when it
// is not shown any more. All that is much shorter than a lease. Left is a reply that
// is held up by more than a second between being made and being written.
//
// # Ownership and concurrency
//
// A node's id is its inode number, so there is no table of nodes; Forget only
// lets go of directories and special files that lost their last name. go-fuse calls the methods from many goroutines at once; request and
// reply memory is go-fuse's and is not touched after a method returned. Open
// files live in one table by handle number. Changes are never cancelled by
// signals, and reads are not either: programs do not expect EINTR from a file.
package fusefs
