package osdrpc

import (
	"context"
	"fmt"

	"pillarbox/objstore"
	"pillarbox/osd/osdrpc/osdv1"
)

// osdService is what clients ask. Errors are encoded by the server's guard.
type osdService struct {
	osdv1.UnimplementedOSDServer
	s *Server
}

func (o *osdService) Lookup(ctx context.Context, m *osdv1.LookupRequest) (*osdv1.DirEntry, error) {
	var d decoder
	name := d.name(m.GetName())
	if d.err != nil {
		return nil, d.err
	}
	e, err := o.s.backend.Lookup(ctx, m.GetPg(), objstore.Ino(m.GetDir()), name)
	if err != nil {
		return nil, err
	}
	return entryToWire(&e), nil
}

func (o *osdService) GetAttr(ctx context.Context, m *osdv1.InodeRequest) (*osdv1.Attr, error) {
	a, err := o.s.backend.GetAttr(ctx, m.GetPg(), objstore.Ino(m.GetIno()))
	if err != nil {
		return nil, err
	}
	return attrToWire(&a), nil
}

func (o *osdService) ReadDir(ctx context.Context, m *osdv1.ReadDirRequest) (*osdv1.ReadDirResponse, error) {
	if m.GetMax() > maxEntries {
		return nil, fmt.Errorf("list %d entries: %w", m.GetMax(), objstore.Invalid)
	}
	es, err := o.s.backend.ReadDir(ctx, m.GetPg(), objstore.Ino(m.GetDir()), m.GetAfter(), int(m.GetMax()), m.GetAttrs())
	if err != nil {
		return nil, err
	}
	out := make([]*osdv1.DirEntry, len(es))
	for i := range es {
		out[i] = entryToWire(&es[i])
	}
	return &osdv1.ReadDirResponse{Entries: out}, nil
}

func (o *osdService) Readlink(ctx context.Context, m *osdv1.InodeRequest) (*osdv1.ReadlinkResponse, error) {
	target, err := o.s.backend.Readlink(ctx, m.GetPg(), objstore.Ino(m.GetIno()))
	if err != nil {
		return nil, err
	}
	return &osdv1.ReadlinkResponse{Target: []byte(target)}, nil
}

func (o *osdService) GetXattr(ctx context.Context, m *osdv1.GetXattrRequest) (*osdv1.GetXattrResponse, error) {
	var d decoder
	name := d.xattrName(m.GetName())
	if d.err != nil {
		return nil, d.err
	}
	v, err := o.s.backend.GetXattr(ctx, m.GetPg(), objstore.Ino(m.GetIno()), name)
	if err != nil {
		return nil, err
	}
	return &osdv1.GetXattrResponse{Value: v}, nil
}

func (o *osdService) ListXattr(ctx context.Context, m *osdv1.InodeRequest) (*osdv1.ListXattrResponse, error) {
	names, err := o.s.backend.ListXattr(ctx, m.GetPg(), objstore.Ino(m.GetIno()))
	if err != nil {
		return nil, err
	}
	out := make([][]byte, len(names))
	for i, name := range names {
		out[i] = []byte(name)
	}
	return &osdv1.ListXattrResponse{Names: out}, nil
}

func (o *osdService) Extents(ctx context.Context, m *osdv1.ExtentsRequest) (*osdv1.ExtentsResponse, error) {
	es, err := o.s.backend.Extents(ctx, m.GetPg(), objstore.Ino(m.GetIno()), m.GetOff(), m.GetLen())
	if err != nil {
		return nil, err
	}
	n, size := 0, 0
	for n < len(es) && n < maxList && size < extentBytes {
		size += len(es[n].Data) + 64
		n++
	}
	return &osdv1.ExtentsResponse{Extents: extentsToWire(es[:n]), More: n < len(es)}, nil
}

func (o *osdService) Pending(ctx context.Context, m *osdv1.GroupRequest) (*osdv1.PendingResponse, error) {
	vols, err := o.s.backend.Pending(ctx, m.GetPg())
	if err != nil {
		return nil, err
	}
	out := make([]uint32, len(vols))
	for i, v := range vols {
		out[i] = uint32(v)
	}
	return &osdv1.PendingResponse{Volumes: out}, nil
}

func (o *osdService) Orphans(ctx context.Context, m *osdv1.OrphansRequest) (*osdv1.OrphansResponse, error) {
	var d decoder
	vol := d.volume(m.GetVolume())
	d.list("orphans", int(m.GetMax()), maxList)
	if d.err != nil {
		return nil, d.err
	}
	inos, err := o.s.backend.Orphans(ctx, m.GetPg(), vol, int(m.GetMax()))
	if err != nil {
		return nil, err
	}
	return &osdv1.OrphansResponse{Inos: inosToWire(inos)}, nil
}

// maxFreed bounds one answer of Freed.
const maxFreed = 4096

func (o *osdService) Freed(ctx context.Context, m *osdv1.FreedRequest) (*osdv1.ChunkList, error) {
	var d decoder
	d.list("chunks", int(m.GetMax()), maxFreed)
	if d.err != nil {
		return nil, d.err
	}
	ids, err := o.s.backend.Freed(ctx, m.GetPg(), int(m.GetMax()))
	if err != nil {
		return nil, err
	}
	return &osdv1.ChunkList{Ids: chunksToWire(ids)}, nil
}

func (o *osdService) Apply(ctx context.Context, m *osdv1.ApplyRequest) (*osdv1.Result, error) {
	var d decoder
	c, p := d.change(m.GetChange()), d.promise(m.GetPromise())
	if d.err != nil {
		return nil, d.err
	}
	r, err := o.s.backend.Apply(ctx, m.GetPg(), requestFromWire(m.GetRequest()), c, p)
	if err != nil {
		return nil, err
	}
	return resultToWire(&r), nil
}

func (o *osdService) Sync(ctx context.Context, m *osdv1.GroupRequest) (*osdv1.Done, error) {
	return &osdv1.Done{}, o.s.backend.Sync(ctx, m.GetPg())
}

func (o *osdService) ReadChunk(ctx context.Context, m *osdv1.ReadChunkRequest) (*osdv1.ReadChunkResponse, error) {
	var d decoder
	id := d.chunk(m.GetId())
	d.span(m.GetOff(), m.GetLen())
	if d.err != nil {
		return nil, d.err
	}
	b := chunkBufs.Get(int(m.GetLen()))
	if err := o.s.backend.ReadChunk(ctx, m.GetPg(), id, m.GetOff(), *b); err != nil {
		chunkBufs.Put(b)
		return nil, err
	}
	return &osdv1.ReadChunkResponse{Data: *b}, nil
}

func (o *osdService) PutChunk(ctx context.Context, m *osdv1.PutChunkRequest) (*osdv1.Done, error) {
	var d decoder
	id := d.chunk(m.GetId())
	data := d.bytes("chunk", m.GetData(), objstore.StoredMax, objstore.Invalid)
	if d.err != nil {
		return nil, d.err
	}
	err := o.s.backend.PutChunk(ctx, id, data)
	chunkBufs.Put(&data)
	return &osdv1.Done{}, err
}

func (o *osdService) Space(ctx context.Context, _ *osdv1.SpaceRequest) (*osdv1.SpaceResponse, error) {
	d, err := o.s.backend.Space(ctx)
	if err != nil {
		return nil, err
	}
	return &osdv1.SpaceResponse{Total: d.Total, Free: d.Free, Files: d.Files}, nil
}
