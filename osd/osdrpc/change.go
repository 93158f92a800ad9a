package osdrpc

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"pillarbox/objstore"
	"pillarbox/osd/osdrpc/osdv1"
)

// changeToWire encodes a change. Unsupported: one that the wire does not know.
func changeToWire(c objstore.Change) (*osdv1.Change, error) {
	m := &osdv1.Change{}
	switch c := c.(type) {
	case objstore.Create:
		m.Change = &osdv1.Change_Create{Create: &osdv1.Create{
			Parent: uint64(c.Parent), Name: []byte(c.Name), Mode: c.Mode, Uid: c.Uid, Gid: c.Gid, Rdev: c.Rdev, Target: []byte(c.Target),
		}}
	case objstore.Link:
		m.Change = &osdv1.Change_Link{Link: &osdv1.Link{Ino: uint64(c.Ino), Parent: uint64(c.Parent), Name: []byte(c.Name), Over: uint64(c.Over)}}
	case objstore.Remove:
		m.Change = &osdv1.Change_Remove{Remove: &osdv1.Remove{
			Parent: uint64(c.Parent), Name: []byte(c.Name), Dir: c.Dir, Sealed: uint64(c.Sealed), Only: uint64(c.Only),
		}}
	case objstore.Rename:
		m.Change = &osdv1.Change_Rename{Rename: &osdv1.Rename{
			OldParent: uint64(c.OldParent), OldName: []byte(c.OldName), NewParent: uint64(c.NewParent), NewName: []byte(c.NewName),
			NoReplace: c.NoReplace, Exchange: c.Exchange, Sealed: uint64(c.Sealed),
		}}
	case objstore.SetAttr:
		m.Change = &osdv1.Change_SetAttr{SetAttr: &osdv1.SetAttr{
			Ino: uint64(c.Ino), Set: uint32(c.Set), Mode: c.Mode, Uid: c.Uid, Gid: c.Gid, Size: c.Size,
			Atime: c.Atime, Mtime: c.Mtime, Ctime: c.Ctime,
		}}
	case objstore.Write:
		m.Change = &osdv1.Change_Write{Write: &osdv1.Write{Ino: uint64(c.Ino), Size: c.Size, Extents: extentsToWire(c.Extents), Mtime: c.Mtime}}
	case objstore.Share:
		m.Change = &osdv1.Change_Share{Share: &osdv1.Share{
			Ino: uint64(c.Ino), Off: c.Off, Src: uint64(c.Src), SrcOff: c.SrcOff, Len: c.Len, Mtime: c.Mtime,
		}}
	case objstore.MoveChunk:
		m.Change = &osdv1.Change_MoveChunk{MoveChunk: &osdv1.MoveChunk{Ino: uint64(c.Ino), Off: c.Off, From: chunkToWire(c.From), To: chunkToWire(c.To), Len: c.Len, Again: c.Again}}
	case objstore.Pack:
		p := &osdv1.Pack{Vol: uint32(c.Vol), To: chunkToWire(c.To)}
		for _, mv := range c.Moves {
			p.Moves = append(p.Moves, &osdv1.PackMove{Ino: uint64(mv.Ino), From: chunkToWire(mv.From), FromOff: mv.FromOff, Len: mv.Len, Off: mv.Off})
		}
		m.Change = &osdv1.Change_Pack{Pack: p}
	case objstore.SetXattr:
		m.Change = &osdv1.Change_SetXattr{SetXattr: &osdv1.SetXattr{
			Ino: uint64(c.Ino), Name: []byte(c.Name), Value: c.Value, CreateOnly: c.CreateOnly, ReplaceOnly: c.ReplaceOnly,
		}}
	case objstore.RemoveXattr:
		m.Change = &osdv1.Change_RemoveXattr{RemoveXattr: &osdv1.RemoveXattr{Ino: uint64(c.Ino), Name: []byte(c.Name)}}
	case objstore.Purge:
		m.Change = &osdv1.Change_Purge{Purge: &osdv1.Purge{Vol: uint32(c.Vol), Inos: inosToWire(c.Inos)}}
	case objstore.FreeChunks:
		m.Change = &osdv1.Change_FreeChunks{FreeChunks: &osdv1.FreeChunks{Vol: uint32(c.Vol), Chunks: chunksToWire(c.Chunks)}}
	default:
		if !volumeToWire(m, c) {
			return nil, fmt.Errorf("send a %T: %w", c, objstore.Unsupported)
		}
	}
	return m, nil
}

