package harness

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// DotDot is the inode number that a directory's listing has for "..", which need not be
// what the kernel goes by in a path.
func DotDot(t testing.TB, dir string) uint64 {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", dir, err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		t.Fatalf("getdents %s: %v", dir, err)
	}
	for b := buf[:n]; len(b) > 0; b = b[binary.NativeEndian.Uint16(b[16:]):] {
		if bytes.HasPrefix(b[19:], []byte("..\x00")) {
			return binary.NativeEndian.Uint64(b)
		}
	}
	t.Fatalf("%s lists no ..", dir)
	return 0
}
