package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// shutdown unmounts, flushes and closes everything. Another signal forces the
// end of the process.
func shutdown(s *stack, opt upOptions, log *slog.Logger, signals <-chan os.Signal) error {
	done := make(chan struct{})
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case sig := <-signals:
			log.Error("ending at once, by a second signal; what no fsync promised may be flushed at the next start", "signal", sig.String())
			_ = s.mount.UnmountLazily() // a dead mount would stay behind; the next start removes that as well
			os.Exit(exitFailure)
		case <-done:
		}
	}()
	unmount(s, opt.point, log)
	err := s.close()
	close(done)
	<-watching
	if err == nil {
		log.Info("flushed and closed", "data", opt.data)
	}
	return err
}

// unmount ends the mount. When programs have files open in it, it is flushed,
// taken out of the tree, and cut off: their next call fails.
func unmount(s *stack, point string, log *slog.Logger) {
	var st unix.Stat_t
	err := unix.Stat(point, &st)
	select {
	case <-s.mount.Done():
		return
	default:
	}
	switch {
	case err != nil || st.Dev != s.dev:
		log.Warn("the mount was taken out of the tree while files were open; cutting off the programs that have them open", "mountpoint", point)
	default:
		err := s.mount.Unmount()
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) {
			log.Error("cannot unmount; flushing and unmounting lazily", "mountpoint", point, "err", err)
		} else {
			log.Warn("the mount is busy: flushing it and unmounting lazily; programs that have files open in it get errors from now on", "mountpoint", point)
		}
		if err := syncMount(point); err != nil {
			log.Warn("flushing memory maps of open files", "err", err)
		}
		if err := s.mount.UnmountLazily(); err != nil {
			log.Error("cannot unmount lazily; the next start will remove the dead mount", "err", err)
		}
	}
	if err := abortFuse(unix.Minor(s.dev)); err != nil {
		log.Warn("cannot cut off the programs that have files open; waiting for them", "err", err)
	}
	s.mount.Wait()
}

// syncMount makes the kernel hand over what it holds of changed memory maps.
func syncMount(point string) error {
	d, err := os.Open(point)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// abortFuse ends a FUSE connection, named by its device's minor number, through
// the control filesystem, mounted for the moment if the host has it nowhere.
func abortFuse(minor uint32) (err error) {
	dir := "/sys/fs/fuse/connections"
	conn := strconv.FormatUint(uint64(minor), 10)
	if _, err := os.Stat(filepath.Join(dir, conn)); err != nil {
		if dir, err = os.MkdirTemp("", "pillarbox-fusectl-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Remove(dir)) }()
		if err := unix.Mount("fusectl", dir, "fusectl", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount fusectl: %w", err)
		}
		defer func() { err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)) }()
	}
	return os.WriteFile(filepath.Join(dir, conn, "abort"), []byte("1"), 0)
}
