package osd

import (
	"context"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
	"pillarbox/osd/chunkstore"
)

// CheckOptions say how Check looks.
type CheckOptions struct {
	Deep   bool                  // read every chunk and verify its checksums
	Repair bool                  // mend what can be mended
	Step   func(done, total int) // progress, in volumes; may be nil
}

// CheckReport is what Check found.
type CheckReport struct {
	Volumes, Inodes, Chunks int
	Bytes                   uint64
	// Leftovers are chunks that nothing names in a store whose last run did not
	// close: stored, or freed, right before. The next start removes them.
	Leftovers int
	Outside   int // of the chunks: those in outside pools, which 'verify' looks at
	Problems  []CheckProblem
}

// CheckProblem is one thing that is wrong. Repaired says that it is no longer.
type CheckProblem struct {
	Volume   objstore.VolumeID
	Kind     string
	Ino      objstore.Ino
	Name     string `json:",omitempty"`
	Detail   string
	Repaired bool
}

func (p CheckProblem) String() string {
	s := fmt.Sprintf("volume %d: %s: inode %v", p.Volume, p.Kind, p.Ino)
	if p.Name != "" {
		s += fmt.Sprintf(" name %q", p.Name)
	}
	s += ": " + p.Detail
	if p.Repaired {
		s += " (repaired)"
	}
	return s
}

// Kinds of problems with chunks; package volume has those of names and inodes.
const (
	ChunkMissing = "missing chunk"
	ChunkDamaged = "damaged chunk"
	ChunkOrphan  = "orphan chunk"
	VolumeOrphan = "orphan volume"
)

