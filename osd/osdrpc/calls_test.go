package osdrpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
	"pillarbox/osd"
)

// TestCalls makes every call and compares what arrives and what comes back.
func TestCalls(t *testing.T) {
	a, ctx, r := newAuthority(t), t.Context(), seeded(t)
	var name string
	var args []any
	var answer any
	f := &fake{call: func(_ context.Context, n string, as ...any) (any, error) {
		for i := range as { // chunks are the backend's only until it returns
			if b, ok := as[i].([]byte); ok {
				as[i] = append([]byte(nil), b...)
			}
		}
		name, args = n, as
		return answer, nil
	}}
	_, addr := serve(t, a, 3, "", f, ServerOptions{})
	c := connect(t, addr, 3, a.config(t, roleOSD, "osd.4"))
	called := make(map[string]bool)
	check := func(method string, ans any, call func() (any, error), want ...any) {
		t.Helper()
		called[method], name, answer = true, "", ans
		got, err := call()
		if err != nil {
			t.Errorf("%s: %v", method, err)
		}
		if name != method || !reflect.DeepEqual(args, want) {
			t.Errorf("%s%+v arrived as %s%+v", method, want, name, args)
		}
		if !reflect.DeepEqual(got, ans) {
			t.Errorf("%s: the answer %+v came back as %+v", method, ans, got)
		}
	}
	for range 5 {
		pg, ino, n := r.Uint32(), objstore.Ino(r.Uint64()), random[string](r)
		id, ids, vol := random[objstore.ChunkID](r), random[[]objstore.ChunkID](r), random[objstore.VolumeID](r)
		check("Lookup", random[objstore.DirEntry](r), func() (any, error) { return c.Lookup(ctx, pg, ino, n) }, pg, ino, n)
		check("GetAttr", random[objstore.Attr](r), func() (any, error) { return c.GetAttr(ctx, pg, ino) }, pg, ino)
		entries := random[[]objstore.DirEntry](r)
		for i := range entries {
			entries[i].Cookie = 7 + uint64(i)
		}
		check("ReadDir", entries, func() (any, error) { return c.ReadDir(ctx, pg, ino, 6, 50, true) }, pg, ino, uint64(6), 50, true)
		check("Readlink", random[string](r), func() (any, error) { return c.Readlink(ctx, pg, ino) }, pg, ino)
		check("GetXattr", random[[]byte](r), func() (any, error) { return c.GetXattr(ctx, pg, ino, n) }, pg, ino, n)
		check("ListXattr", random[[]string](r), func() (any, error) { return c.ListXattr(ctx, pg, ino) }, pg, ino)
		check("Extents", random[[]objstore.Extent](r), func() (any, error) { return c.Extents(ctx, pg, ino, 5, 6) }, pg, ino, uint64(5), uint64(6))
		check("Pending", random[[]objstore.VolumeID](r), func() (any, error) { return c.Pending(ctx, pg) }, pg)
		check("Freed", random[[]objstore.ChunkID](r), func() (any, error) { return c.Freed(ctx, pg, 9) }, pg, 9)
		check("Orphans", random[[]objstore.Ino](r), func() (any, error) { return c.Orphans(ctx, pg, vol, 9) }, pg, vol, 9)
		req, ch, p := random[objstore.Request](r), randomChange(r), random[objstore.Promise](r)
		check("Apply", random[objstore.Result](r), func() (any, error) { return c.Apply(ctx, pg, req, ch, p) }, pg, req, ch, p)
		check("Sync", nil, func() (any, error) { return nil, c.Sync(ctx, pg) }, pg)
		check("Space", random[objstore.Disk](r), func() (any, error) { return c.Space(ctx) })
		lock := random[locks.Lock](r)
		lock.Start, lock.End = min(lock.Start, lock.End), max(lock.Start, lock.End)
		held := []locks.Held{{Ino: ino, Lock: lock}}
		check("Hold", true, func() (any, error) { return c.Hold(ctx, pg, []objstore.VolumeID{vol}, held) }, pg, []objstore.VolumeID{vol}, held)
		many := make([]objstore.VolumeID, maxList+1000) // all of them must be heard of
		for i := range many {
			many[i] = objstore.MaxVolume - objstore.VolumeID(i)
		}
		check("Hold", true, func() (any, error) { return c.Hold(ctx, pg, many, held) }, pg, many, held)
		ask := locks.Request{Op: locks.Wait, Ino: ino, Lock: lock, Wait: r.Uint64()}
		check("Lock", locks.Answer{Holder: lock}, func() (any, error) { return c.Lock(ctx, pg, ask) }, pg, ask)
		check("Waits", random[[]locks.Waiting](r), func() (any, error) { return c.Waits(ctx) })
		check("HasChunks", make([]bool, len(ids)), func() (any, error) { return c.HasChunks(ctx, ids) }, ids)
		shards := make([]int, len(ids))
		shards[0] = -1
		check("HeldShards", shards, func() (any, error) { return c.HeldShards(ctx, ids) }, ids)
		check("DropChunks", nil, func() (any, error) { return nil, c.DropChunks(ctx, ids) }, ids)
		wanted := make([]bool, len(ids))
		wanted[0] = true
		check("Leftovers", wanted, func() (any, error) { return c.Leftovers(ctx, pg, ids) }, pg, ids)
		check("WantedChunks", wanted, func() (any, error) { return c.WantedChunks(ctx, pg, ids) }, pg, ids)
		check("Members", members{r.Uint64(), []int{3, 0, maxOSD}}, func() (any, error) {
			term, osds, err := c.Members(ctx, pg)
			return members{term, osds}, err
		}, pg)
		for _, n := range []int{0, 1, smallChunk, smallChunk + 1, objstore.StoredMax} {
			data := filler{r}.bytes(n)
			off := uint32(objstore.StoredMax - n)
			arrives := data
			if n == 0 {
				arrives = nil
			}
			check("PutChunk", nil, func() (any, error) { return nil, c.PutChunk(ctx, id, data) }, id, arrives)
			check("ReadChunk", data, func() (any, error) {
				p := make([]byte, n)
				return p, c.ReadChunk(ctx, pg, id, off, p)
			}, pg, id, off, n)
			check("FetchChunk", data, func() (any, error) { return c.FetchChunk(ctx, id) }, id)
		}
	}
	for typ := range reflect.TypeFor[Backend]().Methods() {
		if !called[typ.Name] && typ.Name != "Step" && typ.Name != "PullGroup" && typ.Name != "Subscribe" && typ.Name != "Scrub" {
			t.Errorf("%s is not tested", typ.Name)
		}
	}
}

