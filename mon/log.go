package mon

import (
	"log/slog"
	"maps"
	"slices"

	"go.uber.org/zap/zapcore"
)

// noise says whether a message tells an operator nothing.
func noise(msg string) bool {
	switch msg {
	case "Running http and grpc server on single port. This is not recommended for production.":
		return true // there is no server
	case "failed to update storage version", "Failed to detect schema version",
		"Failed to detect storage schema version. Please wait till wal snapshot before upgrading cluster.":
		return true // of every young store: its database names no version before the first snapshot
	}
	return false
}

// slogCore sends what etcd logs at warn and above to a slog.Logger.
type slogCore struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *slogCore) With(f []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log, fields: append(slices.Clip(c.fields), f...)}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !noise(e.Message) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(enc)
	}
	for _, f := range fields {
		f.AddTo(enc)
	}
	args := make([]any, 0, len(enc.Fields))
	for _, k := range slices.Sorted(maps.Keys(enc.Fields)) {
		args = append(args, slog.Any(k, enc.Fields[k]))
	}
	if e.Level >= zapcore.ErrorLevel {
		c.log.Error("etcd: "+e.Message, args...)
	} else {
		c.log.Warn("etcd: "+e.Message, args...)
	}
	return nil
}

func (c *slogCore) Sync() error { return nil }
