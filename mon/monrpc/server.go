package monrpc

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"pillarbox/guard"
	"pillarbox/mon"
	"pillarbox/mon/monrpc/monv1"
	"pillarbox/mon/pki"
	"pillarbox/objstore"
)

// Limits of what comes in, and times after which silence ends a connection.
const (
	maxMessage   = 4 << 20
	maxWords     = 64
	maxWord      = 1 << 12
	pingEvery    = 2 * time.Second
	silence      = 4 * time.Second
	callTime     = 3 * time.Second // the longest that a monitor works on a call
	handshakeMax = 5 * time.Second
)

// Server serves a monitor.
type Server struct {
	*grpc.Server
	monv1.UnimplementedMonServer
	Dropped *guard.Counter // what came to the port and was not for it
	mon     *mon.Monitor
	log     *slog.Logger
}

// NewServer makes a server; Serve starts it and Stop ends it.
func NewServer(m *mon.Monitor, cfg *tls.Config, log *slog.Logger) *Server {
	cfg = cfg.Clone()
	cfg.ClientAuth = tls.VerifyClientCertIfGiven // who joins has none yet
	s := &Server{mon: m, log: log, Dropped: guard.New(log)}
	s.Server = grpc.NewServer(append(s.Dropped.Options(),
		grpc.Creds(s.Dropped.Creds(cfg)),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.MaxConcurrentStreams(256),
		grpc.ConnectionTimeout(handshakeMax),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingEvery, Timeout: silence - pingEvery}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream),
	)...)
	monv1.RegisterMonServer(s.Server, s)
	return s
}

// may says which roles may make a call; nil: anybody, also without a certificate.
var may = map[string][]pki.Role{
	monv1.Mon_Join_FullMethodName:    nil,
	monv1.Mon_Watch_FullMethodName:   {pki.Mon, pki.OSD, pki.Client, pki.Admin},
	monv1.Mon_Session_FullMethodName: {pki.Client, pki.Admin},
	monv1.Mon_Boot_FullMethodName:    {pki.OSD},
	monv1.Mon_Beat_FullMethodName:    {pki.OSD},
	monv1.Mon_Command_FullMethodName: {pki.Admin, pki.Client},
}

type callerKey struct{}

func authorize(ctx context.Context, method string) (context.Context, error) {
	roles, known := may[method]
	if !known {
		return nil, fmt.Errorf("%s: %w", method, objstore.Unsupported)
	}
	if roles == nil {
		return ctx, nil
	}
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return nil, fmt.Errorf("call without a connection: %w", objstore.NotPermitted)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, fmt.Errorf("call without TLS: %w", objstore.NotPermitted)
	}
	id, err := pki.Caller(info.State)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, objstore.NotPermitted)
	}
	if !slices.Contains(roles, id.Role) {
		return nil, fmt.Errorf("%s may not call %s: %w", id, method, objstore.NotPermitted)
	}
	return context.WithValue(ctx, callerKey{}, id), nil
}