// Lists that do not fit one answer come in several.
func TestLongLists(t *testing.T) {
	a, ctx := newAuthority(t), t.Context()
	entries := make([]objstore.DirEntry, 2*maxEntries+10)
	for i := range entries {
		entries[i] = objstore.DirEntry{Name: fmt.Sprint(i), Ino: objstore.Ino(i), Cookie: uint64(i + 1)}
	}
	extents := make([]objstore.Extent, 3000)
	for i := range extents {
		extents[i] = objstore.Extent{Off: uint64(i) << 22, Len: objstore.InlineMax, Kind: objstore.Inline, Data: make([]byte, objstore.InlineMax)}
	}
	f := &fake{call: func(_ context.Context, name string, args ...any) (any, error) {
		if name == "ReadDir" {
			after, limit := int(args[2].(uint64)), args[3].(int)
			return entries[after:min(after+limit, len(entries))], nil
		}
		from, end := args[2].(uint64)/objstore.ChunkSize, args[2].(uint64)+args[3].(uint64)
		if args[2].(uint64) > from*objstore.ChunkSize {
			from++
		}
		return extents[from : (end+objstore.ChunkSize-1)/objstore.ChunkSize], nil
	}}
	_, addr := serve(t, a, 3, "", f, ServerOptions{})
	c := connect(t, addr, 3, a.config(t, roleClient, "client.mx1"))
	for _, limit := range []int{0, 1, maxEntries, maxEntries + 1, len(entries), math.MaxInt} {
		got, err := c.ReadDir(ctx, 0, 0, 0, limit, false)
		want := entries[:min(limit, len(entries))]
		if err != nil || len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("%d of up to %d entries, %v", len(got), limit, err)
		}
	}
	got, err := c.Extents(ctx, 0, 0, 0, uint64(len(extents))<<22)
	if err != nil || !reflect.DeepEqual(got, extents) {
		t.Errorf("%d extents, %v", len(got), err)
	}
}

