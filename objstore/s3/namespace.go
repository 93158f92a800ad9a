package s3

import (
	"context"

	"pillarbox/objstore"
)

// Namespace is the tree of files as a mount sees it. What its methods do and how
// they fail is said at cachefs.FS, which has all of them.
type Namespace interface {
	Lookup(ctx context.Context, dir objstore.Ino, name string) (objstore.Attr, error)
	GetAttr(ctx context.Context, ino objstore.Ino) (objstore.Attr, error)
	ReadDir(ctx context.Context, dir objstore.Ino, after uint64, max int, attrs bool) ([]objstore.DirEntry, error)
	GetXattr(ctx context.Context, ino objstore.Ino, name string) ([]byte, error)
	SetXattr(ctx context.Context, c objstore.SetXattr) error
	RemoveXattr(ctx context.Context, c objstore.RemoveXattr) error
	Make(ctx context.Context, c objstore.Create) (objstore.Attr, error)
	MakeAccount(ctx context.Context, c objstore.Create) (objstore.Attr, error)
	Create(ctx context.Context, c objstore.Create) (objstore.Attr, File, error)
	Open(ctx context.Context, ino objstore.Ino) (File, error)
	Share(ctx context.Context, c objstore.Share) error
	Link(ctx context.Context, c objstore.Link) (objstore.Attr, error)
	Remove(ctx context.Context, c objstore.Remove) error
	Sync(ctx context.Context, ino objstore.Ino) error
}

// File is an open file.
type File interface {
	Read(ctx context.Context, p []byte, off uint64) (int, error)
	Write(ctx context.Context, p []byte, off uint64) (int, error)
	Release()
}

// dirPage is how many entries of a directory are asked for at a time.
const dirPage = 4096

// readDir calls fn for each entry of a directory until it returns false.
func readDir(ctx context.Context, ns Namespace, dir objstore.Ino, attrs bool, fn func(objstore.DirEntry) bool) error {
	for after := uint64(0); ; {
		list, err := ns.ReadDir(ctx, dir, after, dirPage, attrs)
		if err != nil {
			return err
		}
		for _, e := range list {
			if !fn(e) {
				return nil
			}
			after = e.Cookie
		}
		if len(list) < dirPage {
			return nil
		}
	}
}
