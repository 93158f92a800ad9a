package cachefs

import "pillarbox/objstore"

// Stats are what an FS buffers now, and what it committed since it began.
type Stats struct {
	Dirty         int64  `json:"dirty_bytes"`    // bytes written and not committed
	Bodies        int64  `json:"body_bytes"`     // bytes of small bodies kept while their files are open
	OpenFiles     int    `json:"open_files"`     // files that are open
	Commits       uint64 `json:"commits"`        // changes of files' bytes
	CommitExtents uint64 `json:"commit_extents"` // pieces that they brought
	CommitBytes   uint64 `json:"commit_bytes"`   // bytes of those

	Prefetched uint64 `json:"prefetched_bytes"`      // bytes of messages that were brought near before anybody asked for them
	Used       uint64 `json:"prefetch_used_bytes"`   // those of them that were read since
	Wasted     uint64 `json:"prefetch_wasted_bytes"` // those that were not, and are not waited for any more
}

// Stats tells how the FS is doing.
func (fs *FS) Stats() Stats {
	s := Stats{Bodies: fs.bodies.Load(), Commits: fs.commits.Load(), CommitExtents: fs.commitExtents.Load(), CommitBytes: fs.commitBytes.Load()}
	if a := fs.ahead; a != nil {
		s.Prefetched, s.Used, s.Wasted = a.prefetched.Load(), a.used.Load(), a.waste.Load()
	}
	fs.budget.mu.Lock()
	s.Dirty = fs.budget.used
	fs.budget.mu.Unlock()
	for i := range fs.table.shards {
		sh := &fs.table.shards[i]
		sh.mu.Lock()
		s.OpenFiles += len(sh.files)
		sh.mu.Unlock()
	}
	return s
}

// committed counts a change of a file's bytes.
func (fs *FS) committed(w objstore.Write) {
	n := uint64(0)
	for _, e := range w.Extents {
		n += uint64(e.Len)
	}
	fs.commits.Add(1)
	fs.commitExtents.Add(uint64(len(w.Extents)))
	fs.commitBytes.Add(n)
}