func TestErrors(t *testing.T) {
	a, ctx := newAuthority(t), t.Context()
	var fail error
	f := &fake{call: func(context.Context, string, ...any) (any, error) { return nil, fail }}
	_, addr := serve(t, a, 3, "", f, ServerOptions{})
	c := connect(t, addr, 3, a.config(t, roleClient, "client.mx1"))
	for kind := objstore.Kind(1); kind.Error() != "unknown failure"; kind++ {
		fail = fmt.Errorf("a reason with \xff and %s: %w", strings.Repeat("é", int(kind)*200), kind)
		err := c.Sync(ctx, 1)
		var no *NoAnswer
		if !errors.Is(err, kind) || errors.As(err, &no) {
			t.Errorf("%v came back as %#v", kind, err)
		}
		for other := objstore.Kind(1); other.Error() != "unknown failure"; other++ {
			if errors.Is(err, other) != (other == kind) {
				t.Errorf("%v came back as %v too", kind, other)
			}
		}
		if !strings.HasPrefix(err.Error(), "osd.3: a reason with ") {
			t.Errorf("text: %v", err)
		}
	}
	for _, leader := range []int{-1, 0, 7} {
		fail = fmt.Errorf("apply: %w", &objstore.LeaderError{PG: 12, Leader: leader})
		var got *objstore.LeaderError
		if err := c.Sync(ctx, 1); !errors.As(err, &got) || got.PG != 12 || got.Leader != leader || !errors.Is(err, objstore.Elsewhere) {
			t.Errorf("leader %d came back as %v, %+v", leader, err, got)
		}
	}
	fail = errors.New("of no kind")
	var kind objstore.Kind
	if err := c.Sync(ctx, 1); err == nil || errors.As(err, &kind) || !strings.Contains(err.Error(), "of no kind") {
		t.Errorf("an error of no kind came back as %v", err)
	}
}

// gRPC can end a call for its deadline before the caller's context knows of it.
func TestDeadlineOfTransport(t *testing.T) {
	err := errFromWire(t.Context(), 3, status.Error(codes.DeadlineExceeded, "stream terminated"))
	noAnswer(t, "deadline", err)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
}

// The numbers of kinds are in the protocol.
func TestKindNumbers(t *testing.T) {
	if objstore.NotFound != 1 || objstore.Invalid != 11 || objstore.Unavailable != 17 || objstore.Elsewhere != 20 {
		t.Error("numbers of kinds have changed")
	}
}

func noAnswer(t *testing.T, what string, err error) {
	t.Helper()
	var no *NoAnswer
	if !errors.Is(err, objstore.Unavailable) || !errors.As(err, &no) {
		t.Errorf("%s: %v", what, err)
	}
}

