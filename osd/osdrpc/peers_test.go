package osdrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"pillarbox/objstore"
	"pillarbox/osd"
)

func message(index uint64, bytes int) osd.RaftMessage {
	m := &raftpb.Message{Type: raftpb.MsgApp.Enum(), Index: proto.Uint64(index)}
	if bytes > 0 {
		m.Entries = []*raftpb.Entry{{Data: make([]byte, bytes)}}
	}
	return osd.RaftMessage{PG: uint32(index % 7), Msg: m}
}

// listener is a fake that tells what raft messages arrive.
type listener struct {
	fake
	got chan osd.RaftMessage
}

func newListener(t testing.TB) *listener {
	l := &listener{got: make(chan osd.RaftMessage, 1<<20)}
	l.step = func(from int, ms []osd.RaftMessage) error {
		if from != 1 {
			t.Errorf("messages from osd.%d", from)
		}
		for _, m := range ms {
			l.got <- m
		}
		return nil
	}
	return l
}

func mapOf(epoch uint64, addrs map[int]string) *objstore.Map {
	m := &objstore.Map{Epoch: epoch}
	for id, addr := range addrs {
		m.OSDs = append(m.OSDs, objstore.OSDInfo{ID: id, Addr: addr})
	}
	return m
}

// peerConns are the Conns of osd.1, and the channel that OnLost tells.
func peerConns(t testing.TB, a *authority, addrs map[int]string) (*Conns, <-chan int) {
	t.Helper()
	lost := make(chan int, 100)
	c := NewConns(Options{Self: 1, TLS: a.config(t, roleOSD, "osd.1"), OnLost: func(id int) { lost <- id }})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if err := c.SetMap(mapOf(1, addrs)); err != nil {
		t.Fatal(err)
	}
	return c, lost
}

// deliver sends a message again and again until it arrives, as raft does.
func deliver(t testing.TB, c *Conns, to int, got <-chan osd.RaftMessage, index uint64, within time.Duration) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(within)
	for {
		select {
		case m := <-got:
			if m.Msg.GetIndex() == index {
				return
			}
		case <-tick.C:
			c.Send(to, []osd.RaftMessage{message(index, 0)})
		case <-deadline:
			t.Fatalf("message %d did not arrive within %v", index, within)
		}
	}
}

func TestRaftOrder(t *testing.T) {
	a, l := newAuthority(t), newListener(t)
	_, addr := serve(t, a, 2, "", l, ServerOptions{})
	c, _ := peerConns(t, a, map[int]string{1: "127.0.0.1:1", 2: addr})
	const n = 10000
	for i := uint64(0); i < n; {
		batch := []osd.RaftMessage{message(i, int(i%100)*10), message(i+1, 0)}
		c.Send(2, batch)
		i += 2
	}
	for i := range uint64(n) {
		m := await(t, l.got, 10*time.Second, fmt.Sprintf("message %d", i))
		want := message(i, 0)
		if i%2 == 0 {
			want = message(i, int(i%100)*10)
		}
		if m.PG != want.PG || !proto.Equal(m.Msg, want.Msg) {
			t.Fatalf("message %d of group %d where %d was due", m.Msg.GetIndex(), m.PG, i)
		}
	}
	c.Send(1, []osd.RaftMessage{message(0, 0)}) // itself
	c.Send(9, []osd.RaftMessage{message(0, 0)}) // unknown
}

// A receiver that hangs makes the sender drop, not wait nor grow.
func TestSendNeverWaits(t *testing.T) {
	a, l := newAuthority(t), newListener(t)
	hang := make(chan struct{})
	step := l.step
	l.step = func(from int, ms []osd.RaftMessage) error {
		<-hang
		return step(from, ms)
	}
	_, addr := serve(t, a, 2, "", l, ServerOptions{})
	c, _ := peerConns(t, a, map[int]string{2: addr})
	t.Cleanup(func() {
		select {
		case <-hang:
		default:
			close(hang)
		}
	})
	const n = 400 // MiB
	begun := time.Now()
	for i := range uint64(n) {
		c.Send(2, []osd.RaftMessage{message(i, 1<<20)})
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("sending took %v", took)
	}
	conn, err := c.conn(2)
	if err != nil {
		t.Fatal(err)
	}
	conn.sender.mu.Lock()
	if conn.sender.bytes > maxQueuedBytes || len(conn.sender.queue) > maxQueuedBytes>>20 {
		t.Errorf("%d bytes in %d messages are queued", conn.sender.bytes, len(conn.sender.queue))
	}
	conn.sender.mu.Unlock()
	close(hang)
	last, count := int64(-1), 0
	for last != n+1 {
		select {
		case m := <-l.got:
			if i := int64(m.Msg.GetIndex()); i < last {
				t.Fatalf("message %d after %d", i, last)
			} else {
				last = i
			}
			count++
		case <-time.After(50 * time.Millisecond):
			c.Send(2, []osd.RaftMessage{message(n+1, 0)})
		}
	}
	if count >= n {
		t.Errorf("%d messages arrived, none was dropped", count)
	}
}

