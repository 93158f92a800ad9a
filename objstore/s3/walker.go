package s3

import (
	"context"
	"encoding/hex"
	"errors"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"

	"pillarbox/objstore"
)

// Listings go through a bucket in the order of keys, which is not that of names:
// below the directory "a" keys begin with "a/", which comes after "a-b". Two
// walks are merged, that of the paths and that of the odd keys; a listing of
// versions merges a third.

// walker yields what is in a tree, in the order of keys. A part that cannot
// matter is not read.
type walker struct {
	ctx    context.Context
	b      *bucket
	prefix string
	after  string // keys up to this one are not wanted
	skip   string // nor those that begin with this; empty: none
	err    error
}

// wanted says whether any key that begins with p can be.
func (w *walker) wanted(p string) bool {
	if !strings.HasPrefix(p, w.prefix) && !strings.HasPrefix(w.prefix, p) {
		return false
	}
	if p <= w.after && !strings.HasPrefix(w.after, p) {
		return false
	}
	return w.skip == "" || !strings.HasPrefix(p, w.skip)
}

// hit says whether a key is.
func (w *walker) hit(key string) bool {
	return strings.HasPrefix(key, w.prefix) && key > w.after && (w.skip == "" || !strings.HasPrefix(key, w.skip))
}

// found is one key and what has it.
type found struct {
	key   string
	place place
}

type named struct {
	sort string // with a slash, if it is a directory's
	e    objstore.DirEntry
}

// entries reads a directory, in the order of keys.
func (w *walker) entries(dir objstore.Ino) []named {
	a, err := w.b.ns.GetAttr(w.ctx, dir)
	if err != nil {
		if !isGone(err) {
			w.err = err
		}
		return nil
	}
	if list, ok := w.b.listings.get(dir, a.Mtime); ok {
		return list
	}
	list := w.read(dir)
	w.b.listings.put(dir, a.Mtime, list)
	return list
}

func (w *walker) read(dir objstore.Ino) []named {
	var list []named
	err := readDir(w.ctx, w.b.ns, dir, true, func(e objstore.DirEntry) bool {
		n := named{e.Name, e}
		switch e.Type {
		case objstore.ModeDir:
			n.sort += "/"
		case objstore.ModeRegular:
		default:
			return true
		}
		list = append(list, n)
		return true
	})
	if err != nil && !isGone(err) {
		w.err = err
		return nil
	}
	slices.SortFunc(list, func(a, b named) int { return strings.Compare(a.sort, b.sort) })
	return list
}

// paths yields the objects that have paths.
func (w *walker) paths() iter.Seq[found] {
	return func(yield func(found) bool) { w.walkPaths(w.b.dir, "", yield) }
}

func (w *walker) walkPaths(dir objstore.Ino, path string, yield func(found) bool) bool {
	for _, n := range w.entries(dir) {
		key := path + n.sort
		if path == "" && n.e.Name == sysDir || !utf8.ValidString(n.e.Name) || len(key) > maxKey || !w.wanted(key) {
			continue
		}
		if n.e.Type == objstore.ModeRegular {
			if w.hit(key) && !yield(found{key, place{dir, n.e.Name, w.attr(n.e)}}) {
				return false
			}
			continue
		}
		if w.hit(key) && (n.e.Attr == nil || n.e.Attr.HasXattr) {
			_, err := w.b.ns.GetXattr(w.ctx, n.e.Ino, objectAttr)
			if err == nil && !yield(found{key, place{dir, n.e.Name, w.attr(n.e)}}) {
				return false
			}
			if err != nil && !errors.Is(err, objstore.NoAttr) && !isGone(err) {
				w.err = err
				return false
			}
		}
		if w.wanted(key) && !w.walkPaths(n.e.Ino, key, yield) {
			return false
		}
		if w.err != nil {
			return false
		}
	}
	return w.err == nil
}

// attr is an entry's; one of another volume is asked for when it is loaded.
func (w *walker) attr(e objstore.DirEntry) objstore.Attr {
	if e.Attr != nil {
		return *e.Attr
	}
	a, err := w.b.ns.GetAttr(w.ctx, e.Ino)
	if err != nil && !isGone(err) {
		w.err = err
	}
	return a
}

// odd yields what is below a directory of sysDir that is laid out as oddPath
// has it: files, or with dirs set the directories that end a path.
func (w *walker) odd(top string, dirs bool) iter.Seq[found] {
	return func(yield func(found) bool) {
		p, _, err := walk(w.ctx, w.b.ns, w.b.dir, []string{sysDir, top})
		if err != nil {
			w.err = err
		}
		if err == nil && p.exists() && p.attr.IsDir() {
			w.walkOdd(p.attr.Ino, "", dirs, yield)
		}
	}
}

func (w *walker) walkOdd(dir objstore.Ino, path string, dirs bool, yield func(found) bool) bool {
	list := slices.Clone(w.entries(dir))
	slices.SortFunc(list, func(a, b named) int { return strings.Compare(a.e.Name, b.e.Name) })
	for _, n := range list {
		name, more := strings.CutSuffix(n.e.Name, "+")
		piece, err := hex.DecodeString(name)
		if err != nil {
			continue
		}
		key := path + string(piece)
		if more {
			if w.wanted(key) && !w.walkOdd(n.e.Ino, key, dirs, yield) {
				return false
			}
			continue
		}
		if (n.e.Type == objstore.ModeDir) == dirs && w.hit(key) && !yield(found{key, place{dir, n.e.Name, w.attr(n.e)}}) {
			return false
		}
	}
	return w.err == nil
}

// merge yields two sequences in the order of keys; where both have a key, the
// first's.
func merge(a, b iter.Seq[found]) iter.Seq[found] {
	return func(yield func(found) bool) {
		next, stop := iter.Pull(b)
		defer stop()
		o, more := next()
		for f := range a {
			for more && o.key < f.key {
				if !yield(o) {
					return
				}
				o, more = next()
			}
			if more && o.key == f.key {
				o, more = next()
			}
			if !yield(f) {
				return
			}
		}
		for ; more; o, more = next() {
			if !yield(o) {
				return
			}
		}
	}
}

// keys yields all current objects.
func (w *walker) keys() iter.Seq[found] { return merge(w.paths(), w.odd(oddDir, false)) }
