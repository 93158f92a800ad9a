package osdrpc

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"pillarbox/osd"
	"pillarbox/osd/osdrpc/osdv1"
)

// Bounds of the queue for one peer. What is too much is dropped.
const (
	maxQueued      = 16 << 10 // messages
	maxQueuedBytes = 32 << 20
)

// sender passes raft's messages to one OSD over one long-lived stream.
type sender struct {
	conn   *Conn
	log    *slog.Logger
	onLost func()
	wake   chan struct{} // something is queued
	ctx    context.Context
	cancel context.CancelFunc
	once   sync.Once

	mu      sync.Mutex // a leaf
	queue   []osd.RaftMessage
	bytes   int
	off     bool // the last attempt to connect failed: messages are dropped
	broke   bool // the stream ended, and that is not explained yet
	stopped bool
}

func newSender(ctx context.Context, log *slog.Logger, onLost func()) *sender {
	s := &sender{log: log, onLost: onLost, wake: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	return s
}

// send queues messages or drops them.
func (s *sender) send(ms []osd.RaftMessage) {
	s.mu.Lock()
	for _, m := range ms {
		n := messageSize(m)
		if s.off || s.stopped || len(s.queue) >= maxQueued || s.bytes+n > maxQueuedBytes {
			break
		}
		if n > maxMessage-batchBytes {
			s.log.Error("raft message too large to send", "pg", m.PG, "to", osdName(s.conn.id), "bytes", n)
			continue
		}
		s.queue = append(s.queue, m)
		s.bytes += n
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// messageSize is about what a message takes up on the wire, and no less.
func messageSize(m osd.RaftMessage) int {
	n := 160 + len(m.Msg.GetContext()) + len(m.Msg.GetSnapshot().GetData())
	c := m.Msg.GetSnapshot().GetMetadata().GetConfState()
	n += 10 * (len(c.GetVoters()) + len(c.GetLearners()) + len(c.GetVotersOutgoing()) + len(c.GetLearnersNext()))
	for _, e := range m.Msg.GetEntries() {
		n += 40 + len(e.GetData())
	}
	return n
}

// take removes a batch from the queue.
func (s *sender) take() []osd.RaftMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.queue) {
		size += messageSize(s.queue[n])
		if n > 0 && size > batchBytes {
			size -= messageSize(s.queue[n])
			break
		}
		n++
	}
	batch := s.queue[:n:n]
	s.queue = s.queue[n:]
	s.bytes -= size
	return batch
}

// dialed is told of each attempt to connect.
func (s *sender) dialed(err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	s.off, s.queue, s.bytes = true, nil, 0
	lost := s.broke && !s.stopped && errors.Is(err, syscall.ECONNREFUSED)
	if lost {
		s.broke = false
	}
	s.mu.Unlock()
	if lost {
		s.onLost()
	}
}

// start runs the sender once, when there is the first message for it.
func (s *sender) start(spawn func(func())) {
	s.once.Do(func() { spawn(s.run) })
}

// run keeps the stream up until the sender is stopped.
func (s *sender) run() {
	delay := firstDelay
	for s.ctx.Err() == nil {
		lasted, err := s.stream()
		if s.ctx.Err() != nil {
			return
		}
		s.log.Debug("raft stream ended", "peer", osdName(s.conn.id), "after", lasted, "err", err)
		if lasted > time.Second {
			delay = firstDelay
			continue
		}
		// The connection is there, but the peer wants no stream.
		select {
		case <-time.After(delay):
		case <-s.ctx.Done():
		}
		delay = min(2*delay, maxDelay)
	}
}

// stream waits for a connection and sends until it breaks or the peer falls
// silent.
func (s *sender) stream() (lasted time.Duration, err error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	waiting := time.Now()
	stream, err := osdv1.NewPeerClient(s.conn.short).Raft(ctx, grpc.WaitForReady(true))
	if err != nil {
		return 0, err
	}
	up := time.Now()
	s.mu.Lock()
	s.off, s.broke = false, false
	if up.Sub(waiting) > time.Second {
		s.queue, s.bytes = nil, 0 // out of date
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		err = s.listen(stream)
	}()
	s.pump(ctx, stream)
	cancel()
	<-done
	return time.Since(up), err
}

// pump sends what is queued, batch by batch.
func (s *sender) pump(ctx context.Context, stream grpc.BidiStreamingClient[osdv1.RaftBatch, osdv1.Beat]) {
	for {
		for batch := s.take(); len(batch) > 0; batch = s.take() {
			if stream.Send(raftToWire(batch)) != nil {
				return // listen has the reason
			}
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}

// listen waits for beats until the stream ends, and ends a connection that
// brings none.
func (s *sender) listen(stream grpc.BidiStreamingClient[osdv1.RaftBatch, osdv1.Beat]) error {
	watch := time.AfterFunc(silence, s.conn.short.sever)
	defer watch.Stop()
	for {
		if _, err := stream.Recv(); err != nil {
			s.mu.Lock()
			s.broke = true
			s.mu.Unlock()
			return err
		}
		watch.Reset(silence)
	}
}

// stop ends the sender; the peer is not said to be lost any more.
func (s *sender) stop() {
	s.mu.Lock()
	s.stopped, s.queue, s.bytes = true, nil, 0
	s.mu.Unlock()
	s.cancel()
}
