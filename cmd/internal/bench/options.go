package bench

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// Options say what to measure. Start from Defaults.
type Options struct {
	Dir        string        // the directory measured
	Versus     string        // the directory it is compared with; empty: none
	Workers    []int         // one phase for each number
	Messages   int           // messages in a worker's mailbox; each delivery row brings half of them
	MeanSize   int           // mean size of a message, in bytes; sizes are log-normal
	AttachSize int           // size of an attachment, in bytes
	Rows       []string      // names of rows, see Rows; empty: all
	MailDir    string        // take bodies from the files below it; empty: made up
	Seed       uint64        // contents and sizes follow from it
	Rounds     int           // at least so many rounds; an even number is fairest
	Time       time.Duration // go on with rounds until each row was measured so long in each directory
	DropCaches bool          // drop the kernel's caches before cold rows; needs root

	// Progress, if set, hears how much of a phase is done. Called by Run's
	// goroutine alone.
	Progress func(what string, done, total int)

	afterRow func(row string, s *site) // a seam for tests
}

// Defaults measure all rows in dir.
func Defaults(dir string) Options {
	return Options{
		Dir: dir, Workers: []int{1, 8, 32}, Messages: 400, MeanSize: 75 << 10, AttachSize: 64 << 20,
		Seed: 1, Rounds: 4, DropCaches: true,
	}
}

const (
	maxWorkers = 1024
	minSize    = 512     // bytes of the smallest message
	maxSize    = 4 << 20 // bytes of the largest message
)

// Validate says what is wrong with the options.
func (o *Options) Validate() error {
	switch {
	case o.Dir == "":
		return errors.New("no directory given")
	case len(o.Workers) == 0:
		return errors.New("no number of workers given")
	case o.Messages < 2 || o.Messages > 1_000_000:
		return fmt.Errorf("%d messages: must be 2 to 1000000", o.Messages)
	case o.MeanSize < minSize || o.MeanSize > maxSize/4:
		return fmt.Errorf("mean size of %d bytes: must be %d to %d", o.MeanSize, minSize, maxSize/4)
	case o.AttachSize < 1 || o.AttachSize > 1<<40:
		return fmt.Errorf("attachments of %d bytes: must be 1 byte to 1 TiB", o.AttachSize)
	case o.Rounds < 1:
		return fmt.Errorf("%d rounds: must be at least 1", o.Rounds)
	case o.Time < 0:
		return fmt.Errorf("time of %s: must not be negative", o.Time)
	}
	for _, w := range o.Workers {
		if w < 1 || w > maxWorkers {
			return fmt.Errorf("%d workers: must be 1 to %d", w, maxWorkers)
		}
	}
	names := RowNames()
	for _, r := range o.Rows {
		if !slices.Contains(names, r) {
			return fmt.Errorf("unknown row %q: rows are %v", r, names)
		}
	}
	for _, d := range o.dirs() {
		if st, err := os.Stat(d); err != nil {
			return fmt.Errorf("directory to measure: %w", err)
		} else if !st.IsDir() {
			return fmt.Errorf("%s is not a directory", d)
		}
	}
	return nil
}

func (o *Options) dirs() []string {
	if o.Versus == "" {
		return []string{o.Dir}
	}
	return []string{o.Dir, o.Versus}
}

// rows are those chosen, in the order of Rows.
func (o *Options) rows() []Row {
	return slices.DeleteFunc(Rows(), func(r Row) bool { return len(o.Rows) > 0 && !slices.Contains(o.Rows, r.Name) })
}