func TestBatches(t *testing.T) {
	s := newSender(t.Context(), nil, func() {})
	for i := range uint64(10) {
		s.send([]osd.RaftMessage{message(i, 1<<20)})
	}
	s.send([]osd.RaftMessage{message(10, batchBytes+1)})
	var got []int
	for b := s.take(); len(b) > 0; b = s.take() {
		if n := proto.Size(raftToWire(b)); n > batchBytes && len(b) > 1 {
			t.Errorf("batch of %d messages and %d bytes", len(b), n)
		}
		got = append(got, len(b))
	}
	if fmt.Sprint(got) != "[3 3 3 1 1]" || s.bytes != 0 {
		t.Errorf("batches of %v messages, %d bytes left", got, s.bytes)
	}
}

// The size that batches go by is never less than the true one.
func TestMessageSize(t *testing.T) {
	r := seeded(t)
	f := filler{r}
	for range 200 {
		m := &raftpb.Message{
			Type: raftpb.MsgSnap.Enum(), Context: f.bytes(r.IntN(100)), Reject: proto.Bool(true),
			Snapshot: &raftpb.Snapshot{Data: f.bytes(r.IntN(1000)), Metadata: &raftpb.SnapshotMetadata{
				ConfState: &raftpb.ConfState{Voters: []uint64{r.Uint64(), 1 << 63}, AutoLeave: proto.Bool(true)}, Index: proto.Uint64(1 << 63), Term: proto.Uint64(1 << 63),
			}},
		}
		for _, p := range []**uint64{&m.To, &m.From, &m.Term, &m.LogTerm, &m.Index, &m.Commit, &m.Vote, &m.RejectHint} {
			*p = proto.Uint64(1<<63 | r.Uint64())
		}
		for range r.IntN(5) {
			m.Entries = append(m.Entries, &raftpb.Entry{
				Type: raftpb.EntryConfChangeV2.Enum(), Index: proto.Uint64(1 << 63), Term: proto.Uint64(1 << 63), Data: f.bytes(r.IntN(1 << 17)),
			})
		}
		w := osd.RaftMessage{PG: 1 << 31, Msg: m}
		if guess, n := messageSize(w), proto.Size(raftToWire([]osd.RaftMessage{w})); guess < n {
			t.Fatalf("a message of %d bytes is taken for %d", n, guess)
		}
	}
}

// A killed peer is known at once, and found again when it is back.
func TestKilledPeer(t *testing.T) {
	a, l := newAuthority(t), newListener(t)
	s, addr := serve(t, a, 2, "", l, ServerOptions{})
	c, lost := peerConns(t, a, map[int]string{2: addr})
	for round := range uint64(3) {
		deliver(t, c, 2, l.got, 10*round+1, 5*time.Second)
		s.Stop()
		if id := await(t, lost, time.Second, "loss of a killed peer"); id != 2 {
			t.Errorf("osd.%d is said to be lost", id)
		}
		if round == 1 { // with time for the longest delay between attempts
			select {
			case id := <-lost:
				t.Errorf("osd.%d is lost twice", id)
			case <-time.After(2 * maxDelay):
			}
		}
		s, _ = serve(t, a, 2, addr, l, ServerOptions{})
		deliver(t, c, 2, l.got, 10*round+2, maxDelay*3/2+time.Second)
	}
	if len(lost) != 0 {
		t.Error("lost again")
	}
	if err := c.Close(); err != nil { // its end is no loss
		t.Fatal(err)
	}
	if len(lost) != 0 {
		t.Error("lost by closing")
	}
}

