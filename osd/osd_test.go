package osd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"pillarbox/objstore"
)

func testMap(fsid string) *objstore.Map {
	return &objstore.Map{FSID: fsid, Epoch: 1, Format: 1, VolumeDepth: 2, OSDs: []objstore.OSDInfo{{Weight: 1, Up: true, In: true}}, Pools: []objstore.Pool{
		{ID: 0, Name: "meta", Kind: objstore.MetaPool, Size: 1, MinSize: 1, PGs: 4},
		{ID: 1, Name: "data", Kind: objstore.DataPool, Size: 1, MinSize: 1, PGs: 8, ChunkSize: objstore.ChunkSize},
	}}
}

func testOptions(dir string) Options {
	return Options{Dir: dir, Map: testMap("test"), Reserve: 1 << 20}
}

func open(t testing.TB, dir string) *OSD {
	t.Helper()
	o, err := Open(t.Context(), testOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

// crash ends an OSD as kill -9 would: what the kernel has stays, nothing is flushed.
func crash(t testing.TB, o *OSD) {
	t.Helper()
	o.closeOnce.Do(func() {
		o.cancel(ErrClosed)
		o.run.Wait()
		if err := o.closeFiles(); err != nil {
			t.Error(err)
		}
	})
}

func apply(t testing.TB, o *OSD, c objstore.Change, p objstore.Promise) objstore.Result {
	t.Helper()
	res, err := o.Apply(t.Context(), o.opt.Map.Group(c.Volume()), objstore.Request{}, c, p)
	if err != nil {
		t.Fatalf("%T: %v", c, err)
	}
	return res
}

func initVolume(t testing.TB, o *OSD, v objstore.VolumeID) objstore.Ino {
	apply(t, o, objstore.InitVolume{Vol: v, Parent: objstore.VolumeRoot(0), Mode: objstore.ModeDir | 0o755}, objstore.Committed)
	return objstore.VolumeRoot(v)
}

func deliver(t testing.TB, o *OSD, dir objstore.Ino, name string, body []byte) objstore.Ino {
	ino := apply(t, o, objstore.Create{Parent: dir, Name: "tmp." + name, Mode: objstore.ModeRegular | 0o600}, objstore.Ordered).Attr.Ino
	apply(t, o, objstore.Write{Ino: ino, Size: uint64(len(body)), Mtime: time.Now().UnixNano(), Extents: []objstore.Extent{
		{Len: uint32(len(body)), Kind: objstore.Resident, Data: body},
	}}, objstore.Committed)
	apply(t, o, objstore.Link{Ino: ino, Parent: dir, Name: name}, objstore.Committed)
	apply(t, o, objstore.Remove{Parent: dir, Name: "tmp." + name}, objstore.Ordered)
	return ino
}

func readBody(o *OSD, ino objstore.Ino) ([]byte, error) {
	ctx := context.Background()
	pg := o.opt.Map.Group(ino.Volume())
	a, err := o.GetAttr(ctx, pg, ino)
	if err != nil {
		return nil, err
	}
	out := make([]byte, a.Size)
	ext, err := o.Extents(ctx, pg, ino, 0, a.Size)
	if err != nil {
		return nil, err
	}
	for _, e := range ext {
		dst := out[e.Off:e.End()]
		if e.Kind == objstore.Inline {
			copy(dst, e.Data)
		} else if err := o.ReadChunk(ctx, pg, e.Chunk, e.ChunkOff, dst); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func message(i int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("message %d\n", i)), 1+i*37%4000)
}

// checkMail fails unless exactly the messages below n are in dir, whole.
func checkMail(t testing.TB, o *OSD, dir objstore.Ino, n int) {
	t.Helper()
	pg := o.opt.Map.Group(dir.Volume())
	list, err := o.ReadDir(t.Context(), pg, dir, 0, 1<<20, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != n {
		t.Fatalf("%d entries, want %d", len(list), n)
	}
	for i, e := range list {
		got, err := readBody(o, e.Ino)
		if err != nil || !bytes.Equal(got, message(i)) || e.Name != fmt.Sprint(i) {
			t.Fatalf("entry %d, %q: %d bytes, %v", i, e.Name, len(got), err)
		}
	}
	checkClean(t, o)
}

func checkClean(t testing.TB, o *OSD) {
	t.Helper()
	for _, p := range problems(t, o) {
		t.Errorf("check: %v", p)
	}
}

// problems checks the OSD; that these tests give their volumes no names is none.
func problems(t testing.TB, o *OSD) []CheckProblem {
	t.Helper()
	rep, err := o.Check(t.Context(), CheckOptions{Deep: true})
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(rep.Problems, func(p CheckProblem) bool { return p.Kind == VolumeOrphan })
}

func TestDeliveriesSurviveCrashesAndFlushes(t *testing.T) {
	dir := t.TempDir()
	n := 0
	for round := range 6 {
		o := open(t, dir)
		root := initVolume(t, o, 5)
		checkMail(t, o, root, n)
		for range 60 {
			deliver(t, o, root, fmt.Sprint(n), message(n))
			n++
			if round%2 == 1 && n%25 == 0 {
				if err := o.flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		checkMail(t, o, root, n)
		if round == 3 {
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		crash(t, o)
	}
	checkMail(t, open(t, dir), objstore.VolumeRoot(5), n)
}

func TestOrderedChangesSurviveACrash(t *testing.T) {
	dir := t.TempDir()
	o := open(t, dir)
	root := initVolume(t, o, 1)
	for i := range 100 {
		name := fmt.Sprint(i)
		apply(t, o, objstore.Create{Parent: root, Name: name, Mode: objstore.ModeRegular | 0o600}, objstore.Ordered)
		if i%2 == 0 {
			apply(t, o, objstore.Rename{OldParent: root, OldName: name, NewParent: root, NewName: name + ":2,S"}, objstore.Ordered)
		} else {
			apply(t, o, objstore.Remove{Parent: root, Name: name}, objstore.Ordered)
		}
	}
	crash(t, o)
	o = open(t, dir)
	list, err := o.ReadDir(t.Context(), o.opt.Map.Group(root.Volume()), root, 0, 1000, false)
	if err != nil || len(list) != 50 {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	for i, e := range list {
		if want := fmt.Sprintf("%d:2,S", 2*i); e.Name != want {
			t.Fatalf("entry %d is %q, want %q", i, e.Name, want)
		}
	}
}

// An only member does not wait for raft to hear of a sync, but for the sync it does.
func TestCommittedIsOnStableStorage(t *testing.T) {
	o := open(t, t.TempDir())
	dir := initVolume(t, o, 5)
	pg := o.opt.Map.Group(5)
	g, err := o.group(pg)
	if err != nil {
		t.Fatal(err)
	}
	onDisk := func(what string) {
		t.Helper()
		synced, err := o.wal.Sync(0)
		g.mu.RLock()
		defer g.mu.RUnlock()
		if err != nil || g.logged == 0 || g.logged > synced {
			t.Fatalf("%s returned with the log at %d, of which %d is on stable storage: %v", what, g.logged, synced, err)
		}
	}
	var ino objstore.Ino
	for i := range 20 {
		ino = deliver(t, o, dir, fmt.Sprint(i), message(i))
		apply(t, o, objstore.Link{Ino: ino, Parent: dir, Name: "copy"}, objstore.Committed)
		onDisk("link")
		apply(t, o, objstore.Remove{Parent: dir, Name: "copy"}, objstore.Ordered)
		if err := o.Sync(t.Context(), pg); err != nil {
			t.Fatal(err)
		}
		onDisk("sync")
	}
	if err := o.flushAll(); err != nil { // which needs raft to have heard
		t.Fatal(err)
	}
	checkMail(t, o, dir, 20)

	o.syncing.Lock()
	o.wal.SyncHook = func() error { return errors.New("the disk is gone") }
	o.syncing.Unlock()
	_, err = o.Apply(t.Context(), pg, objstore.Request{}, objstore.Link{Ino: ino, Parent: dir, Name: "late"}, objstore.Committed)
	if !errors.Is(err, objstore.Unavailable) {
		t.Errorf("link on a disk that is gone: %v", err)
	}
	if err := o.Sync(t.Context(), pg); !errors.Is(err, objstore.Unavailable) {
		t.Errorf("sync on a disk that is gone: %v", err)
	}
	_, err = o.Apply(t.Context(), pg, objstore.Request{}, objstore.Remove{Parent: dir, Name: "0"}, objstore.Ordered)
	if !errors.Is(err, objstore.Unavailable) {
		t.Errorf("a change on a disk that is gone: %v", err)
	}
}

func TestSpaceComesBack(t *testing.T) {
	o := open(t, t.TempDir())
	root := initVolume(t, o, 2)
	var inos []objstore.Ino
	for i := range 20 {
		ino := deliver(t, o, root, fmt.Sprint(i), message(i))
		big := objstore.ChunkID{Ino: ino, Index: 1, Version: uint64(i + 1)}
		if err := o.PutChunk(t.Context(), big, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		apply(t, o, objstore.Write{Ino: ino, Size: objstore.ChunkSize + 1<<20, Extents: []objstore.Extent{
			{Off: objstore.ChunkSize, Len: 1 << 20, Kind: objstore.Pooled, Chunk: big},
		}}, objstore.Committed)
		inos = append(inos, ino)
	}
	if err := o.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range inos {
		apply(t, o, objstore.Remove{Parent: root, Name: fmt.Sprint(i)}, objstore.Ordered)
	}
	apply(t, o, objstore.Purge{Vol: 2, Inos: inos}, objstore.Committed)
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := 0
		if err := o.pooledChunks(func(objstore.ChunkID) { left++ }); err != nil {
			t.Fatal(err)
		}
		if err := o.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		segs, err := os.ReadDir(filepath.Join(o.opt.Dir, "chunks"))
		if err != nil {
			t.Fatal(err)
		}
		var blocks int64
		for _, s := range segs {
			blocks += fileBlocks(t, filepath.Join(o.opt.Dir, "chunks", s.Name()))
		}
		if blocks*512 < 64<<10 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d KiB still in use", blocks/2)
		}
	}
	checkClean(t, o)
}

func TestDamagedBodyIsAnErrorNotMail(t *testing.T) {
	dir := t.TempDir()
	o := open(t, dir)
	root := initVolume(t, o, 3)
	ino := deliver(t, o, root, "0", message(50))
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	segs, err := filepath.Glob(filepath.Join(dir, "chunks", "*.seg"))
	if err != nil || len(segs) != 1 {
		t.Fatal(segs, err)
	}
	b, err := os.ReadFile(segs[0])
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte("message 50"))
	b[at+3] ^= 1
	if err := os.WriteFile(segs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	o = open(t, dir)
	if _, err := readBody(o, ino); !errors.Is(err, objstore.Corrupt) {
		t.Fatalf("got %v, want Corrupt", err)
	}
	if found := problems(t, o); len(found) != 1 || found[0].Kind != ChunkDamaged {
		t.Fatalf("check found %v", found)
	}
}

func TestForeignDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir).Close()
	opt := testOptions(dir)
	opt.Map = testMap("another")
	if _, err := Open(t.Context(), opt); !errors.Is(err, ErrForeign) {
		t.Fatalf("got %v", err)
	}
}

func TestOrphansOfADeadSessionGo(t *testing.T) {
	dir := t.TempDir()
	o := open(t, dir)
	root := initVolume(t, o, 1)
	ino := deliver(t, o, root, "0", message(9))
	apply(t, o, objstore.Remove{Parent: root, Name: "0"}, objstore.Committed)
	stray := objstore.ChunkID{Ino: ino, Index: 7, Version: 77}
	if err := o.PutChunk(t.Context(), stray, []byte("never named")); err != nil {
		t.Fatal(err)
	}
	crash(t, o)
	o = open(t, dir)
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, errIno := o.GetAttr(t.Context(), o.opt.Map.Group(1), ino)
		_, errChunk := o.table.locate(stray)
		if errors.Is(errIno, objstore.Stale) && errors.Is(errChunk, objstore.NotFound) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("orphan: %v, stray chunk: %v", errIno, errChunk)
		}
		time.Sleep(time.Millisecond)
	}
	checkClean(t, o)
}

func TestScanMergesLayersAndDatabase(t *testing.T) {
	o := open(t, t.TempDir())
	root := initVolume(t, o, 1)
	var want []string
	for i := range 300 {
		name := fmt.Sprintf("%03d", i)
		apply(t, o, objstore.Create{Parent: root, Name: name, Mode: objstore.ModeRegular}, objstore.Ordered)
		if i%100 == 99 {
			if err := o.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 == 0 && i > 30 {
			apply(t, o, objstore.Remove{Parent: root, Name: fmt.Sprintf("%03d", i-30)}, objstore.Ordered)
		}
	}
	for i := range 300 {
		if (i+30)%3 == 0 && i+30 < 300 && i > 0 {
			continue
		}
		want = append(want, fmt.Sprintf("%03d", i))
	}
	for _, page := range []int{1, 7, 1000} {
		var got []string
		var after uint64
		for {
			list, err := o.ReadDir(t.Context(), o.opt.Map.Group(root.Volume()), root, after, page, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				got = append(got, e.Name)
				after = e.Cookie
			}
			if len(list) < page {
				break
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("page %d: %d entries, want %d", page, len(got), len(want))
		}
	}
}

func TestViewDuringFlushesIsNeverTorn(t *testing.T) {
	o := open(t, t.TempDir())
	root := initVolume(t, o, 1)
	for i := range 50 {
		deliver(t, o, root, fmt.Sprint(i), message(i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			apply(t, o, objstore.Create{Parent: root, Name: "x", Mode: objstore.ModeRegular}, objstore.Ordered)
			apply(t, o, objstore.Remove{Parent: root, Name: "x"}, objstore.Ordered)
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := o.flush(context.Background()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 200 {
		list, err := o.ReadDir(t.Context(), o.opt.Map.Group(root.Volume()), root, 0, 1000, true)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(list); n != 50 && n != 51 {
			t.Fatalf("%d entries", n)
		}
		if got, err := readBody(o, list[7].Ino); err != nil || !bytes.Equal(got, message(7)) {
			t.Fatalf("body: %v", err)
		}
	}
	cancel()
	wg.Wait()
}

func fileBlocks(t testing.TB, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Blocks
}

func BenchmarkDeliver(b *testing.B) {
	for _, workers := range []int{1, 8, 32} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) {
			o := open(b, b.TempDir())
			body := bytes.Repeat([]byte("x"), 50<<10)
			var wg sync.WaitGroup
			per := b.N/workers + 1
			for w := range workers {
				root := initVolume(b, o, objstore.VolumeID(w+1))
				wg.Go(func() {
					for i := range per {
						deliver(b, o, root, fmt.Sprint(i), body)
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestReadOnlyCheckOfACrashedOSDChangesNothing(t *testing.T) {
	dir := t.TempDir()
	o := open(t, dir)
	root := initVolume(t, o, 1)
	for i := range 30 {
		deliver(t, o, root, fmt.Sprint(i), message(i))
		if i == 20 {
			if err := o.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	crash(t, o)
	before := fingerprint(t, dir)
	ro, err := Open(t.Context(), Options{Dir: dir, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(problems(t, ro)); n != 0 {
		t.Errorf("%d problems", n)
	}
	if rep, err := ro.Check(t.Context(), CheckOptions{}); err != nil || rep.Chunks != 30 {
		t.Errorf("check: %+v, %v", rep, err)
	}
	if err := ro.Close(); err != nil {
		t.Error(err)
	}
	if after := fingerprint(t, dir); after != before {
		t.Errorf("the directory changed:\n%s\n%s", before, after)
	}
	checkMail(t, open(t, dir), root, 30)
}

// fingerprint lists the files below dir with sizes and times of change.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	var b bytes.Buffer
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil && !fi.IsDir() {
			fmt.Fprintln(&b, path, fi.Size(), fi.ModTime().UnixNano())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func BenchmarkLink(b *testing.B) {
	for _, workers := range []int{1, 8, 32} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) {
			o := open(b, b.TempDir())
			var wg sync.WaitGroup
			per := b.N/workers + 1
			before := o.wal.Stats()
			for w := range workers {
				root := initVolume(b, o, objstore.VolumeID(w+1))
				wg.Go(func() {
					ino := deliver(b, o, root, "x", []byte("x"))
					for i := range per {
						apply(b, o, objstore.Link{Ino: ino, Parent: root, Name: fmt.Sprint(i)}, objstore.Committed)
					}
				})
			}
			wg.Wait()
			after := o.wal.Stats()
			b.ReportMetric(float64(b.N)/float64(after.Syncs-before.Syncs), "commits/sync")
			b.ReportMetric(float64((after.SyncTime-before.SyncTime).Microseconds())/float64(after.Syncs-before.Syncs), "µs/sync")
		})
	}
}

// TestSharedChunks copies files by sharing, removes the ones copied from, and
// looks at the copies after flushes and deaths: their chunks stay with the last
// that names them, and then go.
func TestSharedChunks(t *testing.T) {
	dir := t.TempDir()
	o := open(t, dir)
	root := initVolume(t, o, 3)
	pg := o.opt.Map.Group(3)
	var want [][]byte
	for i := range 12 {
		body := bytes.Repeat(message(i), 30)
		ino := deliver(t, o, root, fmt.Sprintf("from-%d", i), body[:min(len(body), objstore.ResidentMax)])
		chunk := objstore.ChunkID{Ino: ino, Version: uint64(i + 1)}
		if i%2 == 0 { // a chunk of the pool instead
			if err := o.PutChunk(t.Context(), chunk, body); err != nil {
				t.Fatal(err)
			}
			apply(t, o, objstore.Write{Ino: ino, Size: uint64(len(body)), Extents: []objstore.Extent{
				{Len: uint32(len(body)), Kind: objstore.Pooled, Chunk: chunk},
			}}, objstore.Committed)
		}
		body, err := readBody(o, ino)
		if err != nil {
			t.Fatal(err)
		}
		a := apply(t, o, objstore.Create{Parent: root, Name: fmt.Sprint(i), Mode: objstore.ModeRegular | 0o600}, objstore.Ordered).Attr
		apply(t, o, objstore.Share{Ino: a.Ino, Src: ino, Len: uint64(len(body))}, objstore.Ordered)
		apply(t, o, objstore.Share{Ino: a.Ino, Src: ino, Off: uint64(len(body)), Len: uint64(len(body))}, objstore.Committed)
		want = append(want, append(body, body...))
		if i%3 == 0 {
			if err := o.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		apply(t, o, objstore.Remove{Parent: root, Name: fmt.Sprintf("from-%d", i)}, objstore.Ordered)
		apply(t, o, objstore.Purge{Vol: 3, Inos: []objstore.Ino{ino}}, objstore.Committed)
	}
	check := func() (inos []objstore.Ino) {
		t.Helper()
		list, err := o.ReadDir(t.Context(), pg, root, 0, 1000, false)
		if err != nil || len(list) != len(want) {
			t.Fatalf("%d entries: %v", len(list), err)
		}
		for i, e := range list {
			if got, err := readBody(o, e.Ino); err != nil || !bytes.Equal(got, want[i]) {
				t.Fatalf("copy %d: %d bytes, %v", i, len(got), err)
			}
			inos = append(inos, e.Ino)
		}
		checkClean(t, o)
		return inos
	}
	check()
	crash(t, o)
	o = open(t, dir)
	check()
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o = open(t, dir)
	inos := check()
	for i := range inos {
		apply(t, o, objstore.Remove{Parent: root, Name: fmt.Sprint(i)}, objstore.Ordered)
	}
	apply(t, o, objstore.Purge{Vol: 3, Inos: inos}, objstore.Committed)
	for deadline := time.Now().Add(time.Minute); ; {
		left := 0
		if err := errors.Join(o.pooledChunks(func(objstore.ChunkID) { left++ }), o.flush(t.Context())); err != nil {
			t.Fatal(err)
		}
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d chunks left", left)
		}
	}
	checkClean(t, o)
}
