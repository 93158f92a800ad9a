package ship

import (
	"bytes"
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// publish makes m the manifest.
func (s *Shipper) publish(ctx context.Context, m *Manifest) error {
	if err := s.own(ctx); err != nil {
		return err
	}
	m.Format = manifestFormat
	ctx, cancel := context.WithTimeout(ctx, objectTime)
	defer cancel()
	if err := s.sealer.putManifest(ctx, s.opt.Store, s.opt.State.Epoch, m); err != nil {
		return err
	}
	s.man = m
	s.mu.Lock()
	s.whole = true
	s.mu.Unlock()
	if err := s.collect(ctx); err != nil {
		s.log.Debug("remove what is not needed any more", "err", err) // refresh tries again
	}
	return nil
}

// collect removes what the manifest says is not needed any more.
func (s *Shipper) collect(ctx context.Context) error {
	if len(s.man.Garbage) == 0 {
		return nil
	}
	var g errgroup.Group
	g.SetLimit(partsAtOnce)
	for _, span := range s.man.Garbage {
		g.Go(func() error {
			if err := s.opt.Store.Delete(ctx, span.names()); err != nil {
				return fmt.Errorf("remove what is not needed any more: %w", err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.man.Garbage = nil // the next manifest says so
	return nil
}

// refresh writes the manifest anew where the store has become another.
func (s *Shipper) refresh(ctx context.Context) error {
	if s.man == nil {
		return nil
	}
	if len(s.man.Garbage) > 0 {
		if err := s.collect(ctx); err != nil {
			return err
		}
	}
	about, err := s.opt.About(ctx)
	if err != nil || bytes.Equal(about, s.man.About) {
		return err
	}
	m := *s.man
	m.About = about
	return s.publish(ctx, &m)
}
