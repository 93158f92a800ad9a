package ship

import (
	"context"
	"encoding/json"
	"fmt"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

// manifestFormat is the version of manifests.
const manifestFormat = 1

// Manifest says what makes the state, and what else a store is. It is written
// anew, under the same name, whenever that changes.
type Manifest struct {
	Format int             `json:"format"`
	About  json.RawMessage `json:"about"` // what package cmd wants to know of the store

	Checkpoint Checkpoint `json:"checkpoint"`
	Closed     []Run      `json:"closed"`  // behind the checkpoint, in order
	Open       Run        `json:"open"`    // the run that goes on; Last says nothing
	Garbage    []Span     `json:"garbage"` // to be removed, if they are still there
}

// Checkpoint is a picture of the state.
type Checkpoint struct {
	Epoch  uint32 `json:"epoch"`
	Number uint32 `json:"number"`
	Parts  []Ref  `json:"parts"`
	Bytes  int64  `json:"bytes"` // stored
}

// Run is a series of objects with what was logged, First to Last. Empty if Last < First.
type Run struct {
	Epoch  uint32 `json:"epoch"`
	Number uint32 `json:"number"`
	First  uint64 `json:"first"` // numbers begin with 1
	Last   uint64 `json:"last"`
	Before []byte `json:"before"` // salt of the object before First
	From   uint64 `json:"from"`   // position in the log of its host where it began
}

// Span is a series of names: parts of a checkpoint, or objects of a run.
type Span struct {
	Epoch  uint32 `json:"epoch"`
	Number uint32 `json:"number"`
	Run    bool   `json:"run"`
	First  uint64 `json:"first"`
	Last   uint64 `json:"last"`
}

func (s Span) names() (list []string) {
	for i := s.First; i <= s.Last; i++ {
		if s.Run {
			list = append(list, runName(s.Epoch, s.Number, i))
		} else {
			list = append(list, partName(s.Epoch, s.Number, int(i)))
		}
	}
	return list
}

func parseManifest(b []byte) (*Manifest, error) {
	m := &Manifest{}
	if err := json.Unmarshal(b, &struct {
		Format *int `json:"format"`
	}{&m.Format}); err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", objstore.Corrupt, err)
	}
	if m.Format > manifestFormat {
		return nil, fmt.Errorf("manifest of format %d, this program knows %d: %w", m.Format, manifestFormat, objstore.Unsupported)
	}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", objstore.Corrupt, err)
	}
	for _, r := range append([]Run{m.Open}, m.Closed...) {
		if r.First == 0 || len(r.Before) != saltSize {
			return nil, fmt.Errorf("manifest: run %d from %d: %w", r.Number, r.First, objstore.Corrupt)
		}
	}
	return m, nil
}

// getManifest reads an epoch's manifest. NotFound.
func (s *sealer) getManifest(ctx context.Context, store pool.Store, epoch uint32) (*Manifest, error) {
	name := manifestName(epoch)
	b, _, err := s.get(ctx, store, name)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", name, err)
	}
	return m, nil
}

func (s *sealer) putManifest(ctx context.Context, store pool.Store, epoch uint32, m *Manifest) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode a manifest: %w", err)
	}
	return s.put(ctx, store, manifestName(epoch), b)
}

func (s *sealer) put(ctx context.Context, store pool.Store, name string, content []byte) error {
	obj, _, err := s.seal(name, content)
	if err == nil {
		err = store.Put(ctx, name, obj)
	}
	if err != nil {
		return fmt.Errorf("write object %s: %w", name, err)
	}
	return nil
}
