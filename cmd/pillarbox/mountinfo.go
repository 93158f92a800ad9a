package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

const (
	fsType       = "fuse.pillarbox" // in mountinfo
	sourcePrefix = "pillarbox:"     // of the mount's source; the data directory follows
)

// mountEntry is one mount of this mount namespace.
type mountEntry struct {
	point, fstype, source string
}

// dataDir is the data directory of a Pillarbox mount.
func (m *mountEntry) dataDir() (string, bool) {
	if m == nil || m.fstype != fsType {
		return "", false
	}
	return strings.CutPrefix(m.source, sourcePrefix)
}

// eachMount calls fn for every mount of this mount namespace. Later ones lie over
// earlier ones.
func eachMount(fn func(mountEntry)) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if e, ok := parseMountinfo(lines.Text()); ok {
			fn(e)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	return nil
}

// mountAt finds the topmost mount at exactly this absolute path; nil if there is none.
func mountAt(path string) (top *mountEntry, err error) {
	err = eachMount(func(e mountEntry) {
		if e.point == path {
			top = &e
		}
	})
	return top, err
}

// ourMounts are the mount points of all Pillarbox mounts that this process can see.
func ourMounts() (points []string, err error) {
	err = eachMount(func(e mountEntry) {
		if _, ours := e.dataDir(); ours && !isDead(e.point) {
			points = append(points, e.point)
		}
	})
	return points, err
}

// parseMountinfo parses a line of /proc/self/mountinfo, see proc(5):
// ids, device, root, mount point, options, any number of tags, "-", type,
// source, options.
func parseMountinfo(line string) (mountEntry, bool) {
	f := strings.Split(line, " ")
	for i := 6; i+2 < len(f); i++ {
		if f[i] == "-" {
			return mountEntry{point: unescape(f[4]), fstype: unescape(f[i+1]), source: unescape(f[i+2])}, true
		}
	}
	return mountEntry{}, false
}

// unescape undoes the kernel's \ooo for space, tab, newline, backslash and '#'.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b = append(b, (s[i+1]-'0')<<6|(s[i+2]-'0')<<3|(s[i+3]-'0'))
			i += 3
			continue
		}
		b = append(b, s[i])
	}
	return string(b)
}

func octal(c byte) bool { return '0' <= c && c <= '7' }
