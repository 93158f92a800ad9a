package seal

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/singleflight"

	"pillarbox/objstore"
	"pillarbox/objstore/locks"
)

// Base is what a Store stands on: a store as a mount needs it.
type Base interface {
	objstore.Store
	Lock(ctx context.Context, r locks.Request) (locks.Answer, error)
	Locked(ino objstore.Ino) bool
	LostLock(ino objstore.Ino) bool
	Leased(v objstore.VolumeID) bool
	Pin(ctx context.Context, v objstore.VolumeID) context.Context
	MakeAccount(ctx context.Context, c objstore.Create, p objstore.Promise) (objstore.Result, error)
}

// Store is an objstore.Store that seals the bodies of encrypted volumes.
type Store struct {
	Base
	path string // of the key file; empty: none
	log  *slog.Logger

	codec  codec
	heads  heads
	bodies atomic.Uint64 // sealed bodies named in this session

	near  Bodies                      // keeps sealed bodies on this host; nil: none
	local func(objstore.ChunkID) bool // of which chunks it need not; never nil where near is not
	fills singleflight.Group          // bodies being read whole, to be kept

	mu     sync.Mutex // a leaf
	master *MasterKeys
	vols   map[objstore.VolumeID]*volume
	gen    uint64 // grows whenever something is forgotten
	warned map[objstore.VolumeID]bool
}

// volume is what is known of a volume's key.
type volume struct{ key []byte } // nil: the volume is not encrypted

// maxVolumes bounds how many volumes' keys are kept in memory.
const maxVolumes = 1 << 17

// New makes a Store. keyFile may be empty: then encrypted volumes cannot be
// read, nor made.
func New(base Base, keyFile string, log *slog.Logger) (*Store, error) {
	s := &Store{Base: base, path: keyFile, log: log, vols: make(map[objstore.VolumeID]*volume), warned: make(map[objstore.VolumeID]bool)}
	if keyFile == "" {
		return s, nil
	}
	return s, s.readKeys()
}

func (s *Store) readKeys() error {
	k, err := ReadKeys(s.path)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.master = k
	return nil
}

