package posix

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestInodes: df -i counts what there is, within seconds.
func TestInodes(t *testing.T) {
	if plain {
		t.Skip("a plain filesystem counts its own way")
	}
	p := newPlace(t)
	counted := func(want uint64) {
		t.Helper()
		var st unix.Statfs_t
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
			must(t, unix.Statfs(p.dir, &st))
			if st.Files-st.Ffree == want {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%d of %d inodes used, want %d", st.Files-st.Ffree, st.Files, want)
			}
		}
		if room := st.Bavail * uint64(st.Bsize); st.Ffree == 0 || st.Ffree > room {
			t.Errorf("%d inodes free in %d bytes", st.Ffree, room)
		}
	}
	for i := range 50 {
		put(t, fmt.Sprint(p.dir, "/", i), "body")
	}
	must(t, os.MkdirAll(p.root+"/example.net/other", 0o755))
	must(t, os.Link(p.dir+"/0", p.dir+"/link"))
	counted(4 + 50 + 2) // the top, domain, account and directory that there were
	for i := range 50 {
		must(t, os.Remove(fmt.Sprint(p.dir, "/", i)))
	}
	must(t, os.Remove(p.root+"/example.net/other"))
	counted(4 + 1 + 1)
	p.node.Kill9()
	p.node.Restart()
	counted(4 + 1 + 1)
}
