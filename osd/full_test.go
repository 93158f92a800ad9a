package osd

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestDiskSizeLeavesOutRootsShare: a disk of which much is reserved for root is not
// nearly full while df(1) says that it is nearly empty.
func TestDiskSizeLeavesOutRootsShare(t *testing.T) {
	var f fullness
	dir := t.TempDir()
	if err := f.init(dir, 0); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	used := (st.Blocks - st.Bfree) * uint64(st.Bsize)
	const others = 1 << 30 // what other programs may have written meanwhile
	if got := f.total - f.avail; got+others < used || got > used+others {
		t.Errorf("%d bytes count as used, %d are", got, used)
	}
}
