// Package cachefs is what a mail host does with files over an objstore.Store:
// it buffers writes, decides where bytes go, orders flushes, merges what is not
// yet committed into every answer, and purges files that lost their last name.
// It knows neither the kernel's protocol nor errno; fusefs brings those.
//
// # Files
//
// Every inode that is open, or being changed, has one file object in a sharded
// table, shared by all its handles. A write lands in memory as a dirty range. A
// full chunk leaves at once, in the background, as a chunk of the data pool, so
// that attachments stream with bounded memory. Everything else waits for a
// flush: close (promise Ordered: survives the death of the process) or fsync
// (Committed). A flush names all it brings in one change where it can, so a
// fresh mail is one consensus round.
//
// A failed flush loses nothing: its ranges become dirty again, the caller has
// the error, and the next flush tries once more. An upload that failed in the
// background does the same and its error comes from the next write.
//
// # Ownership and concurrency
//
// Every method may be called from any goroutine. Buffers handed in are copied
// before the call returns. Lock order, outermost first:
//
//	file.commitMu   one change of the file's committed state at a time; held across store calls
//	file.mu         the file's memory: dirty ranges, size, caches; never held across store calls
//	shard.mu, budget.mu, purger.mu   leaves; nothing is taken or called under them
//
// No goroutine holds commitMu of two files. Each FS owns its background
// goroutines (uploads, the purge worker); Close waits for them.
//
// # What a commit carries
//
// A file of up to 512 bytes is one Inline extent. A small piece of a larger one
// is Inline while the inode record has room. Pieces up to objstore.ResidentMax
// travel in the commit; larger ones are put into the data pool first. Small
// extents are merged: six neighbours of like size become one, so bytes appended
// in small pieces are copied a logarithmic number of times, and a chunk's worth
// of file never has more than 32 extents.
package cachefs
