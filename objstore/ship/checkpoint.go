package ship

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"pillarbox/objstore/volume"
)

const (
	maxClosed    = 64 // runs that are closed, one for each start, from which on a checkpoint is due
	pictureRetry = 60 // after a checkpoint that failed, in times of Options.Every
)

// picture is a checkpoint under way.
type picture struct {
	fresh  bool // no run leads to it: one begins with it
	number uint32
	first  uint64 // position where the present run began
	cancel context.CancelFunc

	started chan struct{} // from is known
	from    uint64
	begun   bool // the loop began a run there

	done  chan struct{}
	err   error
	parts []Ref
	bytes int64
	upTo  uint64 // it counts with the log up to here
}

// errEarly says that the picture would need runs before the present one.
var errEarly = errors.New("nothing has changed since")

// due says whether a checkpoint should be made.
func (s *Shipper) due() bool {
	if time.Now().Before(s.rest) {
		return false
	}
	return s.man == nil || !s.running() || len(s.man.Closed) > maxClosed || s.grown > max(s.opt.Grow, s.man.Checkpoint.Bytes)
}

func (s *Shipper) startPicture(ctx context.Context) {
	s.opt.State.Checkpoints++
	if err := s.opt.State.Save(); err != nil {
		s.rest = time.Now().Add(pictureRetry * s.opt.Every)
		s.log.Error("no checkpoint", "err", err)
		return
	}
	p := &picture{
		fresh: !s.running(), number: s.opt.State.Checkpoints, first: s.run.From, started: make(chan struct{}), done: make(chan struct{}),
	}
	ctx, p.cancel = context.WithCancel(ctx)
	s.picture = p
	s.wg.Go(func() {
		defer close(p.done)
		p.err = s.take(ctx, p)
		p.upTo = s.src.LoggedTo()
	})
}

// take reads the whole state and writes it outside in parts.
func (s *Shipper) take(ctx context.Context, p *picture) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(partsAtOnce)
	refs := map[int]*Ref{}
	var part volume.Delta
	size := 0
	write := func() {
		d, i, ref := part, len(refs), &Ref{}
		refs[i], part, size = ref, nil, 0
		g.Go(func() error {
			name := partName(s.opt.State.Epoch, p.number, i)
			obj, salt, err := s.sealer.seal(name, d.AppendTo(nil))
			if err != nil {
				return err
			}
			put, cancel := context.WithTimeout(ctx, objectTime)
			defer cancel()
			if err := s.opt.Store.Put(put, name, obj); err != nil {
				return fmt.Errorf("write object %s: %w", name, err)
			}
			ref.Salt, ref.Size = salt[:], len(obj)
			return nil
		})
	}
	err := s.src.Picture(ctx, func(from uint64) error {
		if !p.fresh && from < p.first {
			return errEarly
		}
		if p.fresh {
			s.src.KeepLog(from)
		}
		p.from = from
		close(p.started)
		return nil
	}, func(w volume.Write) error {
		part = append(part, w)
		if size += len(w.Key) + len(w.Value); size >= PartSize {
			write()
		}
		return nil
	})
	if err == nil && len(part) > 0 {
		write()
	}
	if failed := g.Wait(); failed != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = failed
	}
	for i := range len(refs) {
		p.parts = append(p.parts, *refs[i])
		p.bytes += int64(refs[i].Size)
	}
	return err
}

// pictureDone wakes the loop when the checkpoint under way wants something. quiet:
// it is not to be woken now.
func (s *Shipper) pictureDone(quiet bool) <-chan struct{} {
	switch p := s.picture; {
	case p == nil || quiet:
		return nil
	case p.fresh && !p.begun:
		return p.started
	default:
		return p.done
	}
}

func (s *Shipper) stopPicture() {
	if s.picture != nil {
		s.picture.cancel()
		<-s.picture.done
		s.picture = nil
	}
}

// finishPicture publishes a checkpoint that is whole.
func (s *Shipper) finishPicture(ctx context.Context) error {
	p := s.picture
	if p == nil {
		return nil
	}
	select {
	case <-p.started:
		if p.fresh && !p.begun {
			if err := s.begin(p.from); err != nil {
				return err
			}
			p.begun = true
		}
	default:
	}
	select {
	case <-p.done:
	default:
		return nil
	}
	if p.err != nil {
		return s.dropPicture(ctx, p)
	}
	if s.pos < p.upTo {
		if err := s.ship(ctx); err != nil {
			return err
		}
	}
	m := &Manifest{Checkpoint: Checkpoint{Epoch: s.opt.State.Epoch, Number: p.number, Parts: p.parts, Bytes: p.bytes}, Open: s.run}
	kept := s.ends
	for i, e := range s.ends {
		if kept = s.ends[i:]; e.to > p.from {
			break
		}
		kept = nil
	}
	begin := end{seq: s.seq, from: s.pos, before: s.before}
	if len(kept) > 0 {
		begin = kept[0]
	}
	m.Open.First, m.Open.From, m.Open.Before = begin.seq, begin.from, bytes.Clone(begin.before[:])
	m.Garbage = s.garbage(m)
	var err error
	if m.About, err = s.opt.About(ctx); err != nil {
		return err
	}
	if err := s.publish(ctx, m); err != nil {
		return err
	}
	s.ends, s.grown, s.picture = kept, 0, nil
	s.mu.Lock()
	s.stats.Checkpoints++
	s.mu.Unlock()
	s.log.Info("a checkpoint is outside", "objects", len(p.parts), "bytes", p.bytes)
	return nil
}

// dropPicture ends a checkpoint that failed.
func (s *Shipper) dropPicture(ctx context.Context, p *picture) error {
	s.picture, s.rest = nil, time.Now().Add(pictureRetry*s.opt.Every)
	if p.fresh {
		s.run, s.ends = Run{}, nil // no manifest will name it
	}
	if errors.Is(p.err, errEarly) {
		return nil
	}
	left := Span{Epoch: s.opt.State.Epoch, Number: p.number, Last: uint64(max(len(p.parts), 1) - 1)}
	return errors.Join(fmt.Errorf("make a checkpoint: %w", p.err), s.opt.Store.Delete(ctx, left.names()))
}

// garbage is what is needed no longer once m is outside.
func (s *Shipper) garbage(m *Manifest) []Span {
	if s.man == nil {
		return nil
	}
	old := append([]Span(nil), s.man.Garbage...)
	if n := len(s.man.Checkpoint.Parts); n > 0 {
		old = append(old, Span{Epoch: s.man.Checkpoint.Epoch, Number: s.man.Checkpoint.Number, Last: uint64(n - 1)})
	}
	for _, r := range s.man.Closed {
		old = append(old, Span{Epoch: r.Epoch, Number: r.Number, Run: true, First: r.First, Last: r.Last})
	}
	open := s.man.Open
	if open.Number == m.Open.Number && open.Epoch == m.Open.Epoch {
		open.Last = m.Open.First - 1
	}
	if open.Last >= open.First {
		old = append(old, Span{Epoch: open.Epoch, Number: open.Number, Run: true, First: open.First, Last: open.Last})
	}
	return old
}
