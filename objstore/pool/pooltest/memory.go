package pooltest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

// Memory is a pool.Store in memory.
type Memory struct {
	mu      sync.Mutex
	objects map[string]memoryObject
}

type memoryObject struct {
	data     []byte
	modified time.Time
}

// memoryPage is how many objects a list has.
const memoryPage = 100

// NewMemory makes an empty one.
func NewMemory() *Memory { return &Memory{objects: make(map[string]memoryObject)} }

func ended(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", objstore.Unavailable, context.Cause(ctx))
	}
	return nil
}

// Put implements pool.Store.
func (m *Memory) Put(ctx context.Context, name string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ended(ctx); err != nil {
		return err
	}
	m.objects[name] = memoryObject{slices.Clone(data), time.Now()}
	return nil
}

// Get implements pool.Store.
func (m *Memory) Get(ctx context.Context, name string, off int64, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := ended(ctx); err != nil {
		return err
	}
	o, ok := m.objects[name]
	if !ok {
		return fmt.Errorf("get %s: %w", name, objstore.NotFound)
	}
	if off+int64(len(p)) > int64(len(o.data)) {
		return fmt.Errorf("get %s: %w", name, objstore.Corrupt)
	}
	copy(p, o.data[off:])
	return nil
}

// Delete implements pool.Store.
func (m *Memory) Delete(ctx context.Context, names []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		delete(m.objects, name)
	}
	return ended(ctx)
}

// List implements pool.Store.
func (m *Memory) List(ctx context.Context, from string) (list []pool.Object, next string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.objects)) {
		if name <= from {
			continue
		}
		if len(list) == memoryPage {
			return list, list[len(list)-1].Name, ended(ctx)
		}
		list = append(list, pool.Object{Name: name, Size: int64(len(m.objects[name].data)), Modified: m.objects[name].modified})
	}
	return list, "", ended(ctx)
}
