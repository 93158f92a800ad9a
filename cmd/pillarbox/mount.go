package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "open a store and mount it in the background",
		ArgsUsage: "MOUNTPOINT",
		Description: "Ends with 0 once the mount answers. In /etc/fstab, with a link /sbin/mount.pillarbox\n" +
			"to this program:  pillarbox:DIR  MOUNTPOINT  pillarbox  _netdev  0  0",
		Flags: append(upFlags(),
			&cli.StringFlag{Name: "log-file", Usage: "`FILE` to append the log to (default: DIR/log/pillarbox.log)"},
			// mount(8) passes these to every helper.
			&cli.BoolFlag{Name: "s", Hidden: true}, &cli.BoolFlag{Name: "f", Hidden: true}, &cli.BoolFlag{Name: "n", Hidden: true},
			&cli.BoolFlag{Name: "v", Hidden: true}, &cli.StringFlag{Name: "t", Hidden: true}),
		Action: func(c *cli.Context) error {
			opt, err := parseUp(c)
			if err != nil {
				return err
			}
			if opt.logFile == "" {
				opt.logFile = filepath.Join(opt.data+opt.conf, logDir, "pillarbox.log")
			} else if opt.logFile, err = filepath.Abs(opt.logFile); err != nil {
				return fmt.Errorf("log file: %w", err)
			}
			if within(opt.logFile, opt.point) && !within(opt.data, opt.point) {
				return usageError("--log-file %s lies in the mount it would log about", opt.logFile)
			}
			if c.Bool("f") { // mount -f: everything but the mount
				return nil
			}
			return mountInBackground(opt)
		},
	}
}

// args are the arguments of up that mean the same.
func (o *upOptions) args() []string {
	store := []string{"--data", o.data}
	if o.conf != "" {
		store = []string{"--conf", o.conf}
	}
	args := append(append([]string{"up"}, store...), "--log-format", o.logFormat, "--log-file", o.logFile)
	if o.volumeDepth != 0 {
		args = append(args, "--volume-depth", strconv.Itoa(o.volumeDepth))
	}
	var list []string
	for _, f := range []struct {
		set  bool
		name string
	}{{o.dirSync, "dirsync"}, {o.nonempty, "nonempty"}, {o.debug, "debug"}, {o.suid, "suid"}, {o.dev, "dev"}, {o.noExec, "noexec"}, {o.encrypt, "encrypt"}} {
		if f.set {
			list = append(list, f.name)
		}
	}
	if o.timeout != 0 {
		list = append(list, "timeout="+o.timeout.String())
	}
	if len(list) > 0 {
		args = append(args, "-o", strings.Join(list, ","))
	}
	if o.keyFile != "" {
		args = append(args, "--key-file", o.keyFile)
	}
	args = append(append(append(args, o.pools.args()...), o.ship.args()...), o.packArgs()...)
	if o.metrics != "" {
		args = append(args, "--metrics", o.metrics)
	}
	if o.pprof != "" {
		args = append(args, "--pprof", o.pprof)
	}
	return append(append(args, o.cache.args()...), o.s3.args()...)
}

const readyLine = "ready"

// mountInBackground starts up as a daemon and waits until it is ready. The
// child tells through a pipe: "ready", or the line that says why not.
func mountInBackground(opt upOptions) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the background process: %w", err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", append(opt.args(), "--ready-fd", "3", "--", opt.point)...)
	cmd.Args[0] = "pillarbox"
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr // until the child has its log file
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the background process: %w", err)
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if line = strings.TrimSuffix(line, "\n"); line == readyLine {
		if isDead(opt.point) {
			return fmt.Errorf("the background process ended as soon as the mount was up; its log is %s", opt.logFile)
		}
		return cmd.Process.Release()
	}
	werr := cmd.Wait()
	if line != "" && (err == nil || errors.Is(err, io.EOF)) {
		if code := cmd.ProcessState.ExitCode(); code > 0 {
			return failure(code, "%s", line)
		}
		return errors.New(line)
	}
	return fmt.Errorf("the background process ended before the mount was up (%v); its log is %s", werr, opt.logFile)
}

// upInBackground is the child of mountInBackground.
func upInBackground(ctx context.Context, opt upOptions, ready *os.File) error {
	unix.CloseOnExec(int(ready.Fd()))
	log, err := newLog(os.Stderr, opt.logFormat, opt.debug)
	if err != nil {
		return err
	}
	logging, told := false, false
	err = up(ctx, opt, log, upHooks{
		locked: func() error {
			err := logToFile(opt.logFile)
			logging = err == nil
			return err
		},
		ready: func(*dataDir) error {
			told = true
			_, err := ready.WriteString(readyLine + "\n")
			return errors.Join(err, ready.Close())
		},
	})
	if err == nil {
		return nil
	}
	if logging {
		log.Error("ended with a failure", "err", err)
	}
	if !told {
		if _, werr := ready.WriteString(oneLine(err) + "\n"); werr != nil {
			return err // nobody listens: stderr is all there is
		}
	}
	return &exitError{code: exitCode(err), err: errors.New("")}
}

// logToFile makes a file take what goes to stdout and stderr, a crash's stack
// included.
func logToFile(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("make the log's directory: %w", err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer f.Close()
	for fd := 1; fd <= 2; fd++ {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return fmt.Errorf("redirect output to the log: %w", err)
		}
	}
	return nil
}
