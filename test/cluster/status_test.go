package cluster

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
)

// checkMetrics compares a monitor's metrics, while an OSD is down, with the manual.
func (c *cluster) checkMetrics() {
	c.t.Helper()
	res, err := http.Get("http://" + c.metrics + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, line := range []string{`pillarbox_health 1`, `pillarbox_health_check{code="OSD_DOWN"} 1`, `pillarbox_osd_up{osd="0"} 1`, `pillarbox_mons_in_quorum 1`} {
		if !strings.Contains(string(b), line+"\n") {
			c.t.Errorf("the metrics lack %s", line)
		}
	}
	manual, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		c.t.Fatal(err)
	}
	told := map[string]bool{"pillarbox_build_info": true}
	for _, row := range regexp.MustCompile(`(?m)^.*\| mon \|.*$`).FindAllString(string(manual), -1) {
		for _, m := range regexp.MustCompile("`(pillarbox_[a-z_]+)`").FindAllStringSubmatch(row, -1) {
			told[m[1]] = true
		}
	}
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (pillarbox_\S+) `).FindAllStringSubmatch(string(b), -1) {
		shown[m[1]] = true
	}
	if !maps.Equal(told, shown) {
		c.t.Errorf("docs/monitoring.md names %v, there are %v", told, shown)
	}
}

// TestStatus: status, df, and a status that is watched while an OSD dies.
func TestStatus(t *testing.T) {
	c := newCluster(t, 3)
	c.healthy(3)
	// Groups may still change their leaders, which status would tell.
	c.eventually("status tells of three OSDs, one monitor and HEALTH_OK", func() bool {
		out := c.run("status", "--conf", c.admin)
		return strings.Contains(out, "3: 3 up, 3 in") && strings.Contains(out, "1: 1 in the quorum") && strings.Contains(out, "HEALTH_OK")
	})
	var df struct {
		Total uint64 `json:"total_bytes"`
		Free  uint64 `json:"free_bytes"`
		Pools []struct {
			Name  string `json:"name"`
			Avail uint64 `json:"max_avail_bytes"`
		} `json:"pools"`
	}
	if err := json.Unmarshal([]byte(c.run("df", "--conf", c.admin, "--format", "json")), &df); err != nil {
		t.Fatal(err)
	}
	// Three replicas on three OSDs: a third of what is free.
	if len(df.Pools) != 2 || df.Free == 0 || df.Total < df.Free || df.Pools[1].Avail == 0 || df.Pools[1].Avail > df.Free/3+1<<20 {
		t.Errorf("df: %+v", df)
	}
	if out := c.run("df", "--conf", c.admin); !strings.Contains(out, "MAX AVAIL") {
		t.Errorf("df:\n%s", out)
	}
	watch := c.start("watch", "status", "-w", "--conf", c.admin)
	said := func(what string) func() bool {
		return func() bool {
			b, err := os.ReadFile(c.path("watch.log"))
			return err == nil && strings.Contains(string(b), what)
		}
	}
	c.eventually("the status is shown", said("3: 3 up, 3 in"))
	osd := c.all[2]
	c.kill(osd)
	c.eventually("the death is told", said("OSD_DOWN: 1 OSDs down"))
	c.checkMetrics()
	c.restart(osd)
	c.eventually("the return is told", said("OSD_DOWN is over"))
	c.stop(watch)
}
