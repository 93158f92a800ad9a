package ship

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
	"pillarbox/objstore/seal"
)

// An owner mark is of a fixed size: magic, the wrapped key, then an object that
// holds a Mark, then zeros.
const (
	markMagic = "PBXOWNR1"
	markSize  = 1024
	sealedAt  = len(markMagic) + seal.WrappedSize
)

// Mark says who owns an epoch.
type Mark struct {
	ID      string    `json:"id"` // random
	Epoch   uint32    `json:"epoch"`
	FSID    string    `json:"fsid"`
	Host    string    `json:"host"`
	Created time.Time `json:"created"`
}

// NewID makes an identity for an owner.
func NewID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// ErrFenced says that another host has taken over what a store ships.
var ErrFenced = fmt.Errorf("another host has taken this store over: %w", objstore.Fenced)

// maxEpochs bounds how many owner marks are looked for.
const maxEpochs = 100_000

func encodeMark(s *sealer, wrapped []byte, m Mark) ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode an owner mark: %w", err)
	}
	obj, _, err := s.seal(ownerName(m.Epoch), b)
	if err != nil {
		return nil, err
	}
	out := append(append([]byte(markMagic), wrapped...), obj...)
	if len(out) > markSize {
		return nil, fmt.Errorf("an owner mark of %d bytes: %w", len(out), objstore.TooBig)
	}
	return append(out, make([]byte, markSize-len(out))...), nil
}

// parseMark takes an owner mark apart. NoKey, Corrupt.
func parseMark(b []byte, epoch uint32, keys *seal.MasterKeys) (*sealer, *Mark, error) {
	fail := func(err error) (*sealer, *Mark, error) {
		return nil, nil, fmt.Errorf("object %s: %w", ownerName(epoch), err)
	}
	if len(b) < sealedAt || string(b[:len(markMagic)]) != markMagic {
		return fail(fmt.Errorf("it is no owner mark: %w", objstore.Corrupt))
	}
	key, err := keys.UnwrapShip(b[len(markMagic):sealedAt])
	if err != nil {
		return fail(err)
	}
	s := &sealer{key: key}
	size, _, err := parseHead(b[sealedAt:])
	if err != nil || size > len(b)-sealedAt {
		return fail(errors.Join(objstore.Corrupt, err))
	}
	content, _, err := s.open(ownerName(epoch), b[sealedAt:sealedAt+size])
	if err != nil {
		return nil, nil, err
	}
	m := &Mark{}
	if err := json.Unmarshal(content, m); err != nil || m.Epoch != epoch {
		return fail(errors.Join(objstore.Corrupt, err))
	}
	return s, m, nil
}

func getMark(ctx context.Context, store pool.Store, epoch uint32) ([]byte, error) {
	b := make([]byte, markSize)
	if err := store.Get(ctx, ownerName(epoch), 0, b); err != nil {
		return nil, fmt.Errorf("read object %s: %w", ownerName(epoch), err)
	}
	return b, nil
}

func putMark(ctx context.Context, store pool.Store, s *sealer, keys *seal.MasterKeys, m Mark) error {
	wrapped, err := keys.Newest().WrapShip(s.key)
	if err != nil {
		return err
	}
	b, err := encodeMark(s, wrapped, m)
	if err != nil {
		return err
	}
	if err := store.Put(ctx, ownerName(m.Epoch), b); err != nil {
		return fmt.Errorf("write object %s: %w", ownerName(m.Epoch), err)
	}
	return nil
}

// newestMark finds the last epoch; 0: there is none.
func newestMark(ctx context.Context, store pool.Store) (epoch uint32, mark []byte, err error) {
	for next := uint32(1); next < maxEpochs; next++ {
		b, err := getMark(ctx, store, next)
		if errors.Is(err, objstore.NotFound) {
			return epoch, mark, nil
		}
		if err != nil {
			return 0, nil, err
		}
		epoch, mark = next, b
	}
	return 0, nil, fmt.Errorf("more than %d owner marks: %w", maxEpochs, objstore.Corrupt)
}

// superseded says whether somebody made the epoch after one. Nil: nobody did.
func superseded(ctx context.Context, store pool.Store, epoch uint32) error {
	_, err := getMark(ctx, store, epoch+1)
	switch {
	case err == nil || errors.Is(err, objstore.Corrupt):
		return ErrFenced
	case errors.Is(err, objstore.NotFound):
		return nil
	}
	return err
}
