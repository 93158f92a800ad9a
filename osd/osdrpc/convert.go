package osdrpc

import (
	"fmt"

	"pillarbox/guard"
	"pillarbox/objstore"
	"pillarbox/osd"
	"pillarbox/osd/osdrpc/osdv1"
)

// decoder turns wire types into Go's and keeps the first thing found wrong.
type decoder struct{ err error }

func (d *decoder) fail(kind objstore.Kind, format string, args ...any) {
	if d.err == nil {
		d.err = &guard.BadMessage{Err: fmt.Errorf(format+": %w", append(args, kind)...)}
	}
}

func (d *decoder) bytes(what string, b []byte, limit int, kind objstore.Kind) []byte {
	if len(b) > limit {
		d.fail(kind, "%s of %d bytes", what, len(b))
		return nil
	}
	if len(b) == 0 {
		return nil
	}
	return b
}

// name may be empty, which means something in a Create.
func (d *decoder) name(b []byte) string {
	return string(d.bytes("name", b, objstore.MaxName, objstore.NameTooLong))
}

func (d *decoder) xattrName(b []byte) string {
	return string(d.bytes("attribute name", b, objstore.MaxXattrName, objstore.NameTooLong))
}

func (d *decoder) target(b []byte) string {
	return string(d.bytes("symlink", b, objstore.MaxSymlink, objstore.NameTooLong))
}

func (d *decoder) value(b []byte) []byte {
	return d.bytes("attribute", b, objstore.MaxXattr, objstore.TooBig)
}

func (d *decoder) list(what string, n, limit int) bool {
	if n > limit {
		d.fail(objstore.Invalid, "list of %d %s", n, what)
	}
	return n <= limit
}

func (d *decoder) volume(v uint32) objstore.VolumeID {
	if v > uint32(objstore.MaxVolume) {
		d.fail(objstore.Invalid, "volume %d", v)
	}
	return objstore.VolumeID(v)
}

func (d *decoder) osd(id int64) int {
	if id < 0 || id > maxOSD {
		d.fail(objstore.Invalid, "OSD id %d", id)
	}
	return int(id)
}

func inosToWire(in []objstore.Ino) []uint64 {
	out := make([]uint64, len(in))
	for i, ino := range in {
		out[i] = uint64(ino)
	}
	return out
}

func (d *decoder) inos(in []uint64, limit int) []objstore.Ino {
	if len(in) == 0 || !d.list("inodes", len(in), limit) {
		return nil
	}
	out := make([]objstore.Ino, len(in))
	for i, ino := range in {
		out[i] = objstore.Ino(ino)
	}
	return out
}

func chunkToWire(id objstore.ChunkID) *osdv1.ChunkID {
	return &osdv1.ChunkID{Ino: uint64(id.Ino), Index: id.Index, Version: id.Version}
}

func (d *decoder) chunk(m *osdv1.ChunkID) objstore.ChunkID {
	if m == nil {
		d.fail(objstore.Invalid, "no chunk id")
	}
	return objstore.ChunkID{Ino: objstore.Ino(m.GetIno()), Index: m.GetIndex(), Version: m.GetVersion()}
}

func chunksToWire(in []objstore.ChunkID) []*osdv1.ChunkID {
	out := make([]*osdv1.ChunkID, len(in))
	for i, id := range in {
		out[i] = chunkToWire(id)
	}
	return out
}

func (d *decoder) chunks(in []*osdv1.ChunkID, limit int) []objstore.ChunkID {
	if len(in) == 0 || !d.list("chunks", len(in), limit) {
		return nil
	}
	out := make([]objstore.ChunkID, len(in))
	for i, id := range in {
		out[i] = d.chunk(id)
	}
	return out
}

// span checks that bytes lie within a chunk as it is stored.
func (d *decoder) span(off, n uint32) {
	if uint64(off)+uint64(n) > objstore.StoredMax {
		d.fail(objstore.Invalid, "%d bytes at %d of a chunk", n, off)
	}
}

