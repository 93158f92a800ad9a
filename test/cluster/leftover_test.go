package cluster

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pillarbox/objstore"
	"pillarbox/osd/osdrpc/osdv1"
)

// TestLeftovers kills a mount with a file open that has no name any more, and in
// the middle of writing another. What nothing names afterwards goes, and nothing else.
func TestLeftovers(t *testing.T) {
	c := bareCluster(t)
	c.osdArgs = []string{"--leftover-after", "2s"}
	c.found(3)
	c.healthy(3)
	mount, d := c.mount("mx1")
	kept := c.files(filepath.Join(mount, "example.org/kept"), 1, 1)
	dir := filepath.Join(mount, "example.org/user")
	c.files(dir, 1, 2)
	gone := filepath.Join(dir, "a")
	open, err := os.Open(gone)
	if err == nil {
		defer open.Close()
		err = os.Remove(gone)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.storeUnnamed(c.path("client.mx1"))
	const replicas = 3
	c.eventually("all takes room", func() bool { return c.poolUse()["data"] >= replicas*(6+6)<<20+1<<20 })
	half, err := os.Create(filepath.Join(dir, "half"))
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	if _, err := half.Write(make([]byte, 20<<20)); err != nil {
		t.Fatal(err)
	}
	c.kill(d)
	mount, d = c.mount("mx1")
	// What the mount had committed of it by itself is there to stay.
	st, err := os.Stat(filepath.Join(dir, "half"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	want := uint64(replicas * 6 << 20)
	if err == nil {
		want += replicas * uint64(st.Size())
	}
	c.eventually("the room of what is not named comes back", func() bool {
		c.run("scrub", "--conf", c.admin)
		return c.poolUse()["data"] == want
	})
	c.same(kept, "data")
	c.stop(d)
}

// storeUnnamed stores a chunk that nobody will name on an OSD, as a client that
// dies before its commit.
func (c *cluster) storeUnnamed(conf string) {
	c.t.Helper()
	conn, _ := c.caller(conf, flagOf(c.all[1], "--addr"))
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	id := &osdv1.ChunkID{Ino: uint64(objstore.MakeIno(1, 1000)), Version: objstore.PooledVersion(1, 4000, 1)}
	if _, err := osdv1.NewOSDClient(conn).PutChunk(ctx, &osdv1.PutChunkRequest{Id: id, Data: make([]byte, 1<<20)}); err != nil {
		c.t.Fatal(err)
	}
}