func TestNoAnswer(t *testing.T) {
	a := newAuthority(t)
	entered := make(chan struct{}, 1)
	f := &fake{call: func(ctx context.Context, name string, _ ...any) (any, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	s, addr := serve(t, a, 3, "", f, ServerOptions{})
	cfg := a.config(t, roleClient, "client.mx1")
	c := connect(t, addr, 3, cfg)

	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	go func() { done <- c.Sync(ctx, 1) }()
	await(t, entered, 10*time.Second, "call")
	err := await(t, done, 10*time.Second, "end of call")
	noAnswer(t, "deadline", err)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- c.PutChunk(ctx, objstore.ChunkID{}, make([]byte, objstore.ChunkSize)) }()
	await(t, entered, 10*time.Second, "call")
	cancel()
	err = await(t, done, 10*time.Second, "end of call")
	noAnswer(t, "cancelled", err)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}

	go func() { done <- c.Sync(t.Context(), 1) }()
	await(t, entered, 5*time.Second, "call")
	s.Stop()
	noAnswer(t, "server gone", await(t, done, 5*time.Second, "end of call"))
	noAnswer(t, "connection refused", c.Sync(t.Context(), 1))

	// Another OSD where this one was.
	_, addr = serve(t, a, 4, "", f, ServerOptions{})
	err = connect(t, addr, 3, cfg).Sync(t.Context(), 1)
	noAnswer(t, "wrong OSD", err)
	if !strings.Contains(fmt.Sprint(err), "osd.4") {
		t.Errorf("wrong OSD: %v", err)
	}
}

func TestRoles(t *testing.T) {
	a, ctx := newAuthority(t), t.Context()
	f := &fake{
		call: func(context.Context, string, ...any) (any, error) { return nil, nil },
		step: func(int, []osd.RaftMessage) error { return nil },
		pull: func(context.Context, uint32, func(osd.GroupPiece) error) error { return nil },
	}
	_, addr := serve(t, a, 3, "", f, ServerOptions{})
	for _, who := range []struct {
		role, name  string
		asks, peers bool
	}{
		{"osd", "osd.4", true, true},
		{"client", "client.mx1", true, false},
		{"admin", "admin", true, false},
		{"mon", "mon.a", false, false},
		{"client", "osd.4", true, false},
		{"", "osd.4", false, false},
	} {
		c := connect(t, addr, 3, a.config(t, who.role, who.name))
		check := func(what string, err error, may bool) {
			t.Helper()
			var no *NoAnswer
			if may != (err == nil) || err != nil && (!errors.Is(err, objstore.NotPermitted) || errors.As(err, &no)) {
				t.Errorf("%s %s, %s: %v", who.role, who.name, what, err)
			}
		}
		check("Sync", c.Sync(ctx, 1), who.asks)
		check("PutChunk", c.PutChunk(ctx, objstore.ChunkID{}, nil), who.asks)
		check("DropChunks", c.DropChunks(ctx, nil), who.peers)
		check("PullGroup", c.PullGroup(ctx, 1, nil), who.peers)
	}
	// A role of osd does not make an OSD of a name.
	for _, name := range []string{"osd.x", "osd.03", "osd.-1", "mon.3", "osd.", "osd.4294967296"} {
		if id, err := osdOf(name); !errors.Is(err, objstore.NotPermitted) {
			t.Errorf("%s is OSD %d, %v", name, id, err)
		}
	}
}

func TestCertificates(t *testing.T) {
	a, ctx := newAuthority(t), t.Context()
	f := &fake{call: func(context.Context, string, ...any) (any, error) {
		t.Error("a stranger's call arrived")
		return nil, nil
	}}
	_, addr := serve(t, a, 3, "", f, ServerOptions{})
	none := a.config(t, roleOSD, "osd.4")
	none.Certificates = nil
	noAnswer(t, "no certificate", connect(t, addr, 3, none).Sync(ctx, 1))
	other := newAuthority(t).config(t, roleOSD, "osd.4")
	other.RootCAs = a.pool
	noAnswer(t, "certificate of another authority", connect(t, addr, 3, other).Sync(ctx, 1))
	trusting := a.config(t, roleOSD, "osd.4")
	trusting.RootCAs = newAuthority(t).pool
	noAnswer(t, "server of another authority", connect(t, addr, 3, trusting).Sync(ctx, 1))

	if _, err := Dial(addr, 3, &tls.Config{}); !errors.Is(err, objstore.Invalid) {
		t.Errorf("a client that trusts anybody: %v", err)
	}
	if _, err := NewServer(f, ServerOptions{TLS: &tls.Config{}}); !errors.Is(err, objstore.Invalid) {
		t.Errorf("a server that trusts anybody: %v", err)
	}
}

