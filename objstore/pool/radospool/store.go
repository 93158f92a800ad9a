//go:build rados

package radospool

// #include <rados/librados.h>
import "C"

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

const (
	listBatch = 250 // names that librados is asked for at a time
	listPage  = 500 // objects in an answer to List, about
	atOnce    = 16  // requests of one call
)

// Store is a namespace of a pool of Ceph, or what is below a prefix in it.
type Store struct {
	settings map[string]string
	prefix   string

	mu sync.Mutex // held while it is connected
	io C.rados_ioctx_t
}

var _ pool.Store = (*Store)(nil)

// Open makes a Store of settings, which are those of Type. It connects when it is
// first needed, and stays so as long as the process lives.
func Open(settings map[string]string) (*Store, error) {
	return &Store{settings: settings, prefix: pool.Below(settings["prefix"])}, nil
}

// do makes a call of librados, which knows no contexts: one whose caller has gone
// ends by itself, and must use nothing of his.
func (s *Store) do(ctx context.Context, call func(C.rados_ioctx_t) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", objstore.Unavailable, err)
	}
	done := make(chan error, 1)
	go func() {
		io, err := s.connected()
		if err == nil {
			err = call(io)
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", objstore.Unavailable, ctx.Err())
	}
}

func (s *Store) connected() (C.rados_ioctx_t, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.io == nil {
		io, err := connect(s.settings)
		if err != nil {
			return nil, err
		}
		s.io = io
	}
	return s.io, nil
}

// Put implements pool.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	own := bytes.Clone(data)
	err := s.do(ctx, func(io C.rados_ioctx_t) error { return write(io, s.prefix+name, own) })
	if errors.Is(err, objstore.NotFound) {
		return fmt.Errorf("%w: Ceph's pool was removed: %v", objstore.Unavailable, err)
	}
	return err
}

// Get implements pool.Store.
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	own := make([]byte, len(p))
	err := s.do(ctx, func(io C.rados_ioctx_t) error {
		n, err := read(io, s.prefix+name, off, own)
		if err == nil && n < len(own) {
			err = fmt.Errorf("get %s: %d bytes at %d where %d were asked for: %w", name, n, off, len(own), objstore.Corrupt)
		}
		return err
	})
	if err != nil {
		return err
	}
	copy(p, own)
	return nil
}

// Delete implements pool.Store.
func (s *Store) Delete(ctx context.Context, names []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, name := range names {
		g.Go(func() error {
			err := s.do(ctx, func(io C.rados_ioctx_t) error { return remove(io, s.prefix+name) })
			if errors.Is(err, objstore.NotFound) {
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// List implements pool.Store. Ceph lists by the hashes of names: a page is a part of
// all hashes, and says which of how many is next.
func (s *Store) List(ctx context.Context, from string) ([]pool.Object, string, error) {
	part, parts := 0, 0
	if _, err := fmt.Sscanf(from, "%d/%d", &part, &parts); from != "" && (err != nil || part < 0 || part >= parts) {
		return nil, "", fmt.Errorf("list from %q: %w", from, objstore.Invalid)
	}
	names := make(chan []string, 1)
	err := s.do(ctx, func(io C.rados_ioctx_t) error {
		if from == "" {
			n, err := objects(io)
			if err != nil {
				return err
			}
			parts = n/listPage + 1
		}
		list, err := slice(io, part, parts)
		names <- list
		return err
	})
	if err != nil {
		return nil, "", err
	}
	list, err := s.look(ctx, <-names)
	next := ""
	if part+1 < parts {
		next = fmt.Sprintf("%d/%d", part+1, parts)
	}
	return list, next, err
}

// look asks for size and time of objects, which Ceph does not list.
func (s *Store) look(ctx context.Context, names []string) ([]pool.Object, error) {
	var mu sync.Mutex
	var list []pool.Object
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, full := range names {
		name, ours := strings.CutPrefix(full, s.prefix)
		if !ours {
			continue
		}
		g.Go(func() error {
			err := s.do(ctx, func(io C.rados_ioctx_t) error {
				size, at, err := stat(io, full)
				if err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				list = append(list, pool.Object{Name: name, Size: size, Modified: at})
				return nil
			})
			if errors.Is(err, objstore.NotFound) { // it was removed since
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return list, nil
}