// volumeToWire encodes the changes in the lives of volumes.
func volumeToWire(m *osdv1.Change, c objstore.Change) bool {
	switch c := c.(type) {
	case objstore.ReserveVolume:
		m.Change = &osdv1.Change_ReserveVolume{ReserveVolume: &osdv1.ReserveVolume{Parent: uint64(c.Parent), Name: []byte(c.Name)}}
	case objstore.InitVolume:
		m.Change = &osdv1.Change_InitVolume{InitVolume: &osdv1.InitVolume{
			Vol: uint32(c.Vol), Parent: uint64(c.Parent), Mode: c.Mode, Uid: c.Uid, Gid: c.Gid,
		}}
	case objstore.AttachVolume:
		m.Change = &osdv1.Change_AttachVolume{AttachVolume: &osdv1.AttachVolume{Vol: uint32(c.Vol), Parent: uint64(c.Parent), Name: []byte(c.Name)}}
	case objstore.SealVolume:
		m.Change = &osdv1.Change_SealVolume{SealVolume: &osdv1.SealVolume{Vol: uint32(c.Vol), Undo: c.Undo}}
	case objstore.DropVolume:
		m.Change = &osdv1.Change_DropVolume{DropVolume: &osdv1.DropVolume{Vol: uint32(c.Vol)}}
	case objstore.PendVolume:
		m.Change = &osdv1.Change_PendVolume{PendVolume: &osdv1.PendVolume{Vol: uint32(c.Vol), Done: c.Done}}
	case objstore.Reparent:
		m.Change = &osdv1.Change_Reparent{Reparent: &osdv1.Reparent{Vol: uint32(c.Vol), From: uint64(c.From), To: uint64(c.To)}}
	default:
		return false
	}
	return true
}

// change decodes a change. Unsupported: one of a newer program.
func (d *decoder) change(m *osdv1.Change) objstore.Change {
	if n := proto.Size(m); n > maxChange {
		d.fail(objstore.Invalid, "change of %d bytes", n)
		return nil
	}
	switch m := m.GetChange().(type) {
	case *osdv1.Change_Create:
		c := m.Create
		return objstore.Create{
			Parent: objstore.Ino(c.GetParent()), Name: d.name(c.GetName()), Mode: c.GetMode(), Uid: c.GetUid(), Gid: c.GetGid(),
			Rdev: c.GetRdev(), Target: d.target(c.GetTarget()),
		}
	case *osdv1.Change_Link:
		c := m.Link
		return objstore.Link{Ino: objstore.Ino(c.GetIno()), Parent: objstore.Ino(c.GetParent()), Name: d.name(c.GetName()), Over: objstore.Ino(c.GetOver())}
	case *osdv1.Change_Remove:
		c := m.Remove
		return objstore.Remove{
			Parent: objstore.Ino(c.GetParent()), Name: d.name(c.GetName()), Dir: c.GetDir(),
			Sealed: objstore.Ino(c.GetSealed()), Only: objstore.Ino(c.GetOnly()),
		}
	case *osdv1.Change_Rename:
		c := m.Rename
		return objstore.Rename{
			OldParent: objstore.Ino(c.GetOldParent()), OldName: d.name(c.GetOldName()),
			NewParent: objstore.Ino(c.GetNewParent()), NewName: d.name(c.GetNewName()),
			NoReplace: c.GetNoReplace(), Exchange: c.GetExchange(), Sealed: objstore.Ino(c.GetSealed()),
		}
	case *osdv1.Change_SetAttr:
		return d.setAttr(m.SetAttr)
	case *osdv1.Change_Write:
		c := m.Write
		return objstore.Write{Ino: objstore.Ino(c.GetIno()), Size: c.GetSize(), Extents: d.extents(c.GetExtents()), Mtime: c.GetMtime()}
	case *osdv1.Change_Share:
		c := m.Share
		return objstore.Share{
			Ino: objstore.Ino(c.GetIno()), Off: c.GetOff(), Src: objstore.Ino(c.GetSrc()), SrcOff: c.GetSrcOff(), Len: c.GetLen(), Mtime: c.GetMtime(),
		}
	case *osdv1.Change_MoveChunk:
		c := m.MoveChunk
		return objstore.MoveChunk{Ino: objstore.Ino(c.GetIno()), Off: c.GetOff(), From: d.chunk(c.GetFrom()), To: d.chunk(c.GetTo()), Len: c.GetLen(), Again: c.GetAgain()}
	case *osdv1.Change_Pack:
		return d.pack(m.Pack)
	case *osdv1.Change_SetXattr:
		c := m.SetXattr
		return objstore.SetXattr{
			Ino: objstore.Ino(c.GetIno()), Name: d.xattrName(c.GetName()), Value: d.value(c.GetValue()),
			CreateOnly: c.GetCreateOnly(), ReplaceOnly: c.GetReplaceOnly(),
		}
	case *osdv1.Change_RemoveXattr:
		return objstore.RemoveXattr{Ino: objstore.Ino(m.RemoveXattr.GetIno()), Name: d.xattrName(m.RemoveXattr.GetName())}
	case *osdv1.Change_Purge:
		return objstore.Purge{Vol: d.volume(m.Purge.GetVol()), Inos: d.inos(m.Purge.GetInos(), maxList)}
	case *osdv1.Change_FreeChunks:
		return objstore.FreeChunks{Vol: d.volume(m.FreeChunks.GetVol()), Chunks: d.chunks(m.FreeChunks.GetChunks(), maxList)}
	}
	return d.volumeChange(m)
}

