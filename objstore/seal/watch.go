package seal

import "pillarbox/objstore"

// Watcher hears of what other clients change, as package client has it.
type Watcher interface {
	Told(p objstore.Push, ack func(objstore.Ack))
	Void(in func(objstore.VolumeID) bool, fenced bool)
	Known(in func(objstore.VolumeID) bool) []objstore.VolumeID
}

// Watcher drops the keys of volumes whose attributes others changed, before next
// hears of it.
func (s *Store) Watcher(next Watcher) Watcher { return watcher{s, next} }

type watcher struct {
	s    *Store
	next Watcher
}

func (w watcher) Told(p objstore.Push, ack func(objstore.Ack)) {
	for _, e := range p.Events {
		if e.Kind == objstore.Touched && e.Ino.IsVolumeRoot() {
			w.s.forgetOne(e.Ino.Volume())
		}
	}
	w.next.Told(p, ack)
}

func (w watcher) Void(in func(objstore.VolumeID) bool, fenced bool) {
	w.s.forget(in)
	w.next.Void(in, fenced)
}

// Known lists what is known here, too, so that its changes go on being told.
func (w watcher) Known(in func(objstore.VolumeID) bool) []objstore.VolumeID {
	list := w.next.Known(in)
	seen := make(map[objstore.VolumeID]bool, len(list))
	for _, v := range list {
		seen[v] = true
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for v := range w.s.vols {
		if in(v) && !seen[v] {
			list = append(list, v)
		}
	}
	return list
}