// authorize refuses a call of a role that may not make it, and counts that.
func (s *Server) authorize(ctx context.Context, method string) (context.Context, error) {
	known, err := authorize(ctx, method)
	switch {
	case errors.Is(err, objstore.Unsupported):
		s.Dropped.DropCall(ctx, guard.Unknown, err)
	case err != nil:
		s.Dropped.DropCall(ctx, guard.Role, err)
	}
	return known, err
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	guard.Handled(ctx)
	ctx, err := s.authorize(ctx, info.FullMethod)
	if err != nil {
		return nil, toWire(err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	res, err := next(ctx, req)
	s.Dropped.Refuse(ctx, err)
	return res, toWire(err)
}

type authorized struct {
	grpc.ServerStream
	ctx context.Context
}

func (a authorized) Context() context.Context { return a.ctx }

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ss = s.Dropped.Stream(ss)
	ctx, err := s.authorize(ss.Context(), info.FullMethod)
	if err != nil {
		return toWire(err)
	}
	err = next(srv, authorized{ss, ctx})
	s.Dropped.Refuse(ctx, err)
	return toWire(err)
}

// callerOSD is the OSD that calls.
func callerOSD(ctx context.Context) (int, error) {
	id, _ := ctx.Value(callerKey{}).(pki.Identity)
	n, err := strconv.ParseUint(strings.TrimPrefix(id.Name, "osd."), 10, 31)
	if id.Role != pki.OSD || err != nil {
		return 0, fmt.Errorf("%s is no OSD: %w", id, objstore.NotPermitted)
	}
	return int(n), nil
}

// Join implements monv1.MonServer.
func (s *Server) Join(ctx context.Context, r *monv1.JoinRequest) (*monv1.JoinReply, error) {
	if len(r.Secret) > 256 || len(r.Request) > 1<<14 {
		return nil, bad(fmt.Errorf("join: %w", objstore.Invalid))
	}
	j, err := s.mon.Join(ctx, mon.JoinRequest{
		TokenHash: pki.Token{Secret: r.Secret}.Hash(), Request: r.Request,
		PeerAddr: r.PeerUrl,
		OSD:      objstore.OSDInfo{UUID: r.Uuid, Host: r.Host, Rack: r.Rack, Weight: r.Weight, In: true},
	})
	if err != nil {
		return nil, err
	}
	m, err := json.Marshal(j.Map)
	if err != nil {
		return nil, err
	}
	s.log.Info("joined", "who", j.Identity.String())
	return &monv1.JoinReply{Role: string(j.Identity.Role), Name: j.Identity.Name, Ca: j.CA, Certificate: j.Cert, Osd: int32(j.OSD), Map: m, InitialCluster: j.Initial}, nil
}

// Watch implements monv1.MonServer.
func (s *Server) Watch(_ *monv1.WatchRequest, out grpc.ServerStreamingServer[monv1.MapReply]) error {
	maps, err := s.mon.Watch(out.Context())
	if err != nil {
		return err
	}
	for m := range maps {
		b, err := json.Marshal(m)
		if err == nil {
			err = out.Send(&monv1.MapReply{Map: b})
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("watch the cluster map: %w", objstore.Unavailable)
}

// Session implements monv1.MonServer.
func (s *Server) Session(ctx context.Context, _ *monv1.SessionRequest) (*monv1.SessionReply, error) {
	id, err := s.mon.NewSession(ctx)
	return &monv1.SessionReply{Id: id}, err
}

// Boot implements monv1.MonServer.
func (s *Server) Boot(ctx context.Context, r *monv1.BootRequest) (*monv1.MapReply, error) {
	id, err := callerOSD(ctx)
	if err != nil {
		return nil, err
	}
	if int(r.Id) != id || len(r.Uuid) != 36 || r.Addr == "" || len(r.Addr) > 255 {
		return nil, bad(fmt.Errorf("boot of osd.%d by osd.%d at %q: %w", r.Id, id, r.Addr, objstore.Invalid))
	}
	m, err := s.mon.Boot(ctx, objstore.OSDInfo{ID: id, UUID: r.Uuid, Addr: r.Addr})
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(m)
	return &monv1.MapReply{Map: b}, err
}

// Beat implements monv1.MonServer.
func (s *Server) Beat(in grpc.ClientStreamingServer[monv1.BeatRequest, monv1.BeatReply]) error {
	ctx := in.Context()
	id, err := callerOSD(ctx)
	if err != nil {
		return err
	}
	beats, err := s.mon.BeginBeats(ctx, id)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		beats.End(ctx)
	}()
	for {
		msg, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return in.SendAndClose(&monv1.BeatReply{})
		}
		if err != nil {
			return err
		}
		var r mon.Report
		if err := json.Unmarshal(msg.Report, &r); err != nil {
			return bad(fmt.Errorf("report of osd.%d: %w: %w", id, objstore.Invalid, err))
		}
		if err := beats.Beat(ctx, r); err != nil {
			return err
		}
	}
}

// Command implements monv1.MonServer.
func (s *Server) Command(ctx context.Context, r *monv1.CommandRequest) (*monv1.CommandReply, error) {
	if len(r.Words) > maxWords || len(r.Options) > maxWords || slices.ContainsFunc(r.Words, func(w string) bool { return len(w) > maxWord }) {
		return nil, bad(fmt.Errorf("a command of %d words: %w", len(r.Words), objstore.Invalid))
	}
	if id, _ := ctx.Value(callerKey{}).(pki.Identity); id.Role != pki.Admin && !slices.Equal(r.Words, mon.S3KeysCommand) {
		err := fmt.Errorf("%s may not call %s: %w", id, monv1.Mon_Command_FullMethodName, objstore.NotPermitted)
		s.Dropped.DropCall(ctx, guard.Role, err)
		return nil, err
	}
	answer, err := s.mon.Command(ctx, r.Words, r.Options)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(answer)
	return &monv1.CommandReply{Answer: b}, err
}

// bad is the error of a message that says what cannot be.
func bad(err error) error { return &guard.BadMessage{Err: err} }

// toWire makes the status of a failed call. The kind stands before the text.
func toWire(err error) error {
	if err == nil {
		return nil
	}
	var kind objstore.Kind
	if errors.Is(err, context.DeadlineExceeded) && !errors.As(err, &kind) {
		err = fmt.Errorf("this monitor has no quorum (too few monitors are up), or is too slow: %w: %w", objstore.Unavailable, err)
	}
	if errors.As(err, &kind) {
		return status.Error(codes.FailedPrecondition, hex.EncodeToString([]byte{byte(kind)})+" "+strings.ToValidUTF8(err.Error(), "?"))
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unknown, strings.ToValidUTF8(err.Error(), "?"))
}

// fromWire turns the status of a failed call back. answered says whether it is
// a monitor's answer, so that another one would not answer better.
func fromWire(err error) (_ error, answered bool) {
	st, _ := status.FromError(err)
	if st.Code() == codes.FailedPrecondition {
		code, text, _ := strings.Cut(st.Message(), " ")
		if b, derr := hex.DecodeString(code); derr == nil && len(b) == 1 {
			kind := objstore.Kind(b[0])
			return &answer{text, kind}, kind != objstore.Unavailable
		}
	}
	return fmt.Errorf("%s: %w", st.Message(), objstore.Unavailable), st.Code() == codes.Unknown
}

// answer is an error that a monitor answered with.
type answer struct {
	text string
	kind objstore.Kind
}

func (e *answer) Error() string { return e.text }
func (e *answer) Unwrap() error { return e.kind }
