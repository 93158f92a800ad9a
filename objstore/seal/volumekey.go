package seal

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"pillarbox/objstore"
)

// KeyAttr is the extended attribute of a volume's top directory that holds the
// volume's key, wrapped. PolicyAttr, of a directory above the accounts, says
// whether accounts made below it are encrypted: "1" or "0".
const (
	KeyAttr    = "trusted.pillarbox.key"
	PolicyAttr = "trusted.pillarbox.encrypt"
)

// The values of KeyAttr: wrapped: 1, master key's id (8), nonce (12), sealed key.
// Destroyed: 2.
const (
	wrappedV1 = 1
	destroyed = 2

	// WrappedSize is the length of a wrapped key.
	WrappedSize = 1 + masterIDSize + 12 + keySize + tagSize
)

const wrapLabel = "pillarbox volume key 1"

func wrapData(vol objstore.VolumeID) []byte {
	return binary.BigEndian.AppendUint32([]byte(wrapLabel), uint32(vol))
}

// Wrap encrypts a volume's key under a master key. The nonce is random: a master
// key would have to wrap 2^32 keys before a repeated one is likely to matter.
func (m *MasterKey) Wrap(vol objstore.VolumeID, key []byte) ([]byte, error) {
	return m.wrap(wrapData(vol), key)
}

// shipLabel stands for a volume where the key is that of what is shipped outside.
const shipLabel = "pillarbox ship key 1"

// WrapShip is Wrap for the key of what is shipped outside (package ship).
func (m *MasterKey) WrapShip(key []byte) ([]byte, error) { return m.wrap([]byte(shipLabel), key) }

func (m *MasterKey) wrap(data, key []byte) ([]byte, error) {
	aead, err := newGCM(m.key[:])
	if err != nil {
		return nil, err
	}
	b := make([]byte, 1+masterIDSize+12, WrappedSize)
	b[0] = wrappedV1
	copy(b[1:], m.ID[:])
	n := b[1+masterIDSize:]
	rand.Read(n)
	return aead.Seal(b, n, key, data), nil
}

// WrappedBy is the id of the master key that a value of KeyAttr needs. ok is
// false when the volume's key was destroyed. Corrupt, Unsupported.
func WrappedBy(value []byte) (id MasterID, ok bool, err error) {
	switch {
	case len(value) == 1 && value[0] == destroyed:
		return id, false, nil
	case len(value) == 0 || len(value) != WrappedSize && value[0] == wrappedV1:
		return id, false, fmt.Errorf("wrapped key of %d bytes: %w", len(value), objstore.Corrupt)
	case value[0] != wrappedV1:
		return id, false, fmt.Errorf("wrapped key of version %d: %w", value[0], objstore.Unsupported)
	}
	copy(id[:], value[1:])
	return id, true, nil
}

// Unwrap decrypts a volume's key. NoKey: it was destroyed, or the master key is
// not among these. Corrupt.
func (k *MasterKeys) Unwrap(vol objstore.VolumeID, value []byte) ([]byte, error) {
	return k.unwrap(fmt.Sprintf("volume %d", vol), wrapData(vol), value)
}

// UnwrapShip is Unwrap for the key of what is shipped outside.
func (k *MasterKeys) UnwrapShip(value []byte) ([]byte, error) {
	return k.unwrap("what was shipped", []byte(shipLabel), value)
}

func (k *MasterKeys) unwrap(what string, data, value []byte) ([]byte, error) {
	id, ok, err := WrappedBy(value)
	if err != nil {
		return nil, fmt.Errorf("key of %s: %w", what, err)
	}
	if !ok {
		return nil, fmt.Errorf("the key of %s was destroyed: %w", what, objstore.NoKey)
	}
	m := k.Find(id)
	if m == nil {
		return nil, fmt.Errorf("%s needs master key %s, which is not in the key file of this host: %w", what, id, objstore.NoKey)
	}
	aead, err := newGCM(m.key[:])
	if err != nil {
		return nil, err
	}
	b := value[1+masterIDSize:]
	key, err := aead.Open(nil, b[:12], b[12:], data)
	if err != nil {
		return nil, fmt.Errorf("the key of %s does not open with master key %s: %w", what, id, objstore.Corrupt)
	}
	return key, nil
}

// Destroyed is the value of KeyAttr that takes the place of a volume's key.
func Destroyed() []byte { return []byte{destroyed} }
