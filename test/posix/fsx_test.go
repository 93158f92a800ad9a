package posix

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

// TestRandomFile changes one file in all ways there are and compares it with a
// model in memory after each.
func TestRandomFile(t *testing.T) {
	randomFiles(t, newPlace(t), []randomFile{
		{"tiny", 3000, 0, 3000, 600},
		{"index", 3000, 0, 40_000, 200},
		{"small", 4000, 0, 300_000, 70_000},
		{"chunk border", 1500, 4<<20 - 200_000, 400_000, 100_000},
		{"large", 300, 0, 13 << 20, 9 << 20},
		{"region border", 800, 1<<32 - 100_000, 200_000, 50_000},
	})
}

// TestRandomFileEncrypted does the same in an encrypted store.
func TestRandomFileEncrypted(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	if out, err := exec.Command(harness.Binary(t), "key", "create", "--key-file", keys).CombinedOutput(); err != nil {
		t.Fatalf("key create: %v\n%s", err, out)
	}
	randomFiles(t, newPlace(t, "--encrypt", "--key-file", keys), []randomFile{
		{"tiny", 1000, 0, 3000, 600},
		{"index", 1000, 0, 40_000, 200},
		{"small", 1000, 0, 300_000, 70_000},
		{"chunk border", 500, 4<<20 - 200_000, 400_000, 100_000},
		{"large", 100, 0, 13 << 20, 9 << 20},
	})
}

// randomFile is a file and how it is changed.
type randomFile struct {
	name         string
	steps        int
	base, extent int64 // changes lie in [base, base+extent)
	long         int64 // bytes that a change covers at most
}

func randomFiles(t *testing.T, p *place, files []randomFile) {
	r := seeded(t)
	for _, c := range files {
		p.sub(t, c.name, func(t *testing.T, dir string) {
			x := &exerciser{t: t, r: rand.New(rand.NewPCG(r.Uint64(), 0)), path: dir + "/f", base: c.base, extent: c.extent, long: c.long}
			x.run(c.steps)
		})
	}
}

// exerciser changes a file. Below base there is a hole.
type exerciser struct {
	t                  *testing.T
	r                  *rand.Rand
	path               string
	fd, app            int
	m                  []byte // a mapping of the whole extent that stays
	model              []byte // from base on; shorter than extent
	short              int64  // the size, if it is below base; else -1
	base, extent, long int64
	log                []string // of what was done last
}

const mapSlack = 1 << 16

func (x *exerciser) run(steps int) {
	if x.base == 0 {
		x.short = -1
	}
	x.open(unix.O_CREAT | unix.O_EXCL)
	ops := []func() string{
		x.read, x.read, x.mapRead, x.write, x.write, x.mapWrite, x.append, x.truncate, x.punch, x.zero, x.allocate,
		x.copy, x.sync, x.reopen, x.drop, x.seek, x.rewrite,
	}
	for i := range steps {
		done := ops[x.r.IntN(len(ops))]()
		x.log = append(x.log, fmt.Sprintf("%d: %s", i, done))
		if len(x.log) > 40 {
			x.log = x.log[1:]
		}
		x.size()
		if x.r.IntN(10) == 0 || i == steps-1 {
			x.all()
		}
		if x.t.Failed() {
			x.t.Fatalf("after\n%s", strings.Join(x.log, "\n"))
		}
	}
	x.close()
	if x.base == 0 {
		wantBody(x.t, x.path, x.model)
	}
}

func (x *exerciser) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatalf("%v, after\n%s", err, strings.Join(x.log, "\n"))
	}
}

