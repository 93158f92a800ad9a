package osd

import (
	"fmt"
	"log/slog"
	"strings"
)

// badgerLogger passes badger's warnings and errors on to slog.
type badgerLogger struct{ log *slog.Logger }

func (l badgerLogger) Errorf(f string, v ...any)   { l.log.Error(badgerText(f, v)) }
func (l badgerLogger) Warningf(f string, v ...any) { l.log.Warn(badgerText(f, v)) }
func (l badgerLogger) Infof(string, ...any)        {}
func (l badgerLogger) Debugf(string, ...any)       {}

func badgerText(f string, v []any) string {
	return "database: " + strings.TrimSpace(fmt.Sprintf(f, v...))
}
