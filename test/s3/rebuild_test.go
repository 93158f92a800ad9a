package s3

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

// burning is a store of one host that is shipped to a bucket.
type burning struct {
	t          *testing.T
	provider   *site
	node       *harness.Node
	config     string
	keys       string
	durability string
}

func newBurning(t *testing.T, provider *site, durability string) *burning {
	t.Helper()
	settings := provider.settings("bodies", "")
	settings["type"], settings["prefix"] = "s3", durability
	text, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	b := &burning{t: t, provider: provider, config: provider.write(durability+".json", text), keys: filepath.Join(t.TempDir(), "keys"), durability: durability}
	b.run("key", "create", "--key-file", b.keys)
	b.node = b.start("")
	return b
}

func (b *burning) start(data string) *harness.Node {
	b.t.Helper()
	return harness.Start(b.t, harness.Options{Data: data, Args: []string{
		"--s3", "off", "--encrypt", "--key-file", b.keys, "--pool", "cloud=" + b.config, "--durability", b.durability,
	}})
}

func (b *burning) try(args ...string) (string, error) {
	out, err := exec.Command(harness.Binary(b.t), args...).CombinedOutput()
	return string(out), err
}

func (b *burning) run(args ...string) string {
	b.t.Helper()
	out, err := b.try(args...)
	if err != nil {
		b.t.Fatalf("pillarbox %v: %v\n%s", args, err, out)
	}
	return out
}

func (b *burning) rebuild(data string) (string, error) {
	return b.try("rebuild", "--from", b.config, "--key-file", b.keys, "--data", data)
}

func (b *burning) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// deliver delivers a message as Postfix does.
func (b *burning) deliver(maildir, name string, size int) {
	b.t.Helper()
	body := bytes.Repeat([]byte("Subject: the merger with Vogelsang\n"), size/34+1)[:size]
	tmp := filepath.Join(maildir, "tmp", name)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	b.must(err)
	_, err = f.Write(append([]byte(name+"\n"), body...))
	b.must(err)
	b.must(f.Sync())
	b.must(f.Close())
	b.must(os.Link(tmp, filepath.Join(maildir, "new", name)))
	b.must(os.Remove(tmp))
}

// mail fills an account with all that there is; everything is acknowledged at the end.
func (b *burning) mail(user string) {
	b.t.Helper()
	maildir := filepath.Join(b.node.Mount, "example.org", user, "Maildir")
	box := func(dir string) {
		for _, sub := range []string{"new", "cur", "tmp"} {
			b.must(os.MkdirAll(filepath.Join(dir, sub), 0o700))
		}
	}
	box(maildir)
	box(filepath.Join(maildir, ".Archive"))
	for i := range 12 {
		b.deliver(maildir, fmt.Sprintf("%d.%s.host", i, user), []int{300, 5_000, 60_000, 200_000}[i%4])
	}
	at := func(parts ...string) string { return filepath.Join(append([]string{maildir}, parts...)...) }
	b.must(os.Rename(at("new", "1."+user+".host"), at("cur", "1."+user+".host:2,S")))
	b.must(os.Rename(at("cur", "1."+user+".host:2,S"), at("cur", "1."+user+".host:2,RS")))
	b.must(os.Link(at("new", "2."+user+".host"), at(".Archive", "cur", "2."+user+".host:2,")))
	b.must(os.Remove(at("new", "3."+user+".host")))
	b.must(unix.Setxattr(at("new", "4."+user+".host"), "user.note", []byte("Vogelsang again"), 0))
	b.must(os.Chmod(at("new", "5."+user+".host"), 0o640))
	b.must(os.Chtimes(at("new", "6."+user+".host"), time.Unix(1e9, 5), time.Unix(1e9, 7)))
	b.must(os.Symlink("Maildir", filepath.Join(filepath.Dir(maildir), "mail")))
	for _, dir := range []string{at(), at("new"), at("cur"), at("tmp"), at(".Archive"), at(".Archive", "cur"), filepath.Dir(maildir), filepath.Dir(filepath.Dir(maildir))} {
		b.must(syncDir(dir))
	}
}

// tree is everything that can be seen of a mount.
func (b *burning) tree(root string) map[string]string {
	b.t.Helper()
	all := map[string]string{}
	b.must(filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		what := fmt.Sprintf("%o %d:%d %d links, %d bytes, %v", st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Mtim)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			note := make([]byte, 100)
			n, _ := unix.Getxattr(path, "user.note", note) // most have none
			what += fmt.Sprintf(" %q %s", note[:max(n, 0)], body)
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += " " + to
		}
		rel, err := filepath.Rel(root, path)
		all[rel] = what
		return err
	}))
	return all
}

func (b *burning) compare(got, want map[string]string) {
	b.t.Helper()
	short := func(s string) string { return s[:min(len(s), 150)] }
	for path, what := range want {
		if got[path] != what {
			b.t.Errorf("%s: %q, was %q", path, short(got[path]), short(what))
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			b.t.Errorf("%s was not there", path)
		}
	}
}

