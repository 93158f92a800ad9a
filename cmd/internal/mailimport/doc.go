// Package mailimport brings existing mail into a directory: trees of Maildirs
// as they are, mbox files as Maildirs.
//
// Run goes through the source three times: to count it (walk.go says what
// everything becomes), to copy it (place.go, links.go), and to compare it with
// the copy byte for byte (verify.go). Every file is written to a temporary name
// in its directory, given its owner, mode, attributes and times, fsynced and
// renamed, so that a name in the destination always means a whole file.
//
// The journal (journal.go) remembers what is done, so that a run that was
// killed goes on, and does not bring back what was changed in the destination
// since. Without its last lines nothing is copied twice either: what is there
// already with the same contents is taken as done. Messages of an mbox get names
// that follow from the path, the offset and the contents alone. Nothing that
// the import did not make is ever replaced.
//
// Ownership: one goroutine walks, hands files and messages to Options.Workers
// others, and alone touches directories and hard links. run's counters and the
// journal are safe for all of them; each has its own buffers. Run waits for all
// before it returns.
package mailimport
