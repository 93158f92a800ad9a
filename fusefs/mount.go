package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"pillarbox/cachefs"
)

const fsType = "pillarbox"

// Options of a mount. The zero value means the defaults.
type Options struct {
	Source     string          // what mount tables show as the device; "pillarbox"
	Timeout    time.Duration   // how long the kernel keeps names, absent names and attributes; 24 h
	DirTimeout time.Duration   // the same of attributes of directories, and of their names in a Shared store; 1 s
	Helper     []string        // the command that calls Helper with the mount point, which is added; none: inotify watches hear of no change that did not come by the mount
	Shared     bool            // other hosts change the store, too: the kernel keeps names and attributes of directories only
	ReadAhead  int             // bytes the kernel reads ahead; 1 MiB
	Suid       bool            // honour set-user-ID bits
	Dev        bool            // honour device files
	NoExec     bool            // refuse to run programs
	Log        *slog.Logger    // slog.Default()
	Base       context.Context // values for requests; context.Background(). Its cancellation is ignored: Unmount ends the mount
}

func (o Options) withDefaults() Options {
	if o.Source == "" {
		o.Source = fsType
	}
	if o.Timeout == 0 && !o.Shared {
		o.Timeout = 24 * time.Hour
	}
	if o.DirTimeout == 0 {
		o.DirTimeout = time.Second
		if !o.Shared {
			o.DirTimeout = min(o.DirTimeout, o.Timeout)
		}
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = 1 << 20
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Base == nil {
		o.Base = context.Background()
	}
	return o
}

// Validate says what is wrong with the options, defaults filled in.
func (o Options) Validate() error {
	switch {
	case o.Timeout < 0 || o.DirTimeout < 0:
		return errors.New("timeouts must not be negative")
	case o.ReadAhead < 4096:
		return errors.New("read-ahead must be at least 4096 bytes")
	case strings.ContainsAny(o.Source, "\x00\n"):
		return errors.New("the source must be one line")
	}
	return nil
}

// Mounted is a mount that is up.
type Mounted struct {
	point  string
	server *fuse.Server
	raw    *raw
	events *events // nil: none
	done   chan struct{}
}

const (
	maxWrite      = 1 << 20 // bytes of one read or write request
	maxBackground = 128     // read-ahead and other requests nobody waits for
)

// Mount mounts fs at mountpoint and returns once it answers. Only root can
// do it. fs stays the caller's, to be closed after the mount has ended.
func Mount(mountpoint string, fs *cachefs.FS, o Options) (*Mounted, error) {
	o = o.withDefaults()
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("mount options: %w", err)
	}
	point, err := filepath.Abs(mountpoint)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	r := &raw{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		fs:            fs,
		ctx:           context.WithoutCancel(o.Base),
		log:           o.Log,
		timeout:       o.Timeout,
		dirTimeout:    o.DirTimeout,
		shared:        o.Shared,
	}
	fs.ExpectForget()
	server, err := fuse.NewServer(measured{r}, point, o.mountOptions())
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", point, err)
	}
	if err := keepFromChildren(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", point, err), unix.Unmount(point, unix.MNT_DETACH))
	}
	if len(o.Helper) > 0 {
		r.events = newEvents(o.Helper, point, o.Log)
	}
	if o.Shared {
		fs.SetKernel(kernel{server, r.events, &r.shown})
	}
	m := &Mounted{point, server, r, r.events, make(chan struct{})}
	go func() {
		defer close(m.done)
		server.Serve()
		if m.events != nil {
			m.events.close()
		}
	}()
	if err := server.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", point, err), m.UnmountLazily())
	}
	dev, err := device(point)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", point, err), m.UnmountLazily())
	}
	if m.events != nil {
		m.events.start(dev)
	}
	if err := setReadAhead(dev, o.ReadAhead); err != nil {
		o.Log.Warn("the kernel keeps its read-ahead", "mountpoint", point, "err", err)
	}
	return m, nil
}

func (o Options) mountOptions() *fuse.MountOptions {
	mo := &fuse.MountOptions{
		Name:              fsType,
		FsName:            o.Source,
		DirectMountStrict: true,
		AllowOther:        true,
		// The kernel checks permissions, supplementary groups included.
		Options:              []string{"default_permissions"},
		MaxWrite:             maxWrite,
		MaxReadAhead:         o.ReadAhead,
		MaxBackground:        maxBackground,
		EnableSymlinkCaching: true,
		DisableSplice:        true, // bodies come from memory
		EnableLocks:          o.Shared,
		// Own writes move mtime; that must not cost the pages they filled.
		ExplicitDataCacheControl: true,
		// KILLPRIV_V2: we clear set-ID bits and file capabilities, so the kernel
		// need not ask for security.capability before every write.
		// EXPORT_SUPPORT: a file handle works after the kernel has dropped the path,
		// as it may of a directory that somebody watches.
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_EXPORT_SUPPORT |
			fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_ASYNC_DIO,
		Logger: slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn),
	}
	for _, f := range []struct {
		set  bool
		name string
	}{{o.Suid, "suid"}, {o.Dev, "dev"}, {o.NoExec, "noexec"}} {
		if f.set {
			mo.Options = append(mo.Options, f.name)
		}
	}
	return mo
}

// keepFromChildren marks the connections to the kernel, which go-fuse opens to be
// inherited. A helper that had one would keep the mount of a killed process alive,
// and wait in it for answers that never come.
func keepFromChildren() error {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	for _, e := range list {
		// The listing's own descriptor is gone by now.
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || to != "/dev/fuse" {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return fmt.Errorf("list open files: %w", err)
		}
		unix.CloseOnExec(fd)
	}
	return nil
}

// device is the number of a mount. The kernel is not to ask us for more: a process
// that is killed while it waits for its own answer never ends, and its mount hangs.
func device(point string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, point, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return 0, err
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor), nil
}

// setReadAhead raises the kernel's limit for this mount, which starts at 128 KiB
// whatever FUSE asks for.
func setReadAhead(dev uint64, bytes int) error {
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(dev), unix.Minor(dev))
	return os.WriteFile(path, fmt.Appendf(nil, "%d", bytes>>10), 0)
}

// Point is the mount point as an absolute path.
func (m *Mounted) Point() string { return m.point }

// Done is closed when the mount has ended, by Unmount or by umount(8).
func (m *Mounted) Done() <-chan struct{} { return m.done }

// Wait returns when the mount has ended and no request is being served.
func (m *Mounted) Wait() { <-m.done }

// Unmount ends the mount. While files are open in it, it fails with EBUSY.
func (m *Mounted) Unmount() error {
	if err := m.unmount(0); err != nil {
		return err
	}
	m.Wait()
	return nil
}

// UnmountLazily takes the mount out of the tree at once; it ends when the last
// open file is closed, which Wait waits for.
func (m *Mounted) UnmountLazily() error { return m.unmount(unix.MNT_DETACH) }

func (m *Mounted) unmount(flags int) error {
	select {
	case <-m.done:
		return nil
	default:
	}
	if err := unix.Unmount(m.point, flags); err != nil {
		return fmt.Errorf("unmount %s: %w", m.point, err)
	}
	return nil
}
