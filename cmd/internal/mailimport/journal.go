package mailimport

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The journal is a text file of lines "CRC32C PAYLOAD". Payloads:
//
//	pillarbox-import 1 "SRC" "DST"    the first line
//	F "PATH" SIZE MTIME 0             a file, message, symlink or hard link is in place
//	X "PATH" SIZE MTIME 0             as F, a hard link that had to become a copy
//	B "PATH" SIZE MTIME CRC32C        an mbox with these contents goes to the Maildir PATH
//	R "NAME" 0 0 0                    the destination refused an extended attribute NAME
//	S                                 all above is on stable storage, names too
//
// PATH is relative to DST and quoted as in Go, MTIME in nanoseconds. A last
// line cut short is dropped.

// record is what the journal knows of a path.
type record struct {
	size, mtime int64
	crc         uint32
	kind        byte
	durable     bool // a line S follows
}

type pathKey [16]byte

func keyOf(path string) (k pathKey) {
	sum := sha256.Sum256([]byte(path))
	copy(k[:], sum[:])
	return k
}

// How many records, and how long, go by without a sync.
const (
	syncRecords = 4000
	syncEvery   = 5 * time.Second
)

// journal remembers what is done. What it knew when opened is read without a
// lock; add and sync are safe for concurrent use.
type journal struct {
	known   map[pathKey]record
	resumed bool

	mu     sync.Mutex // held while syncing, so that a line S covers all above it
	f      *os.File
	dirs   map[string]bool // with names newer than the last sync
	fresh  int
	synced time.Time
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openJournal opens or begins the journal at path, and locks it.
func openJournal(path, src, dst string) (j *journal, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the journal's directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock the journal %s, is another import running? %w", path, err)
	}
	j = &journal{f: f, known: map[pathKey]record{}, dirs: map[string]bool{}, synced: time.Now()}
	head := fmt.Sprintf("pillarbox-import 1 %q %q", src, dst)
	if err := j.load(path, head); err != nil {
		return nil, err
	}
	if !j.resumed {
		if err := j.write(head); err != nil {
			return nil, err
		}
		return j, syncPath(filepath.Dir(path))
	}
	return j, nil
}

// load reads the journal and cuts off a last line that is not whole.
func (j *journal) load(path, head string) error {
	br := bufio.NewReaderSize(j.f, 256<<10)
	good := int64(0)
	var waiting []pathKey
	for n := 1; ; n++ {
		line, err := br.ReadString('\n')
		if err != nil && err != io.EOF {
			return fmt.Errorf("read the journal: %w", err)
		}
		if line == "" {
			return nil
		}
		payload, ok := unseal(line)
		if !ok {
			if _, err := br.Peek(1); err == nil {
				return fmt.Errorf("the journal %s is damaged in line %d, at offset %d", path, n, good)
			}
			if err := j.f.Truncate(good); err != nil {
				return fmt.Errorf("cut the journal: %w", err)
			}
			return nil
		}
		good += int64(len(line))
		switch {
		case n == 1 && payload != head:
			return fmt.Errorf("%s is the journal of another import, or none: it begins %q", path, payload)
		case n == 1:
			j.resumed = true
		case payload == "S":
			for _, k := range waiting {
				r := j.known[k]
				r.durable = true
				j.known[k] = r
			}
			waiting = waiting[:0]
		default:
			k, r, err := parseRecord(payload)
			if err != nil {
				return fmt.Errorf("the journal %s, line %d: %w", path, n, err)
			}
			j.known[k] = r
			waiting = append(waiting, k)
		}
	}
}

func unseal(line string) (string, bool) {
	sum, payload, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	return payload, ok && strings.HasSuffix(line, "\n") && sum == fmt.Sprintf("%08x", crc32.Checksum([]byte(payload), castagnoli))
}

func parseRecord(payload string) (pathKey, record, error) {
	r := record{kind: payload[0]}
	bad := fmt.Errorf("record %q is not understood", payload)
	if len(payload) < 2 || !strings.ContainsRune("FXBR", rune(r.kind)) {
		return pathKey{}, r, bad
	}
	quoted, err := strconv.QuotedPrefix(payload[2:])
	if err != nil {
		return pathKey{}, r, bad
	}
	path, err := strconv.Unquote(quoted)
	if err != nil {
		return pathKey{}, r, bad
	}
	if _, err := fmt.Sscan(payload[2+len(quoted):], &r.size, &r.mtime, &r.crc); err != nil {
		return pathKey{}, r, bad
	}
	return keyOf(keyPrefix(r.kind) + path), r, nil
}

// keyPrefix keeps the kinds of names apart.
func keyPrefix(kind byte) string {
	if kind == 'X' {
		kind = 'F'
	}
	return string(rune(kind))
}

// file finds what a run before this one noted of a file's path.
func (j *journal) file(path string) (record, bool) {
	r, ok := j.known[keyOf(keyPrefix('F')+path)]
	return r, ok
}

// mbox is file for an mbox that became the Maildir path.
func (j *journal) mbox(path string) (record, bool) {
	r, ok := j.known[keyOf(keyPrefix('B')+path)]
	return r, ok
}

// refused says whether an earlier run could not set an extended attribute.
func (j *journal) refused(name string) bool {
	_, ok := j.known[keyOf(keyPrefix('R')+name)]
	return ok
}

// add notes what is in place; dir is the directory it has its name in.
func (j *journal) add(kind byte, path, dir string, size, mtime int64, crc uint32) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.write(fmt.Sprintf("%c %q %d %d %d", kind, path, size, mtime, crc)); err != nil {
		return err
	}
	if dir != "" {
		j.dirs[dir] = true
	}
	if j.fresh++; j.fresh >= syncRecords || time.Since(j.synced) > syncEvery {
		return j.syncLocked()
	}
	return nil
}

// touch has a directory synced by the next sync.
func (j *journal) touch(dir string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.dirs[dir] = true
}

func (j *journal) write(payload string) error {
	line := fmt.Sprintf("%08x %s\n", crc32.Checksum([]byte(payload), castagnoli), payload)
	if _, err := j.f.WriteString(line); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

// sync brings the names noted to stable storage, then the journal.
func (j *journal) sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.syncLocked()
}

func (j *journal) syncLocked() error {
	var g errgroup.Group
	g.SetLimit(8)
	for d := range j.dirs {
		g.Go(func() error { return syncPath(d) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if j.fresh > 0 {
		if err := j.write("S"); err != nil {
			return err
		}
	}
	clear(j.dirs)
	j.fresh, j.synced = 0, time.Now()
	if err := j.f.Sync(); err != nil {
		return fmt.Errorf("sync the journal: %w", err)
	}
	return nil
}

func (j *journal) close() error { return j.f.Close() }

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync a directory: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
