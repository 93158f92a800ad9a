package monrpc

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"pillarbox/mon"
	"pillarbox/mon/monrpc/monv1"
	"pillarbox/mon/pki"
	"pillarbox/objstore"
)

// Client is the monitors. Its methods may be called from any goroutine.
type Client struct {
	log *slog.Logger
	tls *tls.Config

	mu    sync.Mutex
	addrs []string
	conn  *grpc.ClientConn // to addrs[0]; nil: none
}

// NewClient makes a client of the monitors at some addresses.
func NewClient(addrs []string, cfg *tls.Config, log *slog.Logger) (*Client, error) {
	if len(addrs) == 0 {
		return nil, fmt.Errorf("no monitor's address: %w", objstore.Invalid)
	}
	addrs = slices.Clone(addrs)
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	return &Client{log: log, tls: pki.Expect(cfg, pki.Mon), addrs: addrs}, nil
}

// SetMap takes the monitors' addresses from a newer map.
func (c *Client) SetMap(m *objstore.Map) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, mon := range m.Mons {
		if mon.Addr != "" && !slices.Contains(c.addrs, mon.Addr) {
			c.addrs = append(c.addrs, mon.Addr)
		}
	}
}

// Close ends the connection.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}

func dial(addr string, cfg *tls.Config) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: silence, PermitWithoutStream: true}),
	)
}

// current is the monitor that is asked now.
func (c *Client) current() (monv1.MonClient, *grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		conn, err := dial(c.addrs[0], c.tls)
		if err != nil {
			return nil, nil, fmt.Errorf("monitor at %s: %w", c.addrs[0], err)
		}
		c.conn = conn
	}
	return monv1.NewMonClient(c.conn), c.conn, nil
}

// next goes to the next monitor, if that has not happened since.
func (c *Client) next(failed *grpc.ClientConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != failed {
		return
	}
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
	c.addrs = append(c.addrs[1:], c.addrs[0])
}

// attemptTime is how long one monitor has to answer.
const attemptTime = 5 * time.Second

// call asks one monitor after the other until one answers, or each was asked
// twice.
func (c *Client) call(ctx context.Context, what string, fn func(context.Context, monv1.MonClient) error) error {
	c.mu.Lock()
	rounds := 2 * len(c.addrs)
	c.mu.Unlock()
	var last, told error
	for i := range rounds {
		mc, conn, err := c.current()
		if err == nil {
			attempt, cancel := context.WithTimeout(ctx, attemptTime)
			err = fn(attempt, mc)
			cancel()
			if err == nil {
				return nil
			}
			var answered bool
			if err, answered = fromWire(err); answered {
				return err
			}
			if errors.As(err, new(*answer)) {
				told = err
			}
		}
		last = err
		c.next(conn)
		if ctx.Err() != nil {
			break
		}
		if i%2 == 1 {
			pause(ctx, 200*time.Millisecond)
		}
	}
	if told != nil { // says more than that another is not there
		last = told
	}
	return fmt.Errorf("%s: %w: %w", what, ErrAway, last)
}

// ErrAway says that no monitor gave an answer, not that one refused.
var ErrAway = errors.New("no monitor answers")

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// Map is the cluster map.
func (c *Client) Map(ctx context.Context) (m *objstore.Map, err error) {
	err = c.call(ctx, "get the cluster map", func(ctx context.Context, mc monv1.MonClient) error {
		w, err := mc.Watch(ctx, &monv1.WatchRequest{})
		if err != nil {
			return err
		}
		r, err := w.Recv()
		if err != nil {
			return err
		}
		m, err = objstore.ParseMap(r.Map)
		return err
	})
	return m, err
}

// Watch calls fn with the map and each newer one, until ctx ends, going from
// monitor to monitor as need be.
func (c *Client) Watch(ctx context.Context, fn func(*objstore.Map)) {
	epoch := uint64(0)
	for ctx.Err() == nil {
		mc, conn, err := c.current()
		if err == nil {
			err = c.follow(ctx, mc, &epoch, fn)
		}
		if ctx.Err() != nil {
			return
		}
		c.log.Warn("lost the monitor; trying the next", "err", err)
		c.next(conn)
		pause(ctx, 200*time.Millisecond)
	}
}

func (c *Client) follow(ctx context.Context, mc monv1.MonClient, epoch *uint64, fn func(*objstore.Map)) error {
	w, err := mc.Watch(ctx, &monv1.WatchRequest{})
	if err != nil {
		return err
	}
	for {
		r, err := w.Recv()
		if err != nil {
			return err
		}
		m, err := objstore.ParseMap(r.Map)
		if err != nil {
			return err
		}
		if m.Epoch > *epoch {
			*epoch = m.Epoch
			c.SetMap(m)
			fn(m)
		}
	}
}

