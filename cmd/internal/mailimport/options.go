package mailimport

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Layout says what the mbox files of a directory become.
type Layout string

// The layouts.
const (
	// Folders: several mbox files of one directory become one Maildir++, in
	// which "inbox", "INBOX" or "mbox" is the inbox and NAME is the folder
	// .NAME; a single one becomes a Maildir of its name.
	Folders Layout = "folders"
	// Maildirs: each becomes a Maildir of its name, as for a mail spool.
	Maildirs Layout = "maildirs"
)

// Options say what to import. Start from Defaults.
type Options struct {
	Src, Dst string
	Workers  int    // files copied at a time
	Mbox     Layout // of several mbox files in one directory
	NoVerify bool   // do not compare at the end
	DryRun   bool   // only count
	State    string // path of the journal; empty: one for Src and Dst below $XDG_STATE_HOME

	// Progress, if set, hears how many bytes of a stage are done. Called from
	// several goroutines, one at a time.
	Progress func(stage string, done, total int64)
}

// Defaults copy src to dst.
func Defaults(src, dst string) Options {
	return Options{Src: src, Dst: dst, Workers: 8, Mbox: Folders}
}

// Validate says what is wrong with the options, and makes the paths absolute.
func (o *Options) Validate() error {
	switch {
	case o.Workers < 1 || o.Workers > 1024:
		return fmt.Errorf("%d workers: must be 1 to 1024", o.Workers)
	case o.Mbox != Folders && o.Mbox != Maildirs:
		return fmt.Errorf("mbox layout %q: must be %s or %s", o.Mbox, Folders, Maildirs)
	case o.Src == "" || o.Dst == "":
		return errors.New("source or destination is empty")
	}
	src, err := resolved(o.Src)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	dst, err := resolved(o.Dst)
	if errors.Is(err, fs.ErrNotExist) {
		var parent string
		if parent, err = resolved(filepath.Dir(filepath.Clean(o.Dst))); err == nil {
			dst = filepath.Join(parent, filepath.Base(o.Dst))
		}
	}
	if err != nil {
		return fmt.Errorf("destination: %w", err)
	}
	if st, err := os.Stat(dst); err == nil && !st.IsDir() {
		return fmt.Errorf("destination %s is not a directory", dst)
	}
	if within(src, dst) || within(dst, src) {
		return fmt.Errorf("source %s and destination %s lie in each other", src, dst)
	}
	o.Src, o.Dst = src, dst
	if o.State == "" && !o.DryRun {
		o.State, err = defaultState(src, dst)
	}
	return err
}

// defaultState is a journal of its own for each source and destination, where
// programs keep their state.
func defaultState(src, dst string) (string, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(dir) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find a place for the journal: %w", err)
		}
		dir = filepath.Join(home, ".local", "state")
	}
	sum := sha256.Sum256([]byte(src + "\x00" + dst))
	return filepath.Join(dir, "pillarbox", fmt.Sprintf("import-%x.journal", sum[:8])), nil
}

func resolved(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// within says whether path is dir or lies below it.
func within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// Report counts what was done. A file, message or link is counted once, as
// copied, there already, gone or failed.
type Report struct {
	Source      string         `json:"source"`
	Destination string         `json:"destination"`
	Journal     string         `json:"journal,omitempty"`
	Resumed     bool           `json:"resumed"`
	Directories int64          `json:"directories"`
	Files       int64          `json:"files"`    // found, without messages of mbox files
	Mboxes      int64          `json:"mboxes"`   // mbox files found
	Messages    int64          `json:"messages"` // found in mbox files
	HardLinks   int64          `json:"hard_links"`
	Symlinks    int64          `json:"symlinks"`
	Bytes       int64          `json:"bytes"`
	Copied      int64          `json:"copied"`
	Present     int64          `json:"already_there"`
	Gone        int64          `json:"gone"`        // copied before, removed from the destination since
	SplitLinks  int64          `json:"split_links"` // hard links that became copies, their names being in different accounts
	LocksLeft   int64          `json:"lock_files_left_out"`
	Special     int64          `json:"special_files_left_out"` // sockets, pipes, devices
	Internal    int64          `json:"internal_messages_left_out"`
	Refused     map[string]int `json:"attributes_refused,omitempty"` // by the destination
	Failed      int64          `json:"failed"`
	Verified    int64          `json:"verified"` // files, messages, links and directories compared
	Mismatches  int64          `json:"mismatches"`
	Errors      []string       `json:"errors"` // the first ones
}

// maxErrors is how many errors a report tells.
const maxErrors = 20

// ErrMismatch says that the verification found differences.
var ErrMismatch = errors.New("the copy differs from the source")

// ErrFailed says that something could not be copied.
var ErrFailed = errors.New("not everything was copied")

// hopeless are errors after which trying the next file makes no sense.
func hopeless(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.ENOTCONN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
