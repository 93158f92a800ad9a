package osd

import (
	"context"
	"encoding/binary"
	"fmt"

	"pillarbox/objstore"
	"pillarbox/objstore/volume"
)

// read runs a question to a group's state for a client: what it answers is
// committed, and no other leader knew better when it was asked (the ReadIndex of
// Ongaro's thesis, 2014, section 6.4).
func read[T any](ctx context.Context, o *OSD, pg uint32, vol objstore.VolumeID, ask func(volume.View) (T, error)) (answer T, err error) {
	g, err := o.group(pg)
	if err != nil {
		return answer, err
	}
	if err := g.confirm(ctx); err != nil {
		return answer, err
	}
	if err := o.hold(ctx, g, vol); err != nil {
		return answer, err
	}
	g.mu.RLock()
	err = g.canLead()
	if err == nil {
		answer, err = ask(&g.st)
	}
	// The only member's changes are final before they are committed.
	index, final := g.executed, g.executed <= g.committed || g.soleVoter()
	g.mu.RUnlock()
	if err != nil || final {
		return answer, err
	}
	return answer, g.wait(ctx, index)
}

// view is read for the OSD itself, as View has it.
func view[T any](o *OSD, pg uint32, ask func(volume.View) (T, error)) (answer T, err error) {
	err = o.View(pg, func(v volume.View) (err error) {
		answer, err = ask(v)
		return err
	})
	return answer, err
}

// settle waits until what the leader has executed is final: committed, or made
// by an only member.
func (g *group) settle(ctx context.Context) error {
	g.mu.RLock()
	err, index, final := g.canLead(), g.executed, g.executed <= g.committed || g.soleVoter()
	g.mu.RUnlock()
	if err != nil || final {
		return err
	}
	return g.wait(ctx, index)
}

// readQueue are reads that wait until a majority confirms that this member
// leads: those that come while one question is under way share the next.
type readQueue struct {
	asking  bool
	asked   uint64
	waiting []chan error // for the question under way
	next    []chan error // came later
}

// confirm returns when this member was the leader at a moment after the call.
func (g *group) confirm(ctx context.Context) error {
	g.mu.RLock()
	err := g.canLead()
	sole := g.soleVoter()
	g.mu.RUnlock()
	if err != nil || sole {
		return err
	}
	g.mu.Lock()
	if err := g.canLead(); err != nil {
		g.mu.Unlock()
		return err
	}
	done := make(chan error, 1)
	g.reads.next = append(g.reads.next, done)
	g.askRead()
	err = g.process()
	g.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("confirm the lead: %w: %w", objstore.Unavailable, context.Cause(ctx))
	}
}

// askRead asks raft for those who wait, unless a question is under way.
func (g *group) askRead() {
	q := &g.reads
	if q.asking || len(q.next) == 0 {
		return
	}
	q.asking, q.waiting, q.next = true, q.next, nil
	q.asked++
	g.rn.ReadIndex(binary.BigEndian.AppendUint64(nil, q.asked))
}

// confirmed answers the question under way.
func (q *readQueue) confirmed(request []byte) {
	if !q.asking || len(request) != 8 || binary.BigEndian.Uint64(request) != q.asked {
		return
	}
	for _, done := range q.waiting {
		done <- nil
	}
	q.asking, q.waiting = false, nil
}

func (q *readQueue) fail(err error) {
	for _, done := range append(q.waiting, q.next...) {
		done <- err
	}
	q.asking, q.waiting, q.next = false, nil, nil
}

// Lookup finds a name in a directory; the entry has its Attr if it is of the same volume.
func (o *OSD) Lookup(ctx context.Context, pg uint32, dir objstore.Ino, name string) (objstore.DirEntry, error) {
	return read(ctx, o, pg, dir.Volume(), func(v volume.View) (objstore.DirEntry, error) { return volume.Lookup(v, dir, name) })
}

// GetAttr is as in objstore.Store.
func (o *OSD) GetAttr(ctx context.Context, pg uint32, ino objstore.Ino) (objstore.Attr, error) {
	return read(ctx, o, pg, ino.Volume(), func(v volume.View) (objstore.Attr, error) { return volume.GetAttr(v, ino) })
}

// ReadDir is as in objstore.Store.
func (o *OSD) ReadDir(ctx context.Context, pg uint32, dir objstore.Ino, after uint64, max int, attrs bool) ([]objstore.DirEntry, error) {
	return read(ctx, o, pg, dir.Volume(), func(v volume.View) ([]objstore.DirEntry, error) { return volume.ReadDir(v, dir, after, max, attrs) })
}

// Readlink is as in objstore.Store.
func (o *OSD) Readlink(ctx context.Context, pg uint32, ino objstore.Ino) (string, error) {
	return read(ctx, o, pg, ino.Volume(), func(v volume.View) (string, error) { return volume.Readlink(v, ino) })
}

// GetXattr is as in objstore.Store.
func (o *OSD) GetXattr(ctx context.Context, pg uint32, ino objstore.Ino, name string) ([]byte, error) {
	return read(ctx, o, pg, ino.Volume(), func(v volume.View) ([]byte, error) { return volume.GetXattr(v, ino, name) })
}

// ListXattr is as in objstore.Store.
func (o *OSD) ListXattr(ctx context.Context, pg uint32, ino objstore.Ino) ([]string, error) {
	return read(ctx, o, pg, ino.Volume(), func(v volume.View) ([]string, error) { return volume.ListXattr(v, ino) })
}

// Extents is as in objstore.Store.
func (o *OSD) Extents(ctx context.Context, pg uint32, ino objstore.Ino, off, n uint64) ([]objstore.Extent, error) {
	return read(ctx, o, pg, ino.Volume(), func(v volume.View) ([]objstore.Extent, error) { return volume.Extents(v, ino, off, n) })
}

// Pending lists volumes whose making or removal was begun; asked of the root volume's group.
func (o *OSD) Pending(ctx context.Context, pg uint32) ([]objstore.VolumeID, error) {
	return read(ctx, o, pg, objstore.RootVolume, volume.Pending)
}

// Orphans lists up to max inodes of a volume that have no name and are not purged yet.
func (o *OSD) Orphans(ctx context.Context, pg uint32, vol objstore.VolumeID, max int) ([]objstore.Ino, error) {
	return read(ctx, o, pg, vol, func(v volume.View) ([]objstore.Ino, error) { return volume.Orphans(v, vol, max) })
}
