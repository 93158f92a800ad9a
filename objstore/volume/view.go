package volume

import (
	"encoding/binary"
	"fmt"

	"pillarbox/objstore"
)

// View is a consistent read-only picture of a group's keys (several volumes of
// one placement group). It must not keep the keys it is handed.
type View interface {
	// Get returns a key's value, or nil, nil when the key is absent. The slice
	// is read-only and good as long as the View is.
	Get(key []byte) ([]byte, error)
	// Scan calls fn for keys with the prefix in ascending order, only those
	// greater than after when after != nil, until fn returns false. Key and
	// value are valid during the call only.
	Scan(prefix, after []byte, fn func(key, value []byte) bool) error
}

// Write is one key's new value; a nil Value deletes the key.
type Write struct{ Key, Value []byte }

// Delta is what a change does to the keys, at most one Write per key.
type Delta []Write

const (
	opDelete = 0
	opPut    = 1
)

// AppendTo appends the Delta's log encoding to b: the number of writes, then
// for each an op byte, the key and, of a put, the value, lengths as uvarints.
func (d Delta) AppendTo(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(d)))
	for _, w := range d {
		if w.Value == nil {
			b = append(b, opDelete)
			b = binary.AppendUvarint(b, uint64(len(w.Key)))
			b = append(b, w.Key...)
			continue
		}
		b = append(b, opPut)
		b = binary.AppendUvarint(b, uint64(len(w.Key)))
		b = append(b, w.Key...)
		b = binary.AppendUvarint(b, uint64(len(w.Value)))
		b = append(b, w.Value...)
	}
	return b
}

// ParseDelta reads what AppendTo wrote. Keys and values alias b. Corrupt if b
// is anything else.
func ParseDelta(b []byte) (Delta, error) {
	r := reader{b: b}
	n := r.uvarint()
	// The smallest write is an op, a length and a byte of key.
	if r.bad || n > uint64(len(r.b))/3 {
		return nil, fmt.Errorf("parse delta of %d bytes: bad count: %w", len(b), objstore.Corrupt)
	}
	d := make(Delta, 0, n)
	for range n {
		op := r.byte()
		w := Write{Key: r.bytes(r.uvarint())}
		if op == opPut {
			w.Value = r.bytes(r.uvarint())
		}
		if r.bad || op > opPut || len(w.Key) == 0 {
			return nil, fmt.Errorf("parse delta of %d bytes: bad write %d of %d: %w", len(b), len(d), n, objstore.Corrupt)
		}
		d = append(d, w)
	}
	if len(r.b) != 0 {
		return nil, fmt.Errorf("parse delta of %d bytes: %d bytes too many: %w", len(b), len(r.b), objstore.Corrupt)
	}
	return d, nil
}

// reader takes an encoding apart. After a failed read bad is set, and every
// later read gives zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() {
	r.bad = true
	r.b = nil
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	x, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return x
}

func (r *reader) uvarint32() uint32 {
	x := r.uvarint()
	if x > 1<<32-1 {
		r.fail()
		return 0
	}
	return uint32(x)
}

func (r *reader) u64() uint64 {
	if len(r.b) < 8 {
		r.fail()
		return 0
	}
	x := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return x
}

// bytes is never nil unless the read failed.
func (r *reader) bytes(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}
