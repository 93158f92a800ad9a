package volume

import (
	"fmt"

	"pillarbox/objstore"
)

// readNames checks every name, and counts.
func (a *auditor) readNames() error {
	return a.eachOf(kDirent, func(dir objstore.Ino, key, val []byte) error {
		name := string(key[inoKeyLen:])
		e, err := decodeDirent(key, val)
		if err != nil {
			found, ok, lerr := a.listed(dir, name)
			if lerr != nil {
				return lerr
			}
			err = a.problem(Problem{Kind: ProblemCorrupt, Ino: dir, Name: name, Detail: err.Error()}, func(f *fixer) error {
				if !ok {
					f.set(key, nil)
				} else {
					f.set(key, appendDirent(nil, found))
				}
				return nil
			})
			if err != nil || !ok {
				return err
			}
			e = found
		}
		return a.name(dir, name, e)
	})
}

// listed searches a directory's listing for a name.
func (a *auditor) listed(dir objstore.Ino, name string) (e dirent, ok bool, err error) {
	err = a.v.Scan(appendInoKey(nil, kCookie, dir), nil, func(key, val []byte) bool {
		found, n, err := decodeCookieRecord(key, val)
		if err == nil && string(n) == name {
			e, ok = found, true
		}
		return !ok
	})
	return e, ok, err
}

func (a *auditor) name(dir objstore.Ino, name string, e dirent) error {
	a.number(e.cookie)
	d := a.dirs[dir]
	remove := func(f *fixer) error {
		f.dropEntry(dir, name, e)
		return nil
	}
	if info, ok := a.inodes[dir]; d == nil && ok && info.typ == 0 {
		// The directory itself cannot be read; what it names is not lost.
		d = new(dirInfo)
		a.dirs[dir] = d
	}
	if d == nil {
		return a.problem(Problem{Kind: ProblemStray, Ino: dir, Name: name, Detail: "a name in no directory"}, remove)
	}
	if e.ino.Volume() != a.vol {
		if a.vol != objstore.RootVolume || !e.ino.IsVolumeRoot() || !e.isDir() {
			return a.problem(Problem{Kind: ProblemDangling, Ino: dir, Name: name, Detail: "leads to " + e.ino.String()}, remove)
		}
		d.entries = true
		d.subdirs++
		return a.listing(dir, name, e)
	}
	info, ok := a.inodes[e.ino]
	if !ok || e.ino.IsVolumeRoot() {
		return a.problem(Problem{Kind: ProblemDangling, Ino: dir, Name: name, Detail: "leads to " + e.ino.String()}, remove)
	}
	if typ := uint32(info.typ) << 12; typ != 0 && typ != e.typ {
		err := a.problem(Problem{Kind: ProblemType, Ino: dir, Name: name, Detail: fmt.Sprintf("%o instead of %o", e.typ, typ)}, func(f *fixer) error {
			fixed := e
			fixed.typ = typ
			f.putEntry(dir, name, fixed)
			return nil
		})
		if err != nil {
			return err
		}
		e.typ = typ
	}
	if e.isDir() {
		if info.names > 0 {
			return a.problem(Problem{Kind: ProblemDirNames, Ino: dir, Name: name, Detail: "leads to " + e.ino.String()}, remove)
		}
		if c := a.dirs[e.ino]; c != nil {
			c.in = dir
		}
		d.subdirs++
	}
	d.entries = true
	info.names++
	a.inodes[e.ino] = info
	return a.listing(dir, name, e)
}

// listing checks that a name is in its directory's listing.
func (a *auditor) listing(dir objstore.Ino, name string, e dirent) error {
	key := appendCookieKey(nil, dir, e.cookie)
	if a.fix != nil && a.fix.touched(key) {
		return nil
	}
	val, err := a.v.Get(key)
	if err != nil {
		return err
	}
	if val != nil {
		l, n, err := decodeCookieRecord(key, val)
		switch {
		case err == nil && string(n) == name && l == e:
			return nil
		case err == nil && string(n) != name:
			// The cookie is another name's; this one gets a new cookie when
			// all numbers in use are known.
			return a.problem(Problem{Kind: ProblemUnlisted, Ino: dir, Name: name, Detail: "its cookie is another's"}, func(*fixer) error {
				a.recookie = append(a.recookie, place{dir, name})
				return nil
			})
		}
	}
	return a.problem(Problem{Kind: ProblemUnlisted, Ino: dir, Name: name}, func(f *fixer) error {
		f.set(key, appendCookieRecord(nil, e, name))
		return nil
	})
}

// readListing checks that every listing entry has its name. One without is
// given it if its inode has fewer names than links, else it goes.
func (a *auditor) readListing() error {
	err := a.eachOf(kCookie, func(dir objstore.Ino, key, val []byte) error {
		if a.fix != nil && a.fix.touched(key) {
			return nil
		}
		l, n, err := decodeCookieRecord(key, val)
		if err != nil {
			return a.problem(Problem{Kind: ProblemCorrupt, Ino: dir, Detail: err.Error()}, drop(key))
		}
		a.number(l.cookie)
		name := string(n)
		nameKey := appendNameKey(nil, kDirent, dir, name)
		nameVal, err := a.v.Get(nameKey)
		if err != nil {
			return err
		}
		if nameVal != nil {
			e, err := decodeDirent(nameKey, nameVal)
			if err != nil || e.cookie == l.cookie {
				return nil // what differs was reported with the name
			}
			return a.problem(Problem{Kind: ProblemUnnamed, Ino: dir, Name: name, Detail: "listed twice"}, drop(key))
		}
		return a.problem(Problem{Kind: ProblemUnnamed, Ino: dir, Name: name}, func(f *fixer) error {
			info, ok := a.inodes[l.ino]
			d := a.dirs[dir]
			if f.touched(nameKey) || d == nil || !ok || info.names >= info.nlink || l.isDir() && info.names > 0 ||
				uint32(info.typ)<<12 != l.typ || objstore.CheckName(name) != nil {
				f.set(key, nil)
				return nil
			}
			f.set(nameKey, appendDirent(nil, l))
			info.names++
			a.inodes[l.ino] = info
			d.entries = true
			if l.isDir() {
				d.subdirs++
				a.dirs[l.ino].in = dir
			}
			return nil
		})
	})
	if err != nil || a.fix == nil {
		return err
	}
	a.fix.startNumbers(a.highest)
	for _, p := range a.recookie {
		if err := a.fix.recookie(p); err != nil {
			return err
		}
	}
	a.number(a.fix.vol.next - 1)
	return nil
}

