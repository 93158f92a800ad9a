package mailimport

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

type kind uint8

const (
	dirKind     kind = iota
	fileKind         // a file, or the first name of one with several
	linkKind         // another name of a file
	symlinkKind      // any target, copied as it is
	mboxKind         // becomes the Maildir dst
	inboxKind        // dst becomes the root of a Maildir++, without an mbox of its own
	lockKind         // left out
	specialKind      // left out
)

// entry is something found in the source and where it goes.
type entry struct {
	kind  kind
	src   string // path
	rel   string // path below the destination; "." is the destination
	first string // of a link: rel of the file's first name
	st    unix.Stat_t
}

// bytes is what the entry adds to the work.
func (e *entry) bytes() int64 {
	if e.kind == fileKind || e.kind == mboxKind {
		return e.st.Size
	}
	return 0
}

// inode names a file on this machine.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{st.Dev, st.Ino} }

func mtimeOf(st *unix.Stat_t) int64 { return st.Mtim.Nano() }

// walker goes through the source in one fixed order: a directory before what is
// in it, names sorted.
type walker struct {
	ctx   context.Context
	opt   *Options
	names map[inode]string // of files with several
	visit func(*entry) error
	fail  func(error) // what could not be looked at
}

func walk(ctx context.Context, o *Options, fail func(error), visit func(*entry) error) error {
	w := &walker{ctx: ctx, opt: o, names: map[inode]string{}, visit: visit, fail: fail}
	e := &entry{src: o.Src, rel: "."}
	if err := unix.Lstat(o.Src, &e.st); err != nil {
		return fmt.Errorf("source: lstat %s: %w", o.Src, err)
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return w.dir(e, false)
	case unix.S_IFREG:
		e.kind = mboxKind
		return visit(e)
	}
	return fmt.Errorf("source %s is neither a directory nor an mbox file", o.Src)
}

// dir visits a directory and all in it. Files of a Maildir are never taken for
// mbox files.
func (w *walker) dir(e *entry, inMaildir bool) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	list, err := os.ReadDir(e.src)
	if err != nil {
		w.fail(fmt.Errorf("read a directory: %w", err))
	}
	if err := w.visit(e); err != nil {
		return err
	}
	inMaildir = inMaildir || isMaildir(list)
	var mboxes []string
	if !inMaildir {
		mboxes = w.mboxes(e.src, list)
	}
	if err := w.place(e, mboxes, list); err != nil {
		return err
	}
	for _, d := range list {
		if slices.Contains(mboxes, d.Name()) {
			continue
		}
		if err := w.child(e, d.Name(), inMaildir); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) child(parent *entry, name string, inMaildir bool) error {
	e := &entry{src: filepath.Join(parent.src, name), rel: filepath.Join(parent.rel, name)}
	if err := unix.Lstat(e.src, &e.st); err != nil {
		w.fail(fmt.Errorf("lstat %s: %w", e.src, err))
		return nil
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return w.dir(e, inMaildir)
	case unix.S_IFREG:
		e.kind = fileKind
	case unix.S_IFLNK:
		e.kind = symlinkKind
	default:
		e.kind = specialKind
		return w.visit(e)
	}
	box := filepath.Base(parent.src)
	if strings.HasSuffix(name, ".lock") && (!inMaildir || box != "cur" && box != "new") {
		e.kind = lockKind
		return w.visit(e)
	}
	if e.kind == fileKind && e.st.Nlink > 1 {
		if first, ok := w.names[inodeOf(&e.st)]; ok {
			e.kind, e.first = linkKind, first
		} else {
			w.names[inodeOf(&e.st)] = e.rel
		}
	}
	return w.visit(e)
}

func isMaildir(list []fs.DirEntry) bool {
	found := 0
	for _, d := range list {
		if n := d.Name(); d.IsDir() && (n == "cur" || n == "new" || n == "tmp") {
			found++
		}
	}
	return found == 3
}

// mboxes are the names of the files that begin with a dated separator.
func (w *walker) mboxes(dir string, list []fs.DirEntry) []string {
	var found []string
	for _, d := range list {
		if !d.Type().IsRegular() || strings.HasSuffix(d.Name(), ".lock") {
			continue
		}
		ok, err := isMbox(filepath.Join(dir, d.Name()))
		if err != nil {
			w.fail(fmt.Errorf("look for an mbox: %w", err))
		}
		if ok {
			found = append(found, d.Name())
		}
	}
	return found
}

func isMbox(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b := make([]byte, 512)
	n, err := f.ReadAt(b, 0)
	if n == 0 || err != nil && n == len(b) {
		return false, nil
	}
	line, _, _ := strings.Cut(string(b[:n]), "\n")
	_, ok := fromDate([]byte(line))
	return ok, nil
}

// place visits the mbox files of a directory, each with its Maildir.
func (w *walker) place(dir *entry, mboxes []string, list []fs.DirEntry) error {
	taken := map[string]string{}
	for _, d := range list {
		if !slices.Contains(mboxes, d.Name()) {
			taken[d.Name()] = d.Name()
		}
	}
	folders := w.opt.Mbox == Folders && len(mboxes) > 1
	if folders {
		for _, name := range []string{"cur", "new", "tmp"} {
			if taken[name] != "" {
				w.fail(fmt.Errorf("the mbox files in %s would become a Maildir, but there is a %q already", dir.src, name))
				return nil
			}
		}
		if err := w.visit(&entry{kind: inboxKind, src: dir.src, rel: dir.rel, st: dir.st}); err != nil {
			return err
		}
	}
	for _, name := range mboxes {
		to := name
		if folders {
			to = folderName(name)
		}
		if other, ok := taken[to]; ok {
			w.fail(fmt.Errorf("mbox %s and %s would both become %q", filepath.Join(dir.src, name), other, to))
			continue
		}
		taken[to] = name
		e := &entry{kind: mboxKind, src: filepath.Join(dir.src, name), rel: filepath.Join(dir.rel, to)}
		if err := unix.Lstat(e.src, &e.st); err != nil {
			w.fail(fmt.Errorf("lstat %s: %w", e.src, err))
			continue
		}
		if err := w.visit(e); err != nil {
			return err
		}
	}
	return nil
}

// folderName is the directory in a Maildir++ of the mbox called name. A dot
// would make it a folder of a folder.
func folderName(name string) string {
	switch name {
	case "inbox", "INBOX", "mbox":
		return "."
	}
	return "." + strings.ReplaceAll(strings.TrimPrefix(name, "."), ".", "_")
}
