package seal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pillarbox/objstore"
)

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	first := NewMasterKey()
	keys := (*MasterKeys)(nil).With(first)
	if err := CreateKeys(path, keys); err != nil {
		t.Fatal(err)
	}
	if err := CreateKeys(path, keys); err == nil {
		t.Fatal("a key file was made over another one")
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	second := NewMasterKey()
	if err := WriteKeys(path, keys.With(second)); err != nil {
		t.Fatal(err)
	}
	got, err := ReadKeys(path)
	if err != nil || len(got.List()) != 2 || got.Newest().ID != second.ID || got.Find(first.ID) == nil || got.Find(first.ID).key != first.key {
		t.Fatalf("read %v, %v", got.List(), err)
	}
	if got = got.Without(second.ID); got.Newest().ID != first.ID || got.Find(second.ID) != nil {
		t.Fatalf("without the newest: %v", got.List())
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKeys(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatalf("a key file that others can read: %v", err)
	}
}

func TestBadKeyFiles(t *testing.T) {
	good := string((*MasterKeys)(nil).With(NewMasterKey()).encode())
	lines := strings.Split(strings.TrimSpace(good), "\n")
	line := lines[len(lines)-1]
	secret := strings.Fields(line)[1]
	for name, text := range map[string]string{
		"empty": "", "no key": keyFileHead + "\n", "another file": "root:x:0:0\n", "twice": good + line + "\n",
		"a changed key": strings.Replace(good, secret[:6], "AAAAAA", 1), "no time": strings.Replace(good, "T", "?", -1),
		"cut": good[:len(good)-30], "short key": keyFileHead + "\n00 AAAA 2026-01-01T00:00:00Z\n",
	} {
		if _, err := ParseKeys([]byte(text)); err == nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), secret[10:20]) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
}

func TestWrap(t *testing.T) {
	old, now := NewMasterKey(), NewMasterKey()
	both := (*MasterKeys)(nil).With(old).With(now)
	value, err := old.Wrap(7, testKey)
	if err != nil {
		t.Fatal(err)
	}
	if id, ok, err := WrappedBy(value); id != old.ID || !ok || err != nil {
		t.Fatalf("wrapped by %v, %v, %v", id, ok, err)
	}
	if key, err := both.Unwrap(7, value); err != nil || !bytes.Equal(key, testKey) {
		t.Fatalf("unwrapped %x, %v", key, err)
	}
	for name, c := range map[string]struct {
		keys  *MasterKeys
		vol   objstore.VolumeID
		value []byte
		want  error
	}{
		"another volume's": {both, 8, value, objstore.Corrupt},
		"no master key":    {both.Without(old.ID), 7, value, objstore.NoKey},
		"no key at all":    {nil, 7, value, objstore.NoKey},
		"destroyed":        {both, 7, Destroyed(), objstore.NoKey},
		"empty":            {both, 7, nil, objstore.Corrupt},
		"cut":              {both, 7, value[:30], objstore.Corrupt},
		"newer":            {both, 7, append([]byte{9}, value[1:]...), objstore.Unsupported},
		"damaged":          {both, 7, append(bytes.Clone(value[:60]), make([]byte, WrappedSize-60)...), objstore.Corrupt},
	} {
		if _, err := c.keys.Unwrap(c.vol, c.value); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add((*MasterKeys)(nil).With(NewMasterKey()).With(NewMasterKey()).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseKeys(b)
		if err != nil {
			return
		}
		again, err := ParseKeys(k.encode())
		if err != nil || len(again.List()) != len(k.List()) || again.Newest().ID != k.Newest().ID {
			t.Fatalf("%q is read as what cannot be written: %v", b, err)
		}
	})
}

func FuzzUnwrap(f *testing.F) {
	m := newMaster(testKey, NewMasterKey().Created)
	keys := (*MasterKeys)(nil).With(m)
	value, err := m.Wrap(7, testKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Add(Destroyed())
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := keys.Unwrap(7, b); err == nil && !bytes.Equal(key, testKey) {
			t.Fatalf("forged: %x", key)
		}
	})
}
