package ship

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/seal"
	"pillarbox/objstore/volume"
)

// connect makes sure that the pool is this store's, and goes on where the last run
// of the program, or a rebuild, stopped.
func (s *Shipper) connect(ctx context.Context) error {
	if err := s.claim(ctx); err != nil {
		return err
	}
	if err := s.own(ctx); err != nil {
		return err
	}
	man, err := s.sealer.getManifest(ctx, s.opt.Store, s.opt.State.Epoch)
	if errors.Is(err, objstore.NotFound) {
		return nil // everything is to be shipped
	}
	if err != nil {
		return err
	}
	s.man = man
	if s.opt.State.Runs < man.Open.Number { // that is on the disk before it is outside
		return s.behind()
	}
	return s.resume(ctx)
}

// claim finds the owner mark, or makes that of a pool nobody has used.
func (s *Shipper) claim(ctx context.Context) error {
	st := s.opt.State
	keys, err := s.opt.Keys()
	if err != nil {
		return err
	}
	b, err := getMark(ctx, s.opt.Store, st.Epoch)
	switch {
	case err == nil:
	case !errors.Is(err, objstore.NotFound):
		return err
	case st.Claimed:
		return fmt.Errorf("object %s, the mark of who owns what was shipped, is gone: %w", ownerName(st.Epoch), objstore.Corrupt)
	default:
		key := make([]byte, 32)
		rand.Read(key)
		if b, err = s.makeMark(ctx, keys, key); err != nil {
			return err
		}
	}
	sl, m, err := parseMark(b, st.Epoch, keys)
	if err != nil {
		return err
	}
	if m.ID != st.ID && !st.Claimed {
		return fmt.Errorf("the pool has what store %s shipped from host %s since %s: rebuild from that, or give this store another prefix: %w",
			m.FSID, m.Host, m.Created.Format(time.RFC3339), objstore.Exist)
	}
	if m.ID != st.ID {
		return ErrFenced
	}
	s.sealer, s.mark = sl, *m
	if !st.Claimed {
		st.Claimed = true
		return st.Save()
	}
	return nil
}

// makeMark makes the mark of a pool's first epoch, and reads it back: somebody else
// may do the same.
func (s *Shipper) makeMark(ctx context.Context, keys *seal.MasterKeys, key []byte) ([]byte, error) {
	host, _ := os.Hostname() // only to tell people
	m := Mark{ID: s.opt.State.ID, Epoch: s.opt.State.Epoch, FSID: s.opt.FSID, Host: host, Created: time.Now().UTC().Truncate(time.Second)}
	if err := putMark(ctx, s.opt.Store, &sealer{key: key}, keys, m); err != nil {
		return nil, err
	}
	s.newest = keys.Newest().ID
	return getMark(ctx, s.opt.Store, m.Epoch)
}

// rewrap writes the owner mark anew when the key file has a newer master key.
func (s *Shipper) rewrap(ctx context.Context) error {
	keys, err := s.opt.Keys()
	if err != nil {
		s.log.Debug("the key file cannot be read", "err", err)
		return nil // the key that shipping needs is in memory
	}
	if keys.Newest().ID == s.newest {
		return nil
	}
	if err := s.own(ctx); err != nil {
		return err
	}
	if err := putMark(ctx, s.opt.Store, s.sealer, keys, s.mark); err != nil {
		return err
	}
	s.newest = keys.Newest().ID
	return nil
}

// resume finds the end of the run that the manifest names, and begins another.
func (s *Shipper) resume(ctx context.Context) error {
	at := s.opt.State.Pos
	open := s.man.Open
	if at.Run != open.Number || at.Seq < open.First {
		at = Position{Run: open.Number, Seq: open.First, To: open.From, Before: open.Before}
	}
	for {
		name := runName(open.Epoch, open.Number, at.Seq)
		b, salt, err := s.sealer.get(ctx, s.opt.Store, name)
		if errors.Is(err, objstore.NotFound) {
			break
		}
		var r *record
		if err == nil {
			r, err = parseRecord(b)
		}
		if err == nil {
			err = s.same(r, name, at)
		}
		if err != nil {
			return err
		}
		at.Seq, at.To, at.Before = at.Seq+1, r.to, salt[:]
	}
	if s.src.LoggedTo() < at.To {
		return s.behind()
	}
	s.grown, open.Last = at.Grown, at.Seq-1
	if _, _, err := s.src.ReadLog(at.To, at.To, 0); errors.Is(err, objstore.NotFound) {
		s.log.Warn("the log does not reach back to what was shipped last: everything is shipped anew", "err", err)
		s.man.Open = open
		return nil
	} else if err != nil {
		return err
	}
	next := *s.man
	if open.Last >= open.First {
		next.Closed = append(append([]Run(nil), next.Closed...), open)
	}
	if err := s.begin(at.To); err != nil {
		return err
	}
	next.Open = s.run
	about, err := s.opt.About(ctx)
	if err != nil {
		return err
	}
	next.About = about
	return s.publish(ctx, &next)
}

// same makes sure that an object that came after the position this host knows of
// has what its log has: else the directory is a copy from before.
func (s *Shipper) same(r *record, name string, at Position) error {
	if !bytes.Equal(r.before[:], at.Before) {
		return fmt.Errorf("object %s does not follow the one before it: %w", name, objstore.Corrupt)
	}
	if r.from < at.To || s.src.LoggedTo() < r.to {
		return s.behind()
	}
	var deltas []volume.Delta
	for from := at.To; from < r.to; {
		some, next, err := s.src.ReadLog(from, r.to, PartSize)
		if errors.Is(err, objstore.NotFound) {
			return nil // it was given up; everything will be shipped anew
		}
		if err != nil {
			return err
		}
		if deltas = append(deltas, some...); next == from {
			break
		}
		from = next
	}
	if !bytes.Equal(merge(deltas).AppendTo(nil), r.delta.AppendTo(nil)) {
		return s.behind()
	}
	return nil
}

func (s *Shipper) behind() error {
	return fmt.Errorf("what is outside is newer than, or another than, what this data directory holds: is it a copy from before? Nothing is shipped from it: %w", objstore.Exist)
}