func extentsToWire(in []objstore.Extent) []*osdv1.Extent {
	out := make([]*osdv1.Extent, len(in))
	for i, e := range in {
		out[i] = &osdv1.Extent{Off: e.Off, Len: e.Len, Kind: uint32(e.Kind), ChunkOff: e.ChunkOff, Data: e.Data}
		if e.Chunk != (objstore.ChunkID{}) {
			out[i].Chunk = chunkToWire(e.Chunk)
		}
	}
	return out
}

func (d *decoder) extents(in []*osdv1.Extent) []objstore.Extent {
	if len(in) == 0 || !d.list("extents", len(in), maxList) {
		return nil
	}
	out := make([]objstore.Extent, len(in))
	for i, e := range in {
		out[i] = d.extent(e)
	}
	return out
}

func (d *decoder) extent(m *osdv1.Extent) objstore.Extent {
	e := objstore.Extent{Off: m.GetOff(), Len: m.GetLen(), ChunkOff: m.GetChunkOff()}
	if m.GetKind() > uint32(objstore.Pooled) {
		d.fail(objstore.Invalid, "extent of kind %d", m.GetKind())
		return e
	}
	e.Kind = objstore.ExtentKind(m.GetKind())
	if m.GetChunk() != nil {
		e.Chunk = d.chunk(m.GetChunk())
	}
	if e.Len == 0 || e.Len > objstore.ChunkSize || e.Off/objstore.ChunkSize != (e.End()-1)/objstore.ChunkSize {
		d.fail(objstore.Invalid, "extent of %d bytes at %d", e.Len, e.Off)
	}
	if uint64(e.ChunkOff)+uint64(e.Len) > objstore.ChunkSize {
		d.fail(objstore.Invalid, "extent of %d bytes at %d of a chunk", e.Len, e.ChunkOff)
	}
	limit := 0
	switch e.Kind {
	case objstore.Inline:
		limit = objstore.InlineMax
	case objstore.Resident:
		limit = objstore.ResidentMax + objstore.SealRoom
	}
	e.Data = d.bytes("data of an extent", m.GetData(), limit, objstore.Invalid)
	return e
}

func attrToWire(a *objstore.Attr) *osdv1.Attr {
	return &osdv1.Attr{
		Ino: uint64(a.Ino), Mode: a.Mode, Nlink: a.Nlink, Uid: a.Uid, Gid: a.Gid, Rdev: a.Rdev, Size: a.Size, Blocks: a.Blocks,
		Atime: a.Atime, Mtime: a.Mtime, Ctime: a.Ctime, Parent: uint64(a.Parent), HasXattr: a.HasXattr,
	}
}

func attrFromWire(m *osdv1.Attr) objstore.Attr {
	return objstore.Attr{
		Ino: objstore.Ino(m.GetIno()), Mode: m.GetMode(), Nlink: m.GetNlink(), Uid: m.GetUid(), Gid: m.GetGid(), Rdev: m.GetRdev(),
		Size: m.GetSize(), Blocks: m.GetBlocks(), Atime: m.GetAtime(), Mtime: m.GetMtime(), Ctime: m.GetCtime(),
		Parent: objstore.Ino(m.GetParent()), HasXattr: m.GetHasXattr(),
	}
}

func entryToWire(e *objstore.DirEntry) *osdv1.DirEntry {
	m := &osdv1.DirEntry{Name: []byte(e.Name), Ino: uint64(e.Ino), Type: e.Type, Cookie: e.Cookie}
	if e.Attr != nil {
		m.Attr = attrToWire(e.Attr)
	}
	return m
}

func (d *decoder) entry(m *osdv1.DirEntry) objstore.DirEntry {
	e := objstore.DirEntry{Name: d.name(m.GetName()), Ino: objstore.Ino(m.GetIno()), Type: m.GetType(), Cookie: m.GetCookie()}
	if m.GetAttr() != nil {
		a := attrFromWire(m.GetAttr())
		e.Attr = &a
	}
	return e
}

