package mailimport

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const sep = "From a@example.org Thu Jan  1 00:00:01 2004\n"

func parse(t testing.TB, box string) (texts []string, segs []segment) {
	t.Helper()
	r := strings.NewReader(box)
	err := indexMbox(r, int64(len(box)), func(s segment) error {
		var b bytes.Buffer
		if err := s.writeMessage(&b, r); err != nil {
			return err
		}
		texts, segs = append(texts, b.String()), append(segs, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts, segs
}

func TestMboxMessages(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	for name, c := range map[string]struct {
		box  string
		want []string
	}{
		"empty":                {"", nil},
		"one":                  {sep + "A: b\n\nbody\n\n", []string{"A: b\n\nbody\n"}},
		"two":                  {sep + "A: b\n\n1\n\n" + sep + "\n2\n", []string{"A: b\n\n1\n", "\n2\n"}},
		"no empty line at end": {sep + "A: b\n\nbody\n", []string{"A: b\n\nbody\n"}},
		"no line end":          {sep + "A: b\n\nbody", []string{"A: b\n\nbody"}},
		"separator only":       {sep, []string{""}},
		"header only":          {sep + "A: b\n" /* cut */, []string{"A: b\n"}},
		"no body":              {sep + "A: b\n\n" + sep + "A: c\n\n", []string{"A: b\n\n", "A: c\n\n"}},
		"empty lines kept":     {sep + "A: b\n\n\n\nx\n\n\n\n" + sep + "\n", []string{"A: b\n\n\n\nx\n\n\n", "\n"}},
		"From inside a paragraph": {sep + "A: b\n\nx\n" + sep + "\n" + sep + "\n2\n",
			[]string{"A: b\n\nx\n" + sep, "\n2\n"}},
		"From without a date":         {sep + "A: b\n\nx\n\nFrom here on\n\n", []string{"A: b\n\nx\n\nFrom here on\n"}},
		"dateless mbox":               {"From a\nA: b\n\nx\n\nFrom c\n\n2\n", []string{"A: b\n\nx\n", "\n2\n"}},
		"quoted":                      {sep + "A: b\n\n>From x\n>>From y\n> From\n>Fromage\n", []string{"A: b\n\nFrom x\n>From y\n> From\n>Fromage\n"}},
		"quoted in the header":        {sep + ">From x\nA: b\n\n>From x", []string{">From x\nA: b\n\nFrom x"}},
		"many quotes":                 {sep + "\n" + strings.Repeat(">", 3000) + "From x\n", []string{"\n" + strings.Repeat(">", 2999) + "From x\n"}},
		"long lines":                  {sep + "A: " + long + "\n\n" + long + "\n>From " + long + "\n\n" + sep + "\n", []string{"A: " + long + "\n\n" + long + "\nFrom " + long + "\n", "\n"}},
		"not From behind a long line": {sep + "\n" + strings.Repeat("y", 64<<10) + ">From x\n", []string{"\n" + strings.Repeat("y", 64<<10) + ">From x\n"}},
		"CRLF":                        {strings.ReplaceAll(sep+"A: b\n\n1\n\n"+sep+"\n>From 2\n\n", "\n", "\r\n"), []string{"A: b\r\n\r\n1\r\n", "\r\nFrom 2\r\n"}},
		"NUL and 8 bit":               {sep + "A: \xff\x00\n\n\x00\xfe\n", []string{"A: \xff\x00\n\n\x00\xfe\n"}},

		"Content-Length keeps separators in": {sep + fmt.Sprintf("Content-Length: %d\n\n1\n\n%s>From x\n\n%s\n2\n", 3+len(sep)+8, sep, sep),
			[]string{fmt.Sprintf("Content-Length: %d\n\n1\n\n%s>From x\n", 3+len(sep)+8, sep), "\n2\n"}},
		"Content-Length and quotes": {sep + "Content-Length: 8\n\n>From x\n\n" + sep + "\n", []string{"Content-Length: 8\n\nFrom x\n", "\n"}},
		"Content-Length to the end": {sep + "Content-Length: 2\n\n1\n", []string{"Content-Length: 2\n\n1\n"}},
		"Content-Length too small":  {sep + "Content-Length: 1\n\n123\n\n" + sep + "\n", []string{"Content-Length: 1\n\n123\n", "\n"}},
		"Content-Length too large":  {sep + "Content-Length: 999\n\n123\n\n" + sep + "\n", []string{"Content-Length: 999\n\n123\n", "\n"}},
		"Content-Length absurd":     {sep + "Content-Length: 99999999999999999999\n\n1\n\n" + sep + "\n", []string{"Content-Length: 99999999999999999999\n\n1\n", "\n"}},
		"Content-Length 0":          {sep + "Content-Length: 0\n\n\n" + sep + "\n", []string{"Content-Length: 0\n\n", "\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, segs := parse(t, c.box)
			if !slices.Equal(got, c.want) {
				t.Errorf("got  %.300q\nwant %.300q", got, c.want)
			}
			checkSegments(t, c.box, segs)
		})
	}
}

func TestNotMbox(t *testing.T) {
	for _, s := range []string{"\n", "Subject: x\n", "from a", ">From x"} {
		err := indexMbox(strings.NewReader(s), int64(len(s)), func(segment) error { return nil })
		if !errors.Is(err, errNotMbox) {
			t.Errorf("%q: %v", s, err)
		}
	}
	if err := indexMbox(strings.NewReader(sep), int64(len(sep))+5, func(segment) error { return nil }); err == nil {
		t.Error("an mbox that shrank gives no error")
	}
}

func TestMboxFlags(t *testing.T) {
	for head, want := range map[string]string{
		"A: b\n":                             "new",
		"Status: O\n":                        "cur:",
		"Status: RO\nX-Status: AF\n":         "cur:FRS",
		"X-Status: DT\nStatus: R\n":          "cur:DST",
		"STATUS: R\nstatus: R\n":             "cur:S",
		"Status:\nX-Status:  \n":             "new",
		"X-IMAP: 1 2\nStatus: RO\n":          "cur:S",
		"Subject: DON'T DELETE THIS MESSAGE": "new",
		"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 2\n": "internal",
	} {
		_, segs := parse(t, sep+head+"\nbody\n")
		got := "new"
		switch s := segs[0]; {
		case s.Internal:
			got = "internal"
		case s.Old:
			got = "cur:" + s.Flags
		}
		if got != want {
			t.Errorf("%q: %s, want %s", head, got, want)
		}
	}
}

func TestFromDate(t *testing.T) {
	want := time.Date(2004, 7, 9, 13, 4, 5, 0, time.UTC)
	for _, s := range []string{
		"From a@b Fri Jul  9 13:04:05 2004\n",
		"From a@b Fri Jul 09 13:04:05 2004\r\n",
		"From a@b  Fri Jul  9 15:04:05 2004 +0200\n",
		"From a@b  Fri Jul  9 15:04:05 +0200 2004\n",
		"From a@b Fri Jul  9 13:04:05 UTC 2004 remote from x\n",
		"From a@b Fri, 9 Jul 2004 15:04:05 +0200\n",
		"From \"a b\"@c Fri Jul  9 13:04:05 2004\n",
		"From Fri Fri Jul  9 13:04:05 2004\n",
	} {
		if got, ok := fromDate([]byte(s)); !ok || !got.Equal(want) {
			t.Errorf("%q: %v, %v", s, got, ok)
		}
	}
	if got, ok := fromDate([]byte("From a Fri Jul  9 00:00 2004")); !ok || got.Hour() != 0 {
		t.Errorf("without seconds, at midnight: %v, %v", got, ok)
	}
	for _, s := range []string{"From a\n", "From ", "From a Fri Jul 9 2004\n", "From here on Friday we go to 12:00 2004\n", "From a Fri Jul 40 13:04:05 2004", "From a Fri Jul 9 99:04:05 2004"} {
		if got, ok := fromDate([]byte(s)); ok {
			t.Errorf("%q: %v", s, got)
		}
	}
}

// checkSegments says that no byte is lost: segments follow on each other, and
// between them are separators and at most one empty line.
func checkSegments(t testing.TB, box string, segs []segment) {
	t.Helper()
	at := int64(0)
	for _, s := range segs {
		if s.From != at || s.Start < s.From || s.End < s.Start || s.Next < s.End || s.Body < s.Start {
			t.Fatalf("segment %+v does not follow on offset %d", s, at)
		}
		line := box[s.From:s.Start]
		if !strings.HasPrefix(line, "From ") || strings.Contains(strings.TrimSuffix(line, "\n"), "\n") {
			t.Fatalf("separator %q", line)
		}
		if gap := box[s.End:s.Next]; gap != "" && gap != "\n" && gap != "\r\n" {
			t.Fatalf("%q is lost", gap)
		}
		at = s.Next
	}
	if at != int64(len(box)) {
		t.Fatalf("%d of %d bytes seen", at, len(box))
	}
}

func FuzzMbox(f *testing.F) {
	f.Add([]byte(sep + "A: b\n\nx\n\n" + sep + "Content-Length: 3\n\n>From y\n\n"))
	f.Add([]byte("From a\n\n>>From b\r\n\r\nFrom c"))
	f.Add([]byte(sep + "Content-Length: 0\n\n\n" + sep + "Status: RO\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		box := string(b)
		if box != "" && !strings.HasPrefix(box, "From ") {
			box = "From " + box
		}
		texts, segs := parse(t, box)
		checkSegments(t, box, segs)
		for i, s := range segs {
			if lost := int(s.End-s.Start) - len(texts[i]); lost < 0 || lost > 0 && !s.Unquote {
				t.Fatalf("%+v gave %d bytes", s, len(texts[i]))
			}
		}
		// What is written as mboxrd comes back as it was.
		msg := "X: y\n\n" + box + "\n"
		quoted := regexp.MustCompile(`(?m)^(>*From )`).ReplaceAllString(box, ">$1")
		if strings.Contains(quoted, "\nContent-Length") || len(quoted) > 40<<10 {
			return
		}
		got, _ := parse(t, sep+"X: y\n\n"+quoted+"\n\n"+sep+"\nlast\n")
		if len(got) != 2 || got[0] != msg || got[1] != "\nlast\n" {
			t.Fatalf("%q became %q", msg, got)
		}
	})
}
