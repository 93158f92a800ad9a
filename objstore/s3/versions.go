package s3

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"pillarbox/objstore"
)

// The latest version of an object has the object's name. Earlier ones, and delete
// markers, which are empty files, have names in a directory of the key's below
// versionsDir: their version ids, which sort newest first. The version that S3
// calls null, made while the bucket kept none, has a name that ends in nullName.

const nullName = "null"

// newVersion makes a version id.
func newVersion() string { return versionAt(moment()) + randomHex(4) }

// versionAt is how the ids of versions made at a time begin.
func versionAt(nanos int64) string { return fmt.Sprintf("%016x", uint64(1<<63-1)-uint64(nanos)) }

func isNull(v string) bool { return v == "" || strings.HasSuffix(v, nullName) }

// publicVersion is a version id as S3 tells it.
func publicVersion(v string) string {
	if isNull(v) {
		return nullName
	}
	return v
}

// storedName is a version's name among the earlier ones.
func (v *version) storedName() string {
	if v.Version != "" {
		return v.Version
	}
	return versionAt(v.attr.Mtime) + nullName
}

func versionsPath(key string) []string {
	return slices.Concat([]string{sysDir, versionsDir}, oddPath(key))
}

// current is the object that has the key's name; nil: none has.
func (b *bucket) current(ctx context.Context, key string) (*version, error) {
	for range maxTries {
		p, err := b.find(ctx, key)
		if err != nil || !p.exists() {
			return nil, err
		}
		v, err := b.load(ctx, key, p)
		if isGone(err) { // replaced between the two looks
			continue
		}
		return v, err
	}
	return nil, fmt.Errorf("object %s/%s changes all the time: %w", b.name, key, objstore.Unavailable)
}

// earlier lists the key's versions below versionsDir, newest first.
func (b *bucket) earlier(ctx context.Context, key string) ([]*version, error) {
	p, _, err := walk(ctx, b.ns, b.dir, versionsPath(key))
	if err != nil || !p.exists() {
		return nil, err
	}
	var list []*version
	err = readDir(ctx, b.ns, p.attr.Ino, true, func(e objstore.DirEntry) bool {
		if e.Type == objstore.ModeRegular && e.Attr != nil {
			list = append(list, &version{key: key, place: place{p.attr.Ino, e.Name, *e.Attr}})
		}
		return true
	})
	if isGone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(x, y *version) int { return strings.Compare(x.name, y.name) })
	out := list[:0]
	for _, v := range list {
		full, err := b.load(ctx, key, v.place)
		if isGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		full.latest = false
		full.Version = v.name
		out = append(out, full)
	}
	return out, nil
}

// byID finds a version by the id that S3 tells; nil: there is none.
func (b *bucket) byID(ctx context.Context, key, id string) (*version, error) {
	cur, err := b.current(ctx, key)
	if err != nil || cur != nil && cur.id() == id {
		return cur, err
	}
	list, err := b.earlier(ctx, key)
	if err != nil {
		return nil, err
	}
	for i, v := range list {
		if v.id() == id {
			v.latest = cur == nil && i == 0
			return v, nil
		}
	}
	return nil, nil
}

// latest is the newest version, which may be a delete marker; nil: none at all.
func (b *bucket) latest(ctx context.Context, key string) (*version, error) {
	cur, err := b.current(ctx, key)
	if err != nil || cur != nil || !b.versioned() {
		return cur, err
	}
	list, err := b.earlier(ctx, key)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	list[0].latest = true
	return list[0], nil
}

// archive gives a version that is about to lose the key's name one among the
// earlier ones.
func (b *bucket) archive(ctx context.Context, v *version) error {
	dir, err := b.versionsOf(ctx, v.key)
	if err != nil {
		return err
	}
	_, err = b.ns.Link(ctx, objstore.Link{Ino: v.attr.Ino, Parent: dir, Name: v.storedName()})
	if errors.Is(err, objstore.Exist) {
		return nil // by somebody who then was not the first
	}
	return err
}

// versionsOf makes the directory of a key's earlier versions.
func (b *bucket) versionsOf(ctx context.Context, key string) (objstore.Ino, error) {
	dir, ok, err := makePath(ctx, b.ns, b.dir, versionsPath(key), true)
	if err == nil && !ok {
		err = fmt.Errorf("versions of %s/%s: %w", b.name, key, objstore.NotDir)
	}
	return dir, err
}

// dropNull removes the null version from among the earlier ones.
func (b *bucket) dropNull(ctx context.Context, key string) error {
	list, err := b.earlier(ctx, key)
	if err != nil {
		return err
	}
	for _, v := range list {
		if isNull(v.Version) {
			if err := b.ns.Remove(ctx, objstore.Remove{Parent: v.dir, Name: v.name, Only: v.attr.Ino}); err != nil && !isGone(err) {
				return err
			}
		}
	}
	return nil
}

