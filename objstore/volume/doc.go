// Package volume is the semantics of a volume, and nothing else: given a
// picture of a placement group's keys and one objstore.Change, Apply says which
// keys change and what the caller is told. It does no I/O of its own, reads no
// clock and starts no goroutine, so every replica that applies the same changes
// to the same keys with the same times arrives at the same bytes.
//
//	view.go           the View a caller provides, and the Delta it gets back
//	keys.go           how keys are laid out
//	record.go         inode, directory and volume records and their encodings
//	extent.go         extents: their encoding, and how new ones displace old ones
//	tx.go, apply.go   one change under way
//	names.go, rename.go, attr.go, write.go, purge.go, lifecycle.go   the changes
//	read.go           lookups and listings
//	upkeep.go         what scrub and the freeing of chunks ask
//	check.go, checknames.go, repair.go   fsck of one volume
//	mapview.go        a View in memory, for tests and tools
//
// Keys begin with the volume's id (4 bytes, big-endian as all numbers in keys)
// and a type:
//
//	v                      the volume: next number, inodes, bytes, seal
//	i ino                  an inode, with the extents of its first region
//	x ino region           extents of a later region of 64 MiB
//	d dir name             a name: what it leads to, and its cookie
//	c dir cookie           the same entry in the order of a listing
//	a ino name             an extended attribute
//	o ino                  an orphan: an inode without a name
//	f chunk                a data-pool chunk that nobody needs any more
//	b chunk                the body of a chunk that lives with the volume
//	p vol                  root volume only: a volume being made or removed
//
// One counter per volume numbers inodes, cookies and resident chunks, so no
// number ever means two things. Bodies (b) are written and deleted by Apply but
// never read by anything in this package, because whoever keeps the keys may
// keep the bodies elsewhere. The exception is Volumes, whose skip from volume to
// volume may land on one.
//
// Ownership: a View must stay unchanged while a function here uses it. Slices a
// View returns are read and never kept: a Delta and everything else returned is
// the caller's own, except that body values in a Delta are the very slices of
// the Write that brought them. Concurrency: every function may be called from
// any goroutine if its View may; nothing is shared between calls.
//
// Times: a directory's mtime and ctime move strictly forward with every change
// of its names, past the clock if need be; an inode's implied ctime does too.
//
// A View must allow Get, but need not allow Scan, inside the function of a Scan.
package volume
