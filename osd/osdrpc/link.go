package osdrpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// link is one connection to an OSD, made when it is first used and made again
// whenever it breaks.
type link struct {
	*grpc.ClientConn
	dialed func(error) // after each attempt to connect

	mu  sync.Mutex
	raw net.Conn // the newest
}

// Delays between attempts to connect.
const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = 2 * time.Second
)

// newLink does not connect yet. cfg is the result of clientTLS.
func newLink(addr string, cfg *tls.Config, dialed func(error)) (*link, error) {
	l := &link{dialed: dialed}
	cc, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithContextDialer(l.dial),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithIdleTimeout(0),
		grpc.WithUnaryInterceptor(sendLease),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstDelay, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxDelay},
			MinConnectTimeout: dialMax,
		}),
		// gRPC pings every 10 seconds at most, which finds a peer that hangs. One
		// that is gone from the network is found by Timeout, which becomes
		// TCP_USER_TIMEOUT, with the probes that dial asks for.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: silence, PermitWithoutStream: true}),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithReadBufferSize(ioBuffer),
		grpc.WithWriteBufferSize(ioBuffer),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	l.ClientConn = cc
	return l, nil
}

func (l *link) dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialMax, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: silence / 2, Interval: time.Second, Count: 2,
	}}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		l.mu.Lock()
		l.raw = c
		l.mu.Unlock()
	}
	l.dialed(err)
	return c, err
}

// sever ends the connection there is, so that a new one is made. gRPC itself
// would go on using one whose other end hangs.
func (l *link) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.raw != nil {
		l.raw.Close()
	}
}
