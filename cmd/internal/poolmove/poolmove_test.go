package poolmove

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"pillarbox/cachefs/storetest"
	"pillarbox/objstore"
)

const target = 2

// moving is a store whose new chunks go to another pool since then.
type moving struct {
	*storetest.Store
	on bool
}

func (m *moving) NewChunk(ctx context.Context, ino objstore.Ino, index uint32) (objstore.ChunkID, error) {
	id, err := m.Store.NewChunk(ctx, ino, index)
	if m.on {
		id.Version = objstore.PooledVersion(target, id.Session(), id.Version&objstore.MaxChunkCount)
	}
	return id, err
}

func (m *moving) apply(t *testing.T, c objstore.Change) objstore.Result {
	t.Helper()
	r, err := m.Apply(t.Context(), c, objstore.Committed)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var root = objstore.VolumeRoot(objstore.RootVolume)

// file makes a file with a chunk in the middle of each of some chunks' worth of it.
func (m *moving) file(t *testing.T, dir objstore.Ino, name string, chunks int) objstore.Ino {
	t.Helper()
	ino := m.apply(t, objstore.Create{Parent: dir, Name: name, Mode: objstore.ModeRegular | 0o600}).Attr.Ino
	for i := range uint64(chunks) {
		m.write(t, ino, i*objstore.ChunkSize+1000)
	}
	return ino
}

func (m *moving) write(t *testing.T, ino objstore.Ino, off uint64) {
	t.Helper()
	data := make([]byte, 70_000)
	rand.NewChaCha8([32]byte{byte(ino), byte(off), byte(off / objstore.ChunkSize)}).Read(data)
	id, err := m.NewChunk(t.Context(), ino, uint32(off/objstore.ChunkSize))
	if err == nil {
		err = m.PutChunk(t.Context(), id, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.apply(t, objstore.Write{Ino: ino, Size: off + 70_000, Mtime: 7, Extents: []objstore.Extent{
		{Off: off, Len: 70_000, Kind: objstore.Pooled, Chunk: id},
	}})
}

// read is what a file holds and in how many chunks of which pools.
func (m *moving) read(t *testing.T, ino objstore.Ino) (content []byte, at map[int]int) {
	t.Helper()
	a, err := m.GetAttr(t.Context(), ino)
	if err != nil {
		t.Fatal(err)
	}
	list, err := m.Extents(t.Context(), ino, 0, a.Size)
	content, at = make([]byte, a.Size), map[int]int{}
	for _, e := range list {
		if err == nil && e.Kind == objstore.Pooled {
			at[e.Chunk.Pool()]++
			err = m.ReadChunk(t.Context(), e.Chunk, e.ChunkOff, content[e.Off:e.End()])
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return content, at
}

func (m *moving) chunks() (n int) {
	m.Tamper(func(bodies map[objstore.ChunkID][]byte) { n = len(bodies) })
	return n
}

func options(m *moving) Options {
	return Options{
		Store: m, Sealed: func(context.Context, objstore.VolumeID) (bool, error) { return false, nil },
		Map: &objstore.Map{}, Pool: &objstore.Pool{ID: target, Name: "new"}, Dir: root, Path: "/", Workers: 3,
	}
}

// TestMove: files go over whole, with what they are, and what they share stays
// stored once; a run that is cut short again and again comes to the same.
func TestMove(t *testing.T) {
	m := &moving{Store: storetest.New()}
	dir := m.apply(t, objstore.Create{Parent: root, Name: "dir", Mode: objstore.ModeDir | 0o700}).Attr.Ino
	var files []objstore.Ino
	for i := range 5 {
		files = append(files, m.file(t, dir, fmt.Sprint("f", i), i))
	}
	m.apply(t, objstore.Link{Ino: files[3], Parent: root, Name: "also"})
	whole := m.apply(t, objstore.Create{Parent: root, Name: "whole", Mode: objstore.ModeRegular | 0o600}).Attr.Ino
	m.apply(t, objstore.Share{Ino: whole, Off: 0, Src: files[4], Len: 3*objstore.ChunkSize + 71_000, Mtime: 9})
	cut := m.apply(t, objstore.Create{Parent: root, Name: "cut", Mode: objstore.ModeRegular | 0o600}).Attr.Ino
	m.apply(t, objstore.Share{Ino: cut, Off: 50, Src: files[2], SrcOff: 2000, Len: 30_000, Mtime: 9})
	files = append(files, whole, cut)

	var before [][]byte
	var attrs []objstore.Attr
	for _, ino := range files {
		b, _ := m.read(t, ino)
		a, _ := m.GetAttr(t.Context(), ino)
		before, attrs = append(before, b), append(attrs, a)
	}
	m.on = true
	stop := errors.New("cut short")
	for n := 1; ; n++ {
		var puts atomic.Int32
		m.FailWith(func(op string, _ any) error {
			if op == "PutChunk" {
				if puts.Add(1) > 4 && n < 3 {
					return stop
				}
			}
			return nil
		})
		rep, err := Run(t.Context(), options(m))
		if errors.Is(err, stop) {
			continue
		}
		if err != nil || rep.Errors > 0 || n != 3 {
			t.Fatalf("run %d: %+v, %v", n, rep, err)
		}
		break
	}
	for i, ino := range files {
		b, at := m.read(t, ino)
		a, _ := m.GetAttr(t.Context(), ino)
		if !bytes.Equal(b, before[i]) || a != attrs[i] || at[1] != 0 {
			t.Errorf("file %d: in pools %v, %+v was %+v, same bytes: %v", i, at, a, attrs[i], bytes.Equal(b, before[i]))
		}
	}
	if rep, err := Run(t.Context(), options(m)); err != nil || rep.Chunks != 0 {
		t.Errorf("run again: %+v, %v", rep, err)
	}
}

// TestSharedOnce: files that share a chunk share it afterwards.
func TestSharedOnce(t *testing.T) {
	m := &moving{Store: storetest.New()}
	f := m.file(t, root, "f", 2)
	for i := range 4 {
		g := m.apply(t, objstore.Create{Parent: root, Name: fmt.Sprint("g", i), Mode: objstore.ModeRegular | 0o600}).Attr.Ino
		m.apply(t, objstore.Share{Ino: g, Off: uint64(i) * 500, Src: f, Len: objstore.ChunkSize + 71_000, Mtime: 9})
	}
	m.on = true
	rep, err := Run(t.Context(), options(m))
	if err != nil || rep.Chunks < 10 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if n := m.chunks(); n != 2 {
		t.Errorf("%d chunks, want the 2 that all share", n)
	}
}

// TestChangedMeanwhile: what is written while it is moved stays written, and what
// was written to the old pool is found by looking again.
func TestChangedMeanwhile(t *testing.T) {
	m := &moving{Store: storetest.New()}
	f, g := m.file(t, root, "f", 1), m.file(t, root, "g", 1)
	m.on = true
	var want []byte
	once := false
	m.FailWith(func(op string, c any) error {
		if op == "PutChunk" && !once {
			once = true
			m.on = false // a host that has not heard of the rule
			m.write(t, f, 1000)
			m.write(t, f, objstore.ChunkSize)
			m.on = true
			want, _ = m.read(t, f)
			m.apply(t, objstore.Remove{Parent: root, Name: "g"})
			m.apply(t, objstore.Purge{Vol: 0, Inos: []objstore.Ino{g}})
		}
		return nil
	})
	opt := options(m)
	opt.Workers = 1
	rep, err := Run(t.Context(), opt)
	if err != nil || rep.Errors > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if b, at := m.read(t, f); !bytes.Equal(b, want) || at[1] != 0 || at[target] != 2 {
		t.Errorf("in pools %v, as written: %v", at, bytes.Equal(b, want))
	}
}

// TestUnreadable: a body that cannot be read is told of, and keeps nobody else.
func TestUnreadable(t *testing.T) {
	m := &moving{Store: storetest.New()}
	f, g := m.file(t, root, "f", 1), m.file(t, root, "g", 1)
	m.on = true
	m.FailWith(func(op string, c any) error {
		if id, ok := c.(objstore.ChunkID); ok && op == "ReadChunk" && id.Ino == f {
			return objstore.Corrupt
		}
		return nil
	})
	rep, err := Run(t.Context(), options(m))
	if err != nil || rep.Errors != 1 || rep.Failed[0].Path != "/f" || rep.Chunks != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	if _, at := m.read(t, g); at[target] != 1 {
		t.Errorf("g lies in %v", at)
	}
}

func TestCheck(t *testing.T) {
	m := &moving{Store: storetest.New()}
	opt := options(m)
	opt.Dir = objstore.VolumeRoot(5)
	if err := Check(t.Context(), opt); err != nil {
		t.Error(err)
	}
	opt.Pool = &objstore.Pool{ID: target, Name: "cloud", Outside: &objstore.Outside{}}
	if err := Check(t.Context(), opt); !errors.Is(err, objstore.NotPermitted) {
		t.Errorf("an account that is not encrypted may go outside: %v", err)
	}
}
