package volume

import "pillarbox/objstore"

// purgeBudget is about how many chunks and records one Purge or DropVolume takes away.
const purgeBudget = 1000

func (t *tx) purge(c objstore.Purge) (res objstore.Result, err error) {
	left := purgeBudget
	for _, ino := range c.Inos {
		if ino.Volume() != c.Vol {
			return res, objstore.Invalid
		}
		in, err := t.inode(ino)
		if err != nil {
			return res, err
		}
		if in == nil || in.gone || in.Nlink > 0 {
			continue
		}
		if left <= 0 {
			res.Orphan = ino
			return res, nil
		}
		done, err := t.purgeInode(in, &left)
		if err != nil {
			return res, err
		}
		if !done {
			res.Orphan = ino
			return res, nil
		}
	}
	return res, nil
}

// purgeInode takes away what belongs to an inode, and last the inode, as far
// as left reaches; it says whether it came to the end.
func (t *tx) purgeInode(in *inode, left *int) (bool, error) {
	more := false
	if in.HasXattr {
		err := t.v.Scan(appendInoKey(t.scratch[:0], kXattr, in.Ino), nil, func(key, _ []byte) bool {
			if more = *left <= 0; more {
				return false
			}
			t.delCopy(key)
			*left--
			return true
		})
		if err != nil || more {
			return false, err
		}
		in.HasXattr, in.dirty = false, true
	}
	if in.Mode&objstore.ModeType == objstore.ModeRegular {
		// Not by size: regions behind it would be an error, but must not stay.
		err := t.eachRegion(in.Ino, nil, func(region uint32, key []byte, ext []objstore.Extent) bool {
			if more = *left <= 0; more {
				return false
			}
			*left -= 1 + t.account(in, region, ext, nil)
			t.delCopy(key)
			return true
		})
		if err != nil || more {
			return false, err
		}
	}
	ext, err := in.extents()
	if err != nil {
		return false, err
	}
	*left -= 1 + t.account(in, 0, ext, nil)
	t.del(t.inoKey(kOrphan, in.Ino))
	in.gone = true
	t.vol.inodes--
	t.volDirty = true
	return true, nil
}
