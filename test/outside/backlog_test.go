package outside

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
	"pillarbox/test/provider"
)

// shipment is what status says of shipping.
type shipment struct {
	Problems []string
	Shipped  struct {
		Behind int64 `json:"behind_bytes"`
		Whole  bool
	}
}

func (h *host) status() (s shipment) {
	h.Helper()
	if err := json.Unmarshal([]byte(h.run("status", "--data", h.node.Data, "--format", "json")), &s); err != nil {
		h.Fatal(err)
	}
	return s
}

func (s shipment) says(code string) bool {
	return strings.Contains(strings.Join(s.Problems, "\n"), code+": ")
}

// eventually waits until something is so.
func (h *host) eventually(what string, so func() bool) {
	h.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !so(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.Fatalf("not in time: %s\n%s", what, h.node.Log())
		}
	}
}

func (h *host) shipped() {
	h.Helper()
	h.eventually("all is outside", func() bool { s := h.status(); return s.Shipped.Whole && s.Shipped.Behind == 0 })
}

// burn ends the host as if it burnt, and rebuilds it from the pool alone.
func (h *host) burn() {
	h.Helper()
	h.node.Kill9()
	h.node.Unmount()
	if err := os.RemoveAll(h.node.Data); err != nil {
		h.Fatal(err)
	}
	data := filepath.Join(h.TempDir(), "data")
	h.run("rebuild", "--from", h.config, "--key-file", h.access[1], "--data", data)
	h.node = harness.Start(h, harness.Options{Data: data, Args: h.args})
}

// deliver delivers a message as Postfix does.
func (h *host) deliver(maildir, name string, data []byte) error {
	tmp := filepath.Join(maildir, "tmp", name)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Link(tmp, filepath.Join(maildir, "new", name))
	}
	return errors.Join(err, os.Remove(tmp))
}

func (h *host) maildir(user string) string {
	h.Helper()
	dir := filepath.Join(h.node.Mount, "example.org", user, "Maildir")
	for _, sub := range []string{"tmp", "new", "cur"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			h.Fatal(err)
		}
	}
	return dir
}

// holds sees that a directory has these messages and no others.
func (h *host) holds(dir string, want map[string][]byte) {
	h.Helper()
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != len(want) {
		h.Errorf("%s: %d messages of %d, %v", dir, len(list), len(want), err)
	}
	for name, data := range want {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, data) {
			h.Errorf("%s: %d bytes of %d, %v", name, len(got), len(data), err)
		}
	}
}

// TestBacklog: while the provider does not answer, mail is taken until as much waits
// for him as may, also over a crash; then it is refused as by a full disk, while it can
// be read and removed. When he is back, all gets there, and mail is taken again.
func TestBacklog(t *testing.T) {
	settings, _ := provider.Pillarbox(t)
	p := newProvider(t, settings["endpoint"])
	faulty := maps.Clone(settings)
	faulty["endpoint"] = p.URL
	const limit = 2 << 20
	h := newHost(t, "s3", faulty, "--backlog", "2MiB")
	dir := h.maildir(secret)
	rnd := rand.New(rand.NewPCG(3, 3))
	mail := map[string][]byte{}
	deliver := func() error {
		name, data := fmt.Sprint("m", len(mail)), message(rnd, 50_000)
		err := h.deliver(dir, name, data)
		if err == nil {
			mail[name] = data
		} else if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		return err
	}
	for range 5 {
		if err := deliver(); err != nil {
			t.Fatal(err)
		}
	}
	h.shipped()

	p.set(1, silent)
	warned := false
	for n := 0; deliver() == nil; n++ {
		if warned = warned || n%5 == 0 && h.status().says("POOL_BACKLOG"); n > limit/5_000 {
			t.Fatalf("%d deliveries while the provider is away", n)
		}
	}
	if s := h.status(); !warned || !s.says("POOL_BACKLOG_FULL") || s.Shipped.Behind < limit {
		t.Errorf("warned: %v; status: %+v", warned, s)
	}
	h.node.Kill9()
	h.node.Restart()
	h.eventually("what waits is known again", func() bool { return deliver() != nil })
	h.holds(filepath.Join(dir, "new"), mail)
	if err := os.Remove(filepath.Join(dir, "new", "m0")); err != nil {
		t.Error(err)
	}
	delete(mail, "m0")
	if err := os.Rename(filepath.Join(dir, "new", "m1"), filepath.Join(dir, "cur", "m1")); err != nil {
		t.Error(err)
	}
	seen := map[string][]byte{"m1": mail["m1"]}
	delete(mail, "m1")

	p.set(0, none)
	mail["last"] = message(rnd, 50_000)
	h.eventually("mail is taken again", func() bool { return h.deliver(dir, "last", mail["last"]) == nil })
	h.shipped()
	if s := h.status(); s.says("POOL_BACKLOG") || s.says("POOL_BACKLOG_FULL") {
		t.Errorf("status: %+v", s)
	}
	h.burn()
	dir = h.maildir(secret)
	h.holds(filepath.Join(dir, "new"), mail)
	h.holds(filepath.Join(dir, "cur"), seen)
	h.bodies()
}
