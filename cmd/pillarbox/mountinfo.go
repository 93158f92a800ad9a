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

// mountAt finds the topmost mount at exactly this absolute path; nil if there is none.
func mountAt(path string) (*mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	var top *mountEntry
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if e, ok := parseMountinfo(lines.Text()); ok && e.point == path {
			top = &e // later lines lie over earlier ones
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return top, nil
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
