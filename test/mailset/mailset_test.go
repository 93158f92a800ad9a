package mailset

import "testing"

func TestLoad(t *testing.T) {
	set, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	if len(set) < 6000 {
		t.Fatalf("only %d messages", len(set))
	}
	seen := map[string]bool{}
	for _, m := range set {
		if seen[m.ID] || len(m.Raw) == 0 {
			t.Fatalf("%s is empty or there twice", m.ID)
		}
		seen[m.ID] = true
	}
}

func TestStored(t *testing.T) {
	if got := string(Stored([]byte("a\r\nb\rc\n\nd"))); got != "a\nb\rc\n\nd\n" {
		t.Fatalf("got %q", got)
	}
}
