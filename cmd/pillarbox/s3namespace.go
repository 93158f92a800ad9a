package main

import (
	"context"
	"time"

	"pillarbox/cachefs"
	"pillarbox/fusefs"
	"pillarbox/objstore"
	"pillarbox/objstore/s3"
)

// noKernel stands for the mount that a gateway does not have.
type noKernel struct{}

func (noKernel) Drop(objstore.Ino) {}

func (noKernel) Stale(objstore.Event) (until time.Time) { return until }

func (noKernel) Happened(objstore.Event) {}

// s3Namespace is an FS as the gateway wants it. A mount of the same process is
// told what the gateway changes.
type s3Namespace struct {
	*cachefs.FS
	mount *fusefs.Mounted // nil: none
}

type s3File struct{ *cachefs.Handle }

func (f s3File) Write(ctx context.Context, p []byte, off uint64) (int, error) {
	return f.Handle.Write(ctx, p, off, cachefs.WriteOptions{})
}

func (n s3Namespace) Open(ctx context.Context, ino objstore.Ino) (s3.File, error) {
	h, err := n.FS.Open(ctx, ino)
	if err != nil {
		return nil, err
	}
	return s3File{h}, nil
}

func (n s3Namespace) Create(ctx context.Context, c objstore.Create) (objstore.Attr, s3.File, error) {
	a, h, err := n.FS.Create(ctx, c)
	if err != nil {
		return a, nil, err
	}
	return a, s3File{h}, nil
}

// change makes a change of names, and tells the mount.
func (n s3Namespace) change(a, b objstore.Ino, fn func() (objstore.Event, error)) error {
	if n.mount == nil {
		_, err := fn()
		return err
	}
	done := n.mount.Change(a, b)
	e, err := fn()
	if err != nil {
		done()
		return err
	}
	done(e)
	return nil
}

func (n s3Namespace) Make(ctx context.Context, c objstore.Create) (a objstore.Attr, err error) {
	return a, n.change(c.Parent, c.Parent, func() (objstore.Event, error) {
		a, err = n.FS.Make(ctx, c)
		return objstore.Event{Kind: objstore.Created, Ino: a.Ino, Type: objstore.ModeDir, Dir: c.Parent, Name: c.Name}, err
	})
}

func (n s3Namespace) MakeAccount(ctx context.Context, c objstore.Create) (a objstore.Attr, err error) {
	return a, n.change(c.Parent, c.Parent, func() (objstore.Event, error) {
		a, err = n.FS.MakeAccount(ctx, c)
		return objstore.Event{Kind: objstore.Created, Ino: a.Ino, Type: objstore.ModeDir, Dir: c.Parent, Name: c.Name}, err
	})
}

func (n s3Namespace) Link(ctx context.Context, c objstore.Link) (a objstore.Attr, err error) {
	return a, n.change(c.Parent, c.Parent, func() (objstore.Event, error) {
		a, err = n.FS.Link(ctx, c)
		return objstore.Event{Kind: objstore.Created, Ino: c.Ino, Type: objstore.ModeRegular, Dir: c.Parent, Name: c.Name}, err
	})
}

func (n s3Namespace) Remove(ctx context.Context, c objstore.Remove) error {
	return n.change(c.Parent, c.Parent, func() (objstore.Event, error) {
		typ := objstore.ModeRegular
		if c.Dir {
			typ = objstore.ModeDir
		}
		return objstore.Event{Kind: objstore.Removed, Ino: c.Only, Type: typ, Dir: c.Parent, Name: c.Name}, n.FS.Remove(ctx, c)
	})
}
