package ship

import (
	"bytes"
	"context"
	"fmt"

	"pillarbox/objstore/volume"
)

// running says whether there is a run that objects belong to.
func (s *Shipper) running() bool { return s.run.First > 0 }

// ship writes objects until all that is durable in the log now is outside.
func (s *Shipper) ship(ctx context.Context) error {
	for upTo := s.src.LoggedTo(); s.pos < upTo; {
		if s.pending == nil {
			if err := s.next(upTo); err != nil || s.pending == nil {
				return err
			}
		}
		p := s.pending
		if p.obj != nil {
			put, cancel := context.WithTimeout(ctx, objectTime)
			err := s.opt.Store.Put(put, p.name, p.obj)
			cancel()
			if err != nil {
				return fmt.Errorf("write object %s: %w", p.name, err)
			}
			s.ends = append(s.ends, end{s.seq, p.rec.from, p.rec.to, s.before})
			s.before = p.salt
			s.seq++
			s.grown += int64(len(p.obj))
		}
		s.pending = nil
		s.shipped(p.rec.to, len(p.obj))
	}
	return nil
}

// next reads the log and makes the next object; none if nothing was logged.
func (s *Shipper) next(upTo uint64) error {
	deltas, to, err := s.src.ReadLog(s.pos, upTo, PartSize)
	if err != nil || to == s.pos {
		return err
	}
	p := &pending{rec: &record{before: s.before, from: s.pos, to: to}}
	if p.rec.delta = merge(deltas); len(p.rec.delta) > 0 {
		p.name = runName(s.opt.State.Epoch, s.run.Number, s.seq)
		if p.obj, p.salt, err = s.sealer.seal(p.name, p.rec.encode()); err != nil {
			return err
		}
	}
	p.rec.delta = nil
	s.pending = p
	return nil
}

// merge is what deltas do together.
func merge(deltas []volume.Delta) volume.Delta {
	at := map[string]int{}
	var out volume.Delta
	for _, d := range deltas {
		for _, w := range d {
			if i, ok := at[string(w.Key)]; ok {
				out[i].Value = w.Value
				continue
			}
			at[string(w.Key)] = len(out)
			out = append(out, w)
		}
	}
	return out
}

// shipped notes how far the log is outside.
func (s *Shipper) shipped(to uint64, size int) {
	s.mu.Lock()
	s.pos = to
	if size > 0 {
		s.stats.Objects++
		s.stats.Bytes += int64(size)
	}
	s.mu.Unlock()
	s.src.KeepLog(to)
	if size > 0 {
		s.opt.State.Pos = Position{Run: s.run.Number, Seq: s.seq, To: to, Before: bytes.Clone(s.before[:]), Grown: s.grown}
		if err := s.opt.State.savePosition(); err != nil {
			s.log.Warn("note how far the store is shipped", "err", err)
		}
	}
}

// lose gives the run up: there is a gap behind it.
func (s *Shipper) lose() {
	s.stopPicture()
	if s.man != nil && s.man.Open.Number == s.run.Number {
		s.man.Open.Last = s.seq - 1
	}
	s.run, s.pending, s.ends = Run{}, nil, nil
	s.mu.Lock()
	s.whole = false
	s.mu.Unlock()
}

// begin starts a run that goes on from a position.
func (s *Shipper) begin(from uint64) error {
	s.opt.State.Runs++
	if err := s.opt.State.Save(); err != nil {
		return err
	}
	s.run = Run{Epoch: s.opt.State.Epoch, Number: s.opt.State.Runs, First: 1, Before: make([]byte, saltSize), From: from}
	s.seq, s.before, s.pending, s.ends = 1, Salt{}, nil, nil
	s.mu.Lock()
	s.pos, s.sure = from, 0
	s.mu.Unlock()
	return nil
}
