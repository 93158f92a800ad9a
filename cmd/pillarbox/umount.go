package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func umountCommand() *cli.Command {
	return &cli.Command{
		Name:      "umount",
		Usage:     "flush and unmount a store, and end its process",
		ArgsUsage: "MOUNTPOINT",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "timeout", Value: 5 * time.Minute, Usage: "how long to wait for the flush"},
		},
		Action: func(c *cli.Context) error {
			args, err := operands(c, "MOUNTPOINT")
			if err != nil {
				return err
			}
			point, err := absolute(args[0])
			if err != nil {
				return failure(exitInUse, "%w", err)
			}
			return umount(point, c.Duration("timeout"))
		},
	}
}

func umount(point string, timeout time.Duration) error {
	mnt, err := mountAt(point)
	if err != nil {
		return err
	}
	dir, ok := mnt.dataDir()
	if !ok {
		return failure(exitInUse, "%s is not the mount point of a Pillarbox", point)
	}
	if isDead(point) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount the dead mount %s: %w", point, err)
		}
		return nil
	}
	pid, err := holder(dir)
	if err != nil {
		return err
	}
	if pid == 0 {
		return fmt.Errorf("unmount %s: no process holds its data directory %s", point, dir)
	}
	if err := endProcess(pid, dir, timeout); err != nil {
		return fmt.Errorf("unmount %s: %w", point, err)
	}
	left, err := mountAt(point)
	if err != nil {
		return err
	}
	if _, still := left.dataDir(); still {
		return fmt.Errorf("unmount %s: process %d ended, but the mount is still there", point, pid)
	}
	return nil
}

// endProcess sends SIGTERM to the process that holds dir's lock and waits for
// its end.
func endProcess(pid int, dir string, timeout time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("find process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// The descriptor is the process that the pid names now; is that still the one?
	if now, err := holder(dir); err != nil || now != pid {
		return errors.Join(fmt.Errorf("process %d, which served it, has just ended", pid), err)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return fmt.Errorf("end process %d: %w", pid, err)
	}
	deadline := time.Now().Add(timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("process %d is still flushing after %v", pid, timeout)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for process %d: %w", pid, err)
		case n > 0:
			return nil
		}
	}
}
