package osd

import (
	"fmt"
	"testing"
	"time"

	"pillarbox/objstore"
)

// files waits for a number of inodes, with what is not flushed yet brought to the database.
func files(t *testing.T, want uint64, osds ...*OSD) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		var n uint64
		for _, o := range osds {
			if err := o.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			d, err := o.Space(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			n += d.Files
		}
		if n == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d inodes, want %d", n, want)
		}
	}
}

func TestInodesAreCounted(t *testing.T) {
	dir := t.TempDir()
	o := open(t, dir)
	for vol := range objstore.VolumeID(40) {
		initVolume(t, o, vol)
	}
	for i := range 100 {
		deliver(t, o, objstore.VolumeRoot(objstore.VolumeID(i%3)), fmt.Sprint(i), message(i))
	}
	files(t, 140, o)
	ino := deliver(t, o, objstore.VolumeRoot(7), "one", message(1))
	crash(t, o)
	o = open(t, dir)
	files(t, 141, o)
	apply(t, o, objstore.Remove{Parent: objstore.VolumeRoot(7), Name: "one"}, objstore.Ordered)
	apply(t, o, objstore.Purge{Vol: 7, Inos: []objstore.Ino{ino}}, objstore.Ordered)
	apply(t, o, objstore.SealVolume{Vol: 39}, objstore.Ordered)
	for apply(t, o, objstore.DropVolume{Vol: 39}, objstore.Ordered).Orphan != 0 {
	}
	files(t, 139, o)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	files(t, 139, open(t, dir))
}