// What is no TLS, or no HTTP/2 within it, costs the others nothing.
func TestGarbage(t *testing.T) {
	a, ctx := newAuthority(t), t.Context()
	f := &fake{call: func(context.Context, string, ...any) (any, error) { return nil, nil }}
	_, addr := serve(t, a, 3, "", f, ServerOptions{})
	cfg := a.config(t, roleClient, "client.mx1")
	c := connect(t, addr, 3, cfg)
	if err := c.Sync(ctx, 1); err != nil {
		t.Fatal(err)
	}
	inside, err := clientTLS(cfg, 3)
	if err != nil {
		t.Fatal(err)
	}
	inside.NextProtos = []string{"h2"}
	r := filler{seeded(t)}
	for i := range 40 {
		raw, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		var conn net.Conn = raw
		if i%2 == 1 {
			conn = tls.Client(raw, inside)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		conn.Write(r.bytes(1 + r.IntN(10000)))
		if i%3 == 0 {
			raw.Close()
			continue
		}
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, context.DeadlineExceeded) {
			t.Error("the server keeps a connection that brings garbage")
		}
		raw.Close()
		if err := c.Sync(ctx, 1); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadRequests(t *testing.T) {
	a, ctx := newAuthority(t), t.Context()
	f := &fake{call: func(_ context.Context, name string, _ ...any) (any, error) {
		t.Errorf("%s arrived", name)
		return nil, nil
	}}
	_, addr := serve(t, a, 3, "", f, ServerOptions{})
	c := connect(t, addr, 3, a.config(t, roleOSD, "osd.4"))
	long := strings.Repeat("x", 256)
	many := make([]objstore.ChunkID, osd.MaxChunkList+1)
	for what, c := range map[string]struct {
		err  error
		want objstore.Kind
	}{
		"long name":            {second(c.Lookup(ctx, 0, 1, long)), objstore.NameTooLong},
		"long attribute name":  {second(c.GetXattr(ctx, 0, 1, long)), objstore.NameTooLong},
		"volume":               {second(c.Orphans(ctx, 0, objstore.MaxVolume+1, 1)), objstore.Invalid},
		"promise":              {second(c.Apply(ctx, 0, objstore.Request{}, objstore.Purge{}, 2)), objstore.Invalid},
		"large change":         {second(c.Apply(ctx, 0, objstore.Request{}, objstore.SetXattr{Value: make([]byte, maxChange)}, 0)), objstore.Invalid},
		"change over 16 MiB":   {second(c.Apply(ctx, 0, objstore.Request{}, objstore.SetXattr{Value: make([]byte, maxMessage)}, 0)), objstore.Invalid},
		"end of a chunk":       {c.ReadChunk(ctx, 0, objstore.ChunkID{}, 1, make([]byte, objstore.StoredMax)), objstore.Invalid},
		"large chunk":          {c.PutChunk(ctx, objstore.ChunkID{}, make([]byte, objstore.StoredMax+1)), objstore.Invalid},
		"many chunks":          {second(c.HasChunks(ctx, many)), objstore.Invalid},
		"many shards":          {second(c.HeldShards(ctx, many)), objstore.Invalid},
		"many chunks to drop":  {c.DropChunks(ctx, many), objstore.Invalid},
		"many chunks to doubt": {second(c.WantedChunks(ctx, 0, many)), objstore.Invalid},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v", what, c.err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