// links compares link counts, parents and orphan notes with the names found.
func (a *auditor) links() error {
	root := objstore.VolumeRoot(a.vol)
	if _, ok := a.inodes[root]; !ok && a.count > 0 {
		err := a.problem(Problem{Kind: ProblemRoot, Ino: root}, func(f *fixer) error {
			f.putInode(&inode{Attr: objstore.Attr{Ino: root, Mode: objstore.ModeDir | 0o700, Nlink: 2, Parent: objstore.VolumeRoot(objstore.RootVolume)}})
			a.count++
			a.inodes[root] = inodeInfo{nlink: 2, typ: uint8(objstore.ModeDir >> 12)}
			a.dirs[root] = &dirInfo{parent: objstore.VolumeRoot(objstore.RootVolume)}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, ino := range sorted(a.inodes) {
		if info := a.inodes[ino]; info.typ != 0 && ino != root {
			if err := a.linksOf(ino, info); err != nil {
				return err
			}
		}
	}
	// Last, for what was lost is named there.
	if info, ok := a.inodes[root]; ok && info.typ != 0 {
		return a.linksOf(root, info)
	}
	return nil
}

func (a *auditor) linksOf(ino objstore.Ino, info inodeInfo) error {
	d := a.dirs[ino]
	isRoot := ino.IsVolumeRoot()
	_, noted := a.orphans[ino]
	lost := info.names == 0 && !isRoot && (info.nlink > 0 || d != nil && d.entries)
	want := info.names
	if lost {
		want = 1
		if err := a.lost(ino, info); err != nil {
			return err
		}
	}
	if d != nil && (want > 0 || isRoot) {
		want = 2 + d.subdirs
	}
	if info.nlink != want && !lost {
		err := a.problem(Problem{Kind: ProblemNlink, Ino: ino, Detail: fmt.Sprintf("%d instead of %d", info.nlink, want)},
			func(f *fixer) error { return f.inode(ino, func(in *inode) { in.Nlink = want }) })
		if err != nil {
			return err
		}
	} else if lost && a.fix != nil {
		if err := a.fix.inode(ino, func(in *inode) { in.Nlink = want }); err != nil {
			return err
		}
	}
	if d != nil && info.names > 0 && d.parent != d.in || isRoot && a.vol == objstore.RootVolume && d != nil && d.parent != ino {
		up := d.in
		if isRoot {
			up = ino
		}
		err := a.problem(Problem{Kind: ProblemParent, Ino: ino, Detail: fmt.Sprintf("%v instead of %v", d.parent, up)},
			func(f *fixer) error { return f.inode(ino, func(in *inode) { in.Parent = up }) })
		if err != nil {
			return err
		}
	}
	if noted == (want == 0) {
		return nil
	}
	return a.problem(Problem{Kind: ProblemOrphan, Ino: ino, Detail: fmt.Sprintf("noted: %v, links: %d", noted, want)}, func(f *fixer) error {
		if noted {
			f.set(appendInoKey(nil, kOrphan, ino), nil)
		} else {
			f.set(appendInoKey(nil, kOrphan, ino), marker[:])
		}
		return nil
	})
}

// lost names an inode that has lost its name in the volume's root: mail is
// never thrown away by a repair.
func (a *auditor) lost(ino objstore.Ino, info inodeInfo) error {
	root := objstore.VolumeRoot(a.vol)
	return a.problem(Problem{Kind: ProblemUnreachable, Ino: ino, Detail: fmt.Sprintf("%d links", info.nlink)}, func(f *fixer) error {
		d := a.dirs[ino]
		if err := f.nameLost(root, ino, uint32(info.typ)<<12); err != nil {
			return err
		}
		a.number(f.vol.next - 1)
		r := a.dirs[root]
		if r == nil {
			return nil
		}
		r.entries = true
		if d == nil {
			return nil
		}
		d.in = root
		r.subdirs++
		return f.inode(ino, func(in *inode) { in.Parent = root })
	})
}

const (
	walkOpen = 1 // on the way up that is being walked
	walkDone = 2
)

// loops finds directories whose way up comes back to them.
func (a *auditor) loops() error {
	var path []*dirInfo
	for _, ino := range sorted(a.dirs) {
		path = path[:0]
		at := ino
		for d := a.dirs[at]; d != nil && d.walk == 0 && d.in != 0; d = a.dirs[at] {
			d.walk = walkOpen
			path = append(path, d)
			at = d.in
		}
		looped := a.dirs[at] != nil && a.dirs[at].walk == walkOpen
		for _, d := range path {
			d.walk = walkDone
		}
		if looped {
			in := a.dirs[at].in
			err := a.problem(Problem{Kind: ProblemLoop, Ino: at, Detail: "below itself, in " + in.String()},
				func(f *fixer) error { return f.dropNamesOf(in, at) })
			if err != nil {
				return err
			}
		}
	}
	return nil
}
