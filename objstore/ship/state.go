package ship

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"pillarbox/objstore"
)

// State is what a data directory knows of its shipping: which epoch it owns, in
// ship.json, written with care; and, in ship.pos, how far it is, written often. The
// latter may be somewhat old or missing.
type State struct {
	Format  int    `json:"format"`
	Pool    string `json:"pool"` // name
	Epoch   uint32 `json:"epoch"`
	ID      string `json:"id"`
	Claimed bool   `json:"claimed"` // the owner mark was seen outside

	Runs        uint32 `json:"runs"` // last number used, so that none is used twice
	Checkpoints uint32 `json:"checkpoints"`

	Pos Position `json:"-"`
	dir string
}

// Position is how far the log is outside.
type Position struct {
	Run    uint32 `json:"run"`
	Seq    uint64 `json:"seq"` // of the next object; 0: nothing is known
	To     uint64 `json:"to"`
	Before []byte `json:"before"`
	Grown  int64  `json:"grown"` // bytes shipped since the last checkpoint
}

// The files of a State.
const (
	StateFile = "ship.json"
	PosFile   = "ship.pos"
)

const stateFormat = 1

// LoadState reads what dir says; NotFound if it says nothing.
func LoadState(dir string) (*State, error) {
	b, err := os.ReadFile(filepath.Join(dir, StateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, StateFile), objstore.NotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read the state of shipping: %w", err)
	}
	s := &State{dir: dir}
	if err := json.Unmarshal(b, s); err != nil || s.Epoch == 0 || s.ID == "" {
		return nil, fmt.Errorf("%s is damaged: %w", filepath.Join(dir, StateFile), errors.Join(objstore.Corrupt, err))
	}
	if s.Format > stateFormat {
		return nil, fmt.Errorf("%s has format %d, this program knows %d: %w", filepath.Join(dir, StateFile), s.Format, stateFormat, objstore.Unsupported)
	}
	if b, err = os.ReadFile(filepath.Join(dir, PosFile)); err == nil {
		if json.Unmarshal(b, &s.Pos) != nil || len(s.Pos.Before) != saltSize {
			s.Pos = Position{} // a power cut may have taken it
		}
	}
	return s, nil
}

// NewState makes the state of a directory that begins an epoch.
func NewState(dir, pool string, epoch uint32) (*State, error) {
	s := &State{Format: stateFormat, Pool: pool, Epoch: epoch, ID: NewID(), dir: dir}
	return s, s.Save()
}

// Save writes everything; it is on stable storage on return.
func (s *State) Save() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		err = s.savePosition()
	}
	if err == nil {
		err = replace(filepath.Join(s.dir, StateFile), append(b, '\n'), true)
	}
	if err != nil {
		return fmt.Errorf("write the state of shipping: %w", err)
	}
	return nil
}

func (s *State) savePosition() error {
	b, err := json.Marshal(s.Pos)
	if err != nil {
		return err
	}
	return replace(filepath.Join(s.dir, PosFile), b, false)
}

func replace(path string, b []byte, sync bool) error {
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil || !sync {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