// NewSession begins a session.
func (c *Client) NewSession(ctx context.Context) (id uint64, err error) {
	err = c.call(ctx, "begin a session", func(ctx context.Context, mc monv1.MonClient) error {
		r, err := mc.Session(ctx, &monv1.SessionRequest{})
		if err == nil {
			id = r.Id
		}
		return err
	})
	return id, err
}

// Boot says that an OSD is up at an address, and returns the map that says so.
func (c *Client) Boot(ctx context.Context, o objstore.OSDInfo) (m *objstore.Map, err error) {
	err = c.call(ctx, "announce the OSD", func(ctx context.Context, mc monv1.MonClient) error {
		r, err := mc.Boot(ctx, &monv1.BootRequest{Id: int32(o.ID), Uuid: o.UUID, Addr: o.Addr})
		if err == nil {
			m, err = objstore.ParseMap(r.Map)
		}
		return err
	})
	return m, err
}

// beatEvery is how often an OSD shows that it is there.
const beatEvery = 700 * time.Millisecond

// Beat shows that an OSD is there until ctx ends. report is asked each time.
func (c *Client) Beat(ctx context.Context, report func() mon.Report) {
	for ctx.Err() == nil {
		mc, conn, err := c.current()
		if err == nil {
			err = beatWith(ctx, mc, report)
		}
		if ctx.Err() != nil {
			return
		}
		err, _ = fromWire(err)
		c.log.Debug("the monitor takes no beats", "err", err)
		c.next(conn)
		pause(ctx, 200*time.Millisecond)
	}
}

func beatWith(ctx context.Context, mc monv1.MonClient, report func() mon.Report) error {
	s, err := mc.Beat(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		b, err := json.Marshal(report())
		if err != nil {
			return err
		}
		if err := s.Send(&monv1.BeatRequest{Report: b}); err != nil {
			_, rerr := s.CloseAndRecv() // says why
			return errors.Join(rerr, err)
		}
		select {
		case <-tick.C:
		case <-s.Context().Done():
			return context.Cause(s.Context())
		}
	}
}

// Command gives a command; the answer is decoded into answer unless that is nil.
func (c *Client) Command(ctx context.Context, words []string, options map[string]string, answer any) error {
	return c.call(ctx, "give a command", func(ctx context.Context, mc monv1.MonClient) error {
		r, err := mc.Command(ctx, &monv1.CommandRequest{Words: words, Options: options})
		if err != nil || answer == nil {
			return err
		}
		return json.Unmarshal(r.Answer, answer)
	})
}

// joinTries is how often the monitors are asked to let somebody join.
const joinTries = 15

// Joined is what a token was traded for.
type Joined struct {
	Identity    pki.Identity
	OSD         int
	Credentials *pki.Credentials
	Map         *objstore.Map
	Initial     string // of a monitor: for mon.Peer
}

// Join trades a token for credentials. o says where an OSD stands, peerAddr where
// a monitor hears the others.
func Join(ctx context.Context, t pki.Token, o objstore.OSDInfo, peerAddr string) (*Joined, error) {
	key, request, err := pki.Request()
	if err != nil {
		return nil, err
	}
	var last error
	// A cluster that has just changed takes no new monitor for some seconds.
	for i := 0; i < len(t.Addrs) || i < joinTries; i++ {
		if i >= len(t.Addrs) {
			pause(ctx, time.Second)
		}
		if ctx.Err() != nil {
			break
		}
		addr := t.Addrs[i%len(t.Addrs)]
		conn, err := dial(addr, pki.ExpectCA(t.Fingerprint))
		if err != nil {
			last = err
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, attemptTime)
		r, err := monv1.NewMonClient(conn).Join(attempt, &monv1.JoinRequest{
			Secret: t.Secret, Request: request, Uuid: o.UUID, Host: o.Host, Rack: o.Rack, Weight: o.Weight, PeerUrl: peerAddr,
		})
		cancel()
		conn.Close()
		if err != nil {
			var answered bool
			if last, answered = fromWire(err); answered {
				return nil, fmt.Errorf("join: %w", last)
			}
			continue
		}
		if got, err := pki.Fingerprint(r.Ca); err != nil || got != t.Fingerprint {
			return nil, fmt.Errorf("join: the answer has another authority: %w", objstore.NotPermitted)
		}
		m, err := objstore.ParseMap(r.Map)
		if err != nil {
			return nil, fmt.Errorf("join: %w", err)
		}
		return &Joined{
			Identity: pki.Identity{Role: pki.Role(r.Role), Name: r.Name}, OSD: int(r.Osd), Map: m, Initial: r.InitialCluster,
			Credentials: &pki.Credentials{CA: r.Ca, Cert: r.Certificate, Key: key},
		}, nil
	}
	return nil, fmt.Errorf("join: no monitor lets us in: %w", last)
}
