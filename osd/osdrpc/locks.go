package osdrpc

import (
	"context"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
	"pillarbox/osd/osdrpc/osdv1"
)

// Lock implements client.Watchable.
func (c *Conn) Lock(ctx context.Context, pg uint32, r locks.Request) (locks.Answer, error) {
	m, err := c.osd().Lock(ctx, &osdv1.LockRequest{Pg: pg, Op: uint32(r.Op), Ino: uint64(r.Ino), Lock: lockToWire(r.Lock), Wait: r.Wait})
	if err != nil {
		return locks.Answer{}, c.fail(ctx, err)
	}
	a := locks.Answer{Granted: m.GetGranted()}
	if !a.Granted {
		var d decoder
		if a.Holder = d.lock(m.GetHolder()); d.err != nil {
			return a, c.bad("%v", d.err)
		}
	}
	return a, nil
}

func lockToWire(l locks.Lock) *osdv1.FileLock {
	return &osdv1.FileLock{
		Session: l.Owner.Session, Owner: l.Owner.ID, Flock: l.Owner.Flock, Pid: l.Pid, Write: l.Write, Start: l.Start, End: l.End,
	}
}

func (d *decoder) lock(m *osdv1.FileLock) locks.Lock {
	if m == nil || m.GetStart() > m.GetEnd() {
		d.fail(objstore.Invalid, "lock of bytes %d to %d", m.GetStart(), m.GetEnd())
	}
	return locks.Lock{
		Owner: locks.Owner{Session: m.GetSession(), ID: m.GetOwner(), Flock: m.GetFlock()},
		Pid:   m.GetPid(), Write: m.GetWrite(), Start: m.GetStart(), End: m.GetEnd(),
	}
}

// Lock implements the service.
func (o *osdService) Lock(ctx context.Context, m *osdv1.LockRequest) (*osdv1.LockAnswer, error) {
	var d decoder
	r := locks.Request{Ino: objstore.Ino(m.GetIno()), Lock: d.lock(m.GetLock()), Wait: m.GetWait()}
	if m.GetOp() > uint32(locks.Unlock) {
		d.fail(objstore.Invalid, "lock operation %d", m.GetOp())
	}
	if d.err != nil {
		return nil, d.err
	}
	r.Op = locks.Op(m.GetOp())
	a, err := o.s.backend.Lock(ctx, m.GetPg(), r)
	if err != nil {
		return nil, err
	}
	return &osdv1.LockAnswer{Granted: a.Granted, Holder: lockToWire(a.Holder)}, nil
}

// maxWaits is how many waiting owners an OSD tells of, and for how many each waits.
const maxWaits = 1 << 10

// Waits implements client.Watchable.
func (c *Conn) Waits(ctx context.Context) ([]locks.Waiting, error) {
	m, err := c.osd().Waits(ctx, &osdv1.WaitsRequest{})
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	var list []locks.Waiting
	for _, w := range m.GetWaiting() {
		one := locks.Waiting{Owner: ownerFromWire(w.GetOwner()), Wait: w.GetWait()}
		for _, o := range w.GetBlockers() {
			one.For = append(one.For, ownerFromWire(o))
		}
		list = append(list, one)
	}
	return list, nil
}

// Waits implements the service.
func (o *osdService) Waits(ctx context.Context, _ *osdv1.WaitsRequest) (*osdv1.WaitsResponse, error) {
	list, err := o.s.backend.Waits(ctx)
	if err != nil {
		return nil, err
	}
	m := &osdv1.WaitsResponse{}
	for _, w := range list[:min(len(list), maxWaits)] {
		one := &osdv1.Waiting{Owner: ownerToWire(w.Owner), Wait: w.Wait}
		for _, o := range w.For[:min(len(w.For), maxWaits)] {
			one.Blockers = append(one.Blockers, ownerToWire(o))
		}
		m.Waiting = append(m.Waiting, one)
	}
	return m, nil
}

func ownerToWire(o locks.Owner) *osdv1.LockOwner {
	return &osdv1.LockOwner{Session: o.Session, Owner: o.ID, Flock: o.Flock}
}

func ownerFromWire(o *osdv1.LockOwner) locks.Owner {
	return locks.Owner{Session: o.GetSession(), ID: o.GetOwner(), Flock: o.GetFlock()}
}