func (d *decoder) setAttr(c *osdv1.SetAttr) objstore.Change {
	if c.GetSet() > 2*uint32(objstore.SetCtime)-1 {
		d.fail(objstore.Invalid, "attribute mask %#x", c.GetSet())
	}
	return objstore.SetAttr{
		Ino: objstore.Ino(c.GetIno()), Set: objstore.AttrMask(c.GetSet()), Mode: c.GetMode(), Uid: c.GetUid(), Gid: c.GetGid(),
		Size: c.GetSize(), Atime: c.GetAtime(), Mtime: c.GetMtime(), Ctime: c.GetCtime(),
	}
}

func (d *decoder) pack(m *osdv1.Pack) objstore.Change {
	c := objstore.Pack{Vol: d.volume(m.GetVol()), To: d.chunk(m.GetTo())}
	if !d.list("moves", len(m.GetMoves()), objstore.PackMovesMax) {
		return c
	}
	for _, mv := range m.GetMoves() {
		c.Moves = append(c.Moves, objstore.PackMove{
			Ino: objstore.Ino(mv.GetIno()), From: d.chunk(mv.GetFrom()), FromOff: mv.GetFromOff(), Len: mv.GetLen(), Off: mv.GetOff(),
		})
	}
	return c
}

// volumeChange decodes the changes in the lives of volumes.
func (d *decoder) volumeChange(m *osdv1.Change) objstore.Change {
	switch m := m.GetChange().(type) {
	case *osdv1.Change_ReserveVolume:
		c := m.ReserveVolume
		return objstore.ReserveVolume{Parent: objstore.Ino(c.GetParent()), Name: d.name(c.GetName())}
	case *osdv1.Change_InitVolume:
		c := m.InitVolume
		return objstore.InitVolume{
			Vol: d.volume(c.GetVol()), Parent: objstore.Ino(c.GetParent()), Mode: c.GetMode(), Uid: c.GetUid(), Gid: c.GetGid(),
		}
	case *osdv1.Change_AttachVolume:
		c := m.AttachVolume
		return objstore.AttachVolume{Vol: d.volume(c.GetVol()), Parent: objstore.Ino(c.GetParent()), Name: d.name(c.GetName())}
	case *osdv1.Change_SealVolume:
		return objstore.SealVolume{Vol: d.volume(m.SealVolume.GetVol()), Undo: m.SealVolume.GetUndo()}
	case *osdv1.Change_DropVolume:
		return objstore.DropVolume{Vol: d.volume(m.DropVolume.GetVol())}
	case *osdv1.Change_PendVolume:
		return objstore.PendVolume{Vol: d.volume(m.PendVolume.GetVol()), Done: m.PendVolume.GetDone()}
	case *osdv1.Change_Reparent:
		c := m.Reparent
		return objstore.Reparent{Vol: d.volume(c.GetVol()), From: objstore.Ino(c.GetFrom()), To: objstore.Ino(c.GetTo())}
	}
	d.fail(objstore.Unsupported, "a change of a kind that this program does not know")
	return nil
}