func (x *exerciser) open(flags int) {
	var err error
	x.fd, err = unix.Open(x.path, unix.O_RDWR|unix.O_CLOEXEC|flags, 0o600)
	x.must(err)
	x.app, err = unix.Open(x.path, unix.O_RDWR|unix.O_APPEND|unix.O_CLOEXEC, 0)
	x.must(err)
	page := x.base &^ 4095
	x.m, err = unix.Mmap(x.fd, page, int(x.base-page+x.extent+mapSlack), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	x.must(err)
}

func (x *exerciser) close() {
	x.must(unix.Munmap(x.m))
	x.must(unix.Close(x.fd))
	x.must(unix.Close(x.app))
}

// mapped is the mapping from base on.
func (x *exerciser) mapped() []byte { return x.m[x.base&4095:] }

// span is a random range of the extent.
func (x *exerciser) span() (off, n int64) {
	off = x.r.Int64N(x.extent)
	n = 1 + x.r.Int64N(min(x.long, x.extent-off))
	if x.r.IntN(3) == 0 { // where pages begin and end
		off = off &^ 4095
		if x.base&4095 == 0 {
			n = min((n+4095)&^4095, x.extent-off)
		}
	}
	return off, n
}

// inside is a range within the file; n is 0 if there is none.
func (x *exerciser) inside() (off, n int64) {
	if len(x.model) == 0 {
		return 0, 0
	}
	off = x.r.Int64N(int64(len(x.model)))
	return off, 1 + x.r.Int64N(min(x.long, int64(len(x.model))-off))
}

func (x *exerciser) grow(to int64) {
	x.short = -1
	if n := to - int64(len(x.model)); n > 0 {
		x.model = append(x.model, make([]byte, n)...)
	}
}

func (x *exerciser) bytes(n int64) []byte {
	b := make([]byte, n)
	c := x.r.Uint32()
	for i := range b {
		c = c*1664525 + 1013904223
		b[i] = byte(c>>24) | 1 // never like a hole
	}
	return b
}

func (x *exerciser) compare(what string, off int64, got []byte) {
	x.t.Helper()
	wantBytes(x.t, fmt.Sprintf("%s at %d", what, off), got, x.model[min(off, int64(len(x.model))):min(off+int64(len(got)), int64(len(x.model)))])
}

func (x *exerciser) size() {
	wanted := x.base + int64(len(x.model))
	if x.short >= 0 {
		wanted = x.short
	}
	want(x.t, "size", fstat(x.t, x.fd).Size, wanted)
}

func (x *exerciser) all() {
	wantBytes(x.t, "the whole", pread(x.t, x.fd, len(x.model)+100, x.base), x.model)
	wantBytes(x.t, "the mapping", x.mapped()[:len(x.model)], x.model)
	if x.base > 0 {
		lo := max(0, x.base-10_000)
		n := x.base - lo
		if x.short >= 0 {
			n = max(0, min(n, x.short-lo))
		}
		wantBytes(x.t, "the hole before", pread(x.t, x.fd, int(n), lo), make([]byte, n))
	}
}

func (x *exerciser) read() string {
	off, n := x.span()
	got := pread(x.t, x.fd, int(n), x.base+off)
	wanted := x.model[min(off, int64(len(x.model))):min(off+n, int64(len(x.model)))]
	wantBytes(x.t, fmt.Sprintf("read of %d at %d", n, off), got, wanted)
	return fmt.Sprintf("read %d+%d", off, n)
}

func (x *exerciser) mapRead() string {
	off, n := x.inside()
	x.compare("mapping", off, x.mapped()[off:off+n])
	return fmt.Sprintf("read mapping %d+%d", off, n)
}

func (x *exerciser) write() string {
	off, n := x.span()
	b := x.bytes(n)
	pwrite(x.t, x.fd, b, x.base+off)
	x.grow(off + n)
	copy(x.model[off:], b)
	return fmt.Sprintf("write %d+%d", off, n)
}

func (x *exerciser) mapWrite() string {
	off, n := x.inside()
	b := x.bytes(n)
	copy(x.mapped()[off:], b)
	copy(x.model[off:], b)
	if x.r.IntN(2) == 0 {
		x.must(unix.Msync(x.m, unix.MS_SYNC))
	}
	return fmt.Sprintf("write mapping %d+%d", off, n)
}

func (x *exerciser) append() string {
	n := 1 + x.r.Int64N(min(x.long, 5000))
	if x.short >= 0 || int64(len(x.model))+n > x.extent {
		return "nothing"
	}
	b := x.bytes(n)
	_, err := unix.Write(x.app, b)
	x.must(err)
	x.model = append(x.model, b...)
	return fmt.Sprintf("append %d", n)
}

func (x *exerciser) truncate() string {
	to := x.r.Int64N(x.extent)
	if x.r.IntN(20) == 0 {
		to = 0
	}
	if x.base > 0 && x.r.IntN(20) == 0 {
		x.short = x.r.Int64N(x.base)
		x.model = x.model[:0]
		x.must(unix.Ftruncate(x.fd, x.short))
		return fmt.Sprintf("truncate to %d, before the base", x.short)
	}
	x.must(unix.Ftruncate(x.fd, x.base+to))
	x.short = -1
	x.model = x.model[:min(to, int64(len(x.model)))]
	x.grow(to)
	return fmt.Sprintf("truncate to %d", to)
}

func (x *exerciser) clear(off, n int64) {
	if size := int64(len(x.model)); off < size {
		clear(x.model[off:min(off+n, size)])
	}
}

func (x *exerciser) punch() string {
	off, n := x.span()
	x.must(unix.Fallocate(x.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, x.base+off, n))
	x.clear(off, n)
	return fmt.Sprintf("punch %d+%d", off, n)
}

func (x *exerciser) zero() string {
	off, n := x.span()
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if x.r.IntN(2) == 0 {
		mode |= unix.FALLOC_FL_KEEP_SIZE
	} else {
		x.grow(off + n)
	}
	x.must(unix.Fallocate(x.fd, mode, x.base+off, n))
	x.clear(off, n)
	return fmt.Sprintf("zero %d+%d, mode %x", off, n, mode)
}

func (x *exerciser) allocate() string {
	off, n := x.span()
	x.must(unix.Fallocate(x.fd, 0, x.base+off, n))
	x.grow(off + n)
	return fmt.Sprintf("allocate %d+%d", off, n)
}

// copy copies within the file, between ranges that do not overlap.
func (x *exerciser) copy() string {
	from, n := x.inside()
	to := x.r.Int64N(x.extent)
	n = min(n, x.extent-to, max(from-to, to-from))
	if n == 0 {
		return "nothing"
	}
	src, dst := x.base+from, x.base+to
	for left := n; left > 0; {
		k, err := unix.CopyFileRange(x.fd, &src, x.fd, &dst, int(left), 0)
		x.must(err)
		if k == 0 {
			x.t.Fatal("copy_file_range stops early")
		}
		left -= int64(k)
	}
	b := bytes.Clone(x.model[from : from+n])
	x.grow(to + n)
	copy(x.model[to:], b)
	return fmt.Sprintf("copy %d+%d to %d", from, n, to)
}

func (x *exerciser) sync() string {
	if x.r.IntN(2) == 0 {
		x.must(unix.Fdatasync(x.app))
	} else {
		x.must(unix.Fsync(x.fd))
	}
	return "sync"
}

func (x *exerciser) reopen() string {
	x.close()
	x.open(0)
	return "reopen"
}

// drop has the kernel forget its pages.
func (x *exerciser) drop() string {
	x.must(unix.Fsync(x.fd))
	x.must(unix.Munmap(x.m))
	x.must(unix.Fadvise(x.fd, 0, 0, unix.FADV_DONTNEED))
	x.must(unix.Close(x.fd))
	x.must(unix.Close(x.app))
	x.open(0)
	return "drop the pages"
}

// seek checks that what is said to be a hole reads as zeros.
func (x *exerciser) seek() string {
	x.must(unix.Msync(x.m, unix.MS_SYNC)) // the kernel does not ask for data that only pages hold
	at, size := int64(0), int64(len(x.model))
	for at < size {
		data, err := unix.Seek(x.fd, x.base+at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			data = x.base + size
		} else {
			x.must(err)
		}
		data -= x.base
		if data < at || data > size {
			x.t.Fatalf("SEEK_DATA from %d gives %d of %d", at, data, size)
		}
		wantBytes(x.t, fmt.Sprintf("what SEEK_DATA says is a hole, %d to %d", at, data), x.model[at:data], make([]byte, data-at))
		if data == size {
			break
		}
		hole, err := unix.Seek(x.fd, x.base+data, unix.SEEK_HOLE)
		x.must(err)
		if at = hole - x.base; at <= data || at > size {
			x.t.Fatalf("SEEK_HOLE from %d gives %d of %d", data, at, size)
		}
	}
	return "seek"
}

// rewrite replaces the body through another handle, now and then.
func (x *exerciser) rewrite() string {
	if x.r.IntN(10) > 0 {
		return "nothing"
	}
	fd, err := unix.Open(x.path, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	x.must(err)
	n := x.r.Int64N(min(x.long, x.extent))
	b := x.bytes(n)
	if n > 0 {
		pwrite(x.t, fd, b, x.base)
	}
	x.must(unix.Close(fd))
	x.model = append(x.model[:0], b...)
	x.short = -1
	if n == 0 && x.base > 0 {
		x.short = 0
	}
	return fmt.Sprintf("rewrite %d", n)
}
