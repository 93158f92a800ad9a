package s3

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	"pillarbox/objstore"
)

const (
	sysDir      = ".s3" // in a bucket's directory
	oddDir      = "odd"
	versionsDir = "versions"
	uploadsDir  = "uploads"

	maxKey = 1024 // bytes
)

// nicePath splits a key that is a path below the bucket's directory. A key with
// a slash at its end is a directory's.
func nicePath(key string) (parts []string, dir, ok bool) {
	path, dir := strings.CutSuffix(key, "/")
	parts = strings.Split(path, "/")
	for _, p := range parts {
		if objstore.CheckName(p) != nil {
			return nil, false, false
		}
	}
	return parts, dir, parts[0] != sysDir
}

// pieceLen is how many bytes of a key one component of its odd name holds.
const pieceLen = 100

// oddPath is where a key that is no path has its object below sysDir: in hex, so
// that names sort as keys do, in pieces that fit into a name. A piece before the
// last is a directory.
func oddPath(key string) []string {
	var parts []string
	for ; len(key) > pieceLen; key = key[pieceLen:] {
		parts = append(parts, hex.EncodeToString([]byte(key[:pieceLen]))+"+")
	}
	return append(parts, hex.EncodeToString([]byte(key)))
}

// place is where an object is, or would be: a name in a directory.
type place struct {
	dir  objstore.Ino
	name string
	attr objstore.Attr // of what is there; Ino 0: nothing
}

func (p place) exists() bool { return p.attr.Ino != 0 }

// isGone says that something on the way to a name is not there (any more).
func isGone(err error) bool {
	return errors.Is(err, objstore.NotFound) || errors.Is(err, objstore.NotDir) || errors.Is(err, objstore.Stale)
}

// walk looks a path up, never following a symlink. ok is false if a directory on
// the way is missing or is none; the place tells whether the last name exists.
func walk(ctx context.Context, ns Namespace, top objstore.Ino, parts []string) (p place, ok bool, err error) {
	p.dir = top
	for i, name := range parts {
		p.name = name
		a, err := ns.Lookup(ctx, p.dir, name)
		if isGone(err) {
			p.attr = objstore.Attr{}
			return p, i == len(parts)-1 && !errors.Is(err, objstore.NotDir), nil
		}
		if err != nil {
			return p, false, err
		}
		p.attr = a
		if i == len(parts)-1 {
			return p, true, nil
		}
		if !a.IsDir() {
			return place{dir: p.dir, name: name}, false, nil
		}
		p.dir = a.Ino
	}
	return p, true, nil
}

// makePath makes the directories of a path that are missing. ok is false if one
// of them is taken by something else. implicit marks what it makes, so that it
// goes with its last object.
func makePath(ctx context.Context, ns Namespace, top objstore.Ino, parts []string, implicit bool) (dir objstore.Ino, ok bool, err error) {
	dir = top
	for _, name := range parts {
		a, err := ns.Lookup(ctx, dir, name)
		if errors.Is(err, objstore.NotFound) {
			a, err = makeDir(ctx, ns, dir, name, implicit)
		}
		if errors.Is(err, objstore.NotDir) || err == nil && !a.IsDir() {
			return 0, false, nil
		}
		if err != nil {
			return 0, false, err
		}
		dir = a.Ino
	}
	return dir, true, nil
}

// makeDir makes a directory that belongs to whom its parent belongs to.
func makeDir(ctx context.Context, ns Namespace, parent objstore.Ino, name string, implicit bool) (objstore.Attr, error) {
	p, err := ns.GetAttr(ctx, parent)
	if err != nil {
		return p, err
	}
	a, err := ns.Make(ctx, objstore.Create{Parent: parent, Name: name, Mode: objstore.ModeDir | 0o700, Uid: p.Uid, Gid: p.Gid})
	if errors.Is(err, objstore.Exist) {
		return ns.Lookup(ctx, parent, name)
	}
	if err == nil && implicit {
		err = ns.SetXattr(ctx, objstore.SetXattr{Ino: a.Ino, Name: implicitAttr, Value: []byte{1}})
	}
	return a, err
}

