package osdrpc

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/objstore/locks"
	"pillarbox/osd/osdrpc/osdv1"
)

// leaseKey is where a call's metadata names the lease it is made under.
const leaseKey = "pillarbox-lease"

func sendLease(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if l, ok := objstore.LeaseOf(ctx); ok {
		ctx = metadata.AppendToOutgoingContext(ctx, leaseKey, fmt.Sprintf("%x.%x.%x", l.Session, l.Stream, l.Turn))
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// receiveLease puts the lease that the metadata names into ctx. Invalid.
func receiveLease(ctx context.Context) (context.Context, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	v := md.Get(leaseKey)
	if len(v) == 0 {
		return ctx, nil
	}
	var l objstore.Lease
	parts := strings.Split(v[0], ".")
	var err error
	for i, to := range []*uint64{&l.Session, &l.Stream, &l.Turn} {
		if i < len(parts) && err == nil {
			*to, err = strconv.ParseUint(parts[i], 16, 64)
		}
	}
	if err != nil || len(parts) != 3 || len(v) > 1 {
		return nil, fmt.Errorf("lease %q: %w", v, objstore.Invalid)
	}
	return objstore.WithLease(ctx, l), nil
}

// Hold implements client.Watchable.
func (c *Conn) Hold(ctx context.Context, pg uint32, vols []objstore.VolumeID, held []locks.Held) (known bool, err error) {
	req := &osdv1.HoldRequest{Pg: pg}
	for _, h := range held {
		req.Locks = append(req.Locks, &osdv1.HeldLock{Ino: uint64(h.Ino), Lock: lockToWire(h.Lock)})
	}
	if len(vols) > maxHeld { // it would not hear of changes in those left out
		return false, fmt.Errorf("hold %d volumes of placement group %d: %w", len(vols), pg, objstore.Invalid)
	}
	for _, v := range vols {
		req.Volumes = append(req.Volumes, uint32(v))
	}
	m, err := c.osd().Hold(ctx, req)
	return m.GetKnown(), c.fail(ctx, err)
}

// Watch implements client.Watchable.
func (c *Conn) Watch(ctx context.Context, session uint64, w client.Watching) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.osd().Watch(ctx)
	if err != nil {
		return c.fail(ctx, err)
	}
	var sending sync.Mutex // gRPC takes one message at a time
	send := func(m *osdv1.FromWatcher) {
		sending.Lock()
		defer sending.Unlock()
		stream.Send(m) // receiving tells what is wrong
	}
	send(&osdv1.FromWatcher{Session: session})
	m, err := stream.Recv()
	if err != nil {
		return c.fail(ctx, err)
	}
	w.Begun(m.GetStream())
	beats := &beats{send: send, answer: time.Now()}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		beats.run(ctx)
		cancel()
	}()
	defer func() { cancel(); <-ended }()
	bye := context.AfterFunc(w.End, func() { send(&osdv1.FromWatcher{Bye: true}) })
	defer bye()
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return c.fail(ctx, err)
		}
		if sent := beats.answered(m.GetBeat()); !sent.IsZero() {
			w.Beat(sent)
		}
		if pgs := m.GetLost(); len(pgs) > 0 {
			w.Lost(pgs)
		}
		if p := m.GetPush(); p != nil {
			var d decoder
			push := d.push(p)
			if d.err != nil {
				return c.bad("%v", d.err)
			}
			w.Push(push, func(a objstore.Ack) {
				send(&osdv1.FromWatcher{Ack: &osdv1.Ack{Seq: push.Seq, Busy: inosToWire(a.Busy)}})
			})
		}
	}
}

// Signs of life of a client. Its lease is over for the OSD no earlier than for
// itself: the OSD counts from when a beat came, the client from when it was sent.
const (
	watchBeat = 2 * time.Second
	leaseLeft = objstore.LeaseTime - watchBeat
)

type beats struct {
	send func(*osdv1.FromWatcher)

	mu     sync.Mutex // a leaf
	last   uint64
	sent   time.Time // the last one
	answer time.Time // when the last one was sent that was answered
}

// run sends beats until ctx ends, or the lease.
func (b *beats) run(ctx context.Context) {
	tick := time.NewTicker(watchBeat)
	defer tick.Stop()
	end := time.NewTimer(leaseLeft)
	defer end.Stop()
	b.beat()
	for {
		select {
		case <-tick.C:
			b.beat()
		case <-end.C:
			left := b.left()
			if left <= 0 {
				return
			}
			end.Reset(left)
		case <-ctx.Done():
			return
		}
	}
}

