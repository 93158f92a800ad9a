package cachefs

import "pillarbox/objstore"

// The kernel keeps pages of files, and drops them when told to. Until it has,
// nobody is granted a lock of the file or told that its pages are still good.

// dropPages has the kernel drop the pages of files, in the background: a request
// that is being served may keep it busy with one.
func (fs *FS) dropPages(inos ...objstore.Ino) {
	s := &fs.shared
	if s.kernel == nil || len(inos) == 0 {
		return
	}
	done := make(chan struct{})
	var before []chan struct{}
	s.mu.Lock()
	if s.dropping == nil {
		s.dropping = map[objstore.Ino]chan struct{}{}
	}
	for _, ino := range inos {
		if b := s.dropping[ino]; b != nil {
			before = append(before, b)
		}
		s.dropping[ino] = done
	}
	s.mu.Unlock()
	fs.wg.Go(func() {
		for _, ino := range inos {
			s.kernel.Drop(ino)
		}
		for _, b := range before {
			<-b
		}
		close(done)
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, ino := range inos {
			if s.dropping[ino] == done {
				delete(s.dropping, ino)
			}
		}
	})
}

// dropped says that the kernel has no page of a file that is void.
func (s *shared) dropped(ino objstore.Ino) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropping[ino] == nil
}

func (s *shared) awaitDrop(ino objstore.Ino) {
	s.mu.Lock()
	done := s.dropping[ino]
	s.mu.Unlock()
	if done != nil {
		<-done
	}
}