// find looks for a key's object: at its path, or among the odd ones. A symlink,
// a device or a directory that nobody put is no object.
func (b *bucket) find(ctx context.Context, key string) (p place, err error) {
	if parts, dir, ok := nicePath(key); ok {
		p, _, err := walk(ctx, b.ns, b.dir, parts)
		if err != nil {
			return p, err
		}
		if p.exists() && dir && p.attr.IsDir() && p.attr.HasXattr {
			if _, err := b.ns.GetXattr(ctx, p.attr.Ino, objectAttr); err == nil {
				return p, nil
			} else if !errors.Is(err, objstore.NoAttr) && !isGone(err) {
				return p, err
			}
		}
		if p.exists() && !dir && isFile(&p.attr) {
			return p, nil
		}
	}
	p, _, err = walk(ctx, b.ns, b.dir, slices.Concat([]string{sysDir, oddDir}, oddPath(key)))
	if err == nil && p.exists() && !isFile(&p.attr) {
		p.attr = objstore.Attr{}
	}
	return p, err
}

func isFile(a *objstore.Attr) bool { return a.Mode&objstore.ModeType == objstore.ModeRegular }

// locate is find for a key that is about to be written: the directory is there
// afterwards.
func (b *bucket) locate(ctx context.Context, key string) (place, error) {
	for try := 0; ; try++ {
		p, err := b.tryLocate(ctx, key)
		// A directory may go with its last object between the two looks.
		if err == nil || !isGone(err) || try == maxTries {
			return p, err
		}
	}
}

// maxTries bounds how often a gateway looks again because others were faster.
const maxTries = 100

func (b *bucket) tryLocate(ctx context.Context, key string) (place, error) {
	p, err := b.find(ctx, key)
	if err != nil || p.exists() {
		return p, err
	}
	if parts, isDir, ok := nicePath(key); ok && !isDir {
		last := len(parts) - 1
		dir, ok, err := makePath(ctx, b.ns, b.dir, parts[:last], true)
		if err != nil {
			return p, err
		}
		if ok {
			a, err := b.ns.Lookup(ctx, dir, parts[last])
			switch {
			case errors.Is(err, objstore.NotFound):
				return place{dir: dir, name: parts[last]}, nil
			case err != nil:
				return p, err
			case isFile(&a):
				return place{dir, parts[last], a}, nil
			}
		}
	}
	parts := slices.Concat([]string{sysDir, oddDir}, oddPath(key))
	last := len(parts) - 1
	dir, ok, err := makePath(ctx, b.ns, b.dir, parts[:last], true)
	if err == nil && !ok {
		err = objstore.NotDir
	}
	return place{dir: dir, name: parts[last]}, err
}

// prune removes the directories of a path that are empty and were made only for
// the objects below them, from the last one up.
func (b *bucket) prune(ctx context.Context, parts []string) {
	for n := len(parts); n > 0; n-- {
		p, ok, err := walk(ctx, b.ns, b.dir, parts[:n])
		if err != nil || !ok || !p.exists() || !p.attr.HasXattr || p.attr.Ino.IsVolumeRoot() {
			return
		}
		if _, err := b.ns.GetXattr(ctx, p.attr.Ino, implicitAttr); err != nil {
			return
		}
		if b.ns.Remove(ctx, objstore.Remove{Parent: p.dir, Name: p.name, Dir: true, Only: p.attr.Ino}) != nil {
			return // not empty, most of the time
		}
	}
}

// dirsOf are the directories above a key's object, for prune.
func dirsOf(key string, p place) []string {
	parts, _, ok := nicePath(key)
	if !ok || parts[len(parts)-1] != p.name {
		parts = slices.Concat([]string{sysDir, oddDir}, oddPath(key))
	}
	return parts[:len(parts)-1]
}
