package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The formats of a data directory: the first, and the newest that this program
// reads, which may have encrypted accounts. A store that was never opened with a
// key file keeps the first one.
const (
	firstStoreFormat = 1
	storeFormat      = 2
)

const (
	storeFile = "store.json"
	lockFile  = "lock"
	sockFile  = "admin.sock"
	monDir    = "mon"
	osdDir    = "osd.0"
	logDir    = "log"
)

// storeInfo is store.json: what a data directory is.
type storeInfo struct {
	Format      int       `json:"format"`
	FSID        string    `json:"fsid"`
	Created     time.Time `json:"created"`
	VolumeDepth int       `json:"volume_depth"`
	// Complete: the monitor and the OSD have been made, so that one that is
	// missing is a loss and not the first start.
	Complete bool `json:"complete"`
}

// dataDir is a data directory; its lock is held when lock is set.
type dataDir struct {
	path string
	info *storeInfo // nil: no store yet
	lock *os.File
}

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

// findDataDir looks at what is at path, absolute and resolved, and changes
// nothing. A missing or empty directory is one without a store.
func findDataDir(path string) (*dataDir, error) {
	d := &dataDir{path: path}
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, nil
	case errors.Is(err, unix.ENOTDIR):
		return nil, failure(exitForeign, "data directory %s is not a directory", path)
	case err != nil:
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	b, err := os.ReadFile(d.file(storeFile))
	if errors.Is(err, fs.ErrNotExist) {
		for _, e := range entries {
			// A first start that was cut short leaves these.
			if n := e.Name(); n != lockFile && n != storeFile+".tmp" && n != logDir && n != "lost+found" {
				return nil, failure(exitForeign, "data directory %s is not a Pillarbox store: it holds %s but no %s", path, n, storeFile)
			}
		}
		return d, nil
	}
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	d.info, err = parseStoreInfo(d.file(storeFile), b)
	if err != nil {
		return nil, err
	}
	return d, d.checkParts()
}

func parseStoreInfo(name string, b []byte) (*storeInfo, error) {
	s := &storeInfo{}
	if err := json.Unmarshal(b, &struct {
		Format *int `json:"format"`
	}{&s.Format}); err != nil {
		return nil, failure(exitDamaged, "%s is damaged: %w", name, err)
	}
	if s.Format > storeFormat {
		return nil, failure(exitNewer, "%s has format %d, this pillarbox reads up to %d: use a newer one", name, s.Format, storeFormat)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(s); err != nil {
		return nil, failure(exitDamaged, "%s is damaged: %w", name, err)
	}
	if s.Format < 1 || s.FSID == "" || s.VolumeDepth < 1 {
		return nil, failure(exitDamaged, "%s is damaged: format, fsid or volume_depth is missing", name)
	}
	return s, nil
}

func (d *dataDir) checkParts() error {
	if !d.info.Complete {
		return nil
	}
	for _, part := range []string{monDir, osdDir} {
		if st, err := os.Stat(d.file(part)); err != nil || !st.IsDir() {
			return failure(exitDamaged, "the store in %s is damaged: its directory %s is missing", d.path, part)
		}
	}
	return nil
}

// create makes the directory if it is missing.
func (d *dataDir) create() error {
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	return nil
}

// takeLock locks the directory against other processes until release, or until
// this process ends. The pid in the file is for umount and for messages.
func (d *dataDir) takeLock() error {
	f, err := os.OpenFile(d.file(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid := readPid(f)
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock data directory %s: %w", d.path, err)
		}
		return failure(exitLocked, "data directory %s is in use by another process (pid %s)", d.path, pid)
	}
	d.lock = f
	return nil
}

// writePid says in the lock file who holds it.
func (d *dataDir) writePid() error {
	if err := d.lock.Truncate(0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	if _, err := d.lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	return nil
}

// release gives the lock up.
func (d *dataDir) release() error {
	if d.lock == nil {
		return nil
	}
	err := d.lock.Close()
	d.lock = nil
	return err
}

func readPid(f *os.File) string {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0) // at the end of the file it says so, too
	if pid := strings.TrimSpace(string(b[:n])); pid != "" {
		return pid
	}
	return "not written yet"
}

// holder is the pid of the process that holds a data directory's lock; 0 if none does.
func holder(dir string) (int, error) {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return 0, nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, fmt.Errorf("look at the lock of %s: %w", dir, err)
	}
	pid, err := strconv.Atoi(readPid(f))
	if err != nil || pid < 2 {
		return 0, fmt.Errorf("%s is locked, but its lock file holds no pid", dir)
	}
	return pid, nil
}

// writeInfo replaces store.json; it is on stable storage on return.
func (d *dataDir) writeInfo(s *storeInfo) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", storeFile, err)
	}
	tmp := d.file(storeFile + ".tmp")
	if err := writeSynced(tmp, append(b, '\n')); err != nil {
		return err
	}
	if err := os.Rename(tmp, d.file(storeFile)); err != nil {
		return fmt.Errorf("write %s: %w", storeFile, err)
	}
	dir, err := os.Open(d.path)
	if err != nil {
		return fmt.Errorf("sync data directory: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync data directory: %w", err)
	}
	d.info = s
	return nil
}

func writeSynced(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
