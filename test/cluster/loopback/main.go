// Command loopback mounts a directory elsewhere with go-fuse's loopback file system,
// tuned: names and attributes are kept for a minute, listings as well. It is what
// FUSE itself costs, to compare Pillarbox with. It ends when it is unmounted.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: loopback DIR MOUNTPOINT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "loopback:", err)
		os.Exit(1)
	}
}

func run(dir, point string) error {
	root, err := fs.NewLoopbackRoot(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	keep := time.Minute
	server, err := fs.Mount(point, root, &fs.Options{
		AttrTimeout: &keep, EntryTimeout: &keep, NegativeTimeout: &keep,
		NullPermissions: true, // those of the files below count
		MountOptions:    fuse.MountOptions{AllowOther: true, FsName: dir, Name: "loopback", MaxWrite: 1 << 20, MaxReadAhead: 1 << 20},
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w", point, err)
	}
	server.Wait()
	return nil
}
