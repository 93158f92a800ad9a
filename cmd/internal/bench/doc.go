// Package bench measures a directory under the work that mail software gives
// it, alone or against a second directory.
//
// A run has one phase per number of workers, a phase has rounds, and a round
// passes through the rows (see Rows) in one order. Every pass of a row is done
// in one directory and then, at once, in the other, so that what drifts on the
// machine hits both; who is first changes with each round. Before a pass both
// are synced, so that no directory pays for what the other left behind. A round
// before the first one warms up and counts for nothing.
//
// Each worker is a locked OS thread with an account of its own below
// DIR/bench-<random>.test; the row's work is plain system calls on it. What a
// row needs (a full mailbox, messages in cur, cold caches) is prepared outside
// the measured time.
//
// Contents follow from the seed and the number of a message alone (content.go),
// so each byte read back is compared with what was written without a memory of
// it. The first difference ends the run with a MismatchError.
//
// Ownership: Run makes the accounts and removes them before it returns, also
// when its context is cancelled. A site belongs to one Run; a worker's state to
// that worker while a pass runs, to Run between passes. Nothing here is shared
// between runs, but Run raises GOMAXPROCS of the process while it works, so two
// of them at a time would spoil each other's figures.
package bench
