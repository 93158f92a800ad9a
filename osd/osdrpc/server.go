package osdrpc

import (
	"context"
	"crypto/tls"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"pillarbox/guard"
	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/objstore/locks"
	"pillarbox/osd"
	"pillarbox/osd/osdrpc/osdv1"
)

// Backend is what a Server offers: an *osd.OSD. Data that it is handed is its
// own until it returns.
type Backend interface {
	client.OSD
	osd.Peer
	Hold(ctx context.Context, pg uint32, vols []objstore.VolumeID, held []locks.Held) (known bool, err error)
	Lock(ctx context.Context, pg uint32, r locks.Request) (locks.Answer, error)
	Waits(ctx context.Context) ([]locks.Waiting, error)
	Scrub(ctx context.Context) (osd.Scrubbed, error)
	Subscribe(session uint64) (*osd.Subscription, error)
	// Step takes in raft's messages from another OSD, in the order it sent them.
	Step(ctx context.Context, from int, ms []osd.RaftMessage) error
	// PullGroup sends a group's state. What it sends may change when send has
	// returned, which waits when the receiver is slower.
	PullGroup(ctx context.Context, pg uint32, send func(osd.GroupPiece) error) error
}

// ServerOptions are what a Server needs besides its Backend.
type ServerOptions struct {
	// TLS has the OSD's certificate, and in ClientCAs the cluster's authority.
	TLS *tls.Config
	Log *slog.Logger // nil: slog.Default()
	// Heard, if set, is called when another OSD's stream of raft messages begins
	// or ends. Conns.Retry is made for it.
	Heard func(from int)
}

// Server serves an OSD. Other services may be registered with its grpc.Server;
// who may call them is for them to say.
type Server struct {
	*grpc.Server
	Dropped *guard.Counter // what came to the port and was not for it
	backend Backend
	log     *slog.Logger
	heard   func(from int)
	beat    time.Duration
}

const (
	servicePrefix = "pillarbox.osd.v1."
	clientService = servicePrefix + "OSD"
	adminService  = servicePrefix + "Admin"
)

// Sizes of the connections' buffers and windows. A window takes two of the
// largest chunks, so that a sender need not wait for word from the receiver.
const (
	ioBuffer   = 128 << 10
	window     = 8 << 20
	connWindow = 32 << 20
)

// Times after which silence is taken for the end of a connection.
const (
	beatEvery    = time.Second     // a raft stream's sign of life
	silence      = 4 * time.Second // without beats, or without a peer's acknowledgement
	pingEvery    = 2 * time.Second // pings from the server
	minPing      = time.Second     // a client that pings more often is cut off
	handshakeMax = 5 * time.Second
	dialMax      = 3 * time.Second
)

// maxStreams is how many calls a client may have under way on one connection;
// more wait with the client.
const maxStreams = 1024

// NewServer makes a server for a backend; Serve starts it and Stop ends it,
// breaking off what is under way. Invalid: the TLS configuration would let
// anybody in.
func NewServer(b Backend, opt ServerOptions) (*Server, error) {
	cfg, err := serverTLS(opt.TLS)
	if err != nil {
		return nil, err
	}
	s := &Server{backend: b, log: opt.Log, heard: opt.Heard, beat: beatEvery}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.heard == nil {
		s.heard = func(int) {}
	}
	s.Dropped = guard.New(s.log)
	s.Server = grpc.NewServer(append(s.Dropped.Options(),
		grpc.Creds(s.Dropped.Creds(cfg)),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.ChainUnaryInterceptor(s.guardUnary),
		grpc.ChainStreamInterceptor(s.guardStream),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(connWindow),
		grpc.ReadBufferSize(ioBuffer),
		grpc.WriteBufferSize(ioBuffer),
		grpc.ConnectionTimeout(handshakeMax),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingEvery, Timeout: silence - pingEvery}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
	)...)
	osdv1.RegisterOSDServer(s.Server, &osdService{s: s})
	osdv1.RegisterPeerServer(s.Server, &peerService{s: s})
	osdv1.RegisterAdminServer(s.Server, &adminServer{s: s})
	return s, nil
}

// service is the service of a method /service/method, and whether it is this package's.
func service(method string) (string, bool) {
	name, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return name, strings.HasPrefix(name, servicePrefix)
}

// guardUnary lets in who may come in and encodes errors.
func (s *Server) guardUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	guard.Handled(ctx)
	name, ours := service(info.FullMethod)
	if !ours {
		return handle(ctx, req)
	}
	if err := authorize(ctx, name); err != nil {
		s.Dropped.DropCall(ctx, guard.Role, err)
		return nil, errToWire(err)
	}
	ctx, err := receiveLease(ctx)
	if err != nil {
		return nil, errToWire(err)
	}
	resp, err := handle(ctx, req)
	if err != nil {
		s.Dropped.Refuse(ctx, err)
		return nil, errToWire(err)
	}
	return resp, nil
}

// guardStream does the same for streams.
func (s *Server) guardStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ss = s.Dropped.Stream(ss)
	name, ours := service(info.FullMethod)
	if !ours {
		return handle(srv, ss)
	}
	if err := authorize(ss.Context(), name); err != nil {
		s.Dropped.DropCall(ss.Context(), guard.Role, err)
		return errToWire(err)
	}
	err := handle(srv, ss)
	s.Dropped.Refuse(ss.Context(), err)
	return errToWire(err)
}
