package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/osd"
)

func clusterMap() *objstore.Map {
	return &objstore.Map{FSID: "test", Epoch: 1, Format: 1, VolumeDepth: 2, OSDs: []objstore.OSDInfo{{Weight: 1, Up: true, In: true}}, Pools: []objstore.Pool{
		{ID: 1, Name: "meta", Kind: objstore.MetaPool, Size: 1, MinSize: 1, PGs: 4},
	}}
}

var root = objstore.VolumeRoot(objstore.RootVolume)

// failing passes changes on until none are left, then fails them all: a client
// that dies between two steps.
type failing struct {
	*osd.OSD
	left int
}

var errDied = errors.New("client died")

func (f *failing) Apply(ctx context.Context, pg uint32, r objstore.Request, c objstore.Change, p objstore.Promise) (objstore.Result, error) {
	if f.left == 0 {
		return objstore.Result{}, errDied
	}
	f.left--
	return f.OSD.Apply(ctx, pg, r, c, p)
}

func openOSD(t *testing.T) *osd.OSD {
	t.Helper()
	o, err := osd.Open(t.Context(), osd.Options{Dir: t.TempDir(), Map: clusterMap(), Reserve: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func newClient(t *testing.T, o client.OSD) *client.Client {
	t.Helper()
	c, err := client.New(t.Context(), clusterMap(), 1, client.Embedded(o), client.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mkdir(c *client.Client, parent objstore.Ino, name string) (objstore.Ino, error) {
	res, err := c.Apply(context.Background(), objstore.Create{Parent: parent, Name: name, Mode: objstore.ModeDir | 0o750, Uid: 7, Gid: 8}, objstore.Ordered)
	return res.Attr.Ino, err
}

func mustMkdir(t *testing.T, c *client.Client, parent objstore.Ino, name string) objstore.Ino {
	t.Helper()
	ino, err := mkdir(c, parent, name)
	if err != nil {
		t.Fatalf("mkdir %s: %v", name, err)
	}
	return ino
}

func rmdir(c *client.Client, parent objstore.Ino, name string) error {
	res, err := c.Apply(context.Background(), objstore.Remove{Parent: parent, Name: name, Dir: true}, objstore.Ordered)
	if err == nil && res.Orphan != 0 {
		_, err = c.Apply(context.Background(), objstore.Purge{Vol: res.Orphan.Volume(), Inos: []objstore.Ino{res.Orphan}}, objstore.Ordered)
	}
	return err
}

func rename(c *client.Client, from objstore.Ino, old string, to objstore.Ino, name string) error {
	_, err := c.Apply(context.Background(), objstore.Rename{OldParent: from, OldName: old, NewParent: to, NewName: name}, objstore.Ordered)
	return err
}

func want(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want %v", err, kind)
	}
}

func clean(t *testing.T, o *osd.OSD) {
	t.Helper()
	rep, err := o.Check(t.Context(), osd.CheckOptions{Deep: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range rep.Problems {
		t.Errorf("check: %v", p)
	}
}

func TestAccountsAreVolumes(t *testing.T) {
	o := openOSD(t)
	c := newClient(t, o)
	domain := mustMkdir(t, c, root, "example.org")
	if domain.Volume() != objstore.RootVolume {
		t.Fatalf("domain directory %v is not in the root volume", domain)
	}
	alice, bob := mustMkdir(t, c, domain, "alice"), mustMkdir(t, c, domain, "bob")
	if !alice.IsVolumeRoot() || alice.Volume() == bob.Volume() || alice.Volume() == objstore.RootVolume {
		t.Fatalf("accounts %v and %v", alice, bob)
	}
	a, err := c.Lookup(t.Context(), domain, "alice")
	if err != nil || a.Ino != alice || a.Uid != 7 || a.Gid != 8 || a.Mode != objstore.ModeDir|0o750 {
		t.Fatalf("%+v, %v", a, err)
	}
	_, err = mkdir(c, domain, "alice")
	want(t, err, objstore.Exist)
	if in := mustMkdir(t, c, alice, "Maildir"); in.Volume() != alice.Volume() {
		t.Fatalf("%v is not in its account's volume", in)
	}
	for _, name := range []string{"cur", "new", "tmp", ".Sent"} {
		if in := mustMkdir(t, c, domain, name); in.Volume() != objstore.RootVolume {
			t.Fatalf("a Maildir's %s became a volume", name)
		}
	}
	if da, err := c.GetAttr(t.Context(), domain); err != nil || da.Nlink != 8 {
		t.Fatalf("domain has %d links, %v", da.Nlink, err)
	}
	clean(t, o)
}

func TestRenameAndRemoveAccounts(t *testing.T) {
	o := openOSD(t)
	c := newClient(t, o)
	one, two := mustMkdir(t, c, root, "one.org"), mustMkdir(t, c, root, "two.org")
	alice := mustMkdir(t, c, one, "alice")
	mustMkdir(t, c, alice, "Maildir")
	want(t, rmdir(c, one, "alice"), objstore.NotEmpty)
	mustMkdir(t, c, alice, "still-writable")
	if err := rename(c, one, "alice", two, "alicia"); err != nil {
		t.Fatal(err)
	}
	if a, err := c.Lookup(t.Context(), two, "alicia"); err != nil || a.Ino != alice {
		t.Fatalf("%+v, %v", a, err)
	}
	want(t, rename(c, alice, "Maildir", two, "x"), objstore.CrossVolume)

	bob, carol := mustMkdir(t, c, one, "bob"), mustMkdir(t, c, one, "carol")
	want(t, rename(c, one, "bob", two, "alicia"), objstore.NotEmpty)
	if err := rename(c, one, "bob", one, "carol"); err != nil { // over an empty account
		t.Fatal(err)
	}
	if a, err := c.Lookup(t.Context(), one, "carol"); err != nil || a.Ino != bob {
		t.Fatalf("%+v, %v", a, err)
	}
	_, err := c.GetAttr(t.Context(), carol)
	want(t, err, objstore.Stale)
	if err := rename(c, one, "carol", one, "carol"); err != nil {
		t.Fatal(err)
	}
	mustMkdir(t, c, bob, "x") // a rename to itself seals nothing
	if err := rmdir(c, bob, "x"); err != nil {
		t.Fatal(err)
	}
	if err := rmdir(c, one, "carol"); err != nil {
		t.Fatal(err)
	}
	want(t, rmdir(c, one, "carol"), objstore.NotFound)
	_, err = mkdir(c, bob, "late")
	if err == nil {
		t.Fatal("a removed account took a directory")
	}
	clean(t, o)
}

// What ".." means in an account follows its name, also when the client died before it
// told the account.
func TestParentOfAMovedAccount(t *testing.T) {
	f := &failing{OSD: openOSD(t), left: -1}
	c := newClient(t, f)
	one, two := mustMkdir(t, c, root, "one.org"), mustMkdir(t, c, root, "two.org")
	alice, bob := mustMkdir(t, c, one, "alice"), mustMkdir(t, c, two, "bob")
	parent := func(ino, want objstore.Ino) {
		t.Helper()
		if a, err := c.GetAttr(t.Context(), ino); err != nil || a.Parent != want {
			t.Fatalf("parent %v, want %v; %v", a.Parent, want, err)
		}
	}
	if err := rename(c, one, "alice", two, "alice"); err != nil {
		t.Fatal(err)
	}
	parent(alice, two)
	exchange := objstore.Rename{OldParent: two, OldName: "alice", NewParent: root, NewName: "one.org", Exchange: true}
	if _, err := c.Apply(t.Context(), exchange, objstore.Ordered); err != nil {
		t.Fatal(err)
	}
	parent(alice, root)
	exchange = objstore.Rename{OldParent: root, OldName: "alice", NewParent: two, NewName: "bob", Exchange: true}
	if err := rename(c, root, "one.org", root, "alice"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(t.Context(), exchange, objstore.Ordered); err != nil {
		t.Fatal(err)
	}
	parent(alice, two)
	parent(bob, root)

	f.left = 1
	if err := rename(c, two, "bob", one, "alice"); err != nil {
		t.Fatal(err)
	}
	f.left = -1
	parent(alice, two)
	if a, err := c.Lookup(t.Context(), one, "alice"); err != nil || a.Ino != alice || a.Parent != one {
		t.Fatalf("%+v, %v", a, err)
	}
	parent(alice, one)
	clean(t, f.OSD)
}

// The files of a removed account stay until the last one is closed.
func TestRemovedAccountKeepsItsOpenFiles(t *testing.T) {
	o := openOSD(t)
	c := newClient(t, o)
	domain := mustMkdir(t, c, root, "example.org")
	alice := mustMkdir(t, c, domain, "alice")
	ctx := t.Context()
	res, err := c.Apply(ctx, objstore.Create{Parent: alice, Name: "f", Mode: objstore.ModeRegular | 0o600}, objstore.Ordered)
	if err != nil {
		t.Fatal(err)
	}
	open := res.Attr.Ino
	if _, err := c.Apply(ctx, objstore.Remove{Parent: alice, Name: "f"}, objstore.Ordered); err != nil {
		t.Fatal(err)
	}
	if err := rmdir(c, domain, "alice"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(ctx, objstore.Write{Ino: open, Size: 3, Extents: []objstore.Extent{{Len: 3, Kind: objstore.Inline, Data: []byte("abc")}}}, objstore.Committed); err != nil {
		t.Fatalf("write to an open file of a removed account: %v", err)
	}
	if a, err := c.GetAttr(ctx, open); err != nil || a.Size != 3 || a.Nlink != 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	clean(t, o)
	if _, err := c.Apply(ctx, objstore.Purge{Vol: open.Volume(), Inos: []objstore.Ino{open}}, objstore.Ordered); err != nil {
		t.Fatal(err)
	}
	_, err = c.GetAttr(ctx, alice)
	want(t, err, objstore.Stale)
	clean(t, o)
}

// A client that dies after any number of steps leaves, once the next one has
// started, an account that is there whole or not at all.
func TestDeathBetweenStepsLeavesNothingHalf(t *testing.T) {
	steps := map[string]func(*client.Client, objstore.Ino) error{
		"mkdir":  func(c *client.Client, d objstore.Ino) error { _, err := mkdir(c, d, "new"); return err },
		"rmdir":  func(c *client.Client, d objstore.Ino) error { return rmdir(c, d, "old") },
		"rename": func(c *client.Client, d objstore.Ino) error { return rename(c, d, "other", d, "old") },
	}
	for name, step := range steps {
		for after := 0; ; after++ {
			o := openOSD(t)
			c := newClient(t, o)
			domain := mustMkdir(t, c, root, "example.org")
			mustMkdir(t, c, domain, "old")
			mustMkdir(t, c, domain, "other")
			dying := &failing{OSD: o, left: 1 << 20}
			c = newClient(t, dying)
			dying.left = after
			err := step(c, domain)
			if err == nil {
				if after == 0 {
					t.Fatalf("%s took no step", name)
				}
				break
			}
			want(t, err, errDied)
			c = newClient(t, o) // settles
			for _, n := range []string{"old", "other", "new"} {
				a, err := c.Lookup(t.Context(), domain, n)
				if errors.Is(err, objstore.NotFound) {
					continue
				}
				if err != nil {
					t.Fatalf("%s, dead after %d steps: %s: %v", name, after, n, err)
				}
				if _, err := mkdir(c, a.Ino, fmt.Sprint("use-", n)); err != nil {
					t.Fatalf("%s, dead after %d steps: %s cannot be used: %v", name, after, n, err)
				}
			}
			clean(t, o)
		}
	}
}
