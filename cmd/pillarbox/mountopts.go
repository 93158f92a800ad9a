package main

import (
	"strconv"
	"strings"
	"time"
)

// parseMountOptions reads what follows -o: options of this program, and those
// that mount(8) passes on from /etc/fstab. What would change the meaning of the
// mount and is not supported is refused.
func (o *upOptions) parseMountOptions(list string) error {
	if list == "" {
		return nil
	}
	for _, opt := range strings.Split(list, ",") {
		name, value, _ := strings.Cut(opt, "=")
		if err := o.parseMountOption(name, value); err != nil {
			return err
		}
	}
	return nil
}

func (o *upOptions) parseMountOption(name, value string) error {
	switch name {
	case "data":
		o.data = trimSource(value)
	case "volume-depth", "volume_depth":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			return usageError("mount option %s=%s: must be a number from 1 on", name, value)
		}
		o.volumeDepth = n
	case "dirsync", "sync":
		o.dirSync = true
	case "timeout":
		d, err := time.ParseDuration(value)
		if err != nil || d < time.Second {
			return usageError("mount option %s=%s: must be a time of 1s or more, as 30s", name, value)
		}
		o.timeout = d
	case "cache-dir", "cache_dir":
		o.cache.dir = value
	case "cache-size", "cache_size":
		o.cache.size = value
	case "cache-free", "cache_free":
		o.cache.free = value
	case "cache-ahead", "cache_ahead":
		o.cache.ahead = value
	case "cache-memory", "cache_memory":
		o.cache.memory = value
	case "metrics":
		o.metrics = value
	case "pprof":
		o.pprof = value
	case "nonempty":
		o.nonempty = true
	case "debug":
		o.debug = true
	case "log-file", "log_file":
		o.logFile = value
	case "log-format", "log_format":
		o.logFormat = value
	case "key-file", "key_file":
		o.keyFile = value
	case "encrypt":
		o.encrypt = true
	case "durability":
		o.ship.durability = value
	case "backlog":
		o.ship.backlog = value
	case "pack-after", "pack_after":
		d, err := time.ParseDuration(value)
		if err != nil || d < time.Second {
			return usageError("mount option %s=%s: must be a time of 1s or more, as 720h", name, value)
		}
		o.packAfter = d
	case "ship":
		o.ship.to = value
	case "pool":
		o.poolArgs = append(o.poolArgs, value)
	case "suid":
		o.suid = true
	case "nosuid":
		o.suid = false
	case "dev":
		o.dev = true
	case "nodev":
		o.dev = false
	case "noexec":
		o.noExec = true
	case "exec":
		o.noExec = false
	case "", "rw", "defaults", "auto", "noauto", "nofail", "nouser", "_netdev", "async",
		"noatime", "relatime", "nodiratime", "lazytime", "allow_other", "default_permissions":
		// true already, or meant for mount(8)
	default:
		if strings.HasPrefix(name, "x-") || name == "comment" {
			return nil
		}
		return usageError("unknown mount option %q", name)
	}
	return nil
}

// trimSource turns the source of a mount into its data directory.
func trimSource(s string) string { return strings.TrimPrefix(s, sourcePrefix) }
