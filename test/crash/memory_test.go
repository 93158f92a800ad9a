package crash

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pillarbox/test/harness"
)

var messagesFlag = flag.Int("messages", 100000, "messages that TestMemory walks over")

// TestMemory looks at the process's memory after a start and after a walk over
// every message.
func TestMemory(t *testing.T) {
	const perBox, idle, walked = 2000, 150, 512
	n := harness.Start(t, harness.Options{})
	if rss := memory(t, n, "VmRSS"); rss > idle {
		t.Errorf("an empty store: %d MiB resident, want %d at most", rss, idle)
	}
	began := time.Now()
	boxes := make(chan int)
	var wg errgroup.Group
	for range workers {
		wg.Go(func() (err error) {
			for box := range boxes {
				err = errors.Join(err, fillBox(n.Mount, box, min(perBox, *messagesFlag-box*perBox)))
			}
			return err
		})
	}
	for box := 0; box*perBox < *messagesFlag; box++ {
		boxes <- box
	}
	close(boxes)
	if err := wg.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("delivered %d messages in %v, %d MiB at most", *messagesFlag, time.Since(began), memory(t, n, "VmHWM"))
	n.Term()
	n.Restart()
	if rss := memory(t, n, "VmRSS"); rss > idle {
		t.Errorf("after a start with %d messages: %d MiB resident, want %d at most", *messagesFlag, rss, idle)
	}
	began = time.Now()
	found := 0
	err := filepath.WalkDir(n.Mount, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		st, err := e.Info()
		if err == nil && st.Size() != messageSize {
			err = fmt.Errorf("%s has %d bytes", e.Name(), st.Size())
		}
		found++
		return err
	})
	if err != nil || found != *messagesFlag {
		t.Errorf("walked over %d messages: %v", found, err)
	}
	t.Logf("walked in %v: %d MiB resident, %d at most", time.Since(began), memory(t, n, "VmRSS"), memory(t, n, "VmHWM"))
	if hwm := memory(t, n, "VmHWM"); hwm > walked {
		t.Errorf("a walk over %d messages: %d MiB resident, want %d at most", found, hwm, walked)
	}
	n.Term()
}

const messageSize = 400

func fillBox(mount string, box, count int) error {
	dir := filepath.Join(mount, "example.org", fmt.Sprint("user", box), "Maildir", "cur")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	body := make([]byte, messageSize)
	for i := range count {
		if err := writeFile(filepath.Join(dir, fmt.Sprintf("%d.M%dP1.host:2,S", box, i)), body, false); err != nil {
			return err
		}
	}
	return nil
}

// memory is a line of /proc/<pid>/status of the node's process, in MiB.
func memory(t *testing.T, n *harness.Node, line string) int {
	t.Helper()
	pid, err := os.ReadFile(filepath.Join(n.Data, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(l, line+":"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(v), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatalf("no %s in %s", line, status)
	return 0
}