// When a peer calls, Retry reaches it without waiting for the next attempt.
func TestRetry(t *testing.T) {
	a, l := newAuthority(t), newListener(t)
	s, addr := serve(t, a, 2, "", l, ServerOptions{})
	c, lost := peerConns(t, a, map[int]string{2: addr})
	deliver(t, c, 2, l.got, 1, 5*time.Second)
	s.Stop()
	await(t, lost, time.Second, "loss")
	heard := make(chan int, 10)
	s2, addr1 := serve(t, a, 1, "", newListener(t), ServerOptions{Heard: func(from int) { heard <- from; c.Retry(from) }})
	defer s2.Stop()
	other := NewConns(Options{Self: 2, TLS: a.config(t, roleOSD, "osd.2")})
	defer other.Close()
	if err := other.SetMap(mapOf(1, map[int]string{1: addr1})); err != nil {
		t.Fatal(err)
	}
	serve(t, a, 2, addr, l, ServerOptions{})
	other.Send(1, nil)
	if id := await(t, heard, 5*time.Second, "word of a stream"); id != 2 {
		t.Errorf("heard of osd.%d", id)
	}
	deliver(t, c, 2, l.got, 2, time.Second)
}

func TestSetMap(t *testing.T) {
	a, l2, l3 := newAuthority(t), newListener(t), newListener(t)
	_, addr2 := serve(t, a, 2, "", l2, ServerOptions{})
	_, addr3 := serve(t, a, 3, "", l3, ServerOptions{})
	c, lost := peerConns(t, a, map[int]string{2: addr2, 3: addr3, 1: "127.0.0.1:1", 4: ""})
	for _, id := range []int{1, 4, 5} {
		if _, err := c.Peer(id); !errors.Is(err, objstore.Unavailable) {
			t.Errorf("osd.%d: %v", id, err)
		}
	}
	deliver(t, c, 2, l2.got, 1, 5*time.Second)
	deliver(t, c, 3, l3.got, 1, 5*time.Second)
	before3, err := c.conn(3)
	if err != nil {
		t.Fatal(err)
	}
	old2, err := c.conn(2)
	if err != nil {
		t.Fatal(err)
	}
	moved := newListener(t)
	_, addr := serve(t, a, 2, "", moved, ServerOptions{})
	if err := c.SetMap(mapOf(2, map[int]string{2: addr, 3: addr3})); err != nil {
		t.Fatal(err)
	}
	deliver(t, c, 2, moved.got, 2, 5*time.Second)
	noAnswer(t, "the old connection", old2.Sync(t.Context(), 1))
	if after3, err := c.conn(3); err != nil || after3 != before3 {
		t.Errorf("a connection whose address did not change was replaced, %v", err)
	}
	if err := c.SetMap(mapOf(1, nil)); err != nil { // an old one
		t.Fatal(err)
	}
	if _, err := c.Peer(3); err != nil {
		t.Errorf("after an old map: %v", err)
	}
	if err := c.SetMap(mapOf(3, map[int]string{2: addr})); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Peer(3); !errors.Is(err, objstore.Unavailable) {
		t.Errorf("an OSD that was dropped: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if len(lost) != 0 {
		t.Error("OSDs that moved or were dropped are said to be lost")
	}
}

// deaf is a listener whose connections can be cut off from the network: no
// packet reaches them any more, nor is one acknowledged.
type deaf struct {
	net.Listener
	conns chan *net.TCPConn
}

func (d deaf) Accept() (net.Conn, error) {
	c, err := d.Listener.Accept()
	if err == nil {
		d.conns <- c.(*net.TCPConn)
	}
	return c, err
}

func cutOff(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	none := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &none[0]})
	})
	if err := errors.Join(err, serr); err != nil {
		t.Fatal(err)
	}
}

