package cluster

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"pillarbox/test/harness"
)

// TestMountTools: the commands that ask the process of a cluster's mount.
func TestMountTools(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	answers := func(point string) {
		t.Helper()
		c.eventually("the admin socket answers", func() bool { _, err := c.try("status", point); return err == nil })
	}
	metrics, pprof, cache := harness.FreePort(t), harness.FreePort(t), c.path("cache")
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	point, d := c.mount("a", "metrics="+metrics, "pprof="+pprof, "cache-dir="+cache)
	answers(point)
	socks, err := filepath.Glob(c.path("client.a/mounts/*/admin.sock"))
	if err != nil || len(socks) != 1 {
		t.Fatal(socks, err)
	}
	if st, err := os.Stat(socks[0]); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the admin socket: %v, %v", st, err)
	}
	var st struct {
		Health     string `json:"health"`
		Mountpoint string `json:"mountpoint"`
		Conf       string `json:"conf"`
		Pid        int    `json:"pid"`
		OSDs       struct {
			Up int `json:"up"`
		} `json:"osds"`
	}
	if err := json.Unmarshal([]byte(c.run("status", "--format", "json", point)), &st); err != nil {
		t.Fatal(err)
	}
	if st.Health != "ok" || st.Mountpoint != point || st.Conf != c.path("client.a") || st.Pid != d.cmd.Process.Pid || st.OSDs.Up != 3 {
		t.Errorf("status: %+v", st)
	}
	c.checkStats(point)
	c.checkProfile(point)
	c.checkMountMetrics(metrics)
	c.checkWarmup(point, cache)
	if body := get(t, "http://"+pprof+"/debug/pprof/goroutine?debug=1"); !strings.Contains(body, "goroutine profile: total ") {
		t.Errorf("pprof answers %.200s", body)
	}
	c.stop(d)
	if _, err := os.Lstat(socks[0]); err == nil {
		t.Error("the admin socket is left behind")
	}
	if _, err := c.try("status", point); err == nil {
		t.Error("status of what is no mount point any more succeeds")
	}
	// A killed mount leaves its socket, which the next takes over.
	point, d = c.mount("a")
	answers(point)
	c.kill(d)
	if _, err := c.try("status", point); err == nil {
		t.Error("status of a dead mount succeeds")
	}
	if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	_, d = c.mount("a")
	answers(point)
	c.stop(d)
}

func get(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(url, res.Status, err)
	}
	return string(b)
}

// checkStats delivers some mail, and looks for it in what is counted.
func (c *cluster) checkStats(point string) {
	c.t.Helper()
	dir := filepath.Join(point, "example.org", "alice", "new")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	for i := range 3 {
		if err := writeSynced(filepath.Join(dir, fmt.Sprint(i)), strings.Repeat("mail", 5000)); err != nil {
			c.t.Fatal(err)
		}
	}
	var line struct {
		Seconds float64        `json:"seconds"`
		Dirty   *int64         `json:"dirty_bytes"`
		Cache   *int64         `json:"disk_cache_bytes"`
		Away    *int           `json:"groups_away"`
		Ops     map[string]int `json:"ops"`
	}
	c.eventually("what was delivered is in the disk cache", func() bool {
		return json.Unmarshal([]byte(c.run("stats", "--interval", "10ms", "--count", "1", "--format", "json", point)), &line) == nil && line.Cache != nil && *line.Cache >= 3*20_000
	})
	lines := strings.Split(c.run("stats", "--interval", "20ms", "--count", "2", "--format", "json", point), "\n")
	if len(lines) != 2 {
		c.t.Fatalf("stats: %q", lines)
	}
	if err := json.Unmarshal([]byte(lines[1]), &line); err != nil {
		c.t.Fatal(err)
	}
	if line.Seconds <= 0 || line.Dirty == nil || *line.Dirty != 0 || line.Away == nil || *line.Away != 0 || line.Ops == nil {
		c.t.Errorf("stats: %s", lines[1])
	}
	if out := strings.Split(c.run("stats", "--interval", "20ms", "--count", "2", point), "\n"); len(out) != 3 || len(strings.Fields(out[0])) != 13 || len(strings.Fields(out[2])) != 13 {
		c.t.Errorf("stats: %q", out)
	}
}

