package client_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"pillarbox/objstore"
	"pillarbox/objstore/client"
)

// mute is an OSD with which no stream begins.
type mute struct{ *watched }

func (m mute) Watch(context.Context, uint64, client.Watching) error { return objstore.Unavailable }

type muteRouter map[int]mute

func (r muteRouter) OSD(id int) (client.OSD, error) { return r[id], nil }

// TestEndOfStreamIsLoggedOnce: a client that is cut off tries again and again, and
// says once for each OSD that it does not hear of changes.
func TestEndOfStreamIsLoggedOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, replicated(3, 2))
		r := muteRouter{}
		for id, o := range c.osds {
			r[id] = mute{&watched{fakeOSD: o}}
		}
		var out bytes.Buffer
		cl, err := client.New(context.Background(), c.m, 42, r, client.Options{Log: slog.New(slog.NewTextHandler(&out, nil)), Timeout: 5 * time.Second})
		want(t, err, nil)
		cl.SetWatcher(listener{})
		if _, err := cl.GetAttr(t.Context(), root); !errors.Is(err, objstore.Unavailable) {
			t.Errorf("asked an OSD that does not tell of changes: %v", err)
		}
		want(t, cl.Close(), nil)
		if n := strings.Count(out.String(), "the stream with an OSD has ended"); n == 0 || n > len(c.osds) {
			t.Errorf("logged %d times, there are %d OSDs:\n%s", n, len(c.osds), &out)
		}
	})
}
