package client_test

import (
	"fmt"
	"testing"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
)

// TestListingsAreKept lists a directory in small pieces: the OSD is asked once, and
// not again until a name changes, here or elsewhere.
func TestListingsAreKept(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const mails, piece = 1100, 20 // two questions
		c := newCluster(t, 3, replicated(3, 2))
		cl, osds := c.watching(client.Options{})
		var last objstore.Ino
		deliver := func(i int) {
			t.Helper()
			res, err := cl.Apply(t.Context(), objstore.Create{Parent: root, Name: fmt.Sprint("mail", i), Mode: objstore.ModeRegular | 0o600}, objstore.Committed)
			want(t, err, nil)
			last = res.Attr.Ino
		}
		for i := range mails {
			deliver(i)
		}
		list := func(what string, names, asks int) {
			t.Helper()
			before, found := c.asked("ReadDir"), 0
			for after := uint64(2); ; {
				part, err := cl.ReadDir(t.Context(), root, after, piece, true)
				want(t, err, nil)
				for _, e := range part {
					if e.Name != fmt.Sprint("mail", found) || e.Attr == nil || e.Attr.Ino != e.Ino || e.Cookie <= after {
						t.Fatalf("%s: name %d is %+v", what, found, e)
					}
					e.Attr.Size = 77 // a caller's own
					after = e.Cookie
					found++
				}
				if len(part) < piece {
					break
				}
			}
			if n := c.asked("ReadDir") - before; n != asks || found != names {
				t.Errorf("%s: %d names, asked %d times; want %d, %d", what, found, n, names, asks)
			}
		}
		_, err := cl.GetAttr(t.Context(), root)
		want(t, err, nil) // so that there is a lease
		list("first", mails, 2)
		list("again", mails, 0)
		before := c.asked("Lookup")
		if _, err := cl.Lookup(t.Context(), root, "nobody"); err == nil || c.asked("Lookup") != before {
			t.Errorf("a name that is not in the listing: %v, asked %d times", err, c.asked("Lookup")-before)
		}
		if a, err := cl.GetAttr(t.Context(), last); err != nil || a.Size != 0 {
			t.Errorf("what a caller did to a listing is kept: %+v, %v", a, err)
		}
		deliver(mails)
		list("delivered", mails+1, 2)
		list("delivered, again", mails+1, 0)
		for _, o := range osds {
			o.push(objstore.Push{Volume: 0, Events: []objstore.Event{{Kind: objstore.Created, Ino: 9999, Dir: root, Name: "elsewhere"}}})
		}
		list("changed elsewhere", mails+1, 2)
		for _, o := range osds {
			o.push(objstore.Push{Volume: 0, Events: []objstore.Event{{Kind: objstore.Touched, Ino: last}}})
		}
		// Another file's attributes: the last piece is asked for.
		list("touched elsewhere", mails+1, 1)
		list("touched elsewhere, again", mails+1, 0)
		if part, err := cl.ReadDir(t.Context(), root, 0, 1, false); err != nil || len(part) != 1 {
			t.Errorf("the first name: %v, %v", part, err)
		}
	})
}
