package cachefs

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"pillarbox/objstore"
)

// Bounds of reading ahead.
const (
	aheadWidth  = 4                  // messages that are brought at a time
	aheadFiles  = 64                 // messages ahead of who reads, at most
	aheadQueue  = 4 * aheadFiles     // messages that wait to be brought
	aheadFile   = objstore.ChunkSize // bytes of a message: longer ones are left to who reads them
	aheadNear   = 8                  // places between two reads that show which way it goes
	aheadBusy   = 2 * aheadWidth     // bodies on their way to readers from which on nothing is read ahead
	aheadTrust  = 16                 // how often Ahead bytes may be brought because of listings before one byte of all is read
	aheadNames  = 1 << 15            // messages of a directory that are known by their place, the newest
	aheadPlaces = 1 << 17            // the same of all directories
	aheadDirs   = 256                // directories
	aheadTrack  = 1 << 13            // messages brought of which it is known whether they were read
)

// ahead brings messages near before they are asked for. A listing brings the newest,
// which IMAP clients want first; a read brings those that follow it, older ones or, when
// reads go that way, newer ones. Which is newer the names say: Maildir's begin with
// the time. It only ever fills what room there is in Bodies, and waits for nobody.
type ahead struct {
	fs     *FS
	max    int64 // bytes ahead of who reads
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // a leaf
	dirs    []*mailbox // that were listed, the latest last
	places  map[objstore.Ino]mailPlace
	queue   []mailPlace
	workers int
	trust   int64 // bytes that listings may still bring
	brought map[objstore.Ino]int64
	order   []objstore.Ino // of brought, as a ring
	oldest  int

	reading                 atomic.Int64 // bodies on their way to readers
	prefetched, used, waste atomic.Uint64
}

// mailbox is a directory that was listed.
type mailbox struct {
	dir     objstore.Ino
	listing bool    // one has begun and goes on
	found   []found // by that
	mails   []mail  // by name
	last    int     // which was read last; -1: none
	newer   bool    // reads go towards newer ones
}

type found struct {
	name string
	mail
}

type mail struct {
	ino   objstore.Ino
	size  uint32
	asked bool // it was brought, or is to be
}

type mailPlace struct {
	box *mailbox
	at  int
}

// newAhead is nil where there is nothing to read ahead, or nowhere to keep it.
func newAhead(fs *FS) *ahead {
	if fs.opt.Bodies == nil || fs.opt.Ahead <= 0 {
		return nil
	}
	a := &ahead{
		fs: fs, max: fs.opt.Ahead, trust: aheadTrust * fs.opt.Ahead,
		places: map[objstore.Ino]mailPlace{}, brought: map[objstore.Ino]int64{},
	}
	a.ctx, a.cancel = context.WithCancel(fs.base)
	return a
}

// close ends it; what is on its way is given up.
func (a *ahead) close() {
	if a == nil {
		return
	}
	a.cancel()
	a.mu.Lock()
	a.queue = nil
	a.mu.Unlock()
	a.wg.Wait()
}

// Listed tells what somebody was shown of a directory, with attributes: it begins
// there, or goes on, or ends.
func (fs *FS) Listed(dir objstore.Ino, begins, ends bool, list []objstore.DirEntry) {
	a := fs.ahead
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	box := &mailbox{dir: dir, last: -1}
	i := slices.IndexFunc(a.dirs, func(m *mailbox) bool { return m.dir == dir })
	if i >= 0 {
		box = a.dirs[i]
	}
	if !begins && !box.listing { // the kernel asks once more what is behind the end
		return
	}
	if begins {
		box.listing, box.found = true, nil
	}
	if i >= 0 {
		a.dirs = slices.Delete(a.dirs, i, i+1)
	}
	a.dirs = append(a.dirs, box)
	for _, e := range list {
		if m := e.Attr; m != nil && wanted(m) {
			box.found = append(box.found, found{e.Name, mail{ino: m.Ino, size: uint32(m.Size)}})
		}
	}
	if len(box.found) >= 2*aheadNames {
		box.found = inOrder(box.found)
	}
	if ends {
		list := box.found
		box.listing, box.found = false, nil
		a.mu.Unlock()
		list = inOrder(list) // others read meanwhile
		a.mu.Lock()
		a.settle(box, list)
	}
	for (a.names() > aheadPlaces || len(a.dirs) > aheadDirs) && len(a.dirs) > 1 {
		a.forget(a.dirs[0])
		a.dirs = slices.Delete(a.dirs, 0, 1)
	}
}

// names is how many messages are remembered. Under mu.
func (a *ahead) names() int {
	n := len(a.places)
	for _, box := range a.dirs {
		n += len(box.found)
	}
	return n
}

// wanted says whether a file may be a message to bring. Whether its body is on this host
// anyway its size does not say: small ones may have been packed.
func wanted(m *objstore.Attr) bool {
	return m.Mode&objstore.ModeType == objstore.ModeRegular && m.Size > 0 && m.Size <= aheadFile
}

// inOrder sorts what was found, and leaves out the oldest if it is too much.
func inOrder(list []found) []found {
	slices.SortFunc(list, func(a, b found) int { return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.ino, b.ino)) })
	list = slices.CompactFunc(list, func(a, b found) bool { return a.ino == b.ino && a.name == b.name })
	return slices.Delete(list, 0, max(len(list)-aheadNames, 0))
}

