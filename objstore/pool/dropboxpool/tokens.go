package dropboxpool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

// tokens are the access tokens of one who has a refresh token.
type tokens struct {
	client               *http.Client
	url                  string
	refresh, key, secret string

	mu  sync.Mutex // held while a new one is got, which all wait for
	now string     // "": it has to be got
}

// drop says that a token has ended; false: there can be no other.
func (t *tokens) drop(token string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now == token && t.refresh != "" {
		t.now = ""
	}
	return t.now != token
}

func (t *tokens) get(ctx context.Context) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now != "" {
		return t.now, nil
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {t.refresh}, "client_id": {t.key}, "client_secret": {t.secret}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, strings.NewReader(form.Encode()))
	if err != nil {
		return "", fmt.Errorf("get an access token: %w: %w", objstore.Invalid, err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := t.client.Do(req)
	if err != nil {
		return "", fmt.Errorf("get an access token: %w: %w", objstore.Unavailable, err)
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusBadRequest: // the refresh token or the app are not known
		return "", fmt.Errorf("get an access token: %w: %s", objstore.NotPermitted, res.Status)
	case res.StatusCode != http.StatusOK:
		return "", fmt.Errorf("get an access token: %w", pool.StatusError(res.StatusCode, res.Header, errors.New(res.Status)))
	}
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&answer); err != nil || answer.Token == "" {
		return "", fmt.Errorf("get an access token: an answer without one: %w", objstore.Unavailable)
	}
	t.now = answer.Token
	return t.now, nil
}