// shipped waits until all that is on stable storage is outside, too.
func (b *burning) shipped() {
	b.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		var st struct {
			Shipped struct {
				Behind uint64 `json:"behind_bytes"`
				Whole  bool
			}
		}
		out := b.run("status", "--data", b.node.Data, "--format", "json")
		b.must(json.Unmarshal([]byte(out), &st))
		if st.Shipped.Behind == 0 && st.Shipped.Whole {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("not shipped: %s\n%s", out, b.node.Log())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestRebuild: the host burns, and everything comes back from the bucket, where
// nothing of it can be read; and again, from the host that was rebuilt. The first
// host, should it come back, is refused.
func TestRebuild(t *testing.T) {
	provider := newSite(t)
	provider.aws("s3", "mb", "s3://bodies")
	for _, durability := range []string{"local", "remote"} {
		t.Run(durability, func(t *testing.T) {
			b := newBurning(t, provider, durability)
			b.mail("alice")
			if durability == "local" {
				b.shipped()
			}
			want := b.tree(b.node.Mount)
			old := b.node
			old.Kill9()
			old.Unmount()
			data := filepath.Join(t.TempDir(), "data")
			out, err := b.rebuild(data)
			if err != nil {
				t.Fatalf("rebuild: %v\n%s", err, out)
			}
			b.node = b.start(data)
			b.compare(b.tree(b.node.Mount), want)
			if out, err := b.try("up", "--data", old.Data, "--s3", "off", "--key-file", b.keys, "--pool", "cloud="+b.config, old.Mount); err == nil || !strings.Contains(out, "rebuilt elsewhere") {
				t.Errorf("the old host came back: %v\n%s", err, out)
			}
			b.mail("bob")
			if durability == "local" {
				b.shipped()
			}
			want = b.tree(b.node.Mount)
			b.node.Kill9()
			b.node.Unmount()
			b.must(os.RemoveAll(data))
			if out, err := b.rebuild(data); err != nil {
				t.Fatalf("rebuild again: %v\n%s", err, out)
			}
			b.node = b.start(data)
			b.compare(b.tree(b.node.Mount), want)
			b.node.Term()
			b.node.Fsck()
			b.verify()
			if out, err := b.rebuild(data); err == nil || !strings.Contains(out, "holds a store") {
				t.Errorf("rebuild over a store: %v\n%s", err, out)
			}
			b.run("key", "create", "--key-file", b.keys+".other")
			if out, err := b.try("rebuild", "--from", b.config, "--key-file", b.keys+".other", "--data", data+".other"); err == nil || !strings.Contains(out, "master key") {
				t.Errorf("rebuild with another key: %v\n%s", err, out)
			}
			b.grep(filepath.Join(provider.node.Mount, "bodies", durability))
		})
	}
}

// verify sees that what was shipped is the store, and a lie.
func (b *burning) verify() {
	b.t.Helper()
	args := []string{"verify", "--data", b.node.Data, "--key-file", b.keys, "--pool", "cloud=" + b.config, "cloud"}
	if out := b.run(args...); !strings.Contains(out, "all as in the store") || !strings.Contains(out, "0 missing or damaged; 0 objects") {
		b.t.Errorf("verify: %s", out)
	}
	parts, err := filepath.Glob(filepath.Join(b.provider.node.Mount, "bodies", b.durability, "meta/*/c*"))
	if err != nil || len(parts) == 0 {
		b.t.Fatalf("no part of a checkpoint: %v", err)
	}
	for _, part := range parts {
		body, err := os.ReadFile(part)
		b.must(err)
		damaged := bytes.Clone(body)
		damaged[len(body)/2] ^= 1
		b.must(os.WriteFile(part, damaged, 0o600))
		if out, err := b.try(args...); err == nil || !strings.Contains(out, filepath.Base(part)) {
			b.t.Errorf("verify of a damaged checkpoint: %v\n%s", err, out)
		}
		if out, err := b.try("rebuild", "--dry-run", "--from", b.config, "--key-file", b.keys); err == nil || !strings.Contains(out, filepath.Base(part)) {
			b.t.Errorf("rebuild --dry-run of a damaged checkpoint: %v\n%s", err, out)
		}
		b.must(os.WriteFile(part, body, 0o600))
	}
	b.run("rebuild", "--dry-run", "--from", b.config, "--key-file", b.keys)
}

// grep looks for plain text in a bucket.
func (b *burning) grep(bucket string) {
	b.t.Helper()
	n := 0
	b.must(filepath.WalkDir(bucket, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		n++
		body, err := os.ReadFile(path)
		for _, text := range []string{"Vogelsang", "Subject", "alice", "bob", "example.org", "Maildir", ".host", "cloud", "user.note"} {
			if bytes.Contains(body, []byte(text)) || strings.Contains(strings.TrimPrefix(path, bucket), text) {
				b.t.Errorf("%s shows %q", path, text)
			}
		}
		return err
	}))
	if n < 10 {
		b.t.Errorf("%d objects in the bucket", n)
	}
}