// settle makes a finished listing the one that is gone by, and brings the newest
// messages. Under mu.
func (a *ahead) settle(box *mailbox, list []found) {
	if !slices.Contains(a.dirs, box) {
		return // there were too many meanwhile
	}
	now := make([]mail, len(list))
	for i, f := range list {
		now[i] = f.mail
		if p, ok := a.places[f.ino]; ok {
			now[i].asked = p.box.mails[p.at].asked
		}
	}
	a.forget(box)
	box.mails, box.last, box.newer = now, -1, false
	for i := range now {
		a.places[now[i].ino] = mailPlace{box, i}
	}
	if a.trust > 0 {
		a.trust -= a.extend(box, len(now))
	}
}

// forget takes a directory's messages out of what is known by place. Under mu.
func (a *ahead) forget(box *mailbox) {
	for _, m := range box.mails {
		if a.places[m.ino].box == box {
			delete(a.places, m.ino)
		}
	}
	a.queue = slices.DeleteFunc(a.queue, func(p mailPlace) bool { return p.box == box })
	box.mails = nil
}

// read tells that a file is being read from its beginning.
func (a *ahead) read(ino objstore.Ino) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if n, ok := a.brought[ino]; ok {
		delete(a.brought, ino)
		a.used.Add(uint64(n))
	}
	p, ok := a.places[ino]
	if !ok {
		return
	}
	box := p.box
	a.trust = min(a.trust+int64(box.mails[p.at].size), aheadTrust*a.max)
	if step := p.at - box.last; box.last >= 0 && step != 0 && max(step, -step) <= aheadNear {
		box.newer = step > 0
	}
	box.last, box.mails[p.at].asked = p.at, true
	a.extend(box, p.at)
}

// extend has the messages brought that come behind one, and tells of how many bytes. Under mu.
func (a *ahead) extend(box *mailbox, at int) (began int64) {
	step := -1
	if box.newer {
		step = 1
	}
	left := a.max
	for n := 0; n < aheadFiles && len(a.queue) < aheadQueue; n++ {
		if at += step; at < 0 || at >= len(box.mails) {
			break
		}
		m := &box.mails[at]
		if left -= int64(m.size); left < 0 {
			break
		}
		if m.asked {
			continue
		}
		m.asked = true
		began += int64(m.size)
		a.queue = append(a.queue, mailPlace{box, at})
		if a.workers < aheadWidth && a.ctx.Err() == nil {
			a.workers++
			a.wg.Go(a.work)
		}
	}
	return began
}

func (a *ahead) work() {
	for {
		m, ok := a.next()
		if !ok {
			return
		}
		if !a.bring(m) {
			a.mu.Lock()
			for _, p := range a.queue {
				p.box.mails[p.at].asked = false
			}
			a.queue = nil
			a.mu.Unlock()
		}
	}
}

// next is a message to bring. Those that reading has gone away from are passed over.
func (a *ahead) next() (mail, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.queue) > 0 {
		p := a.queue[0]
		a.queue = slices.Delete(a.queue, 0, 1)
		m := &p.box.mails[p.at]
		if away := p.at - p.box.last; p.box.last >= 0 && max(away, -away) > aheadFiles {
			m.asked = false
			continue
		}
		return *m, true
	}
	a.workers--
	return mail{}, false
}

// bring brings a message's body near. False: nothing is to be brought for now.
func (a *ahead) bring(m mail) bool {
	near := a.fs.opt.Bodies
	if a.ctx.Err() != nil || a.reading.Load() >= aheadBusy || near.Spare() < int64(m.size) {
		return false
	}
	list, err := a.fs.store.Extents(a.ctx, m.ino, 0, windowSpan) // as reading asks, so that it finds the answer
	n := int64(0)
	for _, e := range list {
		if e.Kind != objstore.Resident && e.Kind != objstore.Pooled || a.fs.opt.Local(e.Chunk) || near.Has(e.Chunk, e.ChunkOff+e.Len) {
			continue
		}
		if e.Chunk.Sealed() { // what keeps it is below
			err = a.fs.store.ReadChunk(a.ctx, e.Chunk, e.ChunkOff, make([]byte, e.Len))
		} else {
			_, err = a.fs.fill(a.ctx, e.Chunk, e.ChunkOff+e.Len)
		}
		if err != nil {
			break
		}
		n += int64(e.Len)
	}
	if n > 0 {
		a.note(m.ino, n)
	}
	return err == nil || objstore.Gone(err)
}

// note counts what was brought of a message.
func (a *ahead) note(ino objstore.Ino, n int64) {
	a.prefetched.Add(uint64(n))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.brought[ino] += n
	if len(a.order) < aheadTrack {
		a.order = append(a.order, ino)
		return
	}
	if unread, ok := a.brought[a.order[a.oldest]]; ok && a.order[a.oldest] != ino {
		delete(a.brought, a.order[a.oldest])
		a.waste.Add(uint64(unread))
	}
	a.order[a.oldest] = ino
	a.oldest = (a.oldest + 1) % aheadTrack
}
