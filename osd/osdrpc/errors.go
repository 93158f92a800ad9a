package osdrpc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pillarbox/objstore"
	"pillarbox/osd/osdrpc/osdv1"
)

// NoAnswer is a call that an OSD did not answer: it could not be reached, the
// connection broke, or the caller's time was up. The call may have been carried
// out or not. It is Unavailable, and what ended the caller's context if that did.
type NoAnswer struct {
	OSD int
	Err error
}

func (e *NoAnswer) Error() string { return fmt.Sprintf("osd.%d does not answer: %v", e.OSD, e.Err) }

// Unwrap makes errors.Is(err, objstore.Unavailable) hold.
func (e *NoAnswer) Unwrap() []error { return []error{objstore.Unavailable, e.Err} }

// answer is an error that an OSD answered with.
type answer struct {
	osd  int
	text string
	kind error // a Kind, a LeaderError, or nil
}

func (e *answer) Error() string { return fmt.Sprintf("osd.%d: %s", e.osd, e.text) }
func (e *answer) Unwrap() error { return e.kind }

// grpcCodes are for those who look at the traffic with other tools; a Conn goes
// by the detail alone.
var grpcCodes = map[objstore.Kind]codes.Code{
	objstore.NotFound: codes.NotFound, objstore.Exist: codes.AlreadyExists, objstore.Invalid: codes.InvalidArgument,
	objstore.NoSpace: codes.ResourceExhausted, objstore.Quota: codes.ResourceExhausted, objstore.Corrupt: codes.DataLoss,
	objstore.NotPermitted: codes.PermissionDenied, objstore.Unavailable: codes.Unavailable, objstore.Unsupported: codes.Unimplemented,
}

// errToWire makes the status of a failed call.
func errToWire(err error) error {
	if err == nil {
		return nil
	}
	text := strings.ToValidUTF8(err.Error(), "\uFFFD")
	if len(text) > maxErrText {
		text = strings.ToValidUTF8(text[:maxErrText], "")
	}
	f, code := &osdv1.Failure{Text: []byte(text)}, codes.Unknown
	var leader *objstore.LeaderError
	var kind objstore.Kind
	switch {
	case errors.As(err, &leader):
		f.Kind, f.Leader = uint32(objstore.Elsewhere), &osdv1.Leader{Pg: leader.PG, Leader: int64(leader.Leader)}
		code = codes.FailedPrecondition
	case errors.As(err, &kind):
		f.Kind, code = uint32(kind), codes.FailedPrecondition
		if c, ok := grpcCodes[kind]; ok {
			code = c
		}
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, text)
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, text)
	}
	st, derr := status.New(code, text).WithDetails(f)
	if derr != nil {
		return status.Error(codes.Internal, text)
	}
	return st.Err()
}

// errFromWire turns the status of a failed call back.
func errFromWire(ctx context.Context, osd int, err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return &NoAnswer{OSD: osd, Err: err}
	}
	for _, d := range st.Details() {
		if f, ok := d.(*osdv1.Failure); ok {
			return &answer{osd: osd, text: string(f.GetText()), kind: kindFromWire(f)}
		}
	}
	switch {
	case ctx.Err() != nil:
		return &NoAnswer{OSD: osd, Err: ctx.Err()}
	case st.Code() == codes.DeadlineExceeded: // gRPC's own timer can be the first
		return &NoAnswer{OSD: osd, Err: fmt.Errorf("%w: %s", context.DeadlineExceeded, st.Message())}
	case st.Code() == codes.Unimplemented:
		return &answer{osd: osd, text: st.Message(), kind: objstore.Unsupported}
	case st.Code() == codes.ResourceExhausted: // larger than a message may be
		return &answer{osd: osd, text: st.Message(), kind: objstore.Invalid}
	}
	return &NoAnswer{OSD: osd, Err: err}
}

func kindFromWire(f *osdv1.Failure) error {
	switch l := f.GetLeader(); {
	case l != nil && l.GetLeader() >= -1 && l.GetLeader() <= maxOSD:
		return &objstore.LeaderError{PG: l.GetPg(), Leader: int(l.GetLeader())}
	case f.GetKind() == 0 || f.GetKind() > 255:
		return nil
	}
	return objstore.Kind(f.GetKind())
}
