package fusefs

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// measured is a raw whose requests are counted. Each method notes the time, calls
// raw's, and counts it with its answer; Forget, ReleaseDir and Init go past it.
type measured struct{ *raw }

var _ fuse.RawFileSystem = measured{}

// Lookup implements fuse.RawFileSystem.
func (m measured) Lookup(c <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return m.meter.done(opLookup, in, time.Now(), m.raw.Lookup(c, in, name, out))
}

// GetAttr implements fuse.RawFileSystem.
func (m measured) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return m.meter.done(opGetAttr, &in.InHeader, time.Now(), m.raw.GetAttr(c, in, out))
}

// SetAttr implements fuse.RawFileSystem.
func (m measured) SetAttr(c <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return m.meter.done(opSetAttr, &in.InHeader, time.Now(), m.raw.SetAttr(c, in, out))
}

// Mknod implements fuse.RawFileSystem.
func (m measured) Mknod(c <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return m.meter.done(opMknod, &in.InHeader, time.Now(), m.raw.Mknod(c, in, name, out))
}

// Mkdir implements fuse.RawFileSystem.
func (m measured) Mkdir(c <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return m.meter.done(opMkdir, &in.InHeader, time.Now(), m.raw.Mkdir(c, in, name, out))
}

// Symlink implements fuse.RawFileSystem.
func (m measured) Symlink(c <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return m.meter.done(opSymlink, in, time.Now(), m.raw.Symlink(c, in, target, name, out))
}

// Link implements fuse.RawFileSystem.
func (m measured) Link(c <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return m.meter.done(opLink, &in.InHeader, time.Now(), m.raw.Link(c, in, name, out))
}

// Unlink implements fuse.RawFileSystem.
func (m measured) Unlink(c <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return m.meter.done(opUnlink, in, time.Now(), m.raw.Unlink(c, in, name))
}

// Rmdir implements fuse.RawFileSystem.
func (m measured) Rmdir(c <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return m.meter.done(opRmdir, in, time.Now(), m.raw.Rmdir(c, in, name))
}

// Rename implements fuse.RawFileSystem.
func (m measured) Rename(c <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	return m.meter.done(opRename, &in.InHeader, time.Now(), m.raw.Rename(c, in, oldName, newName))
}

// Open implements fuse.RawFileSystem.
func (m measured) Open(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return m.meter.done(opOpen, &in.InHeader, time.Now(), m.raw.Open(c, in, out))
}

// Create implements fuse.RawFileSystem.
func (m measured) Create(c <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return m.meter.done(opCreate, &in.InHeader, time.Now(), m.raw.Create(c, in, name, out))
}

// Tmpfile implements fuse.RawFileSystem.
func (m measured) Tmpfile(c <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return m.meter.done(opTmpfile, &in.InHeader, time.Now(), m.raw.Tmpfile(c, in, out))
}

// Flush implements fuse.RawFileSystem.
func (m measured) Flush(c <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	return m.meter.done(opFlush, &in.InHeader, time.Now(), m.raw.Flush(c, in))
}

// Fsync implements fuse.RawFileSystem.
func (m measured) Fsync(c <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return m.meter.done(opFsync, &in.InHeader, time.Now(), m.raw.Fsync(c, in))
}

// Lseek implements fuse.RawFileSystem.
func (m measured) Lseek(c <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	return m.meter.done(opLseek, &in.InHeader, time.Now(), m.raw.Lseek(c, in, out))
}

// Fallocate implements fuse.RawFileSystem.
func (m measured) Fallocate(c <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return m.meter.done(opFallocate, &in.InHeader, time.Now(), m.raw.Fallocate(c, in))
}

// OpenDir implements fuse.RawFileSystem.
func (m measured) OpenDir(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return m.meter.done(opOpenDir, &in.InHeader, time.Now(), m.raw.OpenDir(c, in, out))
}

// ReadDir implements fuse.RawFileSystem.
func (m measured) ReadDir(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return m.meter.done(opReadDir, &in.InHeader, time.Now(), m.raw.ReadDir(c, in, out))
}

// ReadDirPlus implements fuse.RawFileSystem.
func (m measured) ReadDirPlus(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return m.meter.done(opReadDirPlus, &in.InHeader, time.Now(), m.raw.ReadDirPlus(c, in, out))
}

// FsyncDir implements fuse.RawFileSystem.
func (m measured) FsyncDir(c <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return m.meter.done(opFsyncDir, &in.InHeader, time.Now(), m.raw.FsyncDir(c, in))
}

// SetXAttr implements fuse.RawFileSystem.
func (m measured) SetXAttr(c <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	return m.meter.done(opSetXattr, &in.InHeader, time.Now(), m.raw.SetXAttr(c, in, name, data))
}

// RemoveXAttr implements fuse.RawFileSystem.
func (m measured) RemoveXAttr(c <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return m.meter.done(opRemoveXattr, in, time.Now(), m.raw.RemoveXAttr(c, in, name))
}

// GetLk implements fuse.RawFileSystem.
func (m measured) GetLk(c <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	return m.meter.done(opGetLk, &in.InHeader, time.Now(), m.raw.GetLk(c, in, out))
}

// SetLk implements fuse.RawFileSystem.
func (m measured) SetLk(c <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return m.meter.done(opSetLk, &in.InHeader, time.Now(), m.raw.SetLk(c, in))
}

// SetLkw implements fuse.RawFileSystem.
func (m measured) SetLkw(c <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return m.meter.done(opSetLkw, &in.InHeader, time.Now(), m.raw.SetLkw(c, in))
}

// StatFs implements fuse.RawFileSystem.
func (m measured) StatFs(c <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	return m.meter.done(opStatFs, in, time.Now(), m.raw.StatFs(c, in, out))
}

// Readlink implements fuse.RawFileSystem.
func (m measured) Readlink(c <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	began := time.Now()
	target, st := m.raw.Readlink(c, in)
	return target, m.meter.done(opReadlink, in, began, st)
}

// Read implements fuse.RawFileSystem.
func (m measured) Read(c <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	began := time.Now()
	r, st := m.raw.Read(c, in, buf)
	if r != nil {
		m.meter.read.Add(uint64(r.Size()))
	}
	return r, m.meter.done(opRead, &in.InHeader, began, st)
}

// Write implements fuse.RawFileSystem.
func (m measured) Write(c <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	began := time.Now()
	n, st := m.raw.Write(c, in, data)
	m.meter.written.Add(uint64(n))
	return n, m.meter.done(opWrite, &in.InHeader, began, st)
}

// CopyFileRange implements fuse.RawFileSystem.
func (m measured) CopyFileRange(c <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	began := time.Now()
	n, st := m.raw.CopyFileRange(c, in)
	return n, m.meter.done(opCopy, &in.InHeader, began, st)
}

// Release implements fuse.RawFileSystem.
func (m measured) Release(c <-chan struct{}, in *fuse.ReleaseIn) {
	began := time.Now()
	m.raw.Release(c, in)
	m.meter.done(opRelease, &in.InHeader, began, fuse.OK)
}

// GetXAttr implements fuse.RawFileSystem.
func (m measured) GetXAttr(c <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	began := time.Now()
	n, st := m.raw.GetXAttr(c, in, name, dest)
	return n, m.meter.done(opGetXattr, in, began, st)
}

// ListXAttr implements fuse.RawFileSystem.
func (m measured) ListXAttr(c <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	began := time.Now()
	n, st := m.raw.ListXAttr(c, in, dest)
	return n, m.meter.done(opListXattr, in, began, st)
}
