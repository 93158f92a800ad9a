package seal

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	keySize      = 32
	masterIDSize = 8
	masterLabel  = "pillarbox master key id"
	maxKeyFile   = 1 << 20
)

// MasterID names a master key and tells nothing of it.
type MasterID [masterIDSize]byte

func (id MasterID) String() string { return hex.EncodeToString(id[:]) }

// MasterKey wraps the keys of volumes. It prints as its id.
type MasterKey struct {
	ID      MasterID
	Created time.Time
	key     [keySize]byte
}

func (m *MasterKey) String() string { return m.ID.String() }

func newMaster(key []byte, created time.Time) *MasterKey {
	m := &MasterKey{Created: created}
	copy(m.key[:], key)
	sum := sha256.Sum256(append([]byte(masterLabel), key...))
	copy(m.ID[:], sum[:])
	return m
}

// NewMasterKey makes one.
func NewMasterKey() *MasterKey {
	var b [keySize]byte
	rand.Read(b[:])
	return newMaster(b[:], time.Now().UTC().Truncate(time.Second))
}

// MasterKeys are what a key file holds: the newest, which new volumes' keys are
// wrapped by, first. Nil has none. It is not changed after it was made.
type MasterKeys struct{ list []*MasterKey }

// List returns the keys, newest first.
func (k *MasterKeys) List() []*MasterKey {
	if k == nil {
		return nil
	}
	return k.list
}

// Newest is the key for new volumes, nil if there is none.
func (k *MasterKeys) Newest() *MasterKey {
	if len(k.List()) == 0 {
		return nil
	}
	return k.list[0]
}

// Find is the key with an id, nil if it is not there.
func (k *MasterKeys) Find(id MasterID) *MasterKey {
	for _, m := range k.List() {
		if m.ID == id {
			return m
		}
	}
	return nil
}

// With returns the keys and a newer one.
func (k *MasterKeys) With(m *MasterKey) *MasterKeys {
	return &MasterKeys{append([]*MasterKey{m}, k.List()...)}
}

// Without returns the keys but one.
func (k *MasterKeys) Without(id MasterID) *MasterKeys {
	return &MasterKeys{slices.DeleteFunc(slices.Clone(k.List()), func(m *MasterKey) bool { return m.ID == id })}
}

// keyFileHead is the first line of a key file.
const keyFileHead = "pillarbox master keys 1"

// ParseKeys reads a key file: the head line, then a line for each key, newest
// first: id, key in base64, time it was made. Empty lines and those that begin
// with # are passed over. Errors never show a key.
func ParseKeys(b []byte) (*MasterKeys, error) {
	k := &MasterKeys{}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for line := 1; sc.Scan(); line++ {
		text := strings.TrimSpace(sc.Text())
		if line == 1 {
			if text != keyFileHead {
				return nil, fmt.Errorf("no key file: its first line is not %q", keyFileHead)
			}
			continue
		}
		if text == "" || text[0] == '#' {
			continue
		}
		m, err := parseKey(text)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		if k.Find(m.ID) != nil {
			return nil, fmt.Errorf("line %d: key %s is there twice", line, m.ID)
		}
		k.list = append(k.list, m)
	}
	if sc.Err() != nil {
		return nil, errors.New("a line is too long")
	}
	if len(k.list) == 0 {
		return nil, errors.New("no key in it")
	}
	return k, nil
}

func parseKey(text string) (*MasterKey, error) {
	f := strings.Fields(text)
	if len(f) != 3 {
		return nil, errors.New("not id, key and time")
	}
	key, err := base64.StdEncoding.Strict().DecodeString(f[1])
	if err != nil || len(key) != keySize {
		return nil, errors.New("the key is not 32 bytes in base64")
	}
	t, err := time.Parse(time.RFC3339, f[2])
	if err != nil {
		return nil, errors.New("the time is none")
	}
	m := newMaster(key, t)
	if m.ID.String() != f[0] {
		return nil, errors.New("id and key do not belong together: the line is damaged")
	}
	return m, nil
}

func (k *MasterKeys) encode() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, keyFileHead)
	fmt.Fprintln(&b, "# Whoever has this file can read the mail; without it nobody can. Keep a copy in a safe place.")
	for _, m := range k.List() {
		fmt.Fprintln(&b, m.ID, base64.StdEncoding.EncodeToString(m.key[:]), m.Created.Format(time.RFC3339))
	}
	return b.Bytes()
}

// ReadKeys reads the key file at path, which nobody but its owner may be able to read.
func ReadKeys(path string) (*MasterKeys, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s has mode %v: others than its owner must not be able to read it (chmod 600)", path, st.Mode())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	k, err := ParseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return k, nil
}

// CreateKeys makes a key file at path, which must not be there.
func CreateKeys(path string, k *MasterKeys) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("key file %s is there already", path)
	}
	return WriteKeys(path, k)
}

// WriteKeys replaces the key file at path; it is on stable storage on return.
func WriteKeys(path string, k *MasterKeys) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".keys-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(k.encode())
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync the key file's directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
