package osd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const clonePrefix = "check-"

// cloneDB makes a copy of a database that a crash left, to look at it: badger
// can open such a one only by mending it, and a look must not change anything.
// Tables are copied, not linked: badger truncates a table before it removes it.
func cloneDB(osdDir, db string) (clone string, err error) {
	names, err := os.ReadDir(db)
	if err != nil {
		return "", fmt.Errorf("read database %s: %w", db, err)
	}
	clone, err = os.MkdirTemp(osdDir, clonePrefix)
	if err != nil {
		return "", fmt.Errorf("copy the database to look at it: %w", err)
	}
	for _, e := range names {
		if e.Name() == "LOCK" {
			continue
		}
		if err := copySparse(filepath.Join(db, e.Name()), filepath.Join(clone, e.Name())); err != nil {
			return "", errors.Join(fmt.Errorf("copy the database to look at it: %w", err), os.RemoveAll(clone))
		}
	}
	return clone, nil
}

// copySparse copies a file and leaves out blocks of zeros.
func copySparse(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	buf, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; {
		n, err := io.ReadFull(src, buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := dst.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return dst.Truncate(at)
		}
		if err != nil {
			return err
		}
	}
}

// removeClones removes what a look that was killed left behind.
func removeClones(osdDir string) error {
	entries, err := os.ReadDir(osdDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list %s: %w", osdDir, err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), clonePrefix) {
			continue
		}
		dir := filepath.Join(osdDir, e.Name())
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
	}
	return nil
}
