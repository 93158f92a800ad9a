package main

import (
	"errors"
	"fmt"
	"strings"
)

// The exit codes of every subcommand but fsck, whose are those of fsck(8).
const (
	exitOK         = 0
	exitFailure    = 1  // a failure that has no code of its own
	exitUsage      = 2  // unknown command or flag, missing or bad argument
	exitMountpoint = 3  // mount point missing, no directory, not empty, or overlapping the data directory
	exitInUse      = 4  // mount point in use, or (umount) not a Pillarbox mount
	exitLocked     = 5  // data directory in use by another process
	exitNewer      = 6  // data directory written by a newer Pillarbox
	exitForeign    = 7  // data directory is something else, or another store's
	exitMount      = 8  // the kernel refused the mount: no /dev/fuse, or not root
	exitDamaged    = 9  // the store is damaged
	exitNotRunning = 10 // no Pillarbox runs on the data directory
)

// exitMeaning is the table that --help shows; docs tell the same.
func exitMeaning() []string {
	return []string{
		exitOK:         "success",
		exitFailure:    "other failure",
		exitUsage:      "unknown command or flag, missing or bad argument",
		exitMountpoint: "mount point missing, not a directory, not empty, or overlapping the data directory",
		exitInUse:      "mount point in use; umount: not a Pillarbox mount",
		exitLocked:     "data directory in use by another process",
		exitNewer:      "data directory written by a newer Pillarbox",
		exitForeign:    "data directory is something else, or another store's",
		exitMount:      "mount failed: no /dev/fuse, or not root",
		exitDamaged:    "store damaged",
		exitNotRunning: "no Pillarbox runs on the data directory",
	}
}

func exitHelp() string {
	var b strings.Builder
	b.WriteString("\nEXIT CODES (fsck has its own, see there):\n")
	for code, meaning := range exitMeaning() {
		fmt.Fprintf(&b, "   %2d  %s\n", code, meaning)
	}
	return b.String()
}

// exitError is an error with an exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// failure makes an error that ends the program with code.
func failure(code int, format string, args ...any) error {
	return &exitError{code: code, err: fmt.Errorf(format, args...)}
}

func usageError(format string, args ...any) error { return failure(exitUsage, format, args...) }

func exitCode(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &e):
		return e.code
	}
	return exitFailure
}

// oneLine is an error's text on a single line.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
