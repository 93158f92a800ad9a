// Package guard counts what a daemon's port drops because it is none of the
// cluster's business: handshakes that fail, callers of the wrong role, messages
// that are malformed or too long, calls that nobody knows. It says so in the log,
// once a minute for each reason at most, so that who throws garbage at a port
// fills no disk.
package guard

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// Reason is why something was dropped.
type Reason string

// The reasons.
const (
	Handshake Reason = "handshake" // no TLS, no certificate, or none of the cluster's
	Role      Reason = "role"      // whoever it is may not make this call
	Malformed Reason = "malformed" // bytes that are no message, or a message that says what cannot be
	TooLong   Reason = "too_long"
	Unknown   Reason = "unknown" // a call that this program does not know
)

// Reasons are all of them.
func Reasons() []Reason { return []Reason{Handshake, Role, Malformed, TooLong, Unknown} }

// quiet is how long nothing more is logged of a reason.
const quiet = time.Minute

// Counter counts what was dropped. Its methods may be called from any goroutine.
type Counter struct {
	log *slog.Logger

	mu   sync.Mutex // a leaf
	seen map[Reason]*tally
}

type tally struct {
	n      uint64
	silent uint64    // since the last line
	line   time.Time // when that was
}

// New makes a Counter that logs to log.
func New(log *slog.Logger) *Counter {
	c := &Counter{log: log, seen: map[Reason]*tally{}}
	for _, r := range Reasons() {
		c.seen[r] = &tally{}
	}
	return c
}

// Counts are how many were dropped so far, by reason.
func (c *Counter) Counts() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := map[string]uint64{}
	for r, t := range c.seen {
		n[string(r)] = t.n
	}
	return n
}

// Drop notes that something that came from an address was dropped.
func (c *Counter) Drop(why Reason, from string, err error) {
	c.mu.Lock()
	t := c.seen[why]
	t.n++
	now, silent := time.Now(), t.silent
	if now.Sub(t.line) < quiet {
		t.silent++
		c.mu.Unlock()
		return
	}
	t.line, t.silent = now, 0
	c.mu.Unlock()
	c.log.Warn("dropped what came to the port", "reason", string(why), "from", from, "err", err, "more_since_last_line", silent)
}

// BadMessage is an error of a message that says what cannot be.
type BadMessage struct{ Err error }

func (e *BadMessage) Error() string { return e.Err.Error() }

func (e *BadMessage) Unwrap() error { return e.Err }

// Refuse notes an error of a call, if that is why it was dropped.
func (c *Counter) Refuse(ctx context.Context, err error) {
	if bad := (*BadMessage)(nil); errors.As(err, &bad) {
		c.Drop(Malformed, from(ctx), err)
	}
}

// DropCall notes that a call was dropped.
func (c *Counter) DropCall(ctx context.Context, why Reason, err error) { c.Drop(why, from(ctx), err) }

func from(ctx context.Context) string {
	if p, _ := peer.FromContext(ctx); p != nil && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

// Options are what a server needs for gRPC's own refusals to be counted.
func (c *Counter) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.StatsHandler(calls{c}),
		grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
			method, _ := grpc.MethodFromServerStream(s)
			err := status.Errorf(codes.Unimplemented, "unknown call %s", method)
			c.DropCall(s.Context(), Unknown, err)
			return err
		}),
	}
}

// calls is a stats.Handler: gRPC tells it of messages that it could not take in.
type calls struct{ c *Counter }

// call is what is known of one.
type call struct{ handled bool }

type callKey struct{}

func (calls) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, callKey{}, &call{})
}

func (calls) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (calls) HandleConn(context.Context, stats.ConnStats) {}

func (h calls) HandleRPC(ctx context.Context, s stats.RPCStats) {
	end, ok := s.(*stats.End)
	if known, _ := ctx.Value(callKey{}).(*call); !ok || known == nil || known.handled {
		return
	}
	h.c.received(ctx, end.Error)
}

// received notes an error of the receiving of a message.
func (c *Counter) received(ctx context.Context, err error) {
	switch status.Code(err) {
	case codes.ResourceExhausted:
		c.DropCall(ctx, TooLong, err)
	case codes.Internal:
		c.DropCall(ctx, Malformed, err)
	}
}

// Handled says that the call's message was taken in: its errors are the handler's.
// Interceptors begin with it.
func Handled(ctx context.Context) {
	if known, _ := ctx.Value(callKey{}).(*call); known != nil {
		known.handled = true
	}
}

// Stream is a stream whose messages that cannot be taken in are counted.
func (c *Counter) Stream(s grpc.ServerStream) grpc.ServerStream {
	Handled(s.Context())
	return &stream{s, c}
}

type stream struct {
	grpc.ServerStream
	c *Counter
}

func (s *stream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err != nil {
		s.c.received(s.Context(), err)
	}
	return err
}