func resultToWire(r *objstore.Result) *osdv1.Result {
	m := &osdv1.Result{Attr: attrToWire(&r.Attr), Orphan: uint64(r.Orphan), Index: r.Index, Over: uint64(r.Over)}
	for i := range r.Dirs {
		if r.Dirs[i].Ino != 0 {
			m.Dirs = append(m.Dirs, attrToWire(&r.Dirs[i]))
		}
	}
	for _, id := range r.Chunks {
		m.Chunks = append(m.Chunks, chunkToWire(id))
	}
	return m
}

func (d *decoder) result(m *osdv1.Result) objstore.Result {
	r := objstore.Result{Attr: attrFromWire(m.GetAttr()), Orphan: objstore.Ino(m.GetOrphan()), Chunks: d.chunks(m.GetChunks(), maxList), Index: m.GetIndex(), Over: objstore.Ino(m.GetOver())}
	for i, a := range m.GetDirs()[:min(len(m.GetDirs()), len(r.Dirs))] {
		r.Dirs[i] = attrFromWire(a)
	}
	return r
}

func requestToWire(r objstore.Request) *osdv1.Request {
	return &osdv1.Request{Session: r.Session, Seq: r.Seq, Ack: r.Ack}
}

func requestFromWire(m *osdv1.Request) objstore.Request {
	return objstore.Request{Session: m.GetSession(), Seq: m.GetSeq(), Ack: m.GetAck()}
}

func (d *decoder) promise(p uint32) objstore.Promise {
	if p > uint32(objstore.Committed) {
		d.fail(objstore.Invalid, "promise %d", p)
	}
	return objstore.Promise(p)
}

func raftToWire(ms []osd.RaftMessage) *osdv1.RaftBatch {
	out := make([]*osdv1.RaftMessage, len(ms))
	for i, m := range ms {
		out[i] = &osdv1.RaftMessage{Pg: m.PG, Msg: m.Msg}
	}
	return &osdv1.RaftBatch{Messages: out}
}

func (d *decoder) raft(m *osdv1.RaftBatch) []osd.RaftMessage {
	out := make([]osd.RaftMessage, len(m.GetMessages()))
	for i, m := range m.GetMessages() {
		if m.GetMsg() == nil {
			d.fail(objstore.Invalid, "empty raft message")
		}
		out[i] = osd.RaftMessage{PG: m.GetPg(), Msg: m.GetMsg()}
	}
	return out
}

func pieceToWire(p osd.GroupPiece) *osdv1.GroupPiece {
	m := &osdv1.GroupPiece{Key: p.Key, Value: p.Value}
	if p.Head != nil {
		m.Head = &osdv1.GroupHead{Index: p.Head.Index, Term: p.Head.Term, Members: p.Head.Members, MembersIndex: p.Head.MembersIndex}
	}
	return m
}

func (d *decoder) piece(m *osdv1.GroupPiece) osd.GroupPiece {
	p := osd.GroupPiece{Key: d.bytes("key", m.GetKey(), maxKey, objstore.Invalid), Value: m.GetValue()}
	if h := m.GetHead(); h != nil {
		c := h.GetMembers()
		if c == nil || len(p.Key) != 0 {
			d.fail(objstore.Invalid, "head without members or with a key")
		}
		d.list("members", len(c.GetVoters())+len(c.GetLearners())+len(c.GetVotersOutgoing())+len(c.GetLearnersNext()), maxMembers)
		p.Head = &osd.GroupHead{Index: h.GetIndex(), Term: h.GetTerm(), Members: c, MembersIndex: h.GetMembersIndex()}
	} else if len(p.Key) == 0 {
		d.fail(objstore.Invalid, "piece without a key")
	}
	return p
}
