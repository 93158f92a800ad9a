package fusefs

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pillarbox/objstore"
)

// Nobody who watches a directory with inotify hears of what another host did:
// the kernel tells only of system calls made here. So a process of ours makes
// the call again. It goes through the kernel to this mount, which knows it by the
// thread that it comes from, changes nothing, and answers with what is there
// already: the kernel then tells the watchers. See helper.go for the process.

// events has them repeated, one after the other.
type events struct {
	command []string
	point   string
	log     *slog.Logger
	dev     uint64        // of the mount; set by start
	tid     atomic.Uint32 // of the helper's thread; 0: there is none
	now     atomic.Pointer[objstore.Event]
	asked   atomic.Pointer[objstore.Event] // whose directory the kernel has been made to look up

	mu     sync.Mutex // a leaf
	queue  []objstore.Event
	more   chan struct{}
	stop   chan struct{}
	done   chan struct{}
	closed bool
	going  bool // start was called
}

// maxEvents is how many wait at most; the oldest are dropped, for who watches a
// directory looks at all of it when told of anything.
const maxEvents = 8192

func newEvents(command []string, point string, log *slog.Logger) *events {
	return &events{command: command, point: point, log: log, more: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
}

// start has the helper started, once the mount answers. Not before: what go-fuse
// opens in the mount to make it ready it opens to be inherited, and a helper that
// had it would keep the mount busy.
func (e *events) start(dev uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.dev, e.going = dev, true
		go e.run()
	}
}

func (e *events) close() {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.closed = true
	going := e.going
	e.mu.Unlock()
	close(e.stop)
	if going {
		<-e.done
	}
}

// add queues an event. One that says the same as the last is dropped.
func (e *events) add(ev objstore.Event) {
	if ev.Kind == objstore.Purged || ev.Kind == objstore.Moved && ev.Ino == 0 {
		return
	}
	e.mu.Lock()
	if n := len(e.queue); n == 0 || e.queue[n-1] != ev {
		if n >= maxEvents {
			e.queue = append(e.queue[:0], e.queue[n/2:]...)
		}
		e.queue = append(e.queue, ev)
	}
	e.mu.Unlock()
	select {
	case e.more <- struct{}{}:
	default:
	}
}

func (e *events) next() (ev objstore.Event, ok bool) {
	for {
		e.mu.Lock()
		if len(e.queue) > 0 {
			ev, e.queue = e.queue[0], e.queue[1:]
			e.mu.Unlock()
			return ev, true
		}
		e.queue = nil
		e.mu.Unlock()
		select {
		case <-e.more:
		case <-e.stop:
			return ev, false
		}
	}
}

// run keeps a helper going.
func (e *events) run() {
	defer close(e.done)
	for {
		err := e.serve()
		select {
		case <-e.stop:
			return
		default:
			e.log.Warn("the process that tells inotify watches of other hosts' changes has ended; another is started", "err", err)
		}
		select {
		case <-time.After(time.Second):
		case <-e.stop:
			return
		}
	}
}

// serve runs one helper until it dies or e is closed.
func (e *events) serve() error {
	cmd := exec.Command(e.command[0], append(e.command[1:len(e.command):len(e.command)], e.point)...)
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is not for it
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		e.tid.Store(0)
		in.Close()
		cmd.Wait()
	}()
	lines := bufio.NewReader(out)
	var tid uint32
	if _, err := fmt.Fscanln(lines, &tid); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	e.tid.Store(tid)
	for {
		ev, ok := e.next()
		if !ok {
			return nil
		}
		e.now.Store(&ev)
		err := e.tell(in, lines, ev)
		e.now.Store(nil)
		if err != nil {
			return err
		}
	}
}

// An order to the helper. Names need not be UTF-8.
type order struct {
	Dev         uint64 // of the mount
	Kind        objstore.EventKind
	Ino         objstore.Ino
	Type        uint32
	Dir, NewDir objstore.Ino
	Name, New   []byte
}

func (e *events) tell(in io.Writer, answers *bufio.Reader, ev objstore.Event) error {
	b, err := json.Marshal(order{e.dev, ev.Kind, ev.Ino, ev.Type, ev.Dir, ev.NewDir, []byte(ev.Name), []byte(ev.NewName)})
	if err != nil {
		return err
	}
	if _, err := in.Write(append(b, '\n')); err != nil {
		return err
	}
	answer, err := answers.ReadString('\n')
	if err != nil {
		return err
	}
	e.log.Debug("told inotify watches", "event", ev.Kind, "dir", ev.Dir, "name", ev.Name, "answer", answer)
	return nil
}

// repeated is the event that a request repeats: nil for everybody's but the helper's.
func (e *events) repeated(in *fuse.InHeader) *objstore.Event {
	if e == nil {
		return nil
	}
	if tid := e.tid.Load(); tid == 0 || in.Pid != tid {
		return nil
	}
	return e.now.Load()
}

// lookupAgain answers the helper's LOOKUP of a name that the event is about: as
// before the event.
func (r *raw) lookupAgain(ev *objstore.Event, in *fuse.InHeader, name string, out *fuse.EntryOut) (st fuse.Status, ok bool) {
	dir := objstore.Ino(in.NodeId)
	first, second := dir == ev.Dir && name == ev.Name, dir == ev.NewDir && name == ev.NewName
	switch {
	case name == ".": // the kernel has no such inode in memory, so nobody watches it
		return fuse.Status(syscall.ESTALE), true
	case ev.Kind == objstore.Created && first, ev.Kind == objstore.Moved && second:
		return fuse.OK, true // without a node: there is no such name
	case first:
		return r.entryAgain(ev, out), true
	}
	return 0, false // on the way to a directory whose path the kernel has dropped
}

// renameAgain answers the helper's RENAME. Of a directory, the kernel may have gone
// by a name that it keeps, of another directory by now perhaps, and would keep
// what it makes of it: told that this was stale, it asks for the name first.
func (r *raw) renameAgain(ev *objstore.Event) fuse.Status {
	if ev.Type == objstore.ModeDir && r.events.asked.Swap(ev) != ev {
		return fuse.Status(syscall.ESTALE)
	}
	return fuse.OK
}

// entryAgain is the entry of what an event is about.
func (r *raw) entryAgain(ev *objstore.Event, out *fuse.EntryOut) fuse.Status {
	if ev.Ino.IsVolumeRoot() { // to ask would mean to hear of all that happens there
		r.fillEntry(&objstore.Attr{Ino: ev.Ino, Mode: objstore.ModeDir | 0o700, Nlink: 2}, false, out)
		return fuse.OK
	}
	a, err := r.fs.GetAttr(r.ctx, ev.Ino)
	if err != nil {
		if ev.Kind == objstore.Created {
			return fuse.ENOENT // gone since
		}
		a = objstore.Attr{Ino: ev.Ino, Mode: ev.Type, Nlink: 1}
	}
	r.fillEntry(&a, false, out)
	return fuse.OK
}
