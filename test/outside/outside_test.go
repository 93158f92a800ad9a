// Package outside runs the drivers of outside pools against the real services that
// can be had on one machine, and Pillarbox on them.
package outside

import (
	"context"
	"os"
	"strings"
	"testing"

	"pillarbox/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// noSecrets: an error of a request that did not reach the store tells no secret.
func noSecrets(t *testing.T, secret string, request func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := request(ctx)
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("the error of a request: %v", err)
	}
}
