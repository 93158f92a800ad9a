package mailimport

import (
	"bytes"
	"regexp"
	"testing"

	"pillarbox/test/mailset"
)

// All real mail in one mbox, as mboxrd, comes back byte for byte.
func TestRealMailAsMbox(t *testing.T) {
	set, err := mailset.Load()
	must(t, err)
	quote := regexp.MustCompile(`(?m)^(>*From )`)
	var box, want bytes.Buffer
	for _, m := range set {
		raw := bytes.Clone(m.Raw)
		if !bytes.HasSuffix(raw, []byte("\n")) {
			raw = append(raw, '\n')
		}
		body := len(raw)
		if at := regexp.MustCompile(`(?m)^\r?\n`).FindIndex(raw); at != nil {
			body = at[1]
		}
		box.WriteString(sep)
		box.Write(raw[:body])
		box.Write(quote.ReplaceAll(raw[body:], []byte(">$1")))
		box.WriteString("\n")
	}
	r, n := bytes.NewReader(box.Bytes()), 0
	err = indexMbox(r, int64(box.Len()), func(s segment) error {
		want.Reset()
		if err := s.writeMessage(&want, r); err != nil {
			return err
		}
		if n < len(set) {
			raw := set[n].Raw
			if got := want.Bytes(); !bytes.Equal(got, raw) && !bytes.Equal(got, append(bytes.Clone(raw), '\n')) {
				t.Errorf("%s is not what it was", set[n].ID)
			}
		}
		n++
		return nil
	})
	if err != nil || n != len(set) {
		t.Errorf("%d messages of %d, %v", n, len(set), err)
	}
}