// mark puts a delete marker before the key's versions and takes its name away.
func (q *request) mark(key string, check func(*version) error) (*version, error) {
	b, ctx := q.b, q.ctx
	suspended := b.rec.Versioning == "Suspended"
	m := &version{key: key, latest: true, object: object{Marker: true, Owner: q.userID(), Version: newVersion()}}
	if suspended {
		m.Version = versionAt(moment()) + nullName
	}
	for range maxTries {
		cur, err := b.current(ctx, key)
		if err != nil {
			return nil, err
		}
		if check != nil {
			seen := cur
			if seen == nil {
				if seen, err = b.latest(ctx, key); err != nil {
					return nil, err
				}
			}
			if err := check(seen); err != nil {
				return nil, err
			}
		}
		if cur != nil && !(suspended && isNull(cur.Version)) {
			if err := b.archive(ctx, cur); err != nil {
				if isGone(err) {
					continue
				}
				return nil, err
			}
		}
		if suspended {
			if err := b.dropNull(ctx, key); err != nil {
				return nil, err
			}
		}
		if m.attr.Ino == 0 {
			if err := b.putMarker(ctx, m); err != nil {
				if isGone(err) {
					continue
				}
				return nil, err
			}
		}
		if cur == nil {
			return m, nil
		}
		err = b.ns.Remove(ctx, objstore.Remove{Parent: cur.dir, Name: cur.name, Only: cur.attr.Ino})
		if errors.Is(err, objstore.Exist) || isGone(err) {
			continue
		}
		if err == nil {
			b.prune(ctx, dirsOf(key, cur.place))
		}
		return m, err
	}
	return nil, errBusy(b, key)
}

func errBusy(b *bucket, key string) error {
	return fmt.Errorf("object %s/%s changes all the time: %w", b.name, key, objstore.Unavailable)
}

// putMarker makes the file of a delete marker.
func (b *bucket) putMarker(ctx context.Context, m *version) error {
	dir, err := b.versionsOf(ctx, m.key)
	if err != nil {
		return err
	}
	a, f, err := b.create(ctx, dir)
	if err != nil {
		return err
	}
	defer f.Release()
	m.Mtime = a.Mtime
	if err := writeRecord(ctx, b.ns, a.Ino, objectAttr, &m.object); err != nil {
		return err
	}
	if a, err = b.ns.Link(ctx, objstore.Link{Ino: a.Ino, Parent: dir, Name: m.Version}); err != nil {
		return err
	}
	m.place = place{dir, m.Version, a}
	return nil
}

// removeVersion removes one version for good. If it was the latest, or a marker
// that hid the others, the one before it becomes the latest. Others may do the
// same at once: it is done only when neither the key's name nor one among the
// earlier ones leads to the version.
func (b *bucket) removeVersion(ctx context.Context, v *version) error {
	defer b.prune(ctx, versionsPath(v.key))
	gone := v.attr.Ino
	for range maxTries {
		list, err := b.earlier(ctx, v.key)
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.attr.Ino == gone {
				if err := b.unarchive(ctx, e); err != nil {
					return err
				}
			}
		}
		list = slices.DeleteFunc(list, func(e *version) bool { return e.attr.Ino == gone })
		cur, err := b.current(ctx, v.key)
		if err != nil || cur != nil && cur.attr.Ino != gone {
			return err
		}
		again, err := b.succeed(ctx, v.key, cur, list)
		switch {
		case errors.Is(err, objstore.Exist) || isGone(err):
		case err != nil || again == 0:
			return err
		default:
			gone = again
		}
	}
	return errBusy(b, v.key)
}

// succeed gives the key's name, which cur has or nobody, to the newest of the
// earlier versions. again is one that somebody removed meanwhile, and that has to
// be removed once more.
func (b *bucket) succeed(ctx context.Context, key string, cur *version, list []*version) (again objstore.Ino, err error) {
	hidden := len(list) == 0 || list[0].Marker
	switch {
	case cur == nil && hidden:
		return 0, nil
	case hidden:
		if err := b.ns.Remove(ctx, objstore.Remove{Parent: cur.dir, Name: cur.name, Only: cur.attr.Ino}); err != nil {
			return 0, err
		}
		b.prune(ctx, dirsOf(key, cur.place))
		return 0, nil
	}
	var p place
	if cur != nil {
		p = cur.place
	} else if p, err = b.locate(ctx, key); err != nil || p.exists() {
		return 0, err
	}
	next := list[0]
	if _, err := b.ns.Link(ctx, objstore.Link{Ino: next.attr.Ino, Parent: p.dir, Name: p.name, Over: p.attr.Ino}); err != nil {
		return 0, err
	}
	err = b.ns.Remove(ctx, objstore.Remove{Parent: next.dir, Name: next.name, Only: next.attr.Ino})
	if isGone(err) {
		return next.attr.Ino, nil
	}
	return 0, err
}

func (b *bucket) unarchive(ctx context.Context, v *version) error {
	err := b.ns.Remove(ctx, objstore.Remove{Parent: v.dir, Name: v.name, Only: v.attr.Ino})
	if isGone(err) {
		return nil
	}
	return err
}

// create makes a file without a name in a directory's volume, of the owner that
// the directory has.
func (b *bucket) create(ctx context.Context, dir objstore.Ino) (objstore.Attr, File, error) {
	d, err := b.ns.GetAttr(ctx, dir)
	if err != nil {
		return d, nil, err
	}
	return b.ns.Create(ctx, objstore.Create{Parent: dir, Mode: objstore.ModeRegular | 0o600, Uid: d.Uid, Gid: d.Gid})
}
