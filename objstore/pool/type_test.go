package pool

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"pillarbox/objstore"
)

func TestCheck(t *testing.T) {
	typ := Type{Settings: map[string]Setting{"bucket": {Needed: true}, "style": {Check: OneOf("a", "b")}, "prefix": {Check: Prefix}}}
	for _, c := range []struct {
		settings map[string]string
		good     bool
	}{
		{map[string]string{"bucket": "x"}, true},
		{map[string]string{"bucket": "x", "style": "b", "prefix": "a/b"}, true},
		{map[string]string{}, false},
		{map[string]string{"bucket": "x", "other": ""}, false},
		{map[string]string{"bucket": "x", "style": "c"}, false},
		{map[string]string{"bucket": "x", "prefix": "/a"}, false},
	} {
		if err := typ.Check(c.settings); (err == nil) != c.good || err != nil && !errors.Is(err, objstore.Invalid) {
			t.Errorf("%v: %v", c.settings, err)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "0.5": time.Second / 2, "-1": 0, "soon": 0, "1e300": maxRetryAfter, "NaN": 0,
		"Mon, 02 Jan 2006 15:04:05 GMT": 0, "Mon, 02 Jan 2996 15:04:05 GMT": maxRetryAfter,
	} {
		if got := RetryAfter(http.Header{"Retry-After": {text}}); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