// Check compares everything the OSD holds: names with inodes, counts, extents
// with chunks, chunks with their checksums. Nobody may be changing the store
// meanwhile.
func (o *OSD) Check(ctx context.Context, opt CheckOptions) (*CheckReport, error) {
	if !o.opt.ReadOnly {
		select {
		case <-o.settled:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c := &checker{o: o, opt: opt, rep: &CheckReport{}, wanted: make(map[objstore.ChunkID]struct{}), named: make(map[objstore.VolumeID]bool)}
	var todo []objstore.VolumeID
	for pg := range o.groups {
		vols, err := view(o, uint32(pg), volume.Volumes)
		if err != nil {
			return nil, err
		}
		todo = append(todo, vols...)
	}
	for i, vol := range todo {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := c.volume(ctx, vol); err != nil {
			return nil, fmt.Errorf("check volume %d: %w", vol, err)
		}
		if opt.Step != nil {
			opt.Step(i+1, len(todo))
		}
	}
	pending, err := view(o, o.opt.Map.Group(objstore.RootVolume), volume.Pending)
	if err != nil {
		return nil, err
	}
	for _, vol := range pending { // being made or removed: the next start settles it
		c.named[vol] = true
	}
	for _, vol := range todo {
		if vol != objstore.RootVolume && !c.named[vol] {
			c.problem(CheckProblem{Volume: vol, Kind: VolumeOrphan, Ino: objstore.VolumeRoot(vol), Detail: "no directory of the root volume leads to it"})
		}
	}
	if err := c.orphanChunks(); err != nil {
		return nil, err
	}
	return c.rep, nil
}

type checker struct {
	o      *OSD
	opt    CheckOptions
	rep    *CheckReport
	wanted map[objstore.ChunkID]struct{}
	named  map[objstore.VolumeID]bool
}

func (c *checker) problem(p CheckProblem) { c.rep.Problems = append(c.rep.Problems, p) }

func (c *checker) volume(ctx context.Context, vol objstore.VolumeID) error {
	c.rep.Volumes++
	pg := c.o.opt.Map.Group(vol)
	if c.opt.Repair {
		if err := c.repair(ctx, pg, vol); err != nil {
			return err
		}
	}
	return c.o.View(pg, func(v volume.View) error {
		err := volume.Check(v, vol, func(p volume.Problem) {
			c.problem(CheckProblem{Volume: vol, Kind: string(p.Kind), Ino: p.Ino, Name: p.Name, Detail: p.Detail})
		})
		if err != nil {
			return err
		}
		files, bytes, err := volume.Usage(v, vol)
		if err != nil {
			return err
		}
		c.rep.Inodes += int(files)
		c.rep.Bytes += bytes
		if vol == objstore.RootVolume {
			if err := c.names(v, objstore.VolumeRoot(vol)); err != nil {
				return err
			}
		}
		if err := c.freed(v, vol); err != nil {
			return err
		}
		var fault error
		err = volume.Chunks(v, vol, func(id objstore.ChunkID) bool {
			fault = c.chunk(v, vol, id)
			return fault == nil
		})
		return errors.Join(err, fault)
	})
}

// freed counts chunks that wait for their removal as wanted.
func (c *checker) freed(v volume.View, vol objstore.VolumeID) error {
	ids, err := volume.FreedChunks(v, vol, 1<<30)
	for _, id := range ids {
		c.wanted[id] = struct{}{}
	}
	return err
}

// names notes the volumes that directories of the root volume lead to.
func (c *checker) names(v volume.View, dir objstore.Ino) error {
	const page = 1000
	for after := uint64(0); ; {
		list, err := volume.ReadDir(v, dir, after, page, false)
		if err != nil {
			return err
		}
		for _, e := range list {
			after = e.Cookie
			if e.Ino.Volume() != objstore.RootVolume {
				c.named[e.Ino.Volume()] = true
			} else if e.Type == objstore.ModeDir {
				if err := c.names(v, e.Ino); err != nil {
					return err
				}
			}
		}
		if len(list) < page {
			return nil
		}
	}
}

// chunk makes sure that a chunk an extent names is there, and good.
func (c *checker) chunk(v volume.View, vol objstore.VolumeID, id objstore.ChunkID) error {
	if _, seen := c.wanted[id]; seen {
		return nil
	}
	c.wanted[id] = struct{}{}
	c.rep.Chunks++
	if c.o.opt.Map.OutsideOf(id) != nil {
		c.rep.Outside++
		return nil
	}
	st := v.(*state)
	var loc chunkstore.Loc
	var err error
	if id.Resident() {
		var body []byte
		if body, loc, err = st.locateBody(id); body != nil {
			return nil
		}
	} else {
		loc, err = c.o.table.locate(id)
	}
	switch {
	case errors.Is(err, objstore.NotFound), errors.Is(err, objstore.Stale):
		c.problem(CheckProblem{Volume: vol, Kind: ChunkMissing, Ino: id.Ino, Detail: "chunk " + id.String() + " is nowhere"})
		return nil
	case err != nil:
		return err
	case !c.opt.Deep:
		return nil
	}
	if err := c.o.chunks.Verify(loc, id); errors.Is(err, objstore.Corrupt) {
		c.problem(CheckProblem{Volume: vol, Kind: ChunkDamaged, Ino: id.Ino, Detail: err.Error()})
	} else if err != nil {
		return err
	}
	return nil
}

// orphanChunks finds chunks that no extent names.
func (c *checker) orphanChunks() error {
	var orphans []objstore.ChunkID
	look := func(id objstore.ChunkID) {
		if _, ok := c.wanted[id]; !ok {
			orphans = append(orphans, id)
		}
	}
	if err := c.o.pooledChunks(look); err != nil {
		return err
	}
	if err := c.residentChunks(look); err != nil {
		return err
	}
	if c.o.opt.ReadOnly && c.o.unclean {
		c.rep.Leftovers = len(orphans)
		return nil
	}
	for _, id := range orphans {
		p := CheckProblem{Volume: id.Ino.Volume(), Kind: ChunkOrphan, Ino: id.Ino, Detail: "no extent names chunk " + id.String()}
		if c.opt.Repair {
			if id.Resident() {
				if err := c.o.dropResident(id); err != nil {
					return err
				}
			} else if err := c.o.table.drop([]objstore.ChunkID{id}); err != nil {
				return err
			}
			p.Repaired = true
		}
		c.problem(p)
	}
	return nil
}

// residentChunks lists the resident chunks the database knows and no layer deletes.
func (c *checker) residentChunks(fn func(objstore.ChunkID)) error {
	it := c.o.base.txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyChunk}})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		id, ok := parseChunkKey(it.Item().Key())
		if !ok {
			return fmt.Errorf("chunk key %x: %w", it.Item().Key(), objstore.Corrupt)
		}
		if !id.Resident() {
			continue
		}
		g, err := c.o.group(c.o.opt.Map.Group(id.Ino.Volume()))
		if err != nil {
			return err
		}
		if _, _, err := g.locateBody(id); err == nil {
			fn(id)
		} else if !errors.Is(err, objstore.Stale) {
			return err
		}
	}
	return nil
}

// dropResident deletes a resident chunk that nothing names, through the log.
func (o *OSD) dropResident(id objstore.ChunkID) error {
	g, err := o.group(o.opt.Map.Group(id.Ino.Volume()))
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err = g.propose(volume.Delta{{Key: volume.BodyKey(id)}})
	return err
}

// repair mends a volume's names and counts, in bounded steps.
func (c *checker) repair(ctx context.Context, pg uint32, vol objstore.VolumeID) error {
	g, err := c.o.group(pg)
	if err != nil {
		return err
	}
	for {
		g.mu.Lock()
		delta, problems, err := volume.Repair(&g.st, vol)
		var index uint64
		if err == nil && len(delta) > 0 {
			index, err = g.propose(delta)
		}
		g.mu.Unlock()
		if err != nil {
			return err
		}
		for _, p := range problems {
			c.problem(CheckProblem{Volume: vol, Kind: string(p.Kind), Ino: p.Ino, Name: p.Name, Detail: p.Detail, Repaired: true})
		}
		if len(delta) == 0 {
			return nil
		}
		if err := g.wait(ctx, index); err != nil {
			return err
		}
		if err := c.o.flush(ctx); err != nil {
			return err
		}
	}
}
