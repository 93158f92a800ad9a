package ship

import (
	"fmt"
	"strings"
)

// Prefix begins the names of all objects of this package.
const Prefix = "meta/"

func ownerName(epoch uint32) string    { return fmt.Sprintf(Prefix+"owner-%08x", epoch) }
func manifestName(epoch uint32) string { return fmt.Sprintf(Prefix+"%08x/manifest", epoch) }

func partName(epoch, checkpoint uint32, part int) string {
	return fmt.Sprintf(Prefix+"%08x/c%08x-%08x", epoch, checkpoint, part)
}

func runName(epoch, run uint32, seq uint64) string {
	return fmt.Sprintf(Prefix+"%08x/r%08x-%016x", epoch, run, seq)
}

// Is says whether an object of a pool is one of this package's.
func Is(name string) bool { return strings.HasPrefix(name, Prefix) }