// checkProfile looks a name up again and again until a profile has ended.
func (c *cluster) checkProfile(point string) {
	c.t.Helper()
	cmd := c.command("admin", "profile", "--seconds", "1", "--by", "account", "--format", "json", point)
	type answer struct {
		out []byte
		err error
	}
	ended := make(chan answer, 1)
	go func() {
		out, err := cmd.Output()
		ended <- answer{out, err}
	}()
	var a answer
	for over := false; !over; {
		select {
		case a = <-ended:
			over = true
		default:
			if _, err := os.Stat(filepath.Join(point, "example.org", "alice", "new", "1")); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	var p struct {
		Seconds float64 `json:"seconds"`
		Rows    []struct {
			Op    string `json:"op"`
			Of    string `json:"of"`
			Count int    `json:"count"`
			Total int    `json:"total_ns"`
			Mean  int    `json:"mean_ns"`
			P99   int    `json:"p99_ns"`
		} `json:"rows"`
	}
	if err := json.Unmarshal(a.out, &p); err != nil || a.err != nil {
		c.t.Fatal(string(a.out), err, a.err)
	}
	found := false
	for _, r := range p.Rows {
		if r.Op == "lookup" && r.Of == "/example.org/alice" {
			found = r.Count > 0 && r.Mean > 0 && r.P99 > 0 && r.Total >= r.Mean
		}
	}
	if !found || p.Seconds < 1 {
		c.t.Errorf("profile: %s", a.out)
	}
}

// checkMountMetrics compares a mount's metrics with what happened and with the manual.
func (c *cluster) checkMountMetrics(addr string) {
	c.t.Helper()
	text := get(c.t, "http://"+addr+"/metrics")
	for _, line := range []string{
		`pillarbox_mount_op_seconds_count{op="create"} 3`, `pillarbox_mount_op_failed_total{op="create"} 0`, `pillarbox_mount_op_seconds_bucket{op="create",le="+Inf"} 3`,
		`pillarbox_mount_written_bytes_total 60000`, `pillarbox_mount_commits_total 3`, `pillarbox_mount_commit_bytes_total 60000`,
		`pillarbox_disk_cache_stored_total 3`, `pillarbox_disk_cache_away 0`, `pillarbox_client_groups_away 0`,
	} {
		if !strings.Contains(text, line+"\n") {
			c.t.Errorf("the metrics lack %s", line)
		}
	}
	if regexp.MustCompile(`(?m)^pillarbox_client_cache_hits_total\{what="names"\} 0$`).MatchString(text) {
		c.t.Error("no name was found in the client's cache")
	}
	manual, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		c.t.Fatal(err)
	}
	told := []string{"pillarbox_build_info"}
	for _, row := range regexp.MustCompile(`(?m)^.*\| (cluster's )?mount( with .--cache-dir.)? \|.*$`).FindAllString(string(manual), -1) {
		for _, m := range regexp.MustCompile("`(pillarbox_[a-z_]+)`").FindAllStringSubmatch(row, -1) {
			told = append(told, m[1])
		}
	}
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (pillarbox_\S+) `).FindAllStringSubmatch(text, -1) {
		shown[m[1]] = true
	}
	slices.Sort(told)
	if list := slices.Sorted(maps.Keys(shown)); !slices.Equal(told, list) {
		c.t.Errorf("docs/monitoring.md names %v, there are %v", told, list)
	}
}

// checkWarmup empties the disk cache of a mount, and fills it.
func (c *cluster) checkWarmup(point, cache string) {
	c.t.Helper()
	decode := func(to any, args ...string) {
		c.t.Helper()
		if err := json.Unmarshal([]byte(c.run(args...)), to); err != nil {
			c.t.Fatal(err)
		}
	}
	var dropped struct{ Bodies, Files int }
	decode(&dropped, "cache", "drop", "--format", "json", filepath.Join(point, "example.org", "alice", "new", "0"))
	if n := len(bodiesIn(cache)); dropped.Bodies != 1 || dropped.Files != 1 || n != 2 {
		c.t.Errorf("of one message: %+v, %d bodies left", dropped, n)
	}
	decode(&dropped, "cache", "drop", "--format", "json", filepath.Join(point, "example.org"))
	if n := len(bodiesIn(cache)); dropped.Bodies != 2 || dropped.Files != 3 || n != 0 {
		c.t.Errorf("of all: %+v, %d bodies left", dropped, n)
	}
	var warmed struct {
		Files  int
		Bytes  int
		Near   int `json:"near_bytes"`
		Failed int
	}
	decode(&warmed, "warmup", "--format", "json", filepath.Join(point, "example.org", "alice", "new", "0"))
	if warmed.Files != 1 || warmed.Bytes != 20_000 {
		c.t.Errorf("one message is warmed: %+v", warmed)
	}
	c.eventually("it is in the disk cache", func() bool { return len(bodiesIn(cache)) == 1 })
	decode(&warmed, "warmup", "--format", "json", point)
	if warmed.Files != 3 || warmed.Bytes != 40_000 || warmed.Near != 20_000 || warmed.Failed != 0 {
		c.t.Errorf("all is warmed: %+v", warmed)
	}
	c.eventually("all are in the disk cache", func() bool { return len(bodiesIn(cache)) == 3 })
	for i := range 3 {
		if b, err := os.ReadFile(filepath.Join(point, "example.org", "alice", "new", fmt.Sprint(i))); err != nil || string(b) != strings.Repeat("mail", 5000) {
			c.t.Errorf("message %d: %d bytes, %v", i, len(b), err)
		}
	}
	if out := c.run("cache", "stats", point); !strings.Contains(out, point) || !strings.Contains(out, "6 stored") {
		c.t.Errorf("cache stats:\n%s", out)
	}
	if _, err := c.try("warmup", c.dir); err == nil {
		c.t.Error("warmup of what is on no mount succeeds")
	}
}