func (b *beats) beat() {
	b.mu.Lock()
	b.last++
	b.sent = time.Now()
	n := b.last
	b.mu.Unlock()
	b.send(&osdv1.FromWatcher{Beat: n})
}

// left is how long the lease lasts if nothing more is answered.
func (b *beats) left() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Until(b.answer.Add(leaseLeft))
}

// answered is when the beat was sent that is answered; zero: it is not the last.
func (b *beats) answered(n uint64) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n == 0 || n != b.last {
		return time.Time{}
	}
	b.answer = b.sent
	return b.sent
}

// Hold implements the service.
func (o *osdService) Hold(ctx context.Context, m *osdv1.HoldRequest) (*osdv1.HoldResponse, error) {
	var d decoder
	var vols []objstore.VolumeID
	if d.list("volumes", len(m.GetVolumes()), maxHeld) {
		for _, v := range m.GetVolumes() {
			vols = append(vols, d.volume(v))
		}
	}
	var held []locks.Held
	if d.list("locks", len(m.GetLocks()), maxList) {
		for _, h := range m.GetLocks() {
			held = append(held, locks.Held{Ino: objstore.Ino(h.GetIno()), Lock: d.lock(h.GetLock())})
		}
	}
	if d.err != nil {
		return nil, d.err
	}
	known, err := o.s.backend.Hold(ctx, m.GetPg(), vols, held)
	if err != nil {
		return nil, err
	}
	return &osdv1.HoldResponse{Known: known}, nil
}

// Watch serves one client's stream.
func (o *osdService) Watch(stream grpc.BidiStreamingServer[osdv1.FromWatcher, osdv1.ToWatcher]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	sub, err := o.s.backend.Subscribe(first.GetSession())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	go func() { // ends when this returns, which ends the stream
		for {
			m, err := stream.Recv()
			if err != nil {
				cancel(err)
				return
			}
			if m.GetBye() {
				sub.Close()
				continue
			}
			if n := m.GetBeat(); n > 0 {
				sub.Heard(n)
			}
			if a := m.GetAck(); a != nil {
				var d decoder
				ack := objstore.Ack{Seq: a.GetSeq(), Busy: d.inos(a.GetBusy(), maxList)}
				if d.err != nil {
					cancel(d.err)
					return
				}
				sub.Ack(ack)
			}
		}
	}()
	if err := stream.Send(&osdv1.ToWatcher{Stream: sub.ID()}); err != nil {
		return err
	}
	for {
		list, err := sub.Next(ctx)
		for _, p := range list {
			m := &osdv1.ToWatcher{Beat: p.Beat, Lost: p.Lost}
			if p.Push != nil {
				m.Push = pushToWire(p.Push)
			}
			if err == nil {
				err = stream.Send(m)
			}
		}
		if err != nil {
			return err
		}
	}
}

func pushToWire(p *objstore.Push) *osdv1.Push {
	m := &osdv1.Push{Seq: p.Seq, Volume: uint32(p.Volume), Index: p.Index}
	for i := range p.Attrs {
		m.Attrs = append(m.Attrs, attrToWire(&p.Attrs[i]))
	}
	for _, e := range p.Events {
		m.Events = append(m.Events, &osdv1.Event{
			Kind: uint32(e.Kind), Ino: uint64(e.Ino), Type: e.Type, Dir: uint64(e.Dir), Name: []byte(e.Name),
			NewDir: uint64(e.NewDir), NewName: []byte(e.NewName),
		})
	}
	return m
}

func (d *decoder) push(m *osdv1.Push) objstore.Push {
	p := objstore.Push{Seq: m.GetSeq(), Volume: d.volume(m.GetVolume()), Index: m.GetIndex()}
	if !d.list("events", len(m.GetEvents()), maxList) || !d.list("attributes", len(m.GetAttrs()), maxList) {
		return p
	}
	for _, a := range m.GetAttrs() {
		p.Attrs = append(p.Attrs, attrFromWire(a))
	}
	for _, e := range m.GetEvents() {
		if k := e.GetKind(); k == 0 || k > uint32(objstore.Purged) {
			d.fail(objstore.Unsupported, "event of kind %d", k)
			return p
		}
		p.Events = append(p.Events, objstore.Event{
			Kind: objstore.EventKind(e.GetKind()), Ino: objstore.Ino(e.GetIno()), Type: e.GetType(), Dir: objstore.Ino(e.GetDir()),
			Name: d.name(e.GetName()), NewDir: objstore.Ino(e.GetNewDir()), NewName: d.name(e.GetNewName()),
		})
	}
	return p
}
