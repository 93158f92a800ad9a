package client_test

import (
	"testing"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
)

// TestStoreAwayIsWaitedForOnce lets no OSD answer: the first call waits as long as
// it may, all later ones fail at once, and work again when the OSDs are back.
func TestStoreAwayIsWaitedForOnce(t *testing.T) {
	for _, n := range []int{3, 2} { // a group without a majority is away, too
		bubble(t, func(t *testing.T) {
			c := newCluster(t, 3, replicated(3, 2))
			cl := c.client(client.Options{})
			_, err := cl.GetAttr(t.Context(), root)
			want(t, err, nil)
			for id := range n {
				c.osds[id].set(hangs)
			}
			if n == 2 {
				c.osds[2].set(only("GetAttr", fails(&objstore.LeaderError{Leader: -1})))
			}
			attr := func() error { _, err := cl.GetAttr(t.Context(), root); return err }
			chunk := func() error { return cl.PutChunk(t.Context(), objstore.ChunkID{Ino: 9, Version: 1}, []byte("x")) }
			took(t, 30*time.Second, 30*time.Second, func() { want(t, attr(), objstore.Unavailable) })
			for range 100 {
				took(t, 0, 0, func() { want(t, attr(), objstore.Unavailable) })
				took(t, 0, 0, func() { want(t, chunk(), objstore.Unavailable) })
			}
			time.Sleep(5 * time.Minute) // of the bubble's time
			took(t, 0, 0, func() { want(t, attr(), objstore.Unavailable) })
			for _, o := range c.osds {
				o.set(nil)
			}
			time.Sleep(10 * time.Second)
			want(t, attr(), nil)
			want(t, chunk(), nil)
		})
	}
}

// TestOneAwayIsNoMatter has one OSD away for long: nobody waits for it, nobody fails.
func TestOneAwayIsNoMatter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl := c.client(client.Options{})
		c.lead(0, 0)
		c.osds[2].set(hangs)
		for range 3 {
			_, err := cl.GetAttr(t.Context(), root)
			want(t, err, nil)
			want(t, cl.PutChunk(t.Context(), objstore.ChunkID{Ino: 9, Version: uint64(time.Now().UnixNano()) >> 30}, []byte("x")), nil)
			time.Sleep(time.Minute)
		}
	})
}

// TestKnownWhileAway reads what a lease covers while no OSD answers; when the
// lease is over that must be asked for, in vain.
func TestKnownWhileAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		cl, _ := c.watching(client.Options{})
		res, err := cl.Apply(t.Context(), objstore.Create{Parent: root, Name: "mail", Mode: objstore.ModeRegular | 0o600}, objstore.Committed)
		want(t, err, nil)
		_, err = cl.ReadDir(t.Context(), root, 0, 100, true)
		want(t, err, nil)
		_, err = cl.Extents(t.Context(), res.Attr.Ino, 0, 1)
		want(t, err, nil)
		_, err = cl.GetAttr(t.Context(), root)
		want(t, err, nil)
		for _, o := range c.osds {
			o.set(hangs)
		}
		took(t, 0, 0, func() {
			_, err := cl.Lookup(t.Context(), root, "mail")
			want(t, err, nil)
			_, err = cl.Lookup(t.Context(), root, "absent")
			want(t, err, objstore.NotFound)
			_, err = cl.GetAttr(t.Context(), root)
			want(t, err, nil)
			_, err = cl.Extents(t.Context(), res.Attr.Ino, 0, 1)
			want(t, err, nil)
		})
		took(t, 30*time.Second, 30*time.Second, func() {
			_, err := cl.Apply(t.Context(), objstore.Remove{Parent: root, Name: "mail"}, objstore.Committed)
			want(t, err, objstore.Unavailable)
		})
		took(t, 0, 0, func() {
			_, err := cl.Lookup(t.Context(), root, "mail")
			want(t, err, objstore.Unavailable)
		})
		for _, o := range c.osds {
			o.set(nil)
		}
		time.Sleep(10 * time.Second)
		_, err = cl.Lookup(t.Context(), root, "mail")
		want(t, err, nil)
	})
}
