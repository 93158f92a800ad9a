package main

import (
	"io"
	"slices"
	"testing"
	"time"

	"pillarbox/mon"
	"pillarbox/objstore"
)

func TestParseMountinfo(t *testing.T) {
	for line, want := range map[string]mountEntry{
		`36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`:            {`/mnt 2`, "ext3", "/dev/root"},
		`40 35 0:40 / /mail rw,nosuid - fuse.pillarbox pillarbox:/a\134b\011c\043 rw,user_id=0`:         {"/mail", fsType, "pillarbox:/a\\b\tc#"},
		`41 35 0:40 / /mail rw shared:1 master:2 unbindable - fuse.pillarbox pillarbox:/x rw,user_id=0`: {"/mail", fsType, "pillarbox:/x"},
	} {
		if got, ok := parseMountinfo(line); !ok || got != want {
			t.Errorf("%s: %+v, %v", line, got, ok)
		}
	}
	for _, line := range []string{"", "1 2 3", "36 35 98:0 /mnt1 /mnt2 rw,noatime"} {
		if got, ok := parseMountinfo(line); ok {
			t.Errorf("%q: %+v", line, got)
		}
	}
	if got := unescape(`\04`); got != `\04` {
		t.Errorf("a cut escape: %q", got)
	}
}

func TestArrange(t *testing.T) {
	app := newApp(io.Discard, io.Discard)
	for _, c := range []struct{ in, want []string }{
		{[]string{"p"}, []string{"p"}},
		{[]string{"p", "up", "M", "--data", "D"}, []string{"p", "up", "--data", "D", "--", "M"}},
		{[]string{"p", "up", "M", "--data=D", "--dirsync", "X"}, []string{"p", "up", "--data=D", "--dirsync", "--", "M", "X"}},
		{[]string{"p", "up", "--", "-M", "--data"}, []string{"p", "up", "--", "-M", "--data"}},
		{[]string{"p", "up", "M", "--data"}, []string{"p", "up", "--data"}},
		{[]string{"/sbin/mount.pillarbox", "S", "M", "-o", "rw"}, []string{"/sbin/mount.pillarbox", "mount", "-o", "rw", "--", "S", "M"}},
	} {
		if got := arrange(app, c.in); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestMountOptions(t *testing.T) {
	var o upOptions
	if err := o.parseMountOptions("rw,dirsync,_netdev,x-systemd.automount,noexec,suid,nosuid,volume_depth=3,timeout=10s,data=pillarbox:/srv"); err != nil {
		t.Fatal(err)
	}
	if !o.dirSync || !o.noExec || o.suid || o.volumeDepth != 3 || o.data != "/srv" || o.timeout != 10*time.Second {
		t.Errorf("%+v", o)
	}
	for _, bad := range []string{"ro", "nope=1", "volume_depth=x", "volume_depth=0", "timeout=10", "timeout=1ms"} {
		if err := o.parseMountOptions(bad); exitCode(err) != exitUsage {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{{"/a/b", "/a", true}, {"/a", "/a", true}, {"/a", "/", true}, {"/ab", "/a", false}, {"/a", "/a/b", false}, {"/a/..b", "/a", true}} {
		if got := within(c.path, c.dir); got != c.want {
			t.Errorf("within(%s, %s) = %v", c.path, c.dir, got)
		}
	}
}

func TestProgress(t *testing.T) {
	var st mon.Status
	for i, r := range []*mon.Report{
		nil,
		{Missing: 3, Moved: 1000, Pools: map[int]mon.PoolUse{1: {Chunks: 60}}},
		{Missing: 2, Moved: 500, Unchecked: true, Seen: 10, Pools: map[int]mon.PoolUse{1: {Chunks: 30}, 2: {Chunks: 10}}},
	} {
		st.OSDs = append(st.OSDs, mon.OSDStatus{OSDInfo: objstore.OSDInfo{ID: i}, Report: r})
	}
	if p := progressOf(&st); p != (progress{left: 5, looking: true, looked: 70, moved: 1500}) || p.String() != "5 chunks to go, 70 % of all looked at" {
		t.Errorf("progress %+v: %v", p, p)
	}
	st.OSDs = nil
	if p := progressOf(&st); p != (progress{looked: 100}) {
		t.Errorf("progress of nothing %+v", p)
	}
}
