package cluster

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	tortureSlots = 6 // processes
	tortureKinds = 5 // ways to lock
	tortureParts = 4 // ranges of a file that are locked by themselves
)

// oracle is memory that the processes of a torture share, outside of all mounts.
type oracle struct {
	// holds is what each process takes itself to have: 0 nothing, 1 to read, 2 to write.
	holds [tortureKinds][tortureParts][tortureSlots]atomic.Int32
	// doomed processes may have lost theirs and not know of it.
	doomed [tortureSlots]atomic.Bool
	// done counts what a process got synced under a lock, tried what it wrote.
	done, tried [tortureKinds][tortureSlots]atomic.Int64
	// counted are the numbers that were synced.
	counted [tortureKinds][1 << 16]atomic.Bool
	over    atomic.Bool // the processes are to end
}

func newOracle(t *testing.T) (o *oracle, path string) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "oracle")
	if err == nil {
		err = f.Truncate(int64(unsafe.Sizeof(oracle{})))
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		o, err = openOracle(f.Name())
	}
	if err != nil {
		t.Fatal(err)
	}
	return o, f.Name()
}

func openOracle(path string) (*oracle, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, int(unsafe.Sizeof(oracle{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*oracle)(unsafe.Pointer(&mem[0])), nil
}

// take notes that a process has a lock, and fails when another has it, too: of two
// who take it at once, one sees the other.
func (o *oracle) take(kind, part, slot int, write bool) error {
	own := int32(1)
	if write {
		own = 2
	}
	holds := &o.holds[kind][part]
	holds[slot].Store(own)
	for other := range holds {
		if other == slot || o.doomed[other].Load() {
			continue
		}
		if has := holds[other].Load(); has == 2 || has == 1 && write {
			return fmt.Errorf("two holders of part %d: %d has %d, %d has %d", part, slot, own, other, has)
		}
	}
	return nil
}

func (o *oracle) drop(kind, part, slot int) { o.holds[kind][part][slot].Store(0) }

// bury forgets what a process had that was killed.
func (o *oracle) bury(slot int) {
	for kind := range o.holds {
		for part := range o.holds[kind] {
			o.drop(kind, part, slot)
		}
	}
	o.doomed[slot].Store(false)
}

// progress is how much a process has got done.
func (o *oracle) progress(slot int) (n int64) {
	for kind := range o.done {
		n += o.done[kind][slot].Load()
	}
	return n
}
