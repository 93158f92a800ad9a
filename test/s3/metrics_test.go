package s3

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pillarbox/test/harness"
)

// TestMetrics: the metrics tell what happened, and docs/monitoring.md names
// those that there are, and no others.
func TestMetrics(t *testing.T) {
	addr := harness.FreePort(t)
	s := newSite(t, "--metrics", addr)
	s.aws("s3", "mb", "s3://counted")
	s.aws("s3", "cp", "--quiet", s.write("x", random(5000)), "s3://counted/x")
	s.aws("s3", "cp", "--quiet", "s3://counted/x", "y")
	s.refused("NoSuchKey", "s3api", "get-object", "--bucket", "counted", "--key", "none", "z")
	res, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res, err)
	}
	text := string(b)
	for _, line := range []string{
		`pillarbox_s3_requests_total{code="",operation="PutObject",status="200"} 1`,
		`pillarbox_s3_requests_total{code="",operation="GetObject",status="200"} 1`,
		`pillarbox_s3_requests_total{code="NoSuchKey",operation="GetObject",status="404"} 1`,
		`pillarbox_s3_request_seconds_count{operation="PutObject"} 1`,
		`pillarbox_mount_dirty_bytes 0`,
		`pillarbox_osd_groups_led 64`, `pillarbox_osd_chunks_bad 0`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("missing: %s", line)
		}
	}
	manual, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	names := func(re, in string) []string {
		var list []string
		for _, m := range regexp.MustCompile(re).FindAllStringSubmatch(in, -1) {
			list = append(list, m[1])
		}
		slices.Sort(list)
		return slices.Compact(list)
	}
	// The rows of clusters' monitors, OSDs and mounts are test/cluster's; outside pools, a disk cache and packs are not there to be measured.
	table := regexp.MustCompile(`(?m)^.*(\| (mon|osd|cluster's mount) \||\| (up|mount) with |pillarbox_(pool|ship)_).*$`).ReplaceAllString(in(string(manual), "| metric |", "\n\n"), "")
	told, shown := names("`(pillarbox_[a-z0-9_]+)`", table), names(`(?m)^# TYPE (pillarbox_\S+) `, text)
	if !slices.Equal(told, shown) {
		t.Errorf("docs/monitoring.md names %v, there are %v", told, shown)
	}
}

// in is what stands between two texts.
func in(s, from, to string) string {
	_, s, _ = strings.Cut(s, from)
	s, _, _ = strings.Cut(s, to)
	return s
}
