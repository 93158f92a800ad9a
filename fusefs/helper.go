package fusefs

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sys/unix"

	"pillarbox/objstore"
)

// Helper is the main function of the process that repeats other hosts' changes;
// see events.go. It takes orders from in, a line each, and answers each with a
// line, until in ends. A directory is opened by its number, which works for all
// that the kernel has in memory, those that somebody watches among them, and
// costs one failing call for others.
func Helper(point string, in io.Reader, out io.Writer) error {
	runtime.LockOSThread() // the mount knows us by the thread
	defer runtime.UnlockOSThread()
	if _, err := fmt.Fprintln(out, unix.Gettid()); err != nil {
		return err
	}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var o order
		err = json.Unmarshal(line, &o)
		if err == nil {
			err = repeat(point, &o)
		}
		answer := "ok"
		if err != nil {
			answer = err.Error()
		}
		if _, err := fmt.Fprintf(out, "%q\n", answer); err != nil {
			return err
		}
	}
}

// repeat makes the system call of an event. The mount point is opened each
// time and not before, so that it is not busy.
func repeat(point string, o *order) error {
	top, err := unix.Open(point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	var st unix.Stat_t
	if err := unix.Fstat(top, &st); err != nil || st.Dev != o.Dev {
		return fmt.Errorf("%s is another file system: %w", point, err)
	}
	open := func(ino objstore.Ino) (int, error) {
		if ino == objstore.VolumeRoot(objstore.RootVolume) {
			return unix.Dup(top)
		}
		return unix.OpenByHandleAt(top, fileHandle(ino), unix.O_PATH|unix.O_CLOEXEC)
	}
	if o.Kind == objstore.Modified || o.Kind == objstore.Touched {
		fd, err := open(o.Ino)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
		if o.Kind == objstore.Touched {
			times[0].Nsec = unix.UTIME_NOW
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), times, 0)
	}
	dir, err := open(o.Dir)
	if err != nil && o.Kind != objstore.Moved {
		return err
	}
	if err == nil {
		defer unix.Close(dir)
	}
	name := string(o.Name)
	switch o.Kind {
	case objstore.Created:
		return create(dir, name, o.Type)
	case objstore.Removed:
		return remove(dir, name, o.Type)
	case objstore.Moved:
		return move(dir, err, open, o)
	}
	return fmt.Errorf("event of kind %d", o.Kind)
}

func create(dir int, name string, typ uint32) error {
	switch typ {
	case objstore.ModeDir:
		return unix.Mkdirat(dir, name, 0)
	case objstore.ModeSymlink:
		return unix.Symlinkat("x", dir, name)
	}
	return unix.Mknodat(dir, name, typ, 0)
}

func remove(dir int, name string, typ uint32) error {
	flags := 0
	if typ == objstore.ModeDir {
		flags = unix.AT_REMOVEDIR
	}
	return unix.Unlinkat(dir, name, flags)
}

// move repeats a rename. Where only one of the directories is known here, it is
// as if something came or went.
func move(from int, ferr error, open func(objstore.Ino) (int, error), o *order) error {
	to, terr := open(o.NewDir)
	if terr == nil {
		defer unix.Close(to)
	}
	switch {
	case ferr != nil && terr != nil:
		return errors.Join(ferr, terr)
	case ferr != nil:
		return create(to, string(o.New), o.Type)
	case terr != nil:
		return remove(from, string(o.Name), o.Type)
	}
	return unix.Renameat2(from, string(o.Name), to, string(o.New), 0)
}

// fileHandle is the handle that the kernel's FUSE would give for an inode: type
// FILEID_INO64_GEN, node id and generation.
func fileHandle(ino objstore.Ino) unix.FileHandle {
	b := make([]byte, 12)
	binary.NativeEndian.PutUint32(b, uint32(ino>>32))
	binary.NativeEndian.PutUint32(b[4:], uint32(ino))
	binary.NativeEndian.PutUint32(b[8:], generation)
	return unix.NewFileHandle(0x81, b)
}