// A partition that no packet tells of is found by silence, for raft's stream as
// for a call that waits for its answer.
func TestSilentPartition(t *testing.T) {
	t.Parallel()
	a, l := newAuthority(t), newListener(t)
	entered := make(chan struct{}, 10)
	l.call = func(ctx context.Context, _ string, _ ...any) (any, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := deaf{inner, make(chan *net.TCPConn, 10)}
	serveOn(t, a, 2, d, l, ServerOptions{})
	c, lost := peerConns(t, a, map[int]string{2: inner.Addr().String()})
	deliver(t, c, 2, l.got, 1, 5*time.Second)
	conn, err := c.conn(2)
	if err != nil {
		t.Fatal(err)
	}
	// The client's connection alone is idle but for the call.
	quiet := connect(t, inner.Addr().String(), 2, a.config(t, roleClient, "client.mx1"))
	ended := make(chan error, 1)
	go func() { ended <- quiet.Sync(t.Context(), 1) }()
	await(t, entered, 5*time.Second, "call")
	for range 2 {
		cutOff(t, await(t, d.conns, time.Second, "connection"))
	}
	for _, l := range []*link{conn.short, quiet.short} {
		l.mu.Lock()
		cutOff(t, l.raw.(*net.TCPConn))
		l.mu.Unlock()
	}
	begun := time.Now()
	deliver(t, c, 2, l.got, 2, silence+2*time.Second) // over a new connection
	t.Logf("raft's stream is back after %v", time.Since(begun))
	noAnswer(t, "call", await(t, ended, silence+4*time.Second-time.Since(begun), "end of the call"))
	t.Logf("the call ended after %v", time.Since(begun))
	if len(lost) != 0 {
		t.Error("a peer that takes connections is said to be lost")
	}
}

// A process that hangs while its host answers is found as well.
func TestHungPeer(t *testing.T) {
	t.Parallel()
	a, l := newAuthority(t), newListener(t)
	s, addr := serve(t, a, 2, "", l, ServerOptions{})
	s.beat = time.Hour // it says one word and no more
	c, lost := peerConns(t, a, map[int]string{2: addr})
	deliver(t, c, 2, l.got, 1, 5*time.Second)
	conn, err := c.conn(2)
	if err != nil {
		t.Fatal(err)
	}
	conn.short.mu.Lock()
	first := conn.short.raw
	conn.short.mu.Unlock()
	begun := time.Now()
	for {
		conn.short.mu.Lock()
		again := conn.short.raw != first
		conn.short.mu.Unlock()
		if again {
			break
		}
		if time.Since(begun) > silence+2*time.Second {
			t.Fatal("the connection is kept")
		}
		time.Sleep(10 * time.Millisecond)
	}
	deliver(t, c, 2, l.got, 2, 2*time.Second)
	if len(lost) != 0 {
		t.Error("a peer that takes connections is said to be lost")
	}
}

func TestPullGroup(t *testing.T) {
	a, l := newAuthority(t), newListener(t)
	const n = 2000
	head := &osd.GroupHead{Index: 5, Term: 6, Members: &raftpb.ConfState{Voters: []uint64{1, 2}}}
	var sent atomic.Int64
	var fail error
	l.pull = func(ctx context.Context, pg uint32, send func(osd.GroupPiece) error) error {
		if pg != 7 {
			t.Errorf("group %d", pg)
		}
		if err := send(osd.GroupPiece{Head: head}); err != nil {
			return err
		}
		key, value := []byte{0, 0}, make([]byte, 64<<10)
		for i := range n {
			key[0], key[1], value[0], value[len(value)-1] = byte(i>>8), byte(i), byte(i), byte(i>>8) // the same memory each time
			if err := send(osd.GroupPiece{Key: key, Value: value}); err != nil {
				return err
			}
			sent.Add(1)
		}
		return fail
	}
	_, addr := serve(t, a, 2, "", l, ServerOptions{})
	c, _ := peerConns(t, a, map[int]string{2: addr})
	ctx := t.Context()

	// While nothing is taken, no more is sent than the window and buffers hold.
	count := -1
	err := c.PullGroup(ctx, 2, 7, func(p osd.GroupPiece) error {
		if count < 0 {
			if p.Head == nil || !proto.Equal(p.Head.Members, head.Members) {
				t.Fatalf("head %+v", p.Head)
			}
			held := func() int64 { return sent.Load() * (64 << 10) }
			for deadline := time.Now().Add(20 * time.Second); held() < window/2; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("only %d bytes were sent ahead", held())
				}
			}
			for last := int64(-1); last != held(); time.Sleep(300 * time.Millisecond) {
				last = held()
			}
			if held() > 2*window {
				t.Errorf("%d bytes were sent with none taken", held())
			}
		} else if i := int(p.Key[0])<<8 | int(p.Key[1]); i != count || len(p.Value) != 64<<10 || p.Value[0] != byte(i) || p.Value[len(p.Value)-1] != byte(i>>8) {
			t.Fatalf("piece %d where %d was due", i, count)
		}
		count++
		return nil
	})
	if err != nil || count != n {
		t.Errorf("%d pieces, %v", count, err)
	}

	stop := errors.New("enough")
	if err := c.PullGroup(ctx, 2, 7, func(osd.GroupPiece) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("taker's error: %v", err)
	}
	fail = fmt.Errorf("half way: %w", &objstore.LeaderError{PG: 7, Leader: 4})
	var le *objstore.LeaderError
	if err := c.PullGroup(ctx, 2, 7, func(osd.GroupPiece) error { return nil }); !errors.As(err, &le) || le.Leader != 4 {
		t.Errorf("sender's error: %v", err)
	}
	if err := c.PullGroup(ctx, 9, 7, nil); !errors.Is(err, objstore.Unavailable) {
		t.Errorf("unknown OSD: %v", err)
	}
}
