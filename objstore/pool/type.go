package pool

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"pillarbox/objstore"
)

// Type is one kind of outside store, and its driver.
type Type struct {
	Settings map[string]Setting // all that there are
	// Open makes a Store of settings that passed Check. It asks the store nothing.
	Open func(ctx context.Context, settings map[string]string) (Store, error)
}

// Setting is one thing that a driver is told.
type Setting struct {
	Needed bool
	Secret bool                     // it stays in the file of this host
	Check  func(value string) error // nil: everything goes
}

// Check says what is wrong with settings.
func (t Type) Check(settings map[string]string) error {
	for name, value := range settings {
		s, ok := t.Settings[name]
		if !ok {
			return fmt.Errorf("unknown setting %q: %w", name, objstore.Invalid)
		}
		if s.Check == nil {
			continue
		}
		if err := s.Check(value); err != nil {
			return fmt.Errorf("setting %q: %w: %w", name, err, objstore.Invalid)
		}
	}
	for name, s := range t.Settings {
		if s.Needed && settings[name] == "" {
			return fmt.Errorf("no %s: %w", name, objstore.Invalid)
		}
	}
	return nil
}

// OneOf is a Check for a setting with few values.
func OneOf(values ...string) func(string) error {
	return func(value string) error {
		if !slices.Contains(values, value) {
			return fmt.Errorf("%q: must be %s", value, strings.Join(values, " or "))
		}
		return nil
	}
}

// Prefix is a Check for what comes before the names of a pool's objects.
func Prefix(value string) error {
	if strings.HasPrefix(value, "/") || strings.HasSuffix(value, "/") {
		return fmt.Errorf("%q begins or ends with a slash", value)
	}
	return nil
}

// Below is what comes before an object's name, of a setting checked by Prefix.
func Below(prefix string) string {
	if prefix == "" {
		return ""
	}
	return prefix + "/"
}

// StatusError is the error of an answer by HTTP that is not what was asked for,
// with the kind that its status has in all of these protocols.
func StatusError(status int, header http.Header, err error) error {
	switch status {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", objstore.NotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %w", objstore.NotPermitted, err)
	case http.StatusRequestedRangeNotSatisfiable: // behind the end
		return fmt.Errorf("%w: %w", objstore.Corrupt, err)
	case http.StatusInsufficientStorage:
		return fmt.Errorf("%w: %w", objstore.NoSpace, err)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return &Throttled{After: RetryAfter(header), Err: err}
	}
	return fmt.Errorf("%w: %w", objstore.Unavailable, err)
}

// maxRetryAfter is as long as a store is believed that it wants no requests: longer
// than one who waits for it, shorter than what a wrong clock could say.
const maxRetryAfter = 5 * time.Minute

// RetryAfter is how long an answer says that no request is to be made; 0: it does
// not say.
func RetryAfter(header http.Header) time.Duration {
	text := header.Get("Retry-After")
	if n, err := strconv.ParseFloat(text, 64); err == nil && n > 0 {
		return time.Duration(min(n, maxRetryAfter.Seconds()) * float64(time.Second))
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(0, time.Until(at)), maxRetryAfter)
	}
	return 0
}
