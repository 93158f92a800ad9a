package posix

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTruncate(t *testing.T) {
	p := newPlace(t)
	sizes := []int{0, 1, 100, 4095, 4096, 4097, 5000, 65536, 70_000, 300_000, 4 << 20, 4<<20 + 1, 9 << 20}
	dir := p.newDir(t)
	for _, size := range sizes {
		for _, cut := range []int{0, 1, size / 3, size / 2, size - 1} {
			if cut < 0 || cut > size {
				continue
			}
			for _, synced := range []bool{false, true} {
				what := fmt.Sprintf("%d cut to %d, synced=%v", size, cut, synced)
				f := dir + "/f"
				fd, err := unix.Open(f, unix.O_CREAT|unix.O_TRUNC|unix.O_RDWR, 0o600)
				must(t, err)
				body := bytes.Repeat([]byte("x"), size)
				pwrite(t, fd, body, 0)
				if synced {
					must(t, unix.Fsync(fd))
				}
				must(t, unix.Ftruncate(fd, int64(cut)))
				want(t, what+": size", fstat(t, fd).Size, int64(cut))
				must(t, unix.Ftruncate(fd, int64(size+5000)))
				wanted := append(bytes.Repeat([]byte("x"), cut), make([]byte, size+5000-cut)...)
				wantBytes(t, what, pread(t, fd, size+6000, 0), wanted)
				must(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
				wantBytes(t, what+", from the store", pread(t, fd, size+6000, 0), wanted)
				must(t, unix.Close(fd))
			}
		}
	}
	put(t, dir+"/f", "body")
	wantErr(t, "a negative size", unix.Truncate(dir+"/f", -1), unix.EINVAL)
	wantErr(t, "a directory", unix.Truncate(dir, 0), unix.EISDIR)
	wantErr(t, "nothing", unix.Truncate(dir+"/x", 0), unix.ENOENT)
}

func TestSparse(t *testing.T) {
	p := newPlace(t)
	p.sub(t, "a tebibyte", func(t *testing.T, dir string) {
		const end = 1 << 40
		fd := open(t, dir+"/f", unix.O_CREAT|unix.O_RDWR, 0o600)
		must(t, unix.Ftruncate(fd, end))
		want(t, "size", fstat(t, fd).Size, end)
		marks := []int64{0, 1 << 20, 1<<32 - 2, 1 << 33, end/2 - 1, end - 5}
		for _, off := range marks {
			pwrite(t, fd, []byte("here"), off)
		}
		must(t, unix.Fsync(fd))
		for range 2 {
			for _, off := range marks {
				b := pread(t, fd, 12, max(off-4, 0))
				if i := bytes.Index(b, []byte("here")); i != int(off-max(off-4, 0)) {
					t.Errorf("at %d: %q", off, b)
				}
			}
			wantBytes(t, "a hole", pread(t, fd, 100, 3<<38), make([]byte, 100))
			must(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
		}
		st := fstat(t, fd)
		want(t, "size", st.Size, end)
		if st.Blocks > 1000 {
			t.Errorf("a sparse file takes %d blocks", st.Blocks)
		}
		must(t, unix.Ftruncate(fd, 1<<33))
		must(t, unix.Ftruncate(fd, end))
		wantBytes(t, "cut off", pread(t, fd, 12, end-12), make([]byte, 12))
		wantBytes(t, "kept", pread(t, fd, 4, 1<<32-2), []byte("here"))
	})
	p.sub(t, "too large", func(t *testing.T, dir string) {
		fd := open(t, dir+"/f", unix.O_CREAT|unix.O_RDWR, 0o600)
		pwrite(t, fd, []byte("x"), 0)
		_, err := unix.Pwrite(fd, []byte("x"), 1<<62)
		wantErr(t, "pwrite at 4 EiB", err, unix.EFBIG)
		wantErr(t, "ftruncate to 8 EiB", unix.Ftruncate(fd, 1<<63-1), unix.EFBIG)
		wantErr(t, "fallocate 8 EiB", unix.Fallocate(fd, 0, 0, 1<<63-1), unix.EFBIG, unix.ENOSPC)
		_, err = unix.Pwrite(fd, []byte("x"), -1)
		wantErr(t, "pwrite before the beginning", err, unix.EINVAL)
		want(t, "size", fstat(t, fd).Size, 1)
		must(t, unix.Fsync(fd))
		wantBody(t, dir+"/f", []byte("x"))
	})
	p.sub(t, "SEEK_HOLE and SEEK_DATA", func(t *testing.T, dir string) {
		for _, synced := range []bool{false, true} {
			fd := open(t, fmt.Sprint(dir, "/", synced), unix.O_CREAT|unix.O_RDWR, 0o600)
			const k = 64 << 10
			must(t, unix.Ftruncate(fd, 100*k))
			for _, at := range []int64{2, 3, 10, 64, 70} { // 64 begins a chunk
				pwrite(t, fd, fill(k, 'd'), at*k)
			}
			if synced {
				must(t, unix.Fsync(fd))
			}
			for _, c := range []struct{ off, data, hole int64 }{
				{0, 2 * k, 0}, {2*k - 1, 2 * k, 2*k - 1}, {2 * k, 2 * k, 4 * k}, {3*k + 5, 3*k + 5, 4 * k}, {4 * k, 10 * k, 4 * k},
				{10*k + 1, 10*k + 1, 11 * k}, {11 * k, 64 * k, 11 * k}, {64*k - 1, 64 * k, 64*k - 1}, {65 * k, 70 * k, 65 * k},
				{71 * k, -1, 71 * k}, {100*k - 1, -1, 100*k - 1}, {100 * k, -1, -1}, {101 * k, -1, -1},
			} {
				wantSeek(t, fmt.Sprintf("synced=%v: SEEK_DATA from %d", synced, c.off), fd, c.off, unix.SEEK_DATA, c.data)
				wantSeek(t, fmt.Sprintf("synced=%v: SEEK_HOLE from %d", synced, c.off), fd, c.off, unix.SEEK_HOLE, c.hole)
			}
			// The end of data at the end of the file is a hole, too.
			must(t, unix.Ftruncate(fd, 71*k))
			wantSeek(t, "SEEK_HOLE in the last data", fd, 70*k, unix.SEEK_HOLE, 71*k)
			must(t, unix.Ftruncate(fd, 0))
			wantSeek(t, "SEEK_DATA in an empty file", fd, 0, unix.SEEK_DATA, -1)
			wantSeek(t, "SEEK_HOLE in an empty file", fd, 0, unix.SEEK_HOLE, -1)
		}
	})
}

// wantSeek seeks for data or a hole; -1 stands for ENXIO.
func wantSeek(t *testing.T, what string, fd int, off int64, whence int, wanted int64) {
	t.Helper()
	got, err := unix.Seek(fd, off, whence)
	if wanted < 0 {
		wantErr(t, what, err, unix.ENXIO)
		return
	}
	wantErr(t, what, err)
	want(t, what, got, wanted)
}

func TestFallocate(t *testing.T) {
	p := newPlace(t)
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	modes := map[string]struct {
		mode         uint32
		zeros, grows bool
	}{
		"reserve": {0, false, true}, "keep size": {keep, false, false}, "punch": {punch | keep, true, false},
		"zero": {zero, true, true}, "zero and keep size": {zero | keep, true, false},
	}
	for name, m := range modes {
		p.sub(t, name, func(t *testing.T, dir string) {
			for _, size := range []int{0, 100, 5000, 70_000, 6 << 20} {
				body := make([]byte, size)
				for i := range body {
					body[i] = 'a' + byte(i%26)
				}
				for _, r := range [][2]int{{0, 1}, {0, size + 1}, {size / 3, size/3 + 1}, {size / 2, size/2 + 9}, {size, 10_000}, {size + 7000, 3}, {10, 8192}, {4096, 4096}} {
					what := fmt.Sprintf("%d bytes, %d at %d", size, r[1], r[0])
					f := dir + "/f"
					must(t, os.WriteFile(f, body, 0o600))
					fd, err := unix.Open(f, unix.O_RDWR, 0)
					must(t, err)
					pread(t, fd, size, 0) // what is cached must go
					wanted := bytes.Clone(body)
					end := r[0] + r[1]
					if m.grows && end > size {
						wanted = append(wanted, make([]byte, end-size)...)
					}
					if m.zeros && r[0] < len(wanted) {
						clear(wanted[r[0]:min(end, len(wanted))])
					}
					wantErr(t, what, unix.Fallocate(fd, m.mode, int64(r[0]), int64(r[1])))
					want(t, what+": size", fstat(t, fd).Size, int64(len(wanted)))
					wantBytes(t, what, pread(t, fd, len(wanted)+10, 0), wanted)
					must(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
					wantBytes(t, what+", from the store", pread(t, fd, len(wanted)+10, 0), wanted)
					must(t, unix.Close(fd))
				}
			}
		})
	}
	p.sub(t, "errors", func(t *testing.T, dir string) {
		put(t, dir+"/f", "body")
		fd, ro := open(t, dir+"/f", unix.O_RDWR, 0), open(t, dir+"/f", unix.O_RDONLY, 0)
		wantErr(t, "no length", unix.Fallocate(fd, 0, 0, 0), unix.EINVAL)
		wantErr(t, "a negative offset", unix.Fallocate(fd, 0, -1, 5), unix.EINVAL)
		wantErr(t, "punch without keeping the size", unix.Fallocate(fd, punch, 0, 1), unix.EOPNOTSUPP, unix.EINVAL)
		wantErr(t, "by a reader", unix.Fallocate(ro, 0, 0, 10), unix.EBADF)
		wantErr(t, "collapse what is no block", unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 1, 1), unix.EOPNOTSUPP, unix.EINVAL)
		wantErr(t, "insert what is no block", unix.Fallocate(fd, unix.FALLOC_FL_INSERT_RANGE, 1, 1), unix.EOPNOTSUPP, unix.EINVAL)
		wantBody(t, dir+"/f", []byte("body"))
	})
	p.sub(t, "a hole gives room back", func(t *testing.T, dir string) {
		fd := open(t, dir+"/f", unix.O_CREAT|unix.O_RDWR, 0o600)
		pwrite(t, fd, fill(8<<20, 'x'), 0)
		must(t, unix.Fsync(fd))
		before := fstat(t, fd).Blocks
		if before < 8<<20/512 {
			t.Errorf("%d blocks for 8 MiB", before)
		}
		must(t, unix.Fallocate(fd, punch|keep, 1<<20, 6<<20))
		if got := fstat(t, fd).Blocks; got > before-6<<20/512 {
			t.Errorf("%d blocks, of %d, after 6 MiB were punched", got, before)
		}
		wantSeek(t, "SEEK_HOLE", fd, 0, unix.SEEK_HOLE, 1<<20)
		wantSeek(t, "SEEK_DATA", fd, 1<<20, unix.SEEK_DATA, 7<<20)
	})
}

func TestCopyFileRange(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	body := make([]byte, 9<<20+123)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	must(t, os.WriteFile(dir+"/src", body, 0o600))
	src, dst := open(t, dir+"/src", unix.O_RDWR, 0), open(t, dir+"/dst", unix.O_CREAT|unix.O_RDWR, 0o600)
	copyAll := func(in, out int, from, to int64, n int) int {
		t.Helper()
		done := 0
		for done < n {
			k, err := unix.CopyFileRange(in, &from, out, &to, n-done, 0)
			must(t, err)
			if k == 0 {
				break
			}
			done += k
		}
		return done
	}
	want(t, "bytes of the whole", copyAll(src, dst, 0, 0, len(body)+1000), len(body))
	wantBody(t, dir+"/dst", body)
	want(t, "size", fstat(t, dst).Size, int64(len(body)))
	model := bytes.Clone(body)
	for _, c := range [][3]int{{0, 1, 1}, {1, 0, 4096}, {4095, 1 << 20, 70_000}, {4<<20 - 3, 7, 9}, {5, 9 << 20, 500}, {100, len(body) + 5000, 100}} {
		want(t, "bytes", copyAll(src, dst, int64(c[0]), int64(c[1]), c[2]), c[2])
		if n := c[1] + c[2]; n > len(model) {
			model = append(model, make([]byte, n-len(model))...)
		}
		copy(model[c[1]:], body[c[0]:c[0]+c[2]])
		wantBytes(t, "copied to", pread(t, dst, len(model)+1, 0), model)
	}
	want(t, "bytes behind the end", copyAll(src, dst, int64(len(body)), 0, 10), 0)
	want(t, "bytes within one file", copyAll(src, src, 0, 5<<20, 1<<20), 1<<20)
	copy(body[5<<20:], body[:1<<20])
	wantBytes(t, "copied within", pread(t, src, len(body), 0), body)
	at0, at5 := int64(0), int64(5)
	_, err := unix.CopyFileRange(src, &at0, src, &at5, 10, 0)
	wantErr(t, "onto itself", err, unix.EINVAL)
	ap := open(t, dir+"/dst", unix.O_WRONLY|unix.O_APPEND, 0)
	_, err = unix.CopyFileRange(src, nil, ap, nil, 10, 0)
	wantErr(t, "to a file that is appended to", err, unix.EBADF)
	// What a mapping holds is copied, and what is mapped shows the copy.
	m := mmap(t, src, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	d := mmap(t, dst, 8192, unix.PROT_READ, unix.MAP_SHARED)
	want(t, "touched", d[0] == model[0], true)
	copy(m, "mapped")
	want(t, "bytes from a mapping", copyAll(src, dst, 0, 0, 100), 100)
	wantBytes(t, "in the other mapping", d[:6], []byte("mapped"))
}

func mmap(t testing.TB, fd, n, prot, flags int) []byte {
	t.Helper()
	m, err := unix.Mmap(fd, 0, n, prot, flags)
	must(t, err)
	t.Cleanup(func() { unix.Munmap(m) }) // it may have been unmapped already
	return m
}

func TestMmap(t *testing.T) {
	p := newPlace(t)
	const rw = unix.PROT_READ | unix.PROT_WRITE
	p.sub(t, "written, then read", func(t *testing.T, dir string) {
		fd := open(t, dir+"/f", unix.O_CREAT|unix.O_RDWR, 0o600)
		must(t, unix.Ftruncate(fd, 100_000))
		m := mmap(t, fd, 100_000, rw, unix.MAP_SHARED)
		copy(m[4090:], "over a page")
		other := open(t, dir+"/f", unix.O_RDONLY, 0)
		wantBytes(t, "by read", pread(t, other, 11, 4090), []byte("over a page"))
		c := spawn(t, nil)
		r := c.do(call{Op: "pread", FD: c.open(dir+"/f", unix.O_RDONLY), Off: 4090, N: 11})
		wantBytes(t, "by another process", r.Data, []byte("over a page"))
		copy(m[50_000:], "synced")
		must(t, unix.Msync(m, unix.MS_SYNC))
		must(t, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
		wantBytes(t, "from the store", pread(t, other, 6, 50_000), []byte("synced"))
		before := lstat(t, dir+"/f")
		nextTick(t)
		copy(m[60_000:], "unsynced")
		must(t, unix.Munmap(m))
		must(t, unix.Close(fd))
		wantBytes(t, "after munmap", pread(t, other, 8, 60_000), []byte("unsynced"))
		must(t, unix.Fsync(other))
		later(t, "mtime", before.Mtim, lstat(t, dir+"/f").Mtim)
	})
	p.sub(t, "read after write", func(t *testing.T, dir string) {
		fd := open(t, dir+"/f", unix.O_CREAT|unix.O_RDWR, 0o600)
		pwrite(t, fd, fill(10_000, 'a'), 0)
		m := mmap(t, fd, 12_288, unix.PROT_READ, unix.MAP_SHARED)
		wantBytes(t, "before", m[:10_000], fill(10_000, 'a'))
		wantBytes(t, "behind the end", m[10_000:], make([]byte, 2288))
		pwrite(t, fd, fill(5000, 'b'), 2000)
		wantBytes(t, "overwritten", m[2000:7000], fill(5000, 'b'))
		c := spawn(t, nil)
		cfd := c.open(dir+"/f", unix.O_RDWR|unix.O_APPEND)
		for i := range 40 {
			wantErr(t, "append", c.do(call{Op: "append", FD: cfd, N: 1, Data: fill(48, 'c'+byte(i%20))}).err())
			wantBytes(t, "appended by another process", m[10_000+48*i:][:48], fill(48, 'c'+byte(i%20)))
		}
		must(t, unix.Ftruncate(fd, 4096))
		must(t, unix.Ftruncate(fd, 12_288))
		wantBytes(t, "cut off", m[4096:], make([]byte, 8192))
	})
	p.sub(t, "private", func(t *testing.T, dir string) {
		put(t, dir+"/f", "original")
		fd := open(t, dir+"/f", unix.O_RDONLY, 0)
		m := mmap(t, fd, 8, rw, unix.MAP_PRIVATE)
		copy(m, "changed!")
		wantBody(t, dir+"/f", []byte("original"))
	})
	p.sub(t, "of an unlinked file", func(t *testing.T, dir string) {
		fd := open(t, dir+"/f", unix.O_CREAT|unix.O_RDWR, 0o600)
		pwrite(t, fd, fill(20_000, 'a'), 0)
		m := mmap(t, fd, 20_000, rw, unix.MAP_SHARED)
		must(t, unix.Unlink(dir+"/f"))
		must(t, unix.Close(fd))
		copy(m[10_000:], "still here")
		must(t, unix.Msync(m, unix.MS_SYNC))
		wantBytes(t, "mapping", m[9_990:10_020], append(append(fill(10, 'a'), "still here"...), fill(10, 'a')...))
	})
	p.sub(t, "rights", func(t *testing.T, dir string) {
		put(t, dir+"/f", "body")
		ro, wo := open(t, dir+"/f", unix.O_RDONLY, 0), open(t, dir+"/f", unix.O_WRONLY, 0)
		_, err := unix.Mmap(ro, 0, 4, rw, unix.MAP_SHARED)
		wantErr(t, "for writing by a reader", err, unix.EACCES)
		_, err = unix.Mmap(wo, 0, 4, unix.PROT_READ, unix.MAP_SHARED)
		wantErr(t, "by a writer", err, unix.EACCES)
	})
}

// TestDirect reads and writes past the kernel's cache.
func TestDirect(t *testing.T) {
	p := newPlace(t)
	dir := p.newDir(t)
	buf := mmapAnonymous(t, 1<<20)
	cached := open(t, dir+"/f", unix.O_CREAT|unix.O_RDWR, 0o600)
	fd := open(t, dir+"/f", unix.O_RDWR|unix.O_DIRECT, 0)
	pwrite(t, cached, fill(2<<20, 'a'), 0)
	n, err := unix.Pread(fd, buf, 4096)
	must(t, err)
	wantBytes(t, "read directly", buf[:n], fill(1<<20, 'a'))
	copy(buf, fill(1<<20, 'b'))
	n, err = unix.Pwrite(fd, buf, 8192)
	must(t, err)
	want(t, "bytes written", n, 1<<20)
	wanted := append(append(fill(8192, 'a'), fill(1<<20, 'b')...), fill(1<<20-8192, 'a')...)
	wantBytes(t, "read through the cache", pread(t, cached, 3<<20, 0), wanted)
	n, err = unix.Pwrite(fd, buf[:4096], 4<<20)
	must(t, err)
	want(t, "bytes written behind the end", n, 4096)
	want(t, "size", fstat(t, cached).Size, 4<<20+4096)
	wantBytes(t, "the hole", pread(t, cached, 4096, 3<<20), make([]byte, 4096))
}

func mmapAnonymous(t *testing.T, n int) []byte {
	t.Helper()
	return mmap(t, -1, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}
