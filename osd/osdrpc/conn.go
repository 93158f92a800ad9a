package osdrpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"unsafe"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
	"pillarbox/osd"
	"pillarbox/osd/osdrpc/osdv1"
)

// Conn is one OSD, over the network.
type Conn struct {
	id     int
	addr   string
	short  *link   // calls with little data, and raft's stream
	bulk   *link   // chunks and groups' states
	sender *sender // nil unless it belongs to Conns
}

var (
	_ client.OSD = (*Conn)(nil)
	_ osd.Peer   = (*Conn)(nil)
)

// Dial makes a Conn to OSD id at addr, host:port. It connects when it is first
// used. cfg has the caller's certificate, and the cluster's authority in RootCAs.
func Dial(addr string, id int, cfg *tls.Config) (*Conn, error) {
	return dial(addr, id, cfg, func(error) {})
}

func dial(addr string, id int, cfg *tls.Config, dialed func(error)) (*Conn, error) {
	cfg, err := clientTLS(cfg, id)
	if err != nil {
		return nil, err
	}
	c := &Conn{id: id, addr: addr}
	if c.short, err = newLink(addr, cfg, dialed); err != nil {
		return nil, err
	}
	if c.bulk, err = newLink(addr, cfg, func(error) {}); err != nil {
		c.short.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection; calls under way get a NoAnswer.
func (c *Conn) Close() error {
	if c.sender != nil {
		c.sender.stop()
	}
	return errors.Join(c.short.Close(), c.bulk.Close())
}

// Addr is the address that the Conn was made with.
func (c *Conn) Addr() string { return c.addr }

// smallChunk is up to which size bytes of chunks go with the short calls.
const smallChunk = 64 << 10

func (c *Conn) linkFor(bytes int) *link {
	if bytes <= smallChunk {
		return c.short
	}
	return c.bulk
}

func (c *Conn) osd() osdv1.OSDClient { return osdv1.NewOSDClient(c.short) }

func (c *Conn) peer() osdv1.PeerClient { return osdv1.NewPeerClient(c.short) }

func (c *Conn) fail(ctx context.Context, err error) error { return errFromWire(ctx, c.id, err) }

// bad is an answer that no OSD should give. Its kind is not that of a request
// refused.
func (c *Conn) bad(format string, args ...any) error {
	return fmt.Errorf("answer of osd.%d: %s: %w", c.id, fmt.Sprintf(format, args...), objstore.Corrupt)
}

// Lookup implements client.OSD.
func (c *Conn) Lookup(ctx context.Context, pg uint32, dir objstore.Ino, name string) (objstore.DirEntry, error) {
	m, err := c.osd().Lookup(ctx, &osdv1.LookupRequest{Pg: pg, Dir: uint64(dir), Name: []byte(name)})
	if err != nil {
		return objstore.DirEntry{}, c.fail(ctx, err)
	}
	var d decoder
	e := d.entry(m)
	if d.err != nil {
		return objstore.DirEntry{}, c.bad("%v", d.err)
	}
	return e, nil
}

// GetAttr implements client.OSD.
func (c *Conn) GetAttr(ctx context.Context, pg uint32, ino objstore.Ino) (objstore.Attr, error) {
	m, err := c.osd().GetAttr(ctx, &osdv1.InodeRequest{Pg: pg, Ino: uint64(ino)})
	if err != nil {
		return objstore.Attr{}, c.fail(ctx, err)
	}
	return attrFromWire(m), nil
}

// ReadDir implements client.OSD. Long lists take several calls.
func (c *Conn) ReadDir(ctx context.Context, pg uint32, dir objstore.Ino, after uint64, limit int, attrs bool) ([]objstore.DirEntry, error) {
	var out []objstore.DirEntry
	limit = max(limit, 0)
	for {
		n := min(limit-len(out), maxEntries)
		m, err := c.osd().ReadDir(ctx, &osdv1.ReadDirRequest{Pg: pg, Dir: uint64(dir), After: after, Max: uint32(n), Attrs: attrs})
		if err != nil {
			return nil, c.fail(ctx, err)
		}
		if len(m.GetEntries()) > n {
			return nil, c.bad("%d entries where %d were asked for", len(m.GetEntries()), n)
		}
		var d decoder
		for _, e := range m.GetEntries() {
			if e.GetCookie() <= after {
				return nil, c.bad("entries out of order")
			}
			after = e.GetCookie()
			out = append(out, d.entry(e))
		}
		if d.err != nil {
			return nil, c.bad("%v", d.err)
		}
		if len(m.GetEntries()) < n || len(out) == limit {
			return out, nil
		}
	}
}

// Readlink implements client.OSD.
func (c *Conn) Readlink(ctx context.Context, pg uint32, ino objstore.Ino) (string, error) {
	m, err := c.osd().Readlink(ctx, &osdv1.InodeRequest{Pg: pg, Ino: uint64(ino)})
	if err != nil {
		return "", c.fail(ctx, err)
	}
	var d decoder
	target := d.target(m.GetTarget())
	if d.err != nil {
		return "", c.bad("%v", d.err)
	}
	return target, nil
}

// GetXattr implements client.OSD.
func (c *Conn) GetXattr(ctx context.Context, pg uint32, ino objstore.Ino, name string) ([]byte, error) {
	m, err := c.osd().GetXattr(ctx, &osdv1.GetXattrRequest{Pg: pg, Ino: uint64(ino), Name: []byte(name)})
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	var d decoder
	v := d.value(m.GetValue())
	if d.err != nil {
		return nil, c.bad("%v", d.err)
	}
	return v, nil
}

// ListXattr implements client.OSD.
func (c *Conn) ListXattr(ctx context.Context, pg uint32, ino objstore.Ino) ([]string, error) {
	m, err := c.osd().ListXattr(ctx, &osdv1.InodeRequest{Pg: pg, Ino: uint64(ino)})
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	var d decoder
	var out []string
	for _, name := range m.GetNames() {
		out = append(out, d.xattrName(name))
	}
	if d.err != nil {
		return nil, c.bad("%v", d.err)
	}
	return out, nil
}

// Extents implements client.OSD. Long lists take several calls.
func (c *Conn) Extents(ctx context.Context, pg uint32, ino objstore.Ino, off, n uint64) ([]objstore.Extent, error) {
	end := off + n
	if end < off {
		end = math.MaxUint64
	}
	var out []objstore.Extent
	for {
		m, err := c.osd().Extents(ctx, &osdv1.ExtentsRequest{Pg: pg, Ino: uint64(ino), Off: off, Len: end - off})
		if err != nil {
			return nil, c.fail(ctx, err)
		}
		var d decoder
		es := d.extents(m.GetExtents())
		if d.err != nil {
			return nil, c.bad("%v", d.err)
		}
		out = append(out, es...)
		if !m.GetMore() {
			return out, nil
		}
		if len(es) == 0 || es[len(es)-1].End() <= off || es[len(es)-1].End() >= end {
			return nil, c.bad("more extents than there can be")
		}
		off = es[len(es)-1].End()
	}
}

// Pending implements client.OSD.
func (c *Conn) Pending(ctx context.Context, pg uint32) ([]objstore.VolumeID, error) {
	m, err := c.osd().Pending(ctx, &osdv1.GroupRequest{Pg: pg})
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	var d decoder
	var out []objstore.VolumeID
	for _, v := range m.GetVolumes() {
		out = append(out, d.volume(v))
	}
	if d.err != nil {
		return nil, c.bad("%v", d.err)
	}
	return out, nil
}

// Orphans implements client.OSD. It returns at most 65536.
func (c *Conn) Orphans(ctx context.Context, pg uint32, vol objstore.VolumeID, limit int) ([]objstore.Ino, error) {
	limit = min(max(limit, 0), maxList)
	m, err := c.osd().Orphans(ctx, &osdv1.OrphansRequest{Pg: pg, Volume: uint32(vol), Max: uint32(limit)})
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	var d decoder
	out := d.inos(m.GetInos(), limit)
	if d.err != nil {
		return nil, c.bad("%v", d.err)
	}
	return out, nil
}

// Freed implements client.OSD. It returns at most maxFreed.
func (c *Conn) Freed(ctx context.Context, pg uint32, limit int) ([]objstore.ChunkID, error) {
	limit = min(max(limit, 0), maxFreed)
	m, err := c.osd().Freed(ctx, &osdv1.FreedRequest{Pg: pg, Max: uint32(limit)})
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	var d decoder
	out := d.chunks(m.GetIds(), limit)
	if d.err != nil {
		return nil, c.bad("%v", d.err)
	}
	return out, nil
}

// Apply implements client.OSD.
func (c *Conn) Apply(ctx context.Context, pg uint32, r objstore.Request, ch objstore.Change, p objstore.Promise) (objstore.Result, error) {
	w, err := changeToWire(ch)
	if err != nil {
		return objstore.Result{}, err
	}
	m, err := c.osd().Apply(ctx, &osdv1.ApplyRequest{Pg: pg, Request: requestToWire(r), Promise: uint32(p), Change: w})
	if err != nil {
		return objstore.Result{}, c.fail(ctx, err)
	}
	var d decoder
	res := d.result(m)
	if d.err != nil {
		return objstore.Result{}, c.bad("%v", d.err)
	}
	return res, nil
}

// Sync implements client.OSD.
func (c *Conn) Sync(ctx context.Context, pg uint32) error {
	_, err := c.osd().Sync(ctx, &osdv1.GroupRequest{Pg: pg})
	return c.fail(ctx, err)
}

// ReadChunk implements client.OSD.
func (c *Conn) ReadChunk(ctx context.Context, pg uint32, id objstore.ChunkID, off uint32, p []byte) error {
	if uint64(off)+uint64(len(p)) > objstore.StoredMax {
		return fmt.Errorf("read %d bytes at %d of chunk %v: %w", len(p), off, id, objstore.Invalid)
	}
	m := &osdv1.ReadChunkResponse{Data: p[:0:len(p)]} // where the codec puts the bytes
	req := &osdv1.ReadChunkRequest{Pg: pg, Id: chunkToWire(id), Off: off, Len: uint32(len(p))}
	if err := c.linkFor(len(p)).Invoke(ctx, osdv1.OSD_ReadChunk_FullMethodName, req, m); err != nil {
		return c.fail(ctx, err)
	}
	if len(m.Data) != len(p) {
		return c.bad("%d bytes of chunk %v where %d were asked for", len(m.Data), id, len(p))
	}
	if unsafe.SliceData(m.Data) != unsafe.SliceData(p) {
		copy(p, m.Data)
	}
	return nil
}

// PutChunk implements client.OSD and osd.Peer.
func (c *Conn) PutChunk(ctx context.Context, id objstore.ChunkID, data []byte) error {
	if len(data) > objstore.StoredMax {
		return fmt.Errorf("store chunk %v of %d bytes: %w", id, len(data), objstore.Invalid)
	}
	_, err := osdv1.NewOSDClient(c.linkFor(len(data))).PutChunk(ctx, &osdv1.PutChunkRequest{Id: chunkToWire(id), Data: data})
	return c.fail(ctx, err)
}

// Space implements client.OSD.
func (c *Conn) Space(ctx context.Context) (objstore.Disk, error) {
	m, err := c.osd().Space(ctx, &osdv1.SpaceRequest{})
	return objstore.Disk{Total: m.GetTotal(), Free: m.GetFree(), Files: m.GetFiles()}, c.fail(ctx, err)
}

// HasChunks implements osd.Peer.
func (c *Conn) HasChunks(ctx context.Context, ids []objstore.ChunkID) ([]bool, error) {
	m, err := c.peer().HasChunks(ctx, &osdv1.ChunkList{Ids: chunksToWire(ids)})
	return c.answers(ctx, m, err, len(ids))
}

// HeldShards implements osd.Peer.
func (c *Conn) HeldShards(ctx context.Context, ids []objstore.ChunkID) ([]int, error) {
	m, err := c.peer().HeldShards(ctx, &osdv1.ChunkList{Ids: chunksToWire(ids)})
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	if len(m.GetHeld()) != len(ids) {
		return nil, c.bad("%d answers to %d questions", len(m.GetHeld()), len(ids))
	}
	held := make([]int, len(ids))
	for i, n := range m.GetHeld() {
		held[i] = int(n) - 1
	}
	return held, nil
}

func (c *Conn) answers(ctx context.Context, m *osdv1.Answers, err error, n int) ([]bool, error) {
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	if len(m.GetYes()) != n {
		return nil, c.bad("%d answers to %d questions", len(m.GetYes()), n)
	}
	return m.GetYes(), nil
}

// FetchChunk implements osd.Peer.
func (c *Conn) FetchChunk(ctx context.Context, id objstore.ChunkID) ([]byte, error) {
	m, err := osdv1.NewPeerClient(c.bulk).FetchChunk(ctx, chunkToWire(id))
	if err != nil {
		return nil, c.fail(ctx, err)
	}
	if len(m.GetData()) > objstore.StoredMax {
		return nil, c.bad("chunk %v of %d bytes", id, len(m.GetData()))
	}
	return m.GetData(), nil
}

// DropChunks implements osd.Peer.
func (c *Conn) DropChunks(ctx context.Context, ids []objstore.ChunkID) error {
	_, err := c.peer().DropChunks(ctx, &osdv1.ChunkList{Ids: chunksToWire(ids)})
	return c.fail(ctx, err)
}

// WantedChunks implements osd.Peer.
func (c *Conn) WantedChunks(ctx context.Context, pg uint32, ids []objstore.ChunkID) ([]bool, error) {
	m, err := c.peer().WantedChunks(ctx, &osdv1.WantedChunksRequest{Pg: pg, Ids: chunksToWire(ids)})
	return c.answers(ctx, m, err, len(ids))
}

// Leftovers implements osd.Peer.
func (c *Conn) Leftovers(ctx context.Context, pg uint32, ids []objstore.ChunkID) ([]bool, error) {
	m, err := c.peer().Leftovers(ctx, &osdv1.WantedChunksRequest{Pg: pg, Ids: chunksToWire(ids)})
	return c.answers(ctx, m, err, len(ids))
}

// Members implements osd.Peer.
func (c *Conn) Members(ctx context.Context, pg uint32) (term uint64, osds []int, err error) {
	m, err := c.peer().Members(ctx, &osdv1.GroupRequest{Pg: pg})
	if err != nil {
		return 0, nil, c.fail(ctx, err)
	}
	var d decoder
	if !d.list("members", len(m.GetOsds()), maxMembers) {
		return 0, nil, c.bad("%v", d.err)
	}
	for _, id := range m.GetOsds() {
		osds = append(osds, d.osd(int64(id)))
	}
	if d.err != nil {
		return 0, nil, c.bad("%v", d.err)
	}
	return m.GetTerm(), osds, nil
}

// PullGroup gets a group's state piece by piece; see osd.Peers. The OSD waits
// while take does.
func (c *Conn) PullGroup(ctx context.Context, pg uint32, take func(osd.GroupPiece) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := osdv1.NewPeerClient(c.bulk).PullGroup(ctx, &osdv1.GroupRequest{Pg: pg})
	if err != nil {
		return c.fail(ctx, err)
	}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return c.fail(ctx, err)
		}
		var d decoder
		for _, w := range m.GetPieces() {
			p := d.piece(w)
			if d.err != nil {
				return c.bad("%v", d.err)
			}
			if err := take(p); err != nil {
				return err
			}
		}
	}
}
