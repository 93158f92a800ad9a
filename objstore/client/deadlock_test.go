package client

import (
	"testing"

	"pillarbox/objstore/locks"
)

func waiter(n uint64) locks.Owner { return locks.Owner{Session: n, ID: 1} }

// TestVictim: of all that are in a cycle one gives up, and who only waits for
// them does not.
func TestVictim(t *testing.T) {
	w := waitsFor{
		waiter(1): {5: {waiter(2)}},
		waiter(2): {6: {waiter(3)}},
		waiter(3): {7: {waiter(1)}, 8: {waiter(9)}},
		waiter(4): {9: {waiter(1), waiter(3)}},
		waiter(9): {},
	}
	for n, want := range map[uint64]uint64{1: 0, 2: 0, 3: 7, 4: 0, 9: 0} {
		if got := w.victim(waiter(n)); got != want {
			t.Errorf("session %d: wait %d gives up, not %d", n, got, want)
		}
	}
	// One that went on between two answers is no cycle.
	later := waitsFor{
		waiter(1): {5: {waiter(2)}},
		waiter(2): {6: {waiter(3)}},
		waiter(3): {10: {waiter(1)}},
	}
	if got := w.and(later).victim(waiter(3)); got != 0 {
		t.Errorf("wait %d gives up where there was no cycle", got)
	}
}
