package mailimport

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mails are the messages in a Maildir by contents: where each is.
func mails(t testing.TB, maildir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, dir := range []string{"new", "cur", "tmp"} {
		list, err := os.ReadDir(filepath.Join(maildir, dir))
		must(t, err)
		for _, d := range list {
			b, err := os.ReadFile(filepath.Join(maildir, dir, d.Name()))
			must(t, err)
			_, info, _ := strings.Cut(d.Name(), ":")
			if found[string(b)] != "" {
				t.Errorf("%q is there twice", b)
			}
			found[string(b)] = dir + ":" + info
		}
	}
	return found
}

func wantMails(t testing.TB, maildir string, want map[string]string) {
	t.Helper()
	got := mails(t, maildir)
	for text, where := range want {
		if got[text] != where {
			t.Errorf("%q is in %q, want %q", text, got[text], where)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d messages in %s, want %d: %v", len(got), maildir, len(want), got)
	}
}

func TestMboxFile(t *testing.T) {
	box, dst := filepath.Join(t.TempDir(), "box"), filepath.Join(t.TempDir(), "dst")
	put(t, box, sep+"Status: RO\nX-Status: F\n\n>From a\n\n"+
		"From b@c Fri Jul  9 13:04:05 2004\nA: b\n\nnew\n\n"+
		"From b@c no date\n\nFrom b@c Fri Jul  9 13:04:05 2004\nStatus: O\n\nlast, cut sho")
	must(t, os.Chown(box, 1234, 2345))
	o := options(t, box, dst)
	rep := imported(t, o)
	wantMails(t, dst, map[string]string{
		"Status: RO\nX-Status: F\n\nFrom a\n": "cur:2,FS",
		"A: b\n\nnew\n\nFrom b@c no date\n":   "new:",
		"Status: O\n\nlast, cut sho":          "cur:2,",
	})
	if rep.Mboxes != 1 || rep.Messages != 3 || rep.Copied != 3 || rep.Verified != 3 {
		t.Errorf("%+v", rep)
	}
	list, err := os.ReadDir(dst + "/new")
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dst, "new", list[0].Name()), &st))
	when := time.Date(2004, 7, 9, 13, 4, 5, 0, time.UTC)
	if st.Uid != 1234 || st.Gid != 2345 || st.Mode&0o7777 != 0o600 || mtimeOf(&st) != when.UnixNano() || !strings.HasPrefix(list[0].Name(), fmt.Sprint(when.Unix())) {
		t.Errorf("%+v, %s", st, list[0].Name())
	}

	// Mail that came since is imported, nothing twice, even without a journal.
	f, err := os.OpenFile(box, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("rt\n\n" + sep + "\nadded\n")
	must(t, errors.Join(err, f.Close()))
	if rep, err := Run(context.Background(), o); !errors.Is(err, ErrMismatch) && err != nil {
		t.Errorf("%v, %+v", err, rep)
	}
	if got := mails(t, dst); got["\nadded\n"] != "new:" {
		t.Errorf("%v", got)
	}

	// One that was rewritten is refused.
	put(t, box, sep+"\nrewritten, and long enough to be no shorter than it was before, so that the size is no help at all, "+
		"and then a little longer than that, to be on the safe side: four lines of it or so, I think, will do nicely\n")
	before := mails(t, dst)
	if rep, err := Run(context.Background(), o); !errors.Is(err, ErrFailed) || !strings.Contains(rep.Errors[0], "changed since") {
		t.Errorf("%v, %+v", err, rep)
	}
	if len(mails(t, dst)) != len(before) {
		t.Error("messages came twice")
	}
}

func TestDirectoriesOfMboxes(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	one := sep + "\none\n"
	put(t, src+"/spool/alice", one)
	put(t, src+"/bob/mail/inbox", one)
	put(t, src+"/bob/mail/Sent.2004", sep+"\ntwo\n\n"+sep+"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 2\n\nkept: not the first\n")
	put(t, src+"/bob/mail/Drafts", sep+"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 2\n\nnotes\n")
	put(t, src+"/bob/mail/Drafts.lock", "")
	put(t, src+"/bob/mail/.subscriptions", "Sent\n")
	dst := filepath.Join(t.TempDir(), "dst")
	rep := imported(t, options(t, src, dst))
	wantMails(t, dst+"/spool/alice", map[string]string{"\none\n": "new:"})
	wantMails(t, dst+"/bob/mail", map[string]string{"\none\n": "new:"})
	if got := mails(t, dst+"/bob/mail/.Sent_2004"); len(got) != 2 {
		t.Errorf("%v", got)
	}
	wantMails(t, dst+"/bob/mail/.Drafts", nil)
	if rep.Messages != 4 || rep.Internal != 1 || rep.LocksLeft != 1 || rep.Files != 1 || rep.Mboxes != 4 {
		t.Errorf("%+v", rep)
	}
	for _, p := range []string{"/.Drafts/maildirfolder", "/.subscriptions"} {
		if _, err := os.Stat(dst + "/bob/mail" + p); err != nil {
			t.Error(err)
		}
	}

	o := options(t, src, filepath.Join(t.TempDir(), "dst"))
	o.Mbox = Maildirs
	imported(t, o)
	wantMails(t, o.Dst+"/bob/mail/inbox", map[string]string{"\none\n": "new:"})
}

func TestMboxNamesThatCollide(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	put(t, src+"/a.b", sep+"\n1\n")
	put(t, src+"/a_b", sep+"\n2\n")
	put(t, src+"/c", sep+"\n3\n")
	must(t, os.Mkdir(src+"/.c", 0o700))
	rep, err := Run(context.Background(), options(t, src, filepath.Join(t.TempDir(), "dst")))
	if !errors.Is(err, ErrFailed) || rep.Failed != 2 || rep.Copied != 1 || !slices.ContainsFunc(rep.Errors, func(s string) bool { return strings.Contains(s, "both become") }) {
		t.Errorf("%v, %+v", err, rep)
	}
}
