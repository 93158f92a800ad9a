package volume

import (
	"slices"
	"strings"

	"github.com/tidwall/btree"
)

// MapView is a View in memory, for tests and tools. The zero value is empty.
// It may be read from several goroutines, but not while Apply runs.
type MapView struct {
	m btree.Map[string, []byte]
}

// Get implements View.
func (m *MapView) Get(key []byte) ([]byte, error) {
	v, ok := m.m.Get(string(key))
	if !ok {
		return nil, nil
	}
	return v, nil
}

// Scan implements View.
func (m *MapView) Scan(prefix, after []byte, fn func(key, value []byte) bool) error {
	p, a := string(prefix), string(after)
	from := p
	if after != nil && a > p {
		from = a
	}
	m.m.Ascend(from, func(k string, v []byte) bool {
		if after != nil && k <= a {
			return true
		}
		return strings.HasPrefix(k, p) && fn([]byte(k), v)
	})
	return nil
}

// Apply makes the Delta's writes. It copies what it keeps.
func (m *MapView) Apply(d Delta) {
	for _, w := range d {
		if w.Value == nil {
			m.m.Delete(string(w.Key))
			continue
		}
		// Clone keeps an empty value non-nil.
		m.m.Set(string(w.Key), slices.Clone(w.Value))
	}
}

// Len is the number of keys.
func (m *MapView) Len() int { return m.m.Len() }