// keys returns the master keys. With again set the file is read first, for it
// may have changed.
func (s *Store) keys(again bool) *MasterKeys {
	if again && s.path != "" {
		if err := s.readKeys(); err != nil {
			s.log.Error("the key file cannot be read again; the keys known so far stay in use", "err", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.master
}

// volume finds a volume's key. NoKey.
func (s *Store) volume(ctx context.Context, vol objstore.VolumeID) (*volume, error) {
	s.mu.Lock()
	v, gen := s.vols[vol], s.gen
	s.mu.Unlock()
	if v != nil {
		return v, nil
	}
	value, err := s.Base.GetXattr(ctx, objstore.VolumeRoot(vol), KeyAttr)
	v = &volume{}
	if err == nil {
		v.key, err = s.unwrap(vol, value)
	} else if errors.Is(err, objstore.NoAttr) {
		err = nil
	}
	if err != nil {
		s.warn(vol, err)
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gen == gen {
		if len(s.vols) >= maxVolumes {
			clear(s.vols)
		}
		s.vols[vol] = v
	}
	return v, nil
}

// warn says once for each volume why it cannot be read: a mount's answer, EACCES,
// tells nothing of it.
func (s *Store) warn(vol objstore.VolumeID, err error) {
	if !errors.Is(err, objstore.NoKey) {
		return
	}
	s.mu.Lock()
	again := s.warned[vol]
	if len(s.warned) < maxVolumes {
		s.warned[vol] = true
	}
	s.mu.Unlock()
	if !again {
		s.log.Warn("files of a volume can be neither read nor written", "err", err)
	}
}

func (s *Store) unwrap(vol objstore.VolumeID, value []byte) ([]byte, error) {
	if s.path == "" {
		if _, ok, err := WrappedBy(value); ok || err != nil {
			return nil, fmt.Errorf("volume %d is encrypted, and this host has no key file (--key-file): %w", vol, errors.Join(err, objstore.NoKey))
		}
	}
	key, err := s.keys(false).Unwrap(vol, value)
	if errors.Is(err, objstore.NoKey) {
		key, err = s.keys(true).Unwrap(vol, value)
	}
	return key, err
}

// Sealed says whether a volume is encrypted. NoKey.
func (s *Store) Sealed(ctx context.Context, vol objstore.VolumeID) (bool, error) {
	v, err := s.volume(ctx, vol)
	return err == nil && v.key != nil, err
}

// forget drops what is known of the volumes that in says.
func (s *Store) forget(in func(objstore.VolumeID) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	for vol := range s.vols {
		if in(vol) {
			delete(s.vols, vol)
		}
	}
}

func (s *Store) forgetOne(vol objstore.VolumeID) {
	s.forget(func(v objstore.VolumeID) bool { return v == vol })
}

// PutChunk implements objstore.Store: in an encrypted volume it stores the
// sealed bytes, as the chunk whose id says so.
func (s *Store) PutChunk(ctx context.Context, id objstore.ChunkID, data []byte) error {
	v, err := s.volume(ctx, id.Ino.Volume())
	if err != nil {
		return err
	}
	if v.key != nil {
		id.Version |= objstore.SealedVersion
		if data, err = s.codec.sealBody(v.key, id, data); err != nil {
			return err
		}
		if h, err := parseHead(data); err == nil && h.table(data[headSize:]) == nil {
			s.heads.put(id, h)
		}
	}
	err = s.Base.PutChunk(ctx, id, data)
	if err == nil && v.key != nil {
		s.keep(id, data)
	}
	return err
}

// ReadChunk implements objstore.Store.
func (s *Store) ReadChunk(ctx context.Context, id objstore.ChunkID, off uint32, p []byte) error {
	v, err := s.volume(ctx, id.Ino.Volume())
	if err != nil {
		return err
	}
	if v.key == nil {
		if id.Sealed() {
			return fmt.Errorf("chunk %v is sealed, and its volume has no key: %w", id, objstore.Corrupt)
		}
		return s.Base.ReadChunk(ctx, id, off, p)
	}
	// A chunk that was not named yet is known above by the id that it was put with.
	id.Version |= objstore.SealedVersion
	if len(p) == 0 {
		return nil
	}
	if err := s.readSealed(ctx, v.key, id, int(off), p); err != nil {
		return fmt.Errorf("read sealed chunk %v: %w", id, err)
	}
	return nil
}

// openFrom reads bytes of a body whose stored bytes come from somewhere.
func (s *Store) openFrom(ctx context.Context, stored source, key []byte, id objstore.ChunkID, off int, p []byte) error {
	h, err := s.head(ctx, stored, id)
	if err != nil {
		return err
	}
	if off+len(p) > h.size {
		return fmt.Errorf("%d bytes at %d of a body of %d: %w", len(p), off, h.size, objstore.Corrupt)
	}
	aead, err := bodyKey(key, id, h)
	if err != nil {
		return err
	}
	first, last := off/frameSize, (off+len(p)-1)/frameSize
	from := h.begin(first)
	b := make([]byte, h.ends[last]-from)
	if err := stored(ctx, id, uint32(from), b); err != nil {
		return err
	}
	return s.codec.open(aead, h, first, last, b, off, p)
}

// head reads how a sealed body is laid out.
func (s *Store) head(ctx context.Context, stored source, id objstore.ChunkID) (*head, error) {
	if h := s.heads.get(id); h != nil {
		return h, nil
	}
	// A body has a frame at least, so its first entry is there to be read as well.
	var b [headSize + entrySize]byte
	if err := stored(ctx, id, 0, b[:]); err != nil {
		return nil, err
	}
	h, err := parseHead(b[:])
	if err != nil {
		return nil, err
	}
	table := b[headSize:]
	if n := h.tableSize(); n > entrySize {
		table = make([]byte, n)
		if err := stored(ctx, id, headSize, table); err != nil {
			return nil, err
		}
	}
	if err := h.table(table); err != nil {
		return nil, err
	}
	s.heads.put(id, h)
	return h, nil
}

// Apply implements objstore.Store.
func (s *Store) Apply(ctx context.Context, c objstore.Change, p objstore.Promise) (objstore.Result, error) {
	switch ch := c.(type) {
	case objstore.Write:
		sealed, err := s.sealWrite(ctx, ch)
		if err != nil {
			return objstore.Result{}, err
		}
		c = sealed
	case objstore.MoveChunk:
		if ch.From.Sealed() { // To has been since it was put
			ch.To.Version |= objstore.SealedVersion
			c = ch
		}
	case objstore.SetXattr:
		if ch.Name == KeyAttr {
			return s.changeKey(ctx, ch)
		}
	case objstore.RemoveXattr:
		if ch.Name == KeyAttr {
			return objstore.Result{}, fmt.Errorf("remove the key of inode %v: %w", ch.Ino, objstore.NotPermitted)
		}
	}
	r, err := s.Base.Apply(ctx, c, p)
	if err == nil {
		s.keepWritten(c)
	}
	return r, err
}

// sealWrite seals the bodies that a write brings along.
func (s *Store) sealWrite(ctx context.Context, w objstore.Write) (objstore.Write, error) {
	v, err := s.volume(ctx, w.Ino.Volume())
	if err != nil || v.key == nil {
		return w, err
	}
	w.Extents = slices.Clone(w.Extents)
	for i := range w.Extents {
		e := &w.Extents[i]
		switch e.Kind {
		case objstore.Pooled:
			e.Chunk.Version |= objstore.SealedVersion
		case objstore.Inline, objstore.Resident:
			e.Kind, e.Chunk = objstore.Resident, s.newBody(w.Ino, e.Off)
			if e.Data, err = s.codec.sealBody(v.key, e.Chunk, e.Data); err != nil {
				return w, err
			}
		}
	}
	return w, nil
}

// newBody names a body that travels in a commit.
func (s *Store) newBody(ino objstore.Ino, off uint64) objstore.ChunkID {
	return objstore.ChunkID{
		Ino:     ino,
		Index:   uint32(off / objstore.ChunkSize),
		Version: objstore.ResidentVersion | objstore.SealedVersion | objstore.PooledVersion(1, s.Session().ID, s.bodies.Add(1)),
	}
}

// ListXattr implements objstore.Store. KeyAttr is not listed: programs that copy
// attributes would carry it elsewhere, where it means nothing.
func (s *Store) ListXattr(ctx context.Context, ino objstore.Ino) ([]string, error) {
	names, err := s.Base.ListXattr(ctx, ino)
	return slices.DeleteFunc(names, func(n string) bool { return n == KeyAttr }), err
}

// changeKey puts another value in the place of a volume's wrapped key: the same
// key wrapped by another master key, or the note that it was destroyed.
func (s *Store) changeKey(ctx context.Context, c objstore.SetXattr) (objstore.Result, error) {
	if !c.Ino.IsVolumeRoot() {
		return objstore.Result{}, fmt.Errorf("set a key of inode %v, which is no volume's top directory: %w", c.Ino, objstore.NotPermitted)
	}
	vol := c.Ino.Volume()
	old, err := s.Base.GetXattr(ctx, c.Ino, KeyAttr)
	if errors.Is(err, objstore.NoAttr) {
		return objstore.Result{}, fmt.Errorf("volume %d is not encrypted: %w", vol, objstore.NotPermitted)
	}
	if err != nil {
		return objstore.Result{}, err
	}
	_, keeps, err := WrappedBy(c.Value)
	if err != nil {
		return objstore.Result{}, fmt.Errorf("set the key of volume %d: %w", vol, errors.Join(err, objstore.NotPermitted))
	}
	if keeps {
		was, err := s.unwrap(vol, old)
		if err != nil {
			return objstore.Result{}, err
		}
		is, err := s.unwrap(vol, c.Value)
		if err != nil {
			return objstore.Result{}, err
		}
		if !hmac.Equal(was, is) {
			return objstore.Result{}, fmt.Errorf("volume %d has another key: %w", vol, objstore.NotPermitted)
		}
	}
	r, err := s.Base.Apply(ctx, c, objstore.Committed)
	s.forgetOne(vol)
	return r, err
}

// Found is what a new volume below parent gets before it has a name: a key, if
// that directory or the nearest one above with a PolicyAttr wants that. NoKey.
func (s *Store) Found(ctx context.Context, vol objstore.VolumeID, parent objstore.Ino) ([]objstore.Change, error) {
	encrypt, err := s.policy(ctx, parent)
	if err != nil || !encrypt {
		return nil, err
	}
	c, err := s.newKey(vol)
	if err != nil {
		return nil, err
	}
	return []objstore.Change{c}, nil
}

func (s *Store) newKey(vol objstore.VolumeID) (c objstore.SetXattr, err error) {
	m := s.keys(true).Newest()
	if m == nil {
		return c, fmt.Errorf("accounts here are encrypted, and this host has no key file (--key-file): %w", objstore.NoKey)
	}
	var key [keySize]byte
	rand.Read(key[:])
	wrapped, err := m.Wrap(vol, key[:])
	return objstore.SetXattr{Ino: objstore.VolumeRoot(vol), Name: KeyAttr, Value: wrapped, CreateOnly: true}, err
}

// policy says whether accounts below a directory of the root volume are encrypted.
func (s *Store) policy(ctx context.Context, dir objstore.Ino) (bool, error) {
	for {
		value, err := s.Base.GetXattr(ctx, dir, PolicyAttr)
		if err == nil {
			return string(value) == "1", nil
		}
		if !errors.Is(err, objstore.NoAttr) {
			return false, err
		}
		a, err := s.Base.GetAttr(ctx, dir)
		if err != nil || a.Parent == dir {
			return false, err
		}
		dir = a.Parent
	}
}

// Encrypt makes accounts encrypted that are made from now on, wherever no
// directory says otherwise. In a store without anything in it the files above
// the accounts will be, too.
func (s *Store) Encrypt(ctx context.Context) error {
	root := objstore.VolumeRoot(objstore.RootVolume)
	if on, err := s.policy(ctx, root); on || err != nil {
		return err
	}
	there, err := s.Base.ReadDir(ctx, root, 0, 1, false)
	if err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	c, err := s.newKey(objstore.RootVolume)
	if err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	if len(there) == 0 {
		if _, err := s.Base.Apply(ctx, c, objstore.Committed); err != nil && !errors.Is(err, objstore.Exist) {
			return fmt.Errorf("encrypt the root volume: %w", err)
		}
		s.forgetOne(objstore.RootVolume)
	}
	if _, err := s.Base.Apply(ctx, objstore.SetXattr{Ino: root, Name: PolicyAttr, Value: []byte("1")}, objstore.Committed); err != nil {
		return fmt.Errorf("encrypt: %w", err)
	}
	return nil
}
